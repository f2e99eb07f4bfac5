"""Result files, read and checked: runs of today, runs of earlier formats brought up to it, and the other kinds.

    run = read_run(Path("base.json"))        a run of `punie-mlx eval --json`, in format 2 whatever the file's was
    result = read_result(Path("sweep.json")) any kind: "evaluation", "comparison", "sweep", "profile", "pipeline"

What is refused is refused with the file's name, the place in it and what to do. What an old file cannot tell is null,
and `upgraded_from` says that it was one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from punie_mlx.errors import DataError
from punie_mlx.evals.summary import summarize

FORMAT = 2
KINDS = ("evaluation", "comparison", "sweep", "profile", "pipeline")
NAMES = ("result.json", "sweep.json", "profile.json", "report.json")
"""What the file of a result is called in a directory that holds one."""

Json = dict[str, Any]
Types = Mapping[str, type | tuple[type, ...]]
NUMBER = (int, float)
TEXT = (str, type(None))

# Keys that every run has had, and of which type; more may stand beside them.
RUN: Types = {"summary": dict, "model": dict, "suite": dict, "settings": dict, "versions": dict, "cases": list}
MODEL: Types = {"name": str, "fingerprint": str}
SUITE: Types = {"hash": str, "files": list}
SETTINGS: Types = {"concurrency": int, "max_tokens": int, "temperature": NUMBER}
CASE: Types = {
    "suite": str, "id": str, "category": str, "query": str, "passed": bool, "reasons": list, "checks": dict,
    "unread_call": bool, "error": TEXT, "answer": TEXT, "raw_text": list, "expected_calls": list, "calls": list,
    "messages": list, "turns": list, "seconds": dict,
}  # fmt: skip
SECONDS: Types = {"wall": NUMBER, "model": NUMBER, "tools": NUMBER}
# What format 2 added to a case. Nothing may be missing from a file that says that it is one.
ADDED: Types = {
    "repeat": int, "passed_with_retry": (bool, type(None)), "lenient": (bool, type(None)), "expects_call": bool,
    "parse_failures": int, "trajectory": list,
}  # fmt: skip


def read_run(path: Path) -> Json:
    """The run in `path` (a file, or a directory with its result.json), in format 2. Raises `DataError`."""
    result = read_result(path)
    if result["kind"] != "evaluation":
        raise DataError(f"{path} is a {result['kind']}, not a run: give a file that `punie-mlx eval --json` wrote")
    return result


def read_result(path: Path) -> Json:
    """Any result file, by its `kind`; an evaluation is brought to format 2. Raises `DataError`."""
    path = _file(Path(path))
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise DataError(f"{path} cannot be read: {e.strerror or e}; give a result file") from e
    except ValueError as e:  # also text that is not UTF-8
        raise DataError(f"{path} is not JSON: {e}; was it written by `punie-mlx … --json FILE`?") from e
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind not in KINDS:
        said = f"says kind {kind!r}" if kind else "says no kind"
        raise DataError(f"{path} is no result that can be read: it {said}, not one of {', '.join(KINDS)}")
    return _upgraded(value, path) if kind == "evaluation" else value


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = [path / n for n in NAMES if (path / n).is_file()]
    if len(found) != 1:
        what = f"holds {', '.join(p.name for p in found)}" if found else f"holds none of {', '.join(NAMES)}"
        raise DataError(f"{path} is a directory and {what}: name the file to read")
    return found[0]


def _upgraded(run: Json, path: Path) -> Json:
    """`run`, checked, with all that format 2 has."""
    given = run.get("format", 1)
    if given not in (1, FORMAT):
        raise DataError(f"{path} is of format {given!r}, and this punie-mlx reads up to {FORMAT}: update punie-mlx")
    _has(run, RUN, path, "")
    for key, types in (("model", MODEL), ("suite", SUITE), ("settings", SETTINGS)):
        _has(run[key], types, path, f"{key}.")
    if not run["cases"]:
        raise DataError(f"{path} holds no case: score the model again")
    for i, case in enumerate(run["cases"]):
        place = f"cases[{i}]."
        if not isinstance(case, dict):
            raise DataError(f"{path}: cases[{i}] is no object: was the file edited?")
        _has(case, {**CASE, **ADDED} if given == FORMAT else CASE, path, place)
        _has(case["seconds"], SECONDS, path, f"{place}seconds.")
    cases = run["cases"] if given == FORMAT else [_case(c) for c in run["cases"]]
    _once(cases, path)
    _adds_up(run["summary"], cases, path)
    summary = {**run["summary"], **summarize(cases, run["settings"]["concurrency"])}
    settings = {"through": "pydantic-ai", "repeats": 1, "retries": 0, "limit": None, "url": None, **run["settings"]}
    model = {"path": None, "adapter": None, "trained_on": None, **run["model"]}
    model = {"label": _label(model), **model}
    more = {"upgraded_from": given} if given != FORMAT else {}
    return {
        **run, "format": FORMAT, **more, "summary": summary, "model": model, "settings": settings,
        "warnings": run.get("warnings") or [], "cases": cases,
    }  # fmt: skip


def _has(value: Mapping[str, Any], types: Types, path: Path, place: str) -> None:
    for key, wanted in types.items():
        if key not in value:
            raise DataError(f"{path}: {place}{key} is missing: the file is no whole run; score the model again")
        # True is an int to Python; it is none to a reader.
        if not isinstance(value[key], wanted) or (isinstance(value[key], bool) and not _allows_bool(wanted)):
            raise DataError(f"{path}: {place}{key} is {_short(value[key])}, which it cannot be: was the file edited?")


def _allows_bool(wanted: type | tuple[type, ...]) -> bool:
    return bool in (wanted if isinstance(wanted, tuple) else (wanted,))


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _case(case: Json) -> Json:
    """A case of format 1. It had no failures of the reader on record: its unread calls and arguments that are no JSON
    are what is known of them."""
    broken = sum(not isinstance(c.get("arguments"), dict) for c in case["calls"])
    return {
        "repeat": 0, "passed_with_retry": None, "lenient": None, "expects_call": bool(case["expected_calls"]),
        "parse_failures": broken + case["unread_call"], "source": None, "files": None, "trajectory": [], **case,
    }  # fmt: skip


def _once(cases: list[Json], path: Path) -> None:
    seen = set()
    for case in cases:
        key = case["suite"], case["id"], case["repeat"]
        if key in seen:
            raise DataError(
                f"{path}: case {key[0]}/{key[1]}, repeat {key[2]}, stands there twice: was the file edited?"
            )
        seen.add(key)


def _adds_up(summary: Json, cases: list[Json], path: Path) -> None:
    """A summary that its own cases contradict is not to be shown."""
    counted = {"n": len(cases), "passed": sum(c["passed"] for c in cases)}
    for key, value in counted.items():
        if summary.get(key) != value:
            raise DataError(
                f"{path}: the summary says {key} = {summary.get(key)!r}, its cases say {value}: was the file edited? "
                "Score the model again"
            )


def _label(model: Mapping[str, Any]) -> str:
    """What to call the model of an old file: the name of its adapter's directory, or the model's."""
    return Path(model["adapter"]).name if model.get("adapter") else model["name"]
