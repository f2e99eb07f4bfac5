"""One case: what was asked and expected, and beside each other what every run made of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from punie_mlx.evals.report.exchange import Shown, exchanges, text_block
from punie_mlx.evals.report.figures import seconds
from punie_mlx.evals.report.inputs import Json, Run
from punie_mlx.evals.report.overview import name
from punie_mlx.pages.text import Html, compact, join, pretty, tag

MATCHED = {
    "exact": "is {}", "one_of": "is one of {}", "set": "holds {} in any order", "regex": "matches {}",
    "min": "is at least {}", "max": "is at most {}", "predicate": "satisfies {}", "tolerance": "give or take {}",
    "number": "is {}",
}  # fmt: skip

Tries = Mapping[int, Sequence[Json]]
"""Index of a run → its tries of the case."""


def body(runs: Sequence[Run], tries: Tries) -> Html:
    """The inside of a case."""
    some = next(c for found in tries.values() for c in found)
    shown = Shown()
    sides = [_side(run, tries[run.index], some, shown) for run in runs if run.index in tries]
    return join([_asked(some), _expected(some), tag("div", *sides, class_="sides")])


# ---- what was asked ----


def _asked(case: Json) -> Html:
    given = _given(case)
    tools = _tools(case)
    parts = [
        tag("h4", "Asked" if len(given) < 2 else "The conversation so far"),
        *(_message(m, {}) for m in given),
        _facts(case),
        tag("h4", f"Tools offered, {len(tools)}") if tools else "",
        tag("ul", *map(_tool, tools), class_="tools") if tools else "",
    ]
    return tag("div", *parts, class_="asked")


def _facts(case: Json) -> Html:
    facts = {"suite": case["suite"], "category": case["category"], "source": case.get("source")}
    said = " · ".join(f"{k} {v}" for k, v in facts.items() if v)
    return tag("p", said, class_="soft small")


def _given(case: Json) -> list[Json]:
    """The messages before the model's first word."""
    request = _first_request(case)
    sent = request.get("messages")
    if isinstance(sent, list) and sent:
        return [m for m in sent if isinstance(m, dict)]
    system = [m for m in case["messages"][:1] if m.get("role") == "system"]
    return [*system, {"role": "user", "content": case["query"]}]


def _first_request(case: Json) -> Json:
    for exchange in case["trajectory"][:1]:
        if isinstance(request := exchange.get("request"), dict):
            return request
    return {}


def _tools(case: Json) -> list[Json]:
    offered = _first_request(case).get("tools") or case.get("tools") or []
    return [t.get("function", t) for t in offered if isinstance(t, dict)]


def _tool(function: Json) -> Html:
    parameters = function.get("parameters") or {}
    required = parameters.get("required") or ()
    known = parameters.get("properties") or {}
    arguments = ", ".join(f"{n}{'' if n in required else '?'}: {_type(s)}" for n, s in known.items())
    described = function.get("description")
    return tag("li", tag("code", f"{function.get('name')}({arguments})"),
               tag("span", f" {described}", class_="soft") if described else "")  # fmt: skip


def _type(schema: Any) -> str:
    kind = schema.get("type", "any") if isinstance(schema, dict) else "any"
    if isinstance(schema, dict) and "enum" in schema:
        return " | ".join(map(compact, schema["enum"]))
    return kind if isinstance(kind, str) else " | ".join(map(str, kind))


def _expected(case: Json) -> Html:
    expect = case.get("expect") or {}
    ways = expect.get("any_of") or [expect.get("calls", case["expected_calls"])]
    parts = []
    for i, calls in enumerate(ways):
        between = tag("p", "or", class_="soft small") if i else ""
        shown = tag("ul", *(tag("li", _expected_call(c)) for c in calls)) if calls else tag("p", "No call.")
        parts.append(join([between, shown]))
    parts += [tag("p", line) for line in _conditions(expect)]
    return tag("div", tag("h4", "Expected"), *parts, class_="expected")


def _conditions(expect: Json) -> Iterator[str]:
    """What else the case asks for, beside the calls."""
    if expect.get("order") == "given":
        yield "In this order."
    if expect.get("parallel") is not None:
        yield "All in one response." if expect["parallel"] else "Never two in one response."
    if expect.get("turns") == "first":
        yield "Only the first response with calls counts."
    for key, said in (("contains", "contains"), ("matches", "matches"), ("lacks", "lacks")):
        if wanted := (expect.get("answer") or {}).get(key):
            yield f"The answer {said} {compact(wanted)}."
    for path, wanted in (expect.get("files") or {}).items():
        yield f"Afterwards {path} " + ("does not exist." if wanted is None else f"is {compact(wanted)}.")


def _expected_call(call: Mapping[str, Any]) -> Html:
    names = call["name"] if isinstance(call["name"], str) else " or ".join(call["name"])
    exact = [f"{k}={compact(v)}" for k, v in (call.get("arguments") or {}).items()]
    free = call.get("arguments") is None and call.get("match") is None
    matched = [f"; {k} {_matcher(m)}" for k, m in (call.get("match") or {}).items()]
    inside = "…" if free else ", ".join(exact)
    return join([tag("code", f"{names}({inside})"), *matched])


def _matcher(matcher: Mapping[str, Any]) -> str:
    said = [MATCHED.get(k, k + " {}").format(compact(v)) for k, v in matcher.items() if k != "optional"]
    return ", ".join(said) + (", or is absent" if matcher.get("optional") else "")


# ---- what became of it ----


def _side(run: Run, tries: Sequence[Json], asked: Json, shown: Shown) -> Html:
    failed = [c for c in tries if not c["passed"]]
    if not failed:
        said = "passed" if len(tries) == 1 else f"passed all {len(tries)} times"
        content = _transcript(tries[0])
    elif len(tries) == 1:
        said, content = "failed", _failure(run, failed[0], shown)
    else:
        said = f"failed {len(failed)} of {len(tries)} times"
        content = join(
            tag("details", tag("summary", f"Try {c['repeat'] + 1}"), _failure(run, c, shown), open=c is failed[0])
            for c in failed
        )
    verdict = tag("span", said, class_="bad" if failed else "good")
    took = tag("span", seconds((failed or tries)[0]["seconds"]["wall"]), class_="soft small n")
    return tag("section", tag("h4", name(run), " ", verdict, " ", took), content, class_=f"side {run.colour}")


def _failure(run: Run, case: Json, shown: Shown) -> Html:
    place = f"{run.letter} ({run.label})" + (f", try {case['repeat'] + 1}" if case["repeat"] else "")
    notes = []
    if case["lenient"]:
        notes.append("Judged leniently, it passed.")
    if case["passed_with_retry"]:
        notes.append("With a retry, it passed.")
    return join(
        [
            tag("ul", *(tag("li", r) for r in case["reasons"]), class_="reasons"),
            *(tag("p", note, class_="soft small") for note in notes),
            _transcript(case),
            _files(case),
            exchanges(case, place, shown),
        ]
    )


def _transcript(case: Json) -> Html:
    """What the model said and did, with the results of its tools."""
    results = {c["id"]: c for c in case["calls"]}
    given = len(_given(case))
    said = [m for m in case["messages"] if m.get("role") != "system"]
    start = given - sum(m.get("role") == "system" for m in _given(case))
    turns = [
        _message(m, results) for m in said[start:] if m.get("role") != "tool" or m.get("tool_call_id") not in results
    ]
    if not turns:
        turns = [tag("p", "It said nothing.", class_="soft small")]
    return tag("div", *turns, class_="transcript")


def _message(message: Mapping[str, Any], results: Mapping[str, Json]) -> Html:
    role, content = str(message.get("role", "?")), message.get("content")
    parts = []
    if message.get("reasoning_content"):
        parts.append(tag("details", tag("summary", "thinking"), text_block(str(message["reasoning_content"]))))
    if content:
        parts.append(text_block(content if isinstance(content, str) else pretty(content)))
    parts += [_call(c, results) for c in message.get("tool_calls") or ()]
    if not parts:
        parts.append(tag("p", "an empty message", class_="soft small"))
    return tag("div", tag("span", role, class_="role"), *parts, class_=f"message {role if role.isalpha() else ''}")


def _call(call: Mapping[str, Any], results: Mapping[str, Json]) -> Html:
    function = call.get("function") or {}
    made = results.get(str(call.get("id")))
    shown = [tag("code", f"{function.get('name')}({function.get('arguments', '')})", class_="call")]
    if made and made.get("result") is not None:
        verdict = tag("span", "done" if made["ok"] else "refused", class_="good" if made["ok"] else "bad")
        shown += [tag("span", " ", verdict, f" in {seconds(made['seconds'])}", class_="small")]
        shown.append(text_block(str(made["result"])))
    elif made:
        shown.append(tag("span", " was never executed", class_="bad small"))
    return tag("div", *shown)


def _files(case: Json) -> Html:
    files: Iterable[tuple[str, Any]] = (case.get("files") or {}).items()
    shown = [
        join([tag("h5", path), text_block(text if isinstance(text, str) else pretty(text))]) for path, text in files
    ]
    return tag("details", tag("summary", f"{len(shown)} files afterwards"), *shown) if shown else Html("")
