"""Run files made by hand, in the shape that `punie-mlx eval --json` writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from punie_mlx.evals.summary import summarize

PRINTS = {"base": "b" * 64, "fused": "f" * 64}
NEW = ("repeat", "passed_with_retry", "lenient", "expects_call", "parse_failures", "source", "files", "trajectory")


def made_case(passed: bool = True, id: str = "1", **more: Any) -> dict[str, Any]:
    """A record of a case that wants `read_file`; `called` names the tools that were called."""
    called = more.pop("called", ["read_file"] if passed else [])
    expected = more.pop("expected", ["read_file"])
    calls = [
        {"turn": 1, "id": f"c{i}", "name": n, "arguments": {}, "result": "r", "ok": True, "seconds": 0.0, "at": 0.1}
        for i, n in enumerate(called)
    ]
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return {
        "suite": "s", "id": id, "category": "a", "source": None, "repeat": 0, "query": "Read it", "passed": passed,
        "passed_with_retry": None, "lenient": passed, "reasons": [] if passed else ["names: no"],
        "checks": {"names": passed, "answer": True}, "unread_call": False, "parse_failures": 0, "error": None,
        "answer": "It is so.", "raw_text": [""], "expects_call": bool(expected),
        "expected_calls": [{"name": n} for n in expected], "calls": calls, "files": None, "messages": [],
        "turns": [{"seconds": 0.1, "status": 200, "finish_reason": "stop", "usage": usage}], "trajectory": [],
        "seconds": {"wall": 0.2, "model": 0.1, "tools": 0.0}, **more,
    }  # fmt: skip


def made_run(
    outcomes: Sequence[bool] | Mapping[str, Sequence[bool]] | Sequence[dict[str, Any]] = (True, False),
    label: str = "base",
    **more: Any,
) -> dict[str, Any]:
    """A run of format 2 with these outcomes (by id, each repeat's, or whole records).

    `more`: `fingerprint`, `suite` (its hash), and settings.
    """
    if isinstance(outcomes, Mapping):
        cases = [made_case(o, id, repeat=i) for id, runs in outcomes.items() for i, o in enumerate(runs)]
    else:
        cases = [o if isinstance(o, dict) else made_case(o, str(i)) for i, o in enumerate(outcomes)]
    fingerprint, suite = more.pop("fingerprint", PRINTS.get(label, "a" * 64)), more.pop("suite", "5" * 64)
    settings = {
        "max_tokens": 1024, "request_limit": 4, "timeout": 600.0, "temperature": 0.0, "retries": 0, "limit": None,
        "concurrency": 1, "url": None, "through": "pydantic-ai",
        "repeats": max(c["repeat"] for c in cases) + 1, **more,
    }  # fmt: skip
    return {
        "kind": "evaluation", "format": 2, "summary": {**summarize(cases, settings["concurrency"]), "seconds": 1.0},
        "model": {"name": label, "label": label, "path": label, "adapter": None, "fingerprint": fingerprint,
                  "trained_on": None},
        "suite": {"hash": suite, "files": [{"name": "s", "path": "s.jsonl", "hash": suite, "cases": len(cases)}]},
        "settings": settings, "versions": {"punie-mlx": "0.1.0", "mlx": "1"}, "warnings": [], "cases": cases,
    }  # fmt: skip


def of_format_1(run: dict[str, Any]) -> dict[str, Any]:
    """The same run as files of the first format had it."""
    old = json.loads(json.dumps(run))
    del old["format"], old["warnings"], old["model"]["label"], old["model"]["trained_on"]
    for key in ("through", "repeats"):
        del old["settings"][key]
    for case in old["cases"]:
        for key in NEW:
            del case[key]
    old["summary"] = {k: old["summary"][k] for k in ("accuracy", "interval", "n", "passed", "seconds")}
    return old


def written(path: Path, run: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(run))
    return path
