"""Calls whose values stand as plain text between tags: one reader, and `Dialect`, which says how a family spells them.

Nothing is escaped on these wires, so what ends a value needs a rule. Its closing tag ends it only where the next tag
shows that it did; any other tag in a value is data. A value that is never closed ends before the next parameter that
the tool declares, or where the end of its call is followed by the beginning of the next, or, when the model has
stopped by itself, at the first end of a call. Where token ids are given and the end of a block is a token, that token
ends the call wherever it stands, and the same characters spelled out are data.

In place of parameters a function may have its arguments as one JSON object, as some models slip into writing them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from punie_mlx.toolcalls.calls import Problem, dumps, escape
from punie_mlx.toolcalls.jsoncalls import opens
from punie_mlx.toolcalls.jsonstream import JsonArguments
from punie_mlx.toolcalls.schema import branches, coerce, is_plain_string, kind_of, loads, mismatches
from punie_mlx.toolcalls.sink import Sink
from punie_mlx.toolcalls.window import MORE, NO, Window, before_newline, first, literal, named
from punie_mlx.toolcalls.wire import MORE_OPENING, NO_OPENING, Format, Opening

_SPACES = re.compile(r"\s*")
_SPELLED_SPACES = re.compile(r"(?:\s|\\n)*")
_WORD = re.compile(r"[^\s<>\"'{}\[\]\\]*")
_WORD_LIMIT = 200
_ATTRIBUTE = r"\s+\w+\s*=\s*(?:\"[^\"]*\"|'[^']*'|\w+)"
_ATTRIBUTES = re.compile(rf"name\s*=\s*(?:\"([^\"]+)\"|'([^']+)'|([^\"'\s]+))((?:{_ATTRIBUTE})*)\s*/?")
_STRING = re.compile(r"\bstring\s*=\s*[\"']?(true|false)\b")
_TEXT = {"type": "string"}


@dataclass(frozen=True)
class Tag:
    """What names a function or a parameter: `opening`, the name, `closing`, and `then` after white space.

    `attributes`: between opening and closing stand attributes, of which `name` is the name.
    """

    opening: str
    closing: str = ">"
    then: str = ""
    attributes: bool = False


@dataclass(frozen=True)
class Dialect:
    """How a model family spells calls as tags; the defaults are those of Qwen3-Coder.

    function, function_end: around a function; without `function` its bare name follows the opener of the block, and
    without `function_end` the end of the block is its end.
    parameter, parameter_end: around a value.
    trim: one newline on either side of a value is framing; otherwise values are verbatim.
    spelled: models slip into writing a newline as backslash and n between tags, and JSON values with their quotes
    escaped; both are understood.
    open, close: the markers of a block, where they are not those of the `Format`.
    """

    function: Tag | None = Tag("<function=")
    function_end: str = "</function>"
    parameter: Tag = Tag("<parameter=")
    parameter_end: str = "</parameter>"
    trim: bool = False
    spelled: bool = False
    open: str = ""
    close: str = ""

    @property
    def ends_of_function(self) -> tuple[str, ...]:
        """The markers after which a function is over; the first is the proper one."""
        return (self.function_end, self.close) if self.function_end else (self.close,)

    # ---- openers ----

    def in_block(self, window: Window, at: int, sink: Sink, format: Format) -> Opening:
        """A call after the opener of a block."""
        end = literal(window, at, self.open or format.open)
        if end < 0:
            return MORE_OPENING if end == MORE else NO_OPENING
        spelling = _within(self, format.open, format.close)
        body = spelling.gap(window, end)
        found, name = spelling.opens(window, body)
        if found > 0:
            return Opening(body, Body(spelling, sink, name))
        if self.function is None and sink.tools and name not in sink.tools:
            name = ""  # a bare word that is cut off counts as a name only where it is known as one
        return Opening(found, name=name)

    def bare(self, window: Window, at: int, sink: Sink, format: Format) -> Opening:
        """A call without the opener of a block, if its tool is offered."""
        end, name = self.header(window, at)
        if end < 0 or name not in sink.tools:
            return MORE_OPENING if end == MORE and not name else NO_OPENING
        spelling = _within(self, format.open, format.close)
        follows = spelling.begins_arguments(window, end)
        return Opening(at, Body(spelling, sink, name)) if follows > 0 else Opening(follows, name=name)

    # ---- matchers ----

    def gap(self, window: Window, at: int) -> int:
        """The position after the white space at `at`, and at the end of the text after what may become white space."""
        found = (_SPELLED_SPACES if self.spelled else _SPACES).match(window.text, at)
        end = found.end() if found else at
        half = self.spelled and end + 1 == len(window.text) and window.text[end] == "\\"
        return end + 1 if half else end

    def header(self, window: Window, at: int) -> tuple[int, str]:
        """Match what names a function at `at`: the position after it, and the name."""
        if self.function is not None:
            return self._tag(self.function, window, at)[:2]
        found = _WORD.match(window.text, at)
        end = found.end() if found else at
        if end == len(window.text) and end - at <= _WORD_LIMIT:
            return MORE, ""
        return (end, window.text[at:end]) if 0 < end - at <= _WORD_LIMIT else (NO, "")

    def key(self, window: Window, at: int) -> tuple[int, str, str]:
        """Match what names a parameter at `at`: the position after it, the name, and what is said of its type.

        That is "true" or "false" where the tag tells whether the value is a string.
        """
        return self._tag(self.parameter, window, at)

    def _tag(self, tag: Tag, window: Window, at: int) -> tuple[int, str, str]:
        end, name = named(window, at, tag.opening, tag.closing)
        is_string = ""
        if end > 0 and tag.attributes:
            found = _ATTRIBUTES.fullmatch(name)
            if found is None:
                return NO, "", ""
            name = found[1] or found[2] or found[3]
            said = _STRING.search(found[4])
            is_string = said[1] if said else ""
        if end > 0 and tag.then:
            end = literal(window, self.gap(window, end), tag.then)
        return end, name, is_string

    def opens(self, window: Window, at: int) -> tuple[int, str]:
        """Match the name of a function with a legal continuation at `at`: the position after it, and the name."""
        end, name = self.header(window, at)
        if end < 0:
            return end, name
        follows = self.begins_arguments(window, end)
        return (end, name) if follows > 0 else (follows, name)

    def begins_arguments(self, window: Window, at: int) -> int:
        """Whether after white space comes what may follow the name of a function: also its arguments as JSON."""
        return _either(self.continues(window, at), self.json(window, self.gap(window, at)))

    def json(self, window: Window, at: int) -> int:
        """Whether a JSON object begins at `at`."""
        return opens(window, at) if window.text[at : at + 1] != "[" else NO

    def continues(self, window: Window, at: int) -> int:
        """Whether after white space comes a parameter, the end of the function, or of the block."""
        at = self.gap(window, at)
        return _either(self.key(window, at)[0], first(window, at, self.ends_of_function)[0])

    def ends(self, window: Window, at: int) -> int:
        """Match the end of a function and of its block at `at`."""
        end = literal(window, at, self.function_end)
        return end if end < 0 else literal(window, self.gap(window, end), self.close)

    def begins(self, window: Window, at: int) -> int:
        """Match the beginning of another block after white space."""
        end = literal(window, self.gap(window, at), self.open)
        return end if end < 0 else self.opens(window, self.gap(window, end))[0]

    @cached_property
    def candidates(self) -> re.Pattern[str]:
        """Finds where a tag that means something in a value may begin, by its first three characters."""
        markers = (self.parameter.opening, self.parameter_end, self.function_end, self.close)
        starts = {m[:3] for m in markers if m}
        cut = {s[:n] for s in starts for n in (1, 2)}
        return re.compile("|".join([*map(re.escape, sorted(starts)), *(re.escape(s) + r"\Z" for s in sorted(cut))]))


def _either(*found: int) -> int:
    """A match of several, or `MORE` where one may still come."""
    return best if (best := max(found)) > 0 else min(found)


@lru_cache(maxsize=64)
def _within(dialect: Dialect, open: str, close: str) -> Dialect:
    """`dialect` with the markers of the format that it is read in."""
    return replace(dialect, open=dialect.open or open, close=dialect.close or close)


class Body:
    """Reads the functions of one block, from what names the first one on; `done` when it is over.

    `step` is what is being read: it reads on and returns whether anything was decided.
    """

    step: Callable[[Window], bool]

    def __init__(self, spelling: Dialect, sink: Sink, name: str) -> None:
        self.done = False
        self._spelling = spelling
        self._sink = sink
        self._begin(name)

    def _begin(self, name: str) -> None:
        self._name = name
        self._tool = self._sink.tools.get(name)
        self._arguments: dict[str, Any] = {}
        self._problems: list[Problem] = []
        self.step = self._header

    def _header(self, window: Window) -> bool:
        end, _ = self._spelling.header(window, window.pos)
        self._sink.take(window, end)
        self._sink.start(self._name)
        at = self._spelling.gap(window, end)
        self.step = self._between
        if self._spelling.json(window, at) > 0:
            self._sink.take(window, at)
            self._json = JsonArguments(self._sink, self._spelling.ends_of_function)
            self.step = self._object
        return True

    def _object(self, window: Window) -> bool:
        """The arguments as one JSON object, as some models write them instead of parameters."""
        if not self._json.step(window):
            return window.ended and self._cut_off(window)
        if self._json.broken:
            self._sink.malformed(self._json.broken)
            self.done = True
        else:
            self._arguments = self._json.value()
            self._problems += [*self._json.problems(), *mismatches(self._name, self._arguments, self._sink.tools)]
            self.step = self._object_end
        return True

    def _object_end(self, window: Window) -> bool:
        """The end of the function after its JSON; a complete object needs none."""
        spelling = self._spelling
        at = spelling.gap(window, window.pos)
        end, marker = first(window, at, spelling.ends_of_function)
        if end == MORE and not window.ended:
            return False
        self._sink.take(window, max(end, window.pos))
        self._sink.finish(self._arguments, [*self._problems, *self._unclosed(marker == spelling.ends_of_function[0])])
        self.step, self.done = self._after, marker != spelling.function_end
        return True

    def _between(self, window: Window) -> bool:
        """Between parameters: the next one, or the end of the function."""
        spelling = self._spelling
        at = spelling.gap(window, window.pos)
        end, key, is_string = spelling.key(window, at)
        if end > 0:
            self._sink.take(window, end)
            self._begin_value(key, is_string)
            return True
        if spelling.function_end and (end := literal(window, at, spelling.function_end)) > 0:
            self._sink.take(window, end)
            self._finish()
            self.step = self._after
            return True
        if (end := literal(window, at, spelling.close)) > 0:
            self._sink.take(window, end)
            return self._over(not spelling.function_end)
        if not window.ended:
            return False
        if window.clean and at == len(window.text):
            return self._over(complete=False)
        return self._cut_off(window)

    def _over(self, complete: bool) -> bool:
        """The function ends, and the block with it."""
        self._finish(complete)
        self.done = True
        return True

    def _finish(self, complete: bool = True) -> None:
        self._sink.arguments("}" if self._arguments else "{}")
        self._sink.finish(self._arguments, [*self._problems, *self._unclosed(complete)])

    def _unclosed(self, complete: bool) -> list[Problem]:
        return [] if complete else [Problem("unclosed_function", self._name)]

    def _cut_off(self, window: Window) -> bool:
        self._sink.take(window, len(window.text))
        self._sink.cut_off(self._name)
        self.done = True
        return True

    def _after(self, window: Window) -> bool:
        """After a function: the end of the block, or another function in it; anything else is text again."""
        at = self._spelling.gap(window, window.pos)
        close = literal(window, at, self._spelling.close)
        if close > 0:
            self._sink.mark(window, close)
            self.done = True
            return True
        end, name = self._spelling.opens(window, at)
        if end > 0:
            self._sink.mark(window, at)
            self._begin(name)
            return True
        if MORE in (close, end) and not window.ended:
            return False
        self.done = True
        return True

    # ---- values ----

    def _begin_value(self, key: str, is_string: str) -> None:
        self._key = key
        self._search = self._spelling.candidates.search
        self._parts: list[str] = []
        self._at_start = False  # of a line, with nothing of the value before it
        self._bare_newline = False  # is what the value began with: a carriage return before its end is its own then
        self._looked = 0  # how far into the window no tag ends the value
        self._held: int | None = None  # the first end of a call that ends the value if nothing else does
        self._type(key, is_string)
        duplicate = key in self._arguments
        self._duplicate = duplicate
        self._streams = self._verbatim and not duplicate
        if not duplicate:
            self._sink.arguments(f"{', ' if self._arguments else '{'}{dumps(key)}: " + ('"' if self._streams else ""))
        self.step = self._value_start if self._spelling.trim else self._value

    def _type(self, key: str, is_string: str) -> None:
        """What the value may be: by the schema, and by the tag where the schema leaves it open."""
        self._root = self._tool.parameters if self._tool else {}
        declared = self._tool.properties if self._tool else {}
        self._schema = declared.get(key, {} if is_string else _TEXT)
        kinds = [kind_of(b) for b in branches(self._schema, self._root) if "enum" not in b and "const" not in b]
        self._verbatim = is_plain_string(self._schema, self._root) or (
            is_string == "true" and ("string" in kinds or None in kinds)
        )
        self._as_json = is_string == "false" and None in kinds

    def _value_start(self, window: Window) -> bool:
        """One newline after the opening tag is framing."""
        text, at = window.text, window.pos
        if not window.ended and (at == len(text) or text[at:] == "\r"):
            return False
        size = 2 if text.startswith("\r\n", at) else 1 if text.startswith("\n", at) else 0
        self._bare_newline = self._sink.take(window, at + size) == "\n"
        self._at_start = size > 0
        self.step = self._value
        return True

    def _value(self, window: Window) -> bool:
        text = window.text
        found = self._search(text, window.pos + self._looked)
        undecided = len(text)
        while found:
            at = found.start()
            end, problem = self._ending(window, at)
            if end >= 0:
                return self._end_value(window, at, end, problem)
            if end == MORE:
                undecided = min(undecided, at)
                if not window.ended:
                    break
            found = self._search(text, at + 1)
        if window.ended:
            return self._never_closed(window, undecided)
        stop = undecided if self._held is None else window.pos + self._held
        self._pass_on(window, stop)
        self._looked = undecided - window.pos
        self._held = None if self._held is None else stop - window.pos
        return False

    def _ending(self, window: Window, at: int) -> tuple[int, Problem | None]:
        """Whether the tag at `at` ends the value: where reading goes on, and what is wrong with such an end."""
        spelling = self._spelling
        end = literal(window, at, spelling.parameter_end)
        if end > 0:
            if window.ended and spelling.gap(window, end) == len(window.text):
                return end, None
            follows = spelling.continues(window, end)
            return (end if follows > 0 else follows), None
        new, key, _ = spelling.key(window, at) if self._after_newline(window, at) else (NO, "", "")
        call = self._call_ends(window, at)
        if call > 0 or (new > 0 and self._expected(key)):
            return at, Problem("unclosed_parameter", self._key)
        return _either(end, new if new < 0 else NO, call), None

    def _call_ends(self, window: Window, at: int) -> int:
        """Whether at `at` this call ends although the value was not closed: certain before a token, or the next call.

        Any other end of a call is held back, in case that nothing else ends the value.
        """
        spelling = self._spelling
        after = spelling.ends(window, at)
        if spelling.close in window.solid:
            return _either(after, literal(window, at, spelling.close))
        if after < 0 or window.barren:
            return after
        follows = spelling.begins(window, after)
        if follows < 0 and self._held is None and (follows == NO or window.ended):
            self._held = at - window.pos
        return follows

    def _after_newline(self, window: Window, at: int) -> bool:
        return window.text[at - 1] == "\n" if at > window.pos else self._at_start

    def _expected(self, key: str) -> bool:
        """Whether `key` may follow an unclosed value: not given yet, and declared where the tool is known."""
        given = key in self._arguments or key == self._key
        return not given and (self._tool is None or key in self._tool.properties)

    def _never_closed(self, window: Window, undecided: int) -> bool:
        """All text is there and nothing closed the value."""
        at = self._last_resort(window) if window.clean else NO
        if at < 0:
            self._pass_on(window, undecided)
            return self._cut_off(window)
        window.barren = True  # so that nothing looks through the rest for closing tags again
        return self._end_value(window, at, at, Problem("unclosed_parameter", self._key))

    def _last_resort(self, window: Window) -> int:
        """Where a value ends that nothing closed: at the first end of a call, or of a function on the last line."""
        if self._held is not None:
            return window.pos + self._held
        end = self._spelling.function_end
        at = window.text.rfind(end, window.pos) if end else NO
        last = at > 0 and window.text[at - 1] == "\n" and not window.text[at + len(end) :].strip()
        return at if last and literal(window, at, end) > 0 else NO

    def _pass_on(self, window: Window, to: int) -> None:
        """Consume the value up to `to`, but for a newline that may be framing."""
        to = before_newline(window.text, window.pos, to)
        if to > window.pos:
            self._add(self._sink.take(window, to))

    def _add(self, piece: str) -> None:
        self._at_start = False
        self._parts.append(piece)
        if self._streams:
            self._sink.arguments(escape(piece))

    def _end_value(self, window: Window, at: int, end: int, problem: Problem | None) -> bool:
        rest = window.text[window.pos : at]
        self._sink.take(window, end)
        if self._spelling.trim or problem:
            as_it_began = rest.endswith("\r\n") and not self._bare_newline
            rest = rest.removesuffix("\r\n" if as_it_began else "\n")
        if rest:
            self._add(rest)
        if problem:
            self._problems.append(problem)
        raw = "".join(self._parts)
        if self._duplicate:
            self._problems.append(Problem("duplicate_parameter", self._key, raw))
        else:
            self._arguments[self._key] = raw if self._streams else self._typed(raw)
            self._sink.arguments('"' if self._streams else dumps(self._arguments[self._key]))
        self.step = self._between
        return True

    def _typed(self, raw: str) -> Any:
        """The value of `raw` by its type; the text itself where it has none or does not fit."""
        if self._as_json:
            try:
                return loads(raw)
            except ValueError:
                pass
        value, wrong = coerce(raw, self._schema, self._root)
        if wrong and self._spelling.spelled and "\\" in raw:
            plain, still_wrong = coerce(_unescaped(raw), self._schema, self._root)
            if not still_wrong:
                self._problems.append(Problem("repaired", f"{self._key}: escaped quotes", raw))
                return plain
        if wrong:
            self._problems.append(Problem("type_mismatch", f"{self._key}: {wrong}", raw))
        return value


def _unescaped(text: str) -> str:
    """`text` with one level of JSON escapes taken away; itself where it has none."""
    try:
        return json.loads(f'"{text}"', strict=False)
    except ValueError:
        return text


def plain(value: Any) -> str:
    """A string as it stands, other values as JSON."""
    return value if isinstance(value, str) else dumps(value)
