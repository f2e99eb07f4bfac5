"""What training rows teach against what this template and its reader expect.

The rows are read as the audit reads them. What each row would be, were it right, is the converter's answer: calls as
`tool_calls`, results as `tool` turns; rendered turn by turn, that is what the server shows the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sized
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from punie_mlx.chat.messages import for_template, tools_for_template
from punie_mlx.chat.render import Conversation, encode, render
from punie_mlx.chat.turns import shared, turn
from punie_mlx.corpus.audit.model import TRAIN, AuditRow, Call
from punie_mlx.corpus.audit.read import RESULT, read_file
from punie_mlx.corpus.audit.repair import repair
from punie_mlx.corpus.convert import source_files
from punie_mlx.corpus.infer import infer_tools
from punie_mlx.corpus.structure import BadRow
from punie_mlx.doctor import cases, roundtrip
from punie_mlx.doctor.excerpts import piece, short
from punie_mlx.doctor.findings import Check, Finding, Shown, Skip
from punie_mlx.doctor.specimen import Specimen
from punie_mlx.errors import DataError
from punie_mlx.toolcalls.calls import ToolCall

Messages = list[dict[str, Any]]
_BEFORE, _AFTER = 3, 6  # tokens that are shown around the first that differs
_REACH = 60  # characters, likewise


@dataclass(frozen=True)
class DataSubject:
    """Rows and the template under examination: at most `limit` rows of each file. Raises `DataError`."""

    specimen: Specimen
    rows_path: Path
    limit: int = 200

    def __post_init__(self) -> None:
        if not self.rows:
            raise DataError(f"{self.rows_path} holds no rows: give a directory with train.jsonl, or a .jsonl file")

    @cached_property
    def rows(self) -> list[AuditRow]:
        """All that is looked at."""
        path = Path(self.rows_path)
        files = [path] if path.is_file() else source_files(path)
        files = sorted(files, key=lambda f: (f.stem != TRAIN, f.name))
        return [_as_text(row) for f in files for row in islice(read_file(f), self.limit)]

    @cached_property
    def _served(self) -> dict[str, Served | None]:
        return {}

    def served(self, row: AuditRow) -> Served | None:
        """`row` as a server shows it; None where it cannot be told."""
        if row.where not in self._served:
            self._served[row.where] = _served(row)
        return self._served[row.where]


def _as_text(row: AuditRow) -> AuditRow:
    """`row`, or a bad one where no tokenizer can read what it says."""
    try:
        json.dumps(row.raw, ensure_ascii=False).encode()
        return row
    except UnicodeEncodeError:
        problem = "half of a surrogate pair stands alone, which is no text"
        return AuditRow(row.split, row.file, row.line, row.text, row.raw, "bad", problem)


@dataclass(frozen=True)
class Served:
    """Messages and tools of a row as they come to a server."""

    messages: Messages
    tools: list[dict[str, Any]]

    @property
    def turns(self) -> list[int]:
        """Where the assistant speaks, with something before it."""
        return [i for i, m in enumerate(self.messages) if m["role"] == "assistant" and i]


def _served(row: AuditRow) -> Served | None:
    try:
        mended = repair(row)
    except BadRow:
        return None
    tools = row.tools or list(infer_tools({"name": c.name, "arguments": c.arguments} for c in row.calls).values())
    return Served(for_template(mended["messages"]), tools_for_template(tools))


def _count(found: Sized, of: Sized) -> str:
    return f"{len(found)} of {len(of)} rows"


# ---- rows and calls that cannot be read ----


def data_broken(subject: DataSubject) -> Iterator[Finding]:
    bad = [r for r in subject.rows if r.format == "bad"]
    broken = [r for r in subject.rows if r.broken]
    if not bad and not broken:
        return
    told = [f"{_count(bad, subject.rows)} are no rows"] if bad else []
    told += [f"{_count(broken, subject.rows)} hold calls that cannot be read"] if broken else []
    shown = [Shown(r.where, f"{r.problem}: {short(r.text)}") for r in bad[:1]]
    shown += [Shown(r.where, f"{r.broken[0].reason}: {short(r.broken[0].raw)}") for r in broken[:2]]
    yield Finding(
        "data-broken",
        "high",
        "; ".join(told),
        tuple(shown),
        "Training stops at them, or teaches the model calls that no reader can read.",
        "`punie-mlx convert IN OUT --model DIR` puts them aside, each with its reason.",
    )


# ---- how calls and results are written ----


def data_call_format(subject: DataSubject) -> Iterator[Finding]:
    wire = subject.specimen.wire
    if wire is None:
        raise Skip("no wire format is known: no-format says so")
    wrong = [(row, call) for row in subject.rows for call in row.calls[:1] if _foreign(row, call, wire.name)]
    if not wrong:
        return
    row, call = wrong[0]
    places = sorted({"in fences" if c.spelling == "fence" else "in tags" for _, c in wrong})
    yield Finding(
        "data-call-format",
        "high",
        f"{_count(wrong, subject.rows)} hold calls as text, {' and '.join(places)}; this template writes them as "
        f"{wire.name}, from tool_calls",
        (Shown(row.where, short(call.raw)), *_template_writes(subject.specimen, call)),
        "The model is taught to write calls that the server's reader, and the grammar of constrained decoding, do not "
        "know: it was better at calls before the training.",
        "`punie-mlx convert IN OUT --model DIR` makes structured rows of them, which the template renders.",
    )


def _foreign(row: AuditRow, call: Call, format: str) -> bool:
    """Structured calls are rendered by the template; in ready-made text, its own format is right, too."""
    return call.spelling != "tool_calls" and not (row.format == "text" and call.spelling == format)


def _template_writes(specimen: Specimen, call: Call) -> Iterator[Shown]:
    try:
        written = roundtrip.write(specimen, ToolCall(call.name, call.arguments))
    except Skip:
        return
    yield specimen.show("this template writes", short(written.turn))


def data_results(subject: DataSubject) -> Iterator[Finding]:
    """A template that writes results into a user's turn does so in a frame; a prefix in words is none."""
    wrong = [(row, t) for row in subject.rows for t in row.turns if t.role == "user" and RESULT.match(t.content)]
    if not wrong:
        return
    row, found = wrong[0]
    talk = cases.Talk.of(subject.specimen)
    call = cases.Call(cases.ORBIT.name, cases.ORBIT.arguments, cases.ORBIT.id, found.results[0][:_REACH])
    made = subject.specimen.render([cases.user(), *talk.turn(call)], cases.OFFERED, add_generation_prompt=False)
    at = made.text.rfind(call.result)
    framed = piece(made.text, at - 40, at + len(call.result) + 40) if call.result and at >= 0 else ""
    yield Finding(
        "data-results",
        "high",
        f"{_count({r.where for r, _ in wrong}, subject.rows)} write tool results as words of the user",
        (Shown(row.where, short(found.content)), *([Shown("this template writes", framed)] if framed else [])),
        "Served, a result stands in another frame than in training: the model takes it for a new question and calls "
        "again.",
        "`punie-mlx convert IN OUT --model DIR` turns them into messages of the role tool.",
    )


# ---- tools ----


def data_no_tools(subject: DataSubject) -> Iterator[Finding]:
    calling = [r for r in subject.rows if r.calls]
    without = [r for r in calling if not r.tools]
    if not without:
        return
    row = without[0]
    parting = _parting(subject, row, with_tools=True)
    yield Finding(
        "data-no-tools",
        "high",
        f"{len(without)} of {len(calling)} rows with calls offer no tools",
        _side_by_side(subject.specimen, parting)[1] if parting else (Shown(row.where, f"calls {row.calls[0].name}"),),
        "A server shows the tools in the prompt. The model learns to call from memory, and to pass by the tools that "
        "it is shown: it calls names that are not offered.",
        "Give each row the tools that its agent has; `punie-mlx convert` works them out from the calls.",
    )


def data_unknown_tool(subject: DataSubject) -> Iterator[Finding]:
    wrong = [(r, c) for r in subject.rows if r.offered for c in r.calls if c.name not in r.offered]
    if not wrong:
        return
    row, call = wrong[0]
    yield Finding(
        "data-unknown-tool",
        "medium",
        f"{len(wrong)} calls are of tools that their rows do not offer",
        (Shown(row.where, f"calls {call.name}, offers {', '.join(sorted(row.offered))}"),),
        "The model learns to call what it is not offered: an agent gets calls of tools that it does not have.",
        "Offer the tool in the row, or take the row out.",
    )


# ---- the prompt ----


@dataclass(frozen=True)
class Parting:
    """Where a row parts from what a server shows: both texts."""

    row: AuditRow
    row_text: str
    served: str

    @property
    def at(self) -> int:
        return shared(self.row_text, self.served)


def data_not_rendered(subject: DataSubject) -> Iterator[Finding]:
    specimen = subject.specimen
    if not specimen.has_vocabulary:
        raise Skip("a template alone has no vocabulary: give the model directory")
    failed = []
    for row in subject.rows:
        served = subject.served(row)
        if served is not None and (why := _fails(specimen, served)):
            failed.append((row, why))
    if failed:
        row, why = failed[0]
        yield Finding(
            "data-not-rendered",
            "high",
            f"{_count(failed, subject.rows)} hold turns that the template does not write",
            (Shown(row.where, why),),
            "These turns cannot be learned: their calls, or their words, are lost on the way to the model.",
            "Mend the template (`punie-mlx doctor DIR --fix`), then train.",
        )


def _fails(specimen: Specimen, served: Served) -> str:
    try:
        conversation = Conversation(specimen.tokenizer, served.messages, served.tools)
        for i in served.turns:
            turn(conversation, i, conversation.prompt(i))
    except DataError as e:
        return str(e)
    return ""


def data_prompt_differs(subject: DataSubject) -> Iterator[Finding]:
    ready = [p for r in subject.rows if r.format == "text" and (p := _parting(subject, r))]
    if ready:
        yield _differs(subject, ready, "text")
    given = [p for r in subject.rows if r.format != "text" and (p := _parting(subject, r))]
    if given:
        yield _differs(subject, given, "messages")


def _differs(subject: DataSubject, found: list[Parting], kind: str) -> Finding:
    number, shown = _side_by_side(subject.specimen, found[0])
    ready = kind == "text"
    return Finding(
        "data-prompt-differs",
        "high" if ready else "low",
        f"{_count(found, subject.rows)} ({kind}) part from what a server shows: {found[0].row.where} at {number}",
        shown,
        "The model is trained on other prompts than it is served: what it learned behind one beginning, it does not "
        "show behind another.",
        "`punie-mlx convert IN OUT --model DIR` makes structured rows, and `punie-mlx train` renders each turn as it "
        "is served."
        + ("" if ready else " A trainer that renders a conversation once, as a whole (mlx_lm.lora), does not."),
    )


def _side_by_side(specimen: Specimen, parting: Parting) -> tuple[str, tuple[Shown, ...]]:
    """Both sides around the first token that differs, or around the first character where there are no tokens."""
    labels = (parting.row.where, "served")
    texts = (parting.row_text, parting.served)
    if not specimen.has_vocabulary:
        at = parting.at
        shown = [Shown(label, piece(t, at - _REACH, at + _REACH)) for label, t in zip(labels, texts, strict=True)]
        return f"character {at}", tuple(shown)
    one, other = (encode(specimen.tokenizer, t) for t in texts)
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    shown = []
    for label, tokens in zip(labels, (one, other), strict=True):
        cut = tokens[max(0, at - _BEFORE) : at + _AFTER]
        spelled = tuple((i, specimen.tokenizer.decode([i])) for i in cut)
        shown.append(Shown(label, specimen.tokenizer.decode(cut), spelled))
    return f"token {at}", tuple(shown)


def _parting(subject: DataSubject, row: AuditRow, *, with_tools: bool = False) -> Parting | None:
    """Where `row`, as a trainer sees it, leaves what a server shows before one of the assistant's turns.

    with_tools: also where it offers none, and the server does. That has its own check, which would hide the others.
    """
    served = subject.served(row)
    if served is None:
        return None
    if not row.tools and not with_tools:
        served = Served(served.messages, [])
    try:
        whole = _as_trained(subject.specimen, row)
        if row.format == "text" and served.tools:
            served = _without_block(subject.specimen, served, whole)
        for i in served.turns:
            for text in _expected(subject.specimen, served, i, ready=row.format == "text"):
                if not whole.startswith(text):
                    return Parting(row, whole, text)
    except DataError:
        return None  # data-not-rendered, or render-error, says so
    return None


def _without_block(specimen: Specimen, served: Served, whole: str) -> Served:
    """`served` without the tools that stand in the system turn of a ready-made text: the template writes them itself.

    Of the ways to take them out, the one by which the prompt begins most like the row.
    """
    first, *rest = served.messages
    if first["role"] != "system":
        return served
    mark = "\ue0ff"
    alone = render(specimen.tokenizer, [{"role": "system", "content": mark}, *rest[:1]], served.tools)
    block = alone.partition(mark)[2]
    same = next((i for i in range(len(block), 0, -1) if first["content"].endswith(block[:i])), 0)
    said = first["content"][: len(first["content"]) - same]
    ways = [served, Served(rest, served.tools), Served([{**first, "content": said}, *rest], served.tools)]
    return max(ways, key=lambda w: shared(whole, render(specimen.tokenizer, w.messages, w.tools)))


def _as_trained(specimen: Specimen, row: AuditRow) -> str:
    """The text that a trainer makes of a row: a ready-made one as it is, messages rendered as a whole."""
    text = (row.raw or {}).get("text")
    if row.format == "text" and isinstance(text, str):
        return text
    return render(specimen.tokenizer, for_template(row.messages or []), tools_for_template(row.tools))


def _expected(specimen: Specimen, served: Served, i: int, *, ready: bool) -> Iterator[str]:
    """What a row must begin with: the prompt of turn `i`, and in ready-made text the turn itself.

    Templates write a turn otherwise as the last one (thinking, white space), so that of messages is not compared.
    """
    before = served.messages[:i]
    yield render(specimen.tokenizer, before, served.tools, add_generation_prompt=True)
    if ready:
        yield render(specimen.tokenizer, served.messages[: i + 1], served.tools).rstrip()


CHECKS = (
    Check("data-broken", "data", "Rows and their calls can be read", data_broken),
    Check("data-call-format", "data", "Calls are written in the template's format", data_call_format),
    Check("data-results", "data", "Tool results are results", data_results),
    Check("data-no-tools", "data", "Rows with calls offer tools", data_no_tools),
    Check("data-unknown-tool", "data", "Rows call the tools that they offer", data_unknown_tool),
    Check("data-not-rendered", "data", "The template writes what the rows say", data_not_rendered),
    Check("data-prompt-differs", "data", "Rows begin like the prompt that is served", data_prompt_differs),
)
