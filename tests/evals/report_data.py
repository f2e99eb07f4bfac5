"""Results for the report: two runs with all that a run file may hold, text that means harm, and the other kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .made import made_case, made_run, written

TAGS = "</script></style><script>alert('owned')</script><img src=http://outside.test/x onerror=alert(1)>"
HIDDEN = "a\u202eb\u200bc\u0000d\x1b[31me\ud800f\u2028g\u0007h"  # bidi, zero width, controls, half a surrogate pair
HOSTILE = f"{TAGS} {HIDDEN} \"quoted\" 'single' &amp; `tick` ]]> <!--"
POINTS = ("U+202E", "U+200B", "U+0000", "U+001B", "U+D800", "U+2028", "U+0007")
LOOK = {
    "type": "function",
    "function": {
        "name": "read_file",
        "description": "Read a file",
        "parameters": {
            "type": "object",
            "properties": {"path": {"type": "string"}, "lines": {"type": "integer"}, "mode": {"enum": ["r", "b"]}},
            "required": ["path"],
        },
    },
}
PROMPT = [[1, "<|im_start|>"], [7, "user"], [8, "\n"], [9, "Read"], [10, " it"], [2, "<|im_end|>"], [8, "\n"]]


def trace(prompt: list[list[Any]], text: str, events: list[dict[str, Any]]) -> dict[str, Any]:
    spans = [{"name": "queue", "start": 0.0, "end": 0.002}, {"name": "prefill", "start": 0.002, "end": 0.05},
             {"name": "decode", "start": 0.05, "end": 0.118}]  # fmt: skip
    return {"prompt": prompt, "output": [[40, text], [2, "<|im_end|>"]], "events": events, "spans": spans, "wall": 0.12}


def failed_case(id: str, said: str = "I will not.", **more: Any) -> dict[str, Any]:
    """A case that failed in two exchanges, with everything on record."""
    user = {"role": "user", "content": more.get("query", "Read it")}
    call = {"id": "c0", "type": "function", "function": {"name": "list_dir", "arguments": json.dumps({"path": said})}}
    asked = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "c0", "content": said}
    answer = {"role": "assistant", "content": said}
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    body = {"model": "m", "temperature": 0.0, "tools": [LOOK], "messages": [user]}
    longer = [*PROMPT, [40, said], [2, "<|im_end|>"], *([11 + i, f"t{i} "] for i in range(20))]
    exchanges = [
        {
            "at": 0.0, "seconds": 0.125, "status": 200, "request": body, "response": {"choices": [{"message": asked}]},
            "finish_reason": "tool_calls", "usage": usage,
            "trace": trace(PROMPT, said, [{"kind": "call", "name": "list_dir", "arguments": said}]),
        },
        {
            "at": 0.2, "seconds": 0.25, "status": 200, "request": {**body, "messages": [user, asked, result]},
            "response": {"choices": [{"message": answer}]}, "finish_reason": "stop", "usage": usage,
            "trace": trace(longer, said, [{"kind": "text", "text": said}]),
        },
    ]  # fmt: skip
    call_made = {"turn": 1, "id": "c0", "name": "list_dir", "arguments": {"path": said}, "result": said, "ok": False,
                 "seconds": 0.0031, "at": 0.15}  # fmt: skip
    return made_case(
        False, id, answer=said, calls=[call_made], messages=[user, asked, result, answer], trajectory=exchanges,
        reasons=[f"names: expected read_file; got list_dir ({said})"], tools=[LOOK],
        expect={"calls": [{"name": "read_file", "arguments": {"path": "a.txt"},
                           "match": {"lines": {"min": 3, "optional": True}}}], "turns": "first"},
        seconds={"wall": 0.4321, "model": 0.375, "tools": 0.0031},
        turns=[{"seconds": e["seconds"], "status": 200, "finish_reason": e["finish_reason"], "usage": usage}
               for e in exchanges], **more,
    )  # fmt: skip


def runs(cases: int = 12) -> tuple[dict[str, Any], dict[str, Any]]:
    """A weak run and a good one of the same cases; the weak one failed the first and third with hostile text."""
    kinds = ("one of many", HOSTILE, "no tool")

    def more(i: int) -> dict[str, Any]:
        return {"category": kinds[i % 3], "query": f"Read file {i} {HOSTILE if i == 2 else ''}",
                "seconds": {"wall": 0.1 + 0.37 * i, "model": 0.1 + 0.3 * i, "tools": 0.001}}  # fmt: skip

    weak = [failed_case(f"case {i}", HOSTILE if i in (0, 2) else "No.", category=kinds[i % 3], query=f"Read file {i} "
                        f"{HOSTILE if i == 2 else ''}") if i % 2 == 0 else made_case(True, f"case {i}", **more(i))
            for i in range(cases)]  # fmt: skip
    good = [failed_case("case 2", "Nor I.", category=kinds[2], query=f"Read file 2 {HOSTILE}") if i == 2
            else made_case(True, f"case {i}", **more(i)) for i in range(cases)]  # fmt: skip
    return made_run(weak, f"base {HOSTILE}", fingerprint="b" * 64), made_run(good, "fused", fingerprint="f" * 64)


def rate(passed: int, n: int) -> dict[str, Any]:
    from punie_mlx.evals.stats import wilson

    return {"accuracy": passed / n, "interval": list(wilson(passed, n)), "n": n, "passed": passed}


def sweep() -> dict[str, Any]:
    sizes = {"fused": (16, 16.0, 4_400_000, 95, 0.0), "8-bit": (8, 8.5, 2_400_000, 94, 0.0004),
             "5-bit": (5, 5.5, 1_500_000, 93, 0.009), "3-bit": (3, 3.5, 990_000, 61, 0.21)}  # fmt: skip
    rows = [
        {
            "label": label, "what": "quantized" if bits < 16 else "fused", "bits": bits, "group_size": 64,
            "recipe": "uniform" if bits < 16 else None, "bytes": size, "bits_per_weight": weight,
            "kl": {"mean": kl, "p99": 9 * kl, "max": 40 * kl, "tokens": 5120, "top1_agreement": 1 - kl},
            "accuracy": rate(passed, 100), "balanced_accuracy": 0.9 - kl, "tokens_per_second": 640.0,
            "mcnemar": {"only_first": 7, "only_second": 3, "p": 0.344}, "p_holm": 0.688, "run": f"{label}.json",
            "fingerprint": "c" * 64, "worse": bits == 3,
        }
        for label, (bits, weight, size, passed, kl) in sizes.items()
    ]  # fmt: skip
    why = f"the smallest that is not worse {HOSTILE}"
    return {"kind": "sweep", "format": 1, "suite": {"hash": "5" * 64}, "reference": "fused", "rows": rows,
            "picked": "5-bit", "why": why, "settings": {}, "versions": {}}  # fmt: skip


def profile() -> dict[str, Any]:
    shares = {"prefill": 0.25, "decode": 0.7, "client": 0.04}
    phases = {k: {"p50": v / 7, "p95": v / 3, "mean": v / 6, "total": 9 * v, "share": v} for k, v in shares.items()}
    return {"kind": "profile", "format": 1, "model": {"label": "fused"}, "server": "punie-mlx", "phases": phases,
            "phases_order": list(shares), "cases": 9, "requests": 17, "wall": {"p50": 0.2, "p95": 0.4},
            "unaccounted_share": 0.01, "warm_up": {}, "settings": {}, "versions": {}}  # fmt: skip


def pipeline() -> dict[str, Any]:
    models = {"base": {"fingerprint": "b" * 64, "suites": {"s": rate(3, 12)}, "bytes": 4_400_000},
              "fused": {"fingerprint": "f" * 64, "suites": {"s": rate(11, 12)}, "bytes": 4_400_000}}  # fmt: skip
    return {"kind": "pipeline", "bits": 5, "models": models, "seconds": {"train": 51.7}}


def metrics() -> str:
    lines = [{"kind": "train", "step": s, "loss": None if s == 30 else 1 / s} for s in range(5, 61, 5)]
    lines += [{"kind": "valid", "step": s, "loss": 2 / (s + 1)} for s in (0, 20, 40, 60)]
    return "".join(json.dumps(line) + "\n" for line in lines)


def write_all(directory: Path) -> list[Path]:
    """One file of each kind in `directory`, in the order that a report takes them."""
    weak, good = runs()
    (directory / "adapter").mkdir()
    (directory / "adapter" / "metrics.jsonl").write_text(metrics())
    kinds = {"base": weak, "fused": good, "sweep": sweep(), "profile": profile(), "report": pipeline()}
    return [*(written(directory / f"{name}.json", content) for name, content in kinds.items()), directory / "adapter"]
