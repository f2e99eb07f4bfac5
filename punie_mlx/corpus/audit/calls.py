"""Checks of the calls of a row: can they be read, do they fit the tools that are offered, how are they spelled?

Types are judged by the row's own schemas. A value that is text where the schema wants a number, a list or an object,
and that reads as one, has lost its type on the way (`lost_type`): it can be restored. Any other value that does not
fit is a wrong argument (`bad_arguments`): only who wrote it knows what was meant.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from punie_mlx.corpus.audit.model import (
    ERROR,
    NOTE,
    WARNING,
    AuditRow,
    Broken,
    Call,
    Check,
    Corpus,
    Figure,
    Finding,
    by_split,
    each,
)
from punie_mlx.corpus.infer import kind
from punie_mlx.toolcalls import schema
from punie_mlx.toolcalls.calls import Tool

_CUT_TEXT = re.compile(r"""["'](?:arguments|parameters)["']\s*:\s*["']""")


def clip(text: str, length: int = 80) -> str:
    """The beginning of `text`, on one line."""
    shown = json.dumps(text[:length], ensure_ascii=False)[1:-1].replace('\\"', '"')
    return shown + (" …" if len(text) > length else "")


# ---- can they be read? ----


def broken_call(row: AuditRow, _: Corpus) -> Iterator[Finding]:
    for found in row.broken:
        yield row.finding(f"message {found.turn + 1}: {reason(found)}: {clip(found.raw)}")


def reason(broken: Broken) -> str:
    """Why the call cannot be read, where its text shows more than the reader says."""
    if broken.spelling == "fence" and _CUT_TEXT.search(broken.raw):
        return "the arguments are text, and it is cut off in the middle"
    return broken.reason


def mended_call(row: AuditRow, _: Corpus) -> Iterator[Finding]:
    for call in row.calls:
        if call.repaired:
            yield row.finding(f"message {call.turn + 1}: {call.name}: {call.repaired}: {clip(call.raw)}")


def encoded_arguments(row: AuditRow, _: Corpus) -> Iterator[Finding]:
    for call in row.calls:
        if call.encoded:
            yield row.finding(f"message {call.turn + 1}: the arguments of {call.name} are JSON text")


def empty_arguments(row: AuditRow, _: Corpus) -> Iterator[Finding]:
    """A call without arguments is no fault where the tool is known to need none."""
    for call in row.calls:
        known = row.offered.get(call.name)
        if not call.arguments and (known is None or known.get("properties")):
            yield row.finding(f"message {call.turn + 1}: {call.name} is called without arguments")


def leftover_fence(row: AuditRow, _: Corpus) -> Iterator[Finding]:
    found: Sequence[Call | Broken] = [*row.calls, *row.broken]
    turns = sorted({f.turn + 1 for f in found if f.spelling == "fence"})
    if turns:
        yield row.finding(f"a call in a fence in message {', '.join(map(str, turns))}")


# ---- do they fit their tools? ----


def no_tools(corpus: Corpus) -> Iterator[Finding]:
    """Said once for each split: it is a trait of the corpus, and a list of every row would help nobody."""
    for split, rows in corpus.splits.items():
        read = [r for r in rows if r.turns]
        without = [r for r in read if not r.tools]
        if without:
            calling = sum(1 for r in without if r.calls or r.broken)
            detail = f"{len(without)} of {len(read)} rows offer no tools, {calling} of them with calls"
            yield Finding("", f"{split}: {detail}", split=split)


def unknown_tool(row: AuditRow, _: Corpus) -> Iterator[Finding]:
    for call in row.calls:
        if row.offered and call.name not in row.offered:
            offered = ", ".join(sorted(row.offered))
            yield row.finding(f"message {call.turn + 1}: {call.name} is not offered, only {clip(offered, 120)}")


def bad_arguments(row: AuditRow, _: Corpus) -> Iterator[Finding]:
    tools = _tools(row)
    for call in row.calls:
        lost = {key for key, _ in lost_types(call, row)}
        problems = [
            *schema.check(call.name, call.arguments, tools),
            *schema.mismatches(call.name, call.arguments, tools),
        ]
        for problem in problems:
            if problem.kind != "unknown_tool" and problem.detail not in lost:
                what = _WORDS[problem.kind].format(problem.detail, problem.raw)
                yield row.finding(f"message {call.turn + 1}: {call.name}: {what}")


_WORDS = {
    "unknown_parameter": "it has no parameter {0!r}",
    "missing_required": "the required parameter {0!r} is missing",
    "type_mismatch": "{0!r} does not fit its schema: {1}",
}


def lost_type(row: AuditRow, _: Corpus) -> Iterator[Finding]:
    for call in row.calls:
        for key, value in lost_types(call, row):
            shown = f"{json.dumps(call.arguments[key], ensure_ascii=False)} for {json.dumps(value, ensure_ascii=False)}"
            yield row.finding(f"message {call.turn + 1}: {call.name}: {key!r} is text: {clip(shown)}")


def lost_types(call: Call, row: AuditRow) -> Iterator[tuple[str, Any]]:
    """Arguments of `call` that are text and, under the row's schema, another value: their names and that value."""
    tool = _tools(row).get(call.name)
    if tool is None:
        return
    for key, value in call.arguments.items():
        declared = tool.properties.get(key)
        if not isinstance(value, str) or declared is None or schema.fits(value, declared, tool.parameters):
            continue
        meant, problem = schema.coerce(value, declared, tool.parameters)
        if problem is None and not isinstance(meant, str):
            yield key, meant


def _tools(row: AuditRow) -> dict[str, Tool]:
    return {t.name: t for t in map(Tool.from_openai, row.tools)}


# ---- figures ----


def argument_types(rows: Sequence[AuditRow]) -> dict[str, int]:
    """How many arguments of each JSON type the calls have that can be read."""
    found = Counter(kind(v) for row in rows for call in row.calls for v in call.arguments.values())
    return dict(found.most_common())


FIGURES = (Figure("argument_types", "Arguments by JSON type", by_split(argument_types)),)

CHECKS = (
    Check(
        "broken_call", ERROR, "Calls that cannot be read",
        "A model that is trained on them writes calls that nobody can read. Write the call anew from its source, or "
        "drop the row: --fix puts it into quarantine.",
        each(broken_call),
    ),
    Check(
        "mended_call", WARNING, "Calls that had to be mended to be read",
        "Single quotes, Python literals, trailing commas: the call is clear, its spelling teaches a fault. --fix "
        "writes it properly.",
        each(mended_call),
    ),
    Check(
        "encoded_arguments", WARNING, "Arguments as JSON text",
        "Chat requests spell arguments as a string; templates expect an object, and some write the string with its "
        "quotes into the prompt. --fix writes the object.",
        each(encoded_arguments),
    ),
    Check(
        "empty_arguments", NOTE, "Calls without arguments",
        "Right for a tool that takes none; else the arguments were lost on the way here. Look at each.",
        each(empty_arguments),
    ),
    Check(
        "leftover_fence", WARNING, "Calls in Markdown fences",
        "No template writes calls so: the model learns a second spelling that the server has to guess. --fix makes "
        "structured calls of them; punie-mlx convert does it for a whole corpus, with tools.",
        each(leftover_fence),
    ),
    Check(
        "no_tools", WARNING, "Rows that offer no tools",
        "The server renders a block of tools into the prompt. Trained without one, the model answers another prompt "
        "than it saw. punie-mlx convert infers schemas from the calls; better, write the real ones into `tools`.",
        no_tools,
    ),
    Check(
        "unknown_tool", ERROR, "Calls to tools that are not offered",
        "They teach the model to invent tools. Add the tool to the row's `tools`, or correct its name.",
        each(unknown_tool),
    ),
    Check(
        "bad_arguments", ERROR, "Calls that do not fit their schema",
        "The tool would refuse them. Correct the arguments, or the schema where that is wrong.",
        each(bad_arguments),
    ),
    Check(
        "lost_type", ERROR, "Arguments that lost their type",
        "A number, list or object stands as text, against the schema: the tool would refuse it. --fix restores it.",
        each(lost_type),
    ),
)  # fmt: skip
