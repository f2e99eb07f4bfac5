"""What holds for every reading, as checks: for tests, for fuzzing, and for whoever writes a `Format` of their own.

faults(text, events)  →  what the events of `text` break: nothing is lost, deltas join to the arguments, …
merged(events)        →  events as they would be in one piece: equal for every chunking of one text
pieces(format)        →  the strings that mean something in a format, to make garbage of
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from punie_mlx.toolcalls.calls import (
    ArgumentsDelta,
    CallFinished,
    CallStarted,
    Event,
    Malformed,
    Marker,
    Reasoning,
    Text,
    ToolCall,
)
from punie_mlx.toolcalls.wire import Format

SAMPLE = ToolCall("run", {"a": "x y", "b": 12, "c": [True, None, {"k": 1.5}]})
# What a format also reads, beside what it renders.
OTHER_SPELLINGS = {
    "qwen3_coder": ('<tool_call>{"name": "run", "arguments": {"a": "x"}}</tool_call>', "<function=run></function>"),
    "hermes": ("<tool_call>[{'name': 'run', 'parameters': {'a': None,}},]</tool_call>",),
    "smollm3": ("<code>\nprint(1)\n</code>", "<tool_response>"),
    "harmony": (
        "<|start|>assistant to=functions.run<|channel|>commentary <|constrain|>json<|message|>{}<|call|>",
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Sure.<|return|>",
    ),
    "mistral": ('[TOOL_CALLS]run[CALL_ID]abc[ARGS]{"a": "x"}', '[TOOL_CALLS] [{"name": "run", "arguments": {}}]'),
    "llama3_json": (
        '<|python_tag|>{"name": "run", "parameters": {}}; {',
        '<|python_tag|>run.call(a="x")',
        "<|eom_id|>",
    ),
    "pythonic": ("[run(a='x', b=-1), f(x={'k': [True, None]})]", '<|python_start|>run(**{"a": 1})<|python_end|>'),
    "kimi": ('<|tool_call_begin|>run<|tool_call_argument_begin|>{"a": "x"}<|tool_call_end|>',),
    "minimax": ('<invoke name="run"><parameter name="a">x</parameter></invoke>',),
    "deepseek": (
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>run\n```json\n{}\n```<｜tool▁call▁end｜>",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="run">\n<｜DSML｜parameter name="a" string="true">x'
        "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
    ),
    "gemma": ("<start_function_call>call:run{a:<escape>x<escape>,b:1}<end_function_call>", "<|channel>thought\n"),
    "json_fence": ('```\n[{"name": "run", "arguments": "{}"}]\n```', "~~~"),
}
_PART = re.compile(r"\w+|\s+|[^\w\s]+")
_BRACKET_OR_STRING = re.compile(r'[{}\[\]]|"(?:[^"\\]|\\.)*("|\\?\Z)', re.DOTALL)
_OPEN_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_ENDINGS = ("", "0", ":0", '"":0', "rue", "ue", "e", "alse", "lse", "se", "ull", "ll", "l")


def faults(text: str, events: Sequence[Event]) -> list[str]:
    """What the events of reading all of `text` break of the contract, in words; empty where they keep it."""
    found = []
    shown = "".join(written(e) for e in events)
    if shown != text:
        at = next((i for i, (a, b) in enumerate(zip(shown, text, strict=False)) if a != b), min(len(shown), len(text)))
        found.append(f"text is lost or made up at {at}: {shown[at : at + 40]!r} for {text[at : at + 40]!r}")
    return [*found, *_order(events)]


def written(event: Event) -> str:
    """The characters of the text that `event` stands for."""
    match event:
        case Text() | Reasoning() | Marker():
            return event.text
        case CallFinished() | Malformed():
            return event.raw
    return ""


def _order(events: Sequence[Event]) -> Iterator[str]:
    """Calls begin, grow and end one after the other, and what was sent of each is what it was in the end."""
    index, name, sent = 0, None, ""  # of the open call; without a name none is open
    for event in events:
        match event:
            case CallStarted():
                if name is not None or event.index != index:
                    yield f"call {event.index} begins where call {index} is {'open' if name else 'next'}"
                name, sent = event.name, ""
            case ArgumentsDelta():
                if name is None or event.index != index:
                    yield f"arguments of call {event.index}, which is not open"
                sent += event.json
            case CallFinished():
                if (event.index, event.call.name) != (index, name):
                    yield f"call {event.index} of {event.call.name!r} ends, and call {index} of {name!r} is open"
                if not _joins(sent, event.call.arguments):
                    yield f"the deltas {sent[:200]!r} do not join to {str(event.call.arguments)[:200]}"
                index, name = index + 1, None
            case Malformed():
                if event.index is not None:
                    if name is None or event.index != index:
                        yield f"call {event.index} breaks, which is not open"
                    if not is_json_prefix(sent):
                        yield f"the deltas {sent[-200:]!r} begin no JSON"
                    index, name = index + 1, None
                elif name is not None:
                    yield f"call {index} of {name!r} is left open by a malformed one"
                if event.truncated and (event.index is None or not is_json_prefix(event.arguments)):
                    yield f"call {event.index} is cut off, with the arguments {event.arguments[-200:]!r}"
    if name is not None:
        yield f"call {index} of {name!r} never ends"


def _joins(sent: str, arguments: dict[str, Any]) -> bool:
    try:
        return json.dumps(json.loads(sent), allow_nan=False) == json.dumps(arguments, allow_nan=False)
    except ValueError:
        return False
    except RecursionError:
        return True  # too deep for this check only


def is_json_prefix(text: str) -> bool:
    """Whether JSON text can begin with `text`."""
    closers, found = "", None
    for found in _BRACKET_OR_STRING.finditer(text):
        bracket = found.group()
        if bracket in ("{", "["):
            closers = ("}" if bracket == "{" else "]") + closers
        elif bracket in ("}", "]"):
            if closers[:1] != bracket:
                return False
            closers = closers[1:]
    if found and found.group().startswith('"') and found.group(1) != '"':  # an open string, maybe an open escape in it
        begun = (text + '"', _OPEN_ESCAPE.sub("", text) + '"')
    else:
        begun = (text,)
    return not text.strip() or any(_is_json(b + ending + closers) for b in begun for ending in _ENDINGS)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    except RecursionError:
        pass
    return True


def merged(events: Sequence[Event]) -> list[Event]:
    """`events` with neighbours of one kind joined, as whoever reads the stream puts them together."""
    out: list[Event] = []
    for event in events:
        last = out[-1] if out else None
        match event, last:
            case (Text(), Text()) | (Reasoning(), Reasoning()) | (Marker(), Marker()):
                out[-1] = type(event)(last.text + event.text)
            case ArgumentsDelta(), ArgumentsDelta() if event.index == last.index:
                out[-1] = ArgumentsDelta(event.index, last.json + event.json)
            case _:
                out.append(event)
    return out


def markers(format: Format) -> tuple[str, ...]:
    """The strings of `format` that can be control tokens of a vocabulary."""
    return tuple(dict.fromkeys(m for m in (format.open, format.close, *format.think, *format.ends) if m))


def pieces(format: Format) -> tuple[str, ...]:
    """The strings that mean something in `format`: its markers, calls in all its spellings, and every part of these."""
    rendered = format.render([SAMPLE])
    out = [*markers(format), rendered, format.render([SAMPLE, ToolCall("run", {})])]
    for text in (rendered, *OTHER_SPELLINGS.get(format.name, ())):
        parts = _PART.findall(text)
        out += [text, text[: len(text) // 2], text[len(text) // 2 :], *parts, *map("".join, pairwise(parts))]
    return tuple(dict.fromkeys(out))
