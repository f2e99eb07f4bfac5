"""Where the time of a run went: a run file in, a profile out, with nothing left over that nobody knows of.

    found = profile_of(read_run(Path("run.json")))        # a run at concurrency 1
    found["phases"]["decode"]["share"], found["unaccounted_share"]

Two clocks tell it. The server's spans (`punie_mlx.serve.trace`) count from the arrival of each request, the client's
from the start of each case; only durations are taken of either, so the clocks need not agree on the time of day. What
an exchange took by the client's clock beyond the server's is `network`: the HTTP client, the sockets, the first bytes
on their way. `tool`, `client` (the agent framework) and `record` (keeping the record of it all) are measured where they
happen, and are no remainders: phases that do not add up to the wall time are an error that shows.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from punie_mlx.errors import DataError

FORMAT = 1
TOLERANCE = 0.02
"""The share of the wall time that may be unaccounted for."""
SERVER = ("receive", "parse", "render", "queue", "prefill", "decode", "respond", "trace")
"""Phases by the server's spans, in their order."""
UNKNOWN = "exchange"
"""Exchanges of which the server told nothing, whole."""
CLIENT = ("network", UNKNOWN, "tool", "client", "record")
"""Phases by the client's clock."""
FIGURES = ("p50", "p95", "mean", "total", "share")
SECONDS = "_seconds"

Json = Mapping[str, Any]
Times = dict[str, float]


def profile_of(run: Json, warm_up: Json | None = None) -> dict[str, Any]:
    """The profile of a run in format 2; its first case is the warm-up, of which `warm_up` may know more.

    Raises `DataError` for a run whose cases shared the server.
    """
    if (concurrency := run["settings"]["concurrency"]) != 1:
        raise DataError(
            f"a run at concurrency {concurrency} has no profile, its cases waited for each other: "
            "run it again with --concurrency 1, or use `punie-mlx profile`"
        )
    first, cases = run["cases"][0], run["cases"][1:] or run["cases"]
    exchanges = [x for c in cases for x in c["trajectory"]]
    traced = [x for x in exchanges if _trace(x)]
    walls = [c["seconds"]["wall"] for c in cases]
    total = math.fsum(walls)
    times = [_phases(c) for c in cases]
    names = _order(times)
    return {
        "kind": "profile",
        "format": FORMAT,
        "model": run["model"],
        "server": _server(run, traced),
        "suite": run["suite"],
        "phases": {n: _known(n, times, total) for n in dict.fromkeys((*SERVER, *names, "network", "client", "tool"))},
        "phases_order": names,
        "inside": _inside(cases, total),
        "per_request": _per_request(exchanges),
        "cases": len(cases),
        "requests": len(exchanges),
        "wall": stats(walls),
        "unaccounted_share": _part((w - math.fsum(t.values()) for w, t in zip(walls, times, strict=True)), total),
        "accounting": _accounting(cases, traced),
        "warm_up": {"load": None, "start": None, **(warm_up or {}), **_first(first)},
        "settings": run["settings"],
        "versions": run["versions"],
    }


def adds_up(profile: Json) -> bool:
    """Whether the phases are the wall time, up to `TOLERANCE`."""
    share = profile["unaccounted_share"]
    return share is not None and share <= TOLERANCE


# ---- one case ----


def _phases(case: Json) -> Times:
    """What each phase of a case took, by its own clock."""
    found: Times = defaultdict(float)
    for exchange in case["trajectory"]:
        if trace := _trace(exchange):
            for span in trace["spans"]:
                found[span["name"]] += span["end"] - span["start"]
            # A server that took longer than its client waited contradicts it: that stays unaccounted for.
            found["network"] += max(exchange["seconds"] - trace["wall"], 0.0)
        else:
            found[UNKNOWN] += exchange["seconds"]
    seconds = case["seconds"]
    measured = {"tool": seconds["tools"], "client": seconds.get("client"), "record": seconds.get("record")}
    return {**found, **{name: value for name, value in measured.items() if value is not None}}


def _trace(exchange: Json) -> Json | None:
    """The server's trace, where it gave a whole one."""
    trace = exchange.get("trace")
    return trace if isinstance(trace, Mapping) and "spans" in trace and "wall" in trace else None


def _order(times: Sequence[Times]) -> list[str]:
    """Phases that make up the wall time: the server's, then the client's; others as they come."""
    seen = dict.fromkeys(name for t in times for name in t)
    others = [n for n in seen if n not in SERVER and n not in CLIENT]
    return [*(n for n in SERVER if n in seen), *others, *(n for n in CLIENT if n in seen)]


# ---- all of them ----


def stats(values: Iterable[float | None], total: float | None = None) -> dict[str, float | None]:
    """p50, p95, mean, total, and the share of `total`; all null where a value is not known, or none is there."""
    given = list(values)
    known = [v for v in given if v is not None]
    if not known or len(known) < len(given):
        return dict.fromkeys(FIGURES)
    whole = math.fsum(known)
    return {
        "p50": quantile(known, 0.5),
        "p95": quantile(known, 0.95),
        "mean": whole / len(known),
        "total": whole,
        "share": whole / total if total else None,
    }


def quantile(values: Sequence[float], q: float) -> float:
    """The value that a share `q` of `values` do not exceed, interpolated between neighbours."""
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def _known(name: str, times: Sequence[Times], total: float) -> dict[str, float | None]:
    """The figures of a phase; of one that no case tells of, null."""
    if not any(name in t for t in times):
        return stats(())
    return stats((t.get(name, 0.0) for t in times), total)


def _part(differences: Iterable[float], whole: float) -> float | None:
    """The share of `whole` that `differences` make up, where none makes good for another."""
    return math.fsum(map(abs, differences)) / whole if whole else None


def _inside(cases: Sequence[Json], total: float) -> dict[str, dict[str, float | None]]:
    """Times that the server summed up inside its phases, as "decode.grammar": parts of them, not to be added."""
    found: list[Times] = []
    for case in cases:
        sums: Times = defaultdict(float)
        for exchange in case["trajectory"]:
            for span in (_trace(exchange) or {"spans": ()})["spans"]:
                for key, value in (span.get("attributes") or {}).items():
                    if key.endswith(SECONDS):
                        sums[f"{span['name']}.{key.removesuffix(SECONDS)}"] += value
        found.append(sums)
    return {name: _known(name, found, total) for name in dict.fromkeys(n for sums in found for n in sums)}


def _per_request(exchanges: Sequence[Json]) -> dict[str, dict[str, float | None]]:
    """The same for single requests: what each phase took, and what one wants to know of a server."""
    traces = [t for x in exchanges if (t := _trace(x))]
    times = [{s["name"]: s["end"] - s["start"] for s in t["spans"]} for t in traces]
    found = {name: _known(name, times, 0.0) for name in dict.fromkeys(n for t in times for n in t)}
    decoded = [d for t in traces if (d := _decoded(t))]
    return {
        **found,
        "exchange": stats(x["seconds"] for x in exchanges),
        "time_to_first_token": stats(first for first, _, _ in decoded),
        "tokens_per_second": _without_sum(stats(rate for _, rate, _ in decoded if rate is not None)),
        "tokens": stats(float(n) for _, _, n in decoded),
    }


def _decoded(trace: Json) -> tuple[float, float | None, int] | None:
    """Seconds from arrival to the first token, tokens a second from there on, and tokens; None without an answer."""
    span = next((s for s in trace["spans"] if s["name"] == "decode"), None)
    tokens = (span.get("attributes") or {}).get("tokens") if span else None
    if span is None or tokens is None:
        return None
    took = span["end"] - span["start"]
    return span["start"], (tokens - 1) / took if tokens > 1 and took > 0 else None, tokens


def _without_sum(found: dict[str, float | None]) -> dict[str, float | None]:
    return {**found, "total": None}


def _accounting(cases: Sequence[Json], traced: Sequence[Json]) -> dict[str, float | None]:
    """How far each clock's own parts are from its wall time.

    server: spans from the server's wall. client: exchanges, tools, framework and recording from the case's wall.
    """
    walls = [t["wall"] for x in traced if (t := _trace(x))]
    spans = [math.fsum(s["end"] - s["start"] for s in x["trace"]["spans"]) for x in traced]
    left = []
    for case in cases:
        seconds = case["seconds"]
        known = [seconds["model"], seconds["tools"], seconds.get("client") or 0.0, seconds.get("record") or 0.0]
        left.append(seconds["wall"] - math.fsum(known))
    return {
        "server": _part((a - b for a, b in zip(walls, spans, strict=True)), math.fsum(walls)),
        "client": _part(left, math.fsum(c["seconds"]["wall"] for c in cases)),
    }


def _server(run: Json, traced: Sequence[Json]) -> str | None:
    if run["settings"].get("through") == "model":
        return "none"
    return "punie-mlx" if traced else None


def _first(case: Json) -> dict[str, float | None]:
    """What the first case and its first request took: kernels are compiled, caches are empty."""
    trajectory = case["trajectory"]
    return {"first_case": case["seconds"]["wall"], "first_request": trajectory[0]["seconds"] if trajectory else None}
