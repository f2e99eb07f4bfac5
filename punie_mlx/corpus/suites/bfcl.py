"""A file of the Berkeley Function-Calling Leaderboard (v3, v4; single-turn) as a suite of ours.

    punie-mlx suite import-bfcl BFCL_v4_simple_python.json --gold GOLD.json --out bfcl.jsonl

| category                                              | gold    | expectation                                       |
|-------------------------------------------------------|---------|---------------------------------------------------|
| simple…, multiple, parallel, parallel_multiple, live_… | needed  | the gold's calls in one response, in any order    |
| irrelevance, live_irrelevance                         | none    | no call                                           |
| live_relevance                                        | none    | 1 to 8 calls of any offered tools                 |

Each row becomes one case, or the file is refused with the line and the reason. Arguments are judged as in
`bfcl_gold`. Only the first turn with calls counts, and whether they can be executed does not: nothing stands behind
BFCL's tools. A default of an argument stands in its description. Java and JavaScript rows are asked in JSON values
too, where BFCL asks for source text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from punie_mlx.corpus.rows import SHOWN, read_lines
from punie_mlx.corpus.suites.bfcl_gold import gold_call
from punie_mlx.corpus.suites.bfcl_schema import SchemaError, api_names, tool
from punie_mlx.errors import DataError

LICENCE = "Apache-2.0"
MOST_CALLS = 8  # of a relevance case
_CALLS = (
    "simple", "simple_python", "simple_java", "simple_javascript", "java", "javascript", "multiple", "parallel",
    "parallel_multiple", "live_simple", "live_multiple", "live_parallel", "live_parallel_multiple",
)  # fmt: skip
KINDS = {
    **dict.fromkeys(_CALLS, "calls"),
    "irrelevance": "none", "live_irrelevance": "none", "live_relevance": "some", "relevance": "some",
}  # fmt: skip
_ID = re.compile(r"(.+?)_(\d+(?:-\d+)*)")
_KEYS = {"id", "question", "function"}
_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Imported:
    """The cases of one file, and what its reader should know."""

    cases: list[dict[str, Any]]
    contradictions: list[str]
    """Gold that its own schema forbids: kept, and listed with file and line."""
    notes: list[str]
    """What was changed on the way, with file and line."""
    rows: int
    """Of the file: as many as there are cases, or it is refused."""

    def to_json(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "cases": len(self.cases),
            "contradictions": self.contradictions,
            "notes": self.notes,
        }


class _Bad(Exception):
    """What is wrong with a row."""


def import_bfcl(file: Path, gold: Path | None = None) -> Imported:
    """Read the rows of `file`, and their gold: `gold`, or the one that lies beside it under BFCL's names.

    Raises:
        DataError: a row, or the gold of a row, is none that can be imported; each with file and line.
    """
    file = Path(file)
    rows = list(_read(file, _check_row))
    if not rows:
        raise DataError(f"{file} holds no row: give a BFCL file, one JSON object a line")
    answers = _answers(file, gold, rows)
    made, bad = Imported([], [], [], len(rows)), []
    for number, row in rows:
        where = f"{file}:{number}"
        try:
            made.cases.append(_case(row, answers.get(row["id"]), file.name, where, made))
        except (_Bad, SchemaError) as e:
            bad.append(f"{where}: {row['id']}: {e}")
    if bad:
        raise _refusal(bad)
    return made


def original_names(source: str) -> dict[str, str]:
    """Name in the suite → name in BFCL, of the tools that were renamed, from the `source` of a case."""
    _, found, names = source.partition("; names ")
    return json.loads(names) if found else {}


def _refusal(bad: list[str]) -> DataError:
    more = f"\n… and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    return DataError("\n".join(bad[:SHOWN]) + more + "\nnothing was imported: mend or remove these lines")


# ---- rows ----


def _read(file: Path, check: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of each line. Raises `DataError` with all lines that are no rows."""
    if not file.is_file():
        raise DataError(f"{file} does not exist: give a file of BFCL, such as BFCL_v4_simple_python.json")
    bad: list[str] = []
    seen: dict[str, int] = {}
    found: list[tuple[int, dict[str, Any]]] = []
    for number, line in read_lines(file):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise _Bad("a row is a JSON object, and stands on one line")
            check(row)
            if (first := seen.setdefault(row["id"], number)) != number:
                raise _Bad(f"the id {row['id']} stands on line {first} already")
            found.append((number, row))
        except (_Bad, ValueError) as e:
            bad.append(f"{file}:{number}: {e if isinstance(e, _Bad) else f'not JSON: {e}'}")
    if bad:
        raise _refusal(bad)
    yield from found


def _check_row(row: Mapping[str, Any]) -> None:
    if not isinstance(row.get("id"), str):
        raise _Bad("a row without an id")
    category(row["id"])
    for key in ("question", "function"):
        if key not in row:
            raise _Bad(f"a row without `{key}`")
    if extra := sorted(row.keys() - _KEYS):
        raise _Bad(f"`{extra[0]}` is no key of a single-turn row, which has id, question and function")


def _check_gold(row: Mapping[str, Any]) -> None:
    if not isinstance(row.get("id"), str) or "ground_truth" not in row:
        raise _Bad("gold is an object with id and ground_truth")
    if not isinstance(row["ground_truth"], list) or not row["ground_truth"]:
        raise _Bad("ground_truth is a list of at least one call")
    for call in row["ground_truth"]:
        if not isinstance(call, dict) or len(call) != 1 or not isinstance(next(iter(call.values())), dict):
            raise _Bad('a call of ground_truth is {"name": {"argument": [admissible values]}}')


def category(row_id: str) -> str:
    """The BFCL category that an id names. Raises where it is none that can be imported."""
    match = _ID.fullmatch(row_id)
    found = match[1] if match else row_id
    if found not in KINDS:
        raise _Bad(f"the id {row_id} is of no category that can be imported: {', '.join(KINDS)}")
    return found


def _answers(file: Path, gold: Path | None, rows: list[tuple[int, dict[str, Any]]]) -> dict[str, list[Any]]:
    """Id → calls of the gold, one for each row that needs it, none left over."""
    needed = {row["id"]: number for number, row in rows if KINDS[category(row["id"])] == "calls"}
    if not needed:
        if gold:
            raise DataError(f"{file} holds rows without gold only (irrelevance or relevance): leave --gold out")
        return {}
    places = [gold] if gold else [file.with_suffix(".gold.json"), file.parent / "possible_answer" / file.name]
    found = next((p for p in places if p.is_file()), None)
    if found is None:
        where = " and ".join(map(str, places))
        raise DataError(f"{file} needs its gold, which is not at {where}: pass it with --gold FILE")
    answers = {row["id"]: (number, row["ground_truth"]) for number, row in _read(found, _check_gold)}
    bad = [f"{file}:{number}: {i} has no gold in {found}" for i, number in needed.items() if i not in answers]
    bad += [f"{found}:{number}: {i} is no row of {file}" for i, (number, _) in answers.items() if i not in needed]
    if bad:
        raise _refusal(bad)
    return {i: calls for i, (_, calls) in answers.items()}


# ---- cases ----


def _case(
    row: Mapping[str, Any], answer: list[dict[str, Any]] | None, file: str, where: str, made: Imported
) -> dict[str, Any]:
    functions = row["function"] if isinstance(row["function"], list) else [row["function"]]
    for function in functions:
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise _Bad("`function` is a list of functions, each with a name")
    names = api_names(f["name"] for f in functions)
    tools = [tool(f, n) for f, n in zip(functions, names, strict=True)]
    left = {k for f in functions for k in f} - {"name", "description", "parameters"}
    made.notes.extend(f"{where}: {row['id']}: `{k}` of a function is left out" for k in sorted(left))
    renamed = {n: f["name"] for f, n in zip(functions, names, strict=True) if n != f["name"]}
    kind = category(row["id"])
    source = f"BFCL {file} {row['id']}" + (f"; names {json.dumps(renamed, ensure_ascii=False)}" if renamed else "")
    return {
        "id": row["id"],
        "category": kind,
        "source": source,
        "licence": LICENCE,
        **_asked(row["question"], where, row["id"], made),
        "tools": tools,
        "expect": _expect(KINDS[kind], answer, functions, tools, f"{where}: {row['id']}", made),
    }


def _asked(question: Any, where: str, row_id: str, made: Imported) -> dict[str, Any]:
    """The conversation of a row: a query, with a system prompt where one stands before it, or all its messages."""
    if not isinstance(question, list) or not question:
        raise _Bad("`question` is a list that holds one list of messages")
    messages = question[0] if isinstance(question[0], list) else question
    if isinstance(question[0], list) and len(question) > 1:
        raise _Bad("`question` has several turns: multi-turn rows need BFCL's own simulated APIs and are not imported")
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise _Bad(f"a message of `question` has no role of {', '.join(_ROLES)}")
        if not isinstance(message.get("content"), str):
            raise _Bad("a message of `question` has no text")
    if not messages:
        raise _Bad("`question` holds no message")
    if messages[-1]["role"] != "user":
        made.notes.append(f"{where}: {row_id}: the last message is of {messages[-1]['role']}: it is asked as a user's")
        messages = [*messages[:-1], {**messages[-1], "role": "user"}]
    *before, last = messages
    if not before:
        return {"query": last["content"]}
    if [m["role"] for m in before] == ["system"]:
        return {"system": before[0]["content"], "query": last["content"]}
    return {"messages": messages}


def _expect(
    kind: str,
    answer: list[dict[str, Any]] | None,
    functions: list[dict[str, Any]],
    tools: list[dict[str, Any]],
    where: str,
    made: Imported,
) -> dict[str, Any]:
    """What a run must have done. Of two functions with one name, the first is the one that the gold means."""
    names = [t["function"]["name"] for t in tools]
    if kind == "none":
        return {"calls": []}
    once = {"execution": "any", "turns": "first"}
    if kind == "some":
        if not names:
            raise _Bad("a call is wanted, but no function is offered")
        return {"any_of": [[{"name": names}] * n for n in range(1, MOST_CALLS + 1)], **once}
    calls: list[dict[str, Any]] = []
    by_name = {f["name"]: t["function"] for f, t in reversed(list(zip(functions, tools, strict=True)))}
    for call in answer or ():
        (name, arguments), *_ = call.items()
        if name not in by_name:
            raise _Bad(f"the gold calls {name}, which the row does not offer")
        gold = gold_call(arguments, by_name[name]["parameters"])
        made.contradictions.extend(f"{where}: {name}: {c}" for c in gold.complaints)
        calls.append({"name": by_name[name]["name"], "match": gold.match})
    return {"calls": calls, **once}
