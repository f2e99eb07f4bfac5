"""harmony (gpt-oss): every piece of text is a message, with a header that says what it is.

    <|channel|>analysis<|message|>THINKING<|end|>
    <|start|>assistant to=functions.NAME<|channel|>commentary json<|message|>{…}<|call|>
    <|start|>assistant<|channel|>final<|message|>ANSWER<|return|>

The model goes on after `<|start|>assistant`, so a turn may begin in the middle of a header. Who is called stands after
`to=`, in the role's part of the header or in the channel's. A message ends at a marker, or where the next one begins.

A marker that begins a message counts only where a whole header follows; else it is text, and so is the marker behind a
message whose header cannot be read. Where only text is given, a marker that ends a message is text, too, if more text
follows that ends in such a marker. The end of arguments is found by the strings and brackets of their JSON. Texts of
several messages are joined by a line break when they are shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from punie_mlx.toolcalls.calls import Problem, Tool, ToolCall, dumps, escape
from punie_mlx.toolcalls.grammar_calls import json_calls
from punie_mlx.toolcalls.grammar_rules import Frame, Rules, pattern
from punie_mlx.toolcalls.jsonstream import JsonArguments
from punie_mlx.toolcalls.schema import mismatches
from punie_mlx.toolcalls.sink import Sink
from punie_mlx.toolcalls.window import MORE, NO, Window, first, literal, spaces
from punie_mlx.toolcalls.wire import Format

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
CALL, END, RETURN = "<|call|>", "<|end|>", "<|return|>"
_ENDS = (END, CALL, RETURN)
_OPENS = (START, CHANNEL)
_MARKER = re.compile("|".join(map(re.escape, (*_ENDS, *_OPENS))))
_CHANNELS = ("analysis", "commentary", "final")
_PEOPLE = ("assistant", "user", "system", "developer", "all")  # what is sent to one of them is no call
_PYTHON = "python"  # a tool that is sent code instead of JSON

# The parts of a header: what each may say, and which marker leads on to which part.
_LONGEST = 200
_RUN = re.compile(rf"[^<\n]{{0,{_LONGEST}}}")
_TO = r"to=(?P<to>[^\s<]++)"
_ROLE = rf"(?P<role>(?!to=)\w[\w.:/-]*+(?!\S))?(?:\s*+{_TO}(?:\s++(?P<kind>[\w/+.-]++))?)?\s*+"
_PARTS = {
    "start": re.compile(rf"(?!\s*\Z){_ROLE}"),
    "role": re.compile(_ROLE),
    "channel": re.compile(rf"(?P<channel>\w++)(?:\s++{_TO})?(?:\s++(?P<kind>[\w/+.-]++))?\s*+"),
    "role's kind": re.compile(r"\s*+(?P<kind>[\w/+.-]++)?\s*+"),
    "kind": re.compile(rf"\s*+(?P<kind>(?!to=)[\w/+.-]++)?(?:\s++{_TO})?\s*+"),
}
_MORE = ("x", "=x", "o=x", "to=x")  # what a part that is still arriving may go on with
_AFTER = {START: "start", CHANNEL: "channel"}
_LEADS = {
    "start": {CHANNEL: "channel", CONSTRAIN: "role's kind", MESSAGE: ""},
    "role": {CHANNEL: "channel", CONSTRAIN: "role's kind", MESSAGE: ""},
    "role's kind": {CHANNEL: "channel", MESSAGE: ""},
    "channel": {CONSTRAIN: "kind", MESSAGE: ""},
    "kind": {MESSAGE: ""},
}
_LEADS_BY = {part: tuple(leads) for part, leads in _LEADS.items()}
_NAMED = re.compile(rf"(?<!\S){_TO}(?!\Z)")
# Words of a header that stand alone, as models leave them between messages.
_STRAY = re.compile(rf"\s*+(?:(?:assistant|{'|'.join(_CHANNELS)})\s*+)*+")
_STRAY_WORDS = ("assistant", *_CHANNELS, "to=")
_OUTSIDE, _INSIDE = re.compile(r"<|t(?=o=|o?\Z)"), re.compile("<")


def render(calls: Sequence[ToolCall]) -> str:
    """`calls` as gpt-oss's template writes them: what follows `<|start|>assistant`."""
    return f"{START}assistant".join(
        f" to=functions.{c.name}{CHANNEL}commentary json{MESSAGE}{dumps(c.arguments)}{CALL}" for c in calls
    )


class Header(NamedTuple):
    """What a header says. `end` is where its message begins; `NO`: it is none; `MORE`: the text ends within it."""

    end: int
    said: Mapping[str, str] = MappingProxyType({})

    @property
    def channel(self) -> str:
        role = self.said.get("role", "")
        return self.said.get("channel") or (role if role in _CHANNELS else "")

    @property
    def tool(self) -> str:
        """Who is called; "" where the message is for people."""
        to = self.said.get("to", "")
        return "" if to in _PEOPLE else to.removeprefix("functions.")

    @property
    def is_code(self) -> bool:
        return self.said.get("to") == _PYTHON and self.said.get("kind") != "json"


def header(window: Window, at: int, part: str) -> Header:
    """Match what is left of a header, from `part` at `at` on, up to the message."""
    text, said = window.text, {}
    while part:
        found = _RUN.match(text, at)
        run = found[0] if found else ""
        stop = at + len(run)
        all_there = stop < len(text) or len(run) == _LONGEST
        words = _PARTS[part].fullmatch(run)
        if words is None and (all_there or not any(_PARTS[part].fullmatch(run + more) for more in _MORE)):
            return Header(NO)
        if named := _NAMED.search(run if not all_there else run + "<"):
            said["to"] = named["to"]
        end, marker = first(window, stop, _LEADS_BY[part]) if all_there else (MORE, "")
        if end < 0 or words is None:
            return Header(end, said)
        said |= {key: value for key, value in words.groupdict().items() if value}
        at, part = end, _LEADS[part][marker]
    return Header(at, said)


def _is_end(window: Window, at: int) -> int:
    """Whether the marker before `at` ends its message: not where text follows that ends in such a marker itself."""
    found = _MARKER.search(window.text, at)
    if found is None:
        return at if window.ended else MORE
    return at if found[0] in _OPENS or found.start() == spaces(window, at) else NO


def _token(window: Window) -> int:
    """Where the first token of a marker stands in the window, -1 without one."""
    if not window.solid:
        return -1
    places = (m.start() for m in _MARKER.finditer(window.text, window.pos))
    return next((at for at in places if window.is_token(at)), -1)


class Reader:
    """Reads a turn, message by message."""

    def __init__(self, format: Format, sink: Sink) -> None:
        self._sink = sink
        self._begun = sink.in_reasoning  # whether there was a message
        self._headless = not self._begun  # whether a header without its first marker may stand here
        self._bare = True  # whether no text has come since the last message
        self._broken = False  # whether that text began with a marker whose header cannot be read
        self._step = self._message if self._begun else self._between
        self._tool = ""
        self._arguments = JsonArguments(sink, _ENDS)
        self._code: list[str] = []

    def step(self, window: Window) -> bool:
        """Read on; return whether there may be more to decide."""
        return self._step(window)

    def where(self, window: Window) -> str:
        """Between messages, or in the header of a call; text outside of messages is part of the answer."""
        if self._step != self._between or not self._bare:
            return ""
        return "call" if "to=" in window.text[window.pos :] else "between"

    # ---- between messages ----

    def _between(self, window: Window) -> bool:
        if self._headless:
            decided = self._rest_of_header(window)
            if decided == MORE:
                return False
            self._headless = False
            if decided != NO:
                return True
        return self._text(window, _OUTSIDE, self._begins_or_ends)

    def _rest_of_header(self, window: Window) -> int:
        """A header without its first marker, or stray words of one before the next marker or the end."""
        text, at = window.text, window.pos
        found = _STRAY.match(text, at)
        stop = found.end() if found else at
        rest = text[stop : stop + len("commentary")]
        marked = rest.startswith(("<", "to="))
        begins_word = not marked and any(word.startswith(rest) for word in _STRAY_WORDS)
        if stop - at > _LONGEST or not (begins_word or marked):
            return NO
        if rest.startswith("to=") and not window.ended and stop + _LONGEST > len(text) and text.find(">", stop) < 0:
            return MORE  # a header has at least one marker to come
        if marked and self._begun and first(window, stop, _ENDS)[0] > 0:
            return self._stray(window, stop) if stop > at else NO
        if begins_word and not window.ended:
            return MORE
        if not rest:
            return self._stray(window, stop) if self._begun or text[at:].isspace() else NO
        entered = self._enter(window, header(window, spaces(window, at), "role"))
        return entered if entered != NO else self._stray_before_marker(window, stop)

    def _stray_before_marker(self, window: Window, at: int) -> int:
        end, marker = first(window, at, (*_OPENS, *_ENDS) if self._begun else _OPENS)
        if marker in _OPENS:
            end = header(window, end, _AFTER[marker]).end
        if end == MORE and not window.ended:
            return MORE
        return self._stray(window, at) if at > window.pos and marker and end != NO else NO

    def _stray(self, window: Window, to: int) -> int:
        self._sink.mark(window, to)
        return to

    def _begins_or_ends(self, window: Window, at: int) -> int:
        """A message begins at `at`, or the end of one that is over is marked."""
        if literal(window, at, "to=") != NO:
            return self._enter(window, header(window, at, "role"))
        end, marker = first(window, at, (*_OPENS, *_ENDS))
        if end < 0:
            return end
        if marker in _OPENS:
            entered = self._enter(window, header(window, end, _AFTER[marker]))
            self._broken = self._broken or (self._begun and self._bare and entered == NO)
            return entered
        if self._broken:
            self._broken = False
            return NO
        if not self._begun and marker not in window.solid:
            after = spaces(window, end)
            if after < len(window.text):
                return NO
            if not window.ended:
                return MORE
        return self._leave(window, end)

    def _enter(self, window: Window, found: Header) -> int:
        """A message with this header begins."""
        if found.end == NO or (found.end == MORE and not window.ended):
            return found.end
        if found.end == MORE:
            return self._cut_header(window, found)
        self._begun = True
        self._sink.in_reasoning = found.channel == "analysis"
        if not found.tool:
            self._sink.mark(window, found.end)
            self._step = self._message
            return found.end
        self._tool = found.tool
        self._sink.take(window, found.end)
        self._sink.start(found.tool)
        self._arguments, self._code = JsonArguments(self._sink, _ENDS), []
        self._step = self._begin_code if found.is_code else self._begin_arguments
        return found.end

    def _cut_header(self, window: Window, found: Header) -> int:
        """The text ends within a header: a call if its name is known, text if that is cut, framing if there is none."""
        end, rest = len(window.text), window.text[window.pos :]
        self._sink.in_reasoning = False
        if found.tool:
            self._sink.take(window, end)
            self._sink.cut_off(found.tool)
        elif not window.clean and "to=" not in rest and any(marker in rest for marker in _OPENS):
            self._sink.mark(window, end)
        else:
            self._sink.text(window, end)
        return end

    def _leave(self, window: Window, end: int) -> int:
        """A message is over, and so is the marker that ends it."""
        self._sink.mark(window, end)
        return self._over(end)

    def _over(self, end: int) -> int:
        self._sink.in_reasoning = False
        self._headless, self._begun = True, True
        self._bare, self._broken = True, False
        self._step = self._between
        return end

    # ---- messages for people ----

    def _message(self, window: Window) -> bool:
        return self._text(window, _INSIDE, self._ends)

    def _text(self, window: Window, hint: re.Pattern[str], decide: Callable[[Window, int], int]) -> bool:
        """Pass text on up to where something may begin or end, and decide that."""
        found = hint.search(window.text, window.pos)
        at = found.start() if found else len(window.text)
        self._bare = self._bare and at == window.pos
        self._sink.text(window, at)
        if found is None:
            return False
        decided = decide(window, at)
        if decided == MORE and not window.ended:
            return False
        if decided < 0:
            self._bare = False
            self._sink.text(window, at + 1)
        return True

    def _ends(self, window: Window, at: int) -> int:
        """The message ends at `at`, with a marker or with the next message."""
        end, marker = first(window, at, (*_ENDS, *_OPENS))
        if end < 0:
            return end
        if marker in _OPENS:
            return self._enter(window, header(window, end, _AFTER[marker]))
        ends = end if marker in window.solid else _is_end(window, end)
        return self._leave(window, end) if ends > 0 else ends

    # ---- calls ----

    def _begin_arguments(self, window: Window) -> bool:
        """Nothing at all between the header and the end of the message are no arguments."""
        at = spaces(window, window.pos)
        end = first(window, at, _ENDS)[0]
        if end == MORE and not window.ended:
            return False
        if end > 0:
            self._sink.take(window, at)
            self._sink.arguments("{}")
            self._finish({}, [Problem("repaired", "no arguments")])
        else:
            self._step = self._read_arguments
        return True

    def _read_arguments(self, window: Window) -> bool:
        stop = _token(window)
        if stop >= 0:
            return self._read_last(window, stop)
        if self._arguments.step(window):
            if self._arguments.done:
                self._finish(self._arguments.value(), self._arguments.problems())
            else:
                self._step = self._skip_broken
            return True
        return window.ended and self._cut_off(window)

    def _read_last(self, window: Window, stop: int) -> bool:
        """The rest of the arguments, up to the token of a marker: that ends the message even inside a string."""
        rest = Window(window.solid)
        rest.text, rest.pos, rest.ended = window.text[:stop], window.pos, True
        over = self._arguments.step(rest)
        window.pos = rest.pos
        if over and self._arguments.done:
            self._finish(self._arguments.value(), self._arguments.problems())
        else:
            self._sink.take(window, stop)
            self._sink.malformed(self._arguments.broken or "the message ends before its arguments do")
            self._over(0)
        return True

    def _finish(self, arguments: dict[str, Any], problems: Sequence[Problem]) -> None:
        found = mismatches(self._tool, arguments, self._sink.tools)
        self._sink.finish(arguments, [*problems, *found])
        self._over(0)

    def _cut_off(self, window: Window) -> bool:
        self._sink.take(window, len(window.text))
        self._sink.cut_off()
        self._over(0)
        return True

    def _skip_broken(self, window: Window) -> bool:
        """What cannot be read goes up to the marker that ends the message, or to the next message."""
        at = window.text.find("<", window.pos)
        self._sink.take(window, at if at >= 0 else len(window.text))
        if at < 0:
            if window.ended:
                self._malformed()
            return window.ended
        end, marker = first(window, at, (*_ENDS, *_OPENS))
        if marker in _OPENS:
            end = header(window, end, _AFTER[marker]).end
        if end == MORE and not window.ended:
            return False
        if end > 0:
            self._malformed()
        else:
            self._sink.take(window, at + 1)
        return True

    def _malformed(self) -> None:
        self._sink.malformed(self._arguments.broken)
        self._over(0)

    def _begin_code(self, window: Window) -> bool:
        self._sink.arguments('{"code": "')
        self._step = self._read_code
        return True

    def _read_code(self, window: Window) -> bool:
        """Code for `python`: all of it up to a marker that ends the message, and after which nothing else stands."""
        at = window.text.find("<", window.pos)
        self._add_code(window, at if at >= 0 else len(window.text))
        if at < 0:
            return window.ended and (self._finish_code() if window.clean else self._cut_off(window))
        end, marker = first(window, at, _ENDS)
        if end > 0 and marker not in window.solid:
            after = spaces(window, end)
            end = first(window, after, _OPENS)[0] if after < len(window.text) else end if window.ended else MORE
        if end == MORE and not window.ended:
            return False
        if end < 0:
            self._add_code(window, at + 1)
            return True
        return self._finish_code()

    def _add_code(self, window: Window, to: int) -> None:
        piece = self._sink.take(window, to)
        self._code.append(piece)
        self._sink.arguments(escape(piece))

    def _finish_code(self) -> bool:
        self._sink.arguments('"}')
        self._finish({"code": "".join(self._code)}, [])
        return True


def grammar(rules: Rules, format: Format, tools: Sequence[Tool]) -> Frame:
    """The calls that `render` writes, as rules; the recipient may stand behind the channel, too."""
    end = rules.spell(CALL)
    in_role = json_calls(rules, tools, rules.spell(f"{CHANNEL}commentary json{MESSAGE}"), end)
    kinds = " | ".join(rules.spell(kind) for kind in (f" {CONSTRAIN}json", f"{CONSTRAIN}json", " json"))
    in_channel = json_calls(rules, tools, f"({kinds})? {rules.spell(MESSAGE)}", end)
    to = [f'" to=functions." {in_role}', f"{rules.spell(f'{CHANNEL}commentary to=functions.')} {in_channel}"]
    return Frame(
        rules.any_of("call", to),
        between=f"{START}assistant",
        never=tuple(map(pattern, (START, CHANNEL, CONSTRAIN, MESSAGE, *_ENDS))),
        think=(f"{CHANNEL}analysis{MESSAGE}", f"{END}{START}assistant"),
        answer=(f"{CHANNEL}final{MESSAGE}", ""),
    )


FORMAT = Format(
    "harmony",
    render,
    open=CHANNEL,
    close=CALL,
    think=("", ""),
    ends=(RETURN, END, START),
    joint="\n",
    reader=Reader,
    grammar=grammar,
)
