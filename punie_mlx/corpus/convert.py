"""Rows with calls in fences, or ready-made ChatML text → structured rows that the target's own template renders.

    punie-mlx convert data/phase8_json_format data/phase8_xml_format

Every row ends in exactly one place: converted, under the name of the file it came from, or in `quarantine.jsonl` with
file, line and reason. A converted row is proved: rendered by the target's template and read back, it gives the same
calls and the same text. `report.json` counts everything, and its parts add up to the input.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from punie_mlx import identity
from punie_mlx.chat.render import load_tokenizer, render
from punie_mlx.corpus.infer import infer_tools, offer
from punie_mlx.corpus.rows import lenient_lines, write_rows
from punie_mlx.corpus.structure import BadRow, Draft, structure
from punie_mlx.errors import DataError
from punie_mlx.files import atomic_dir, refuse_existing
from punie_mlx.toolcalls.calls import Tool
from punie_mlx.toolcalls.detect import detect
from punie_mlx.toolcalls.formats import json_fence
from punie_mlx.toolcalls.stream import read

OFFERED = 4
QUARANTINE = "quarantine.jsonl"
REPORT = "report.json"


@dataclass(frozen=True)
class ConvertConfig:
    """What to convert, and for which model.

    source: directory of .jsonl files. out: directory to write. model: whose template and tokenizer the rows are for.
    offered: how many tools at least a row is offered that came without any.
    """

    source: Path
    out: Path
    model: Path
    overwrite: bool = False
    offered: int = OFFERED


@dataclass(frozen=True)
class Line:
    """One line of the input and where it stands."""

    file: str
    number: int
    text: str


@dataclass(frozen=True)
class Quarantined:
    """A row that was not converted, and why."""

    file: str
    line: int
    reason: str
    detail: str
    row: str


@dataclass
class Report:
    """Counts of one conversion. `rows == converted + quarantined`, in all and for each file."""

    format: str = ""
    rows: int = 0
    converted: int = 0
    quarantined: int = 0
    files: dict[str, dict[str, int]] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    inferred_tools: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """The report as it is written."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def summary(self, out: Path) -> str:
        """The report in a few lines for people."""
        lines = [
            f"{self.rows} rows: {self.converted} converted to {out} ({self.format}), {self.quarantined} in quarantine"
        ]
        lines += [f"  {reason}: {n}" for reason, n in self.reasons.items()]
        lines.append("calls: " + ", ".join(f"{n} {key.replace('_', ' ')}" for key, n in self.calls.items()))
        lines += [f"  {key.replace('_', ' ')}: {n}" for key, n in self.notes.items()]
        if self.inferred_tools:
            lines.append(f"schemas of {len(self.inferred_tools)} tools were inferred from the calls")
        return "\n".join(lines)


def default_model() -> Path:
    """The embedded model of a checkout. Raises `DataError` outside of one."""
    path = Path(__file__).resolve().parents[2] / "data" / "tiny-base"
    if not path.is_dir():
        raise DataError(
            "no --model was given, and there is no data/tiny-base beside the package: name a model directory"
        )
    return path


def convert(config: ConvertConfig) -> Report:
    """Convert a directory of rows. Raises `DataError`, `ModelError`, `ConfigError` or `OutputError`; bad rows never."""
    files = source_files(config.source)
    refuse_existing(config.out, config.overwrite)
    tokenizer = load_tokenizer(config.model)
    target = Target(tokenizer, detect(tokenizer.chat_template, tokenizer.get_vocab()))
    lines = [line for path in files for line in _lines(path)]
    report = Report(format=target.format, rows=len(lines))
    drafts, bad = _structure_all(lines, report)
    inferred = infer_tools(c for d in drafts.values() if not d.tools for c in d.calls)
    report.inferred_tools = list(inferred)
    rows: dict[str, list[dict[str, Any]]] = {path.name: [] for path in files}
    for line, draft in drafts.items():
        try:
            rows[line.file].append(_finish(draft, inferred, target, config.offered))
        except Exception as e:
            bad[line] = _bad(e)
        else:
            _count_calls(report, draft, "converted")
    quarantined = [Quarantined(n.file, n.number, bad[n].reason, bad[n].detail, n.text) for n in lines if n in bad]
    _add_up(report, lines, quarantined, drafts)
    _write(config, files, rows, quarantined, report)
    return report


def source_files(source: Path) -> list[Path]:
    """The .jsonl files of `source`, but not those that a conversion writes beside them. Raises `DataError`."""
    if not Path(source).is_dir():
        raise DataError(f"data directory {source} does not exist: give a directory that holds .jsonl files")
    files = sorted(p for p in Path(source).glob("*.jsonl") if p.name != QUARANTINE and p.is_file())
    if not files:
        raise DataError(f"{source} holds no .jsonl files: give a directory with train.jsonl and valid.jsonl")
    return files


def _lines(path: Path) -> Iterator[Line]:
    """The lines of a file that are not blank; a line with bytes that are no UTF-8 is no JSON."""
    return (Line(path.name, number, text) for number, text in lenient_lines(path))


def _structure_all(lines: Sequence[Line], report: Report) -> tuple[dict[Line, Draft], dict[Line, BadRow]]:
    drafts: dict[Line, Draft] = {}
    bad: dict[Line, BadRow] = {}
    totals: Counter[str] = Counter()
    for line in lines:
        notes: Counter[str] = Counter()
        try:
            drafts[line] = structure(line.text, notes)
        except Exception as e:
            bad[line] = _bad(e)
        totals.update(notes)
    report.calls = {
        "found": sum(totals[k] for k in ("calls_in_fences", "calls_in_tags", "calls_given", "calls_broken")),
        **{k.removeprefix("calls_"): totals.pop(k) for k in sorted(totals) if k.startswith("calls_")},
        "converted": 0,
    }
    report.notes = {k: v for k, v in sorted(totals.items()) if v}
    return drafts, bad


def _bad(error: Exception) -> BadRow:
    """Rows are written by anyone: one that breaks the converter in a way nobody thought of must not stop the others."""
    return error if isinstance(error, BadRow) else BadRow("unexpected", f"{type(error).__name__}: {error}")


def _count_calls(report: Report, draft: Draft, key: str) -> None:
    report.calls[key] += sum(1 for _ in draft.calls)


def _add_up(
    report: Report, lines: Sequence[Line], quarantined: Sequence[Quarantined], drafts: dict[Line, Draft]
) -> None:
    refused = Counter(q.file for q in quarantined)
    total = Counter(line.file for line in lines)
    report.quarantined = len(quarantined)
    report.converted = report.rows - report.quarantined
    report.files = {
        name: {"rows": n, "converted": n - refused[name], "quarantined": refused[name]} for name, n in total.items()
    }
    report.reasons = dict(sorted(Counter(q.reason for q in quarantined).items()))
    report.calls["in_quarantine"] = report.calls["found"] - report.calls["converted"]
    refused_lines = {(q.file, q.line) for q in quarantined}
    seen: Counter[str] = Counter()
    for line, draft in drafts.items():
        if (line.file, line.number) not in refused_lines:
            seen[json.dumps(draft.messages, sort_keys=True)] += 1
    report.notes["duplicate_rows_kept"] = sum(n - 1 for n in seen.values())


# ---- one row ----


@dataclass(frozen=True)
class Target:
    """Whom the rows are for."""

    tokenizer: Any
    format: str


def _finish(draft: Draft, inferred: dict[str, dict[str, Any]], target: Target, offered: int) -> dict[str, Any]:
    """The converted row, proved by reading back what the template makes of it. Raises `BadRow`."""
    row: dict[str, Any] = {"messages": draft.messages, "tools": draft.tools}
    if not draft.tools and inferred:
        row["tools"] = offer(draft.messages, inferred, offered)
        row["tools_inferred"] = True
    tools = [Tool.from_openai(t) for t in row["tools"]]
    for i, message in enumerate(draft.messages):
        if message["role"] != "assistant":
            continue
        if any(s.calls or s.reason for s in json_fence.split(message["content"])):
            raise BadRow("leftover_fence", f"a call in a fence is left in message {i + 1}")
        _prove(message, rendered_turn(target, draft.messages, i, row["tools"]), target, tools)
    return row


def rendered_turn(
    target: Target, messages: Sequence[dict[str, Any]], index: int, tools: Sequence[dict[str, Any]]
) -> str:
    """What a model would have to write for assistant message `index`, as the template writes it. Raises `BadRow`."""
    try:
        whole = render(target.tokenizer, messages[: index + 1], tools)
        prompt = render(target.tokenizer, messages[:index], tools, add_generation_prompt=True) if index else ""
    except DataError as e:
        raise BadRow("cannot_render", str(e)) from e
    if not whole.startswith(prompt):
        raise BadRow("cannot_render", f"the rendering of message {index + 1} does not begin with its prompt")
    return whole[len(prompt) :].rstrip().removesuffix(target.tokenizer.eos_token or "")


def _prove(message: dict[str, Any], text: str, target: Target, tools: Sequence[Tool]) -> None:
    found = read(text, target.format, tools)
    wanted = [(c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls", ())]
    got = [(c.name, c.arguments) for c in found.calls]
    if found.malformed or _exact(wanted) != _exact(got):
        what = (
            found.malformed[0].reason if found.malformed else f"{_exact(got)[:120]} instead of {_exact(wanted)[:120]}"
        )
        raise BadRow("does_not_round_trip", f"read back from the template's rendering: {what}")
    if found.content.strip() != message["content"].strip():
        raise BadRow("does_not_round_trip", f"the text read back differs: {found.content.strip()[:120]!r}")


def _exact(value: Any) -> str:
    """`value` so that 1, 1.0, true and "1" differ, and so does the order of arguments."""
    return json.dumps(value, ensure_ascii=False)


# ---- output ----


def _write(
    config: ConvertConfig,
    files: Sequence[Path],
    rows: dict[str, list[dict[str, Any]]],
    quarantined: Sequence[Quarantined],
    report: Report,
) -> None:
    with atomic_dir(config.out, overwrite=config.overwrite) as tmp:
        for name, converted in rows.items():
            write_rows(tmp / name, converted)
        write_rows(tmp / QUARANTINE, [asdict(q) for q in quarantined])
        (tmp / REPORT).write_text(report.to_json() + "\n", encoding="utf-8")
        inputs = {p.name: identity.hash_file(p) for p in files}
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            if (config.model / name).is_file():
                inputs[f"model/{name}"] = identity.hash_file(config.model / name)
        settings = {"format": report.format, "offered": config.offered}
        identity.write_manifest(tmp, identity.manifest("rows", inputs=inputs, settings=settings, report=asdict(report)))
