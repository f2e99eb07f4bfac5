"""One exchange with the model: its prompt and output as tokens, what the reader made of them, bodies, spans."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from punie_mlx.evals.report.figures import seconds
from punie_mlx.evals.report.inputs import Json
from punie_mlx.pages.plots import spans as span_bars
from punie_mlx.pages.tables import Column, table
from punie_mlx.pages.text import Html, attribute, compact, html, join, pretty, spaced, tag

MOST_TOKENS = 1200  # shown of a prompt or output; of a longer one, its beginning and its end
MOST_TEXT = 12_000  # characters of a body
MOST_EVENTS = 200

CONTROL = re.compile(r"<\|[^|>]*\|>|</?[\w:｜▁-]+>|\[/?[A-Z_]+\]")

Tokens = Sequence[Sequence[Any]]
"""(id, text) of each."""


@dataclass
class Shown:
    """What a case has shown already: prompts that come again are only referred to."""

    prompts: dict[tuple[Any, ...], str] = field(default_factory=dict)
    """Ids of a prompt → where it stands."""


def exchanges(case: Json, place: str, shown: Shown) -> Html:
    """All exchanges of one try; `place` names the try for other places that refer to it."""
    if not case["trajectory"]:
        return _turns(case)
    parts, before = [], None
    for i, exchange in enumerate(case["trajectory"], 1):
        parts.append(_exchange(exchange, before, i, f"{place}, exchange {i}", shown))
        before = exchange
    return join(parts)


def _turns(case: Json) -> Html:
    """What a run file without exchanges knows of them."""
    rows = []
    for i, turn in enumerate(case["turns"], 1):
        usage = turn.get("usage") or {}
        counts = (usage.get(k, "") for k in ("prompt_tokens", "completion_tokens"))
        rows.append([str(i), seconds(turn["seconds"]), *map(str, counts), turn.get("finish_reason") or ""])
    columns = [Column("exchange"), Column("time"), Column("prompt tokens"), Column("output tokens"),
               Column("ended by", number=False)]  # fmt: skip
    made = table(columns, rows, caption="Exchanges with the server")
    raw = [tag("pre", t, tabindex="0") for t in case["raw_text"] if t]
    said = tag("p", "This run file keeps no tokens and no HTTP bodies.", class_="soft small")
    return tag("details", tag("summary", f"{len(rows)} exchanges"), made, *raw, said)


def _exchange(exchange: Json, before: Json | None, number: int, place: str, shown: Shown) -> Html:
    trace = exchange.get("trace")
    trace = trace if isinstance(trace, dict) and "prompt" in trace else None
    head = [f"Exchange {number}", seconds(exchange["seconds"])]
    if trace:
        head.append(f"{len(trace['prompt']):,} → {len(trace['output']):,} tokens")
    if exchange.get("finish_reason"):
        head.append(f"ended by {exchange['finish_reason']}")
    if exchange.get("status") not in (200, None):
        head.append(f"HTTP {exchange['status']}")
    previous = (before or {}).get("trace")
    return tag(
        "details",
        tag("summary", " · ".join(head)),
        _trace(trace, previous if isinstance(previous, dict) else None, place, shown) if trace else _untraced(),
        _body("HTTP request", _shortened(exchange.get("request"), (before or {}).get("request"))),
        _body("HTTP response", exchange.get("response")),
        class_="exchange",
    )


def _untraced() -> Html:
    return tag("p", "No trace: the server told neither its tokens nor its spans.", class_="soft small")


def _trace(trace: Json, before: Json | None, place: str, shown: Shown) -> Html:
    ids = tuple(t[0] for t in trace["prompt"])
    if ids in shown.prompts:
        prompt = tag("p", f"The same {len(ids):,} tokens as in {shown.prompts[ids]}.", class_="soft small")
    else:
        shown.prompts[ids] = place
        prompt = _prompt(trace["prompt"], before)
    return join(
        [
            tag("h5", f"Prompt, {len(ids):,} tokens"), prompt,
            tag("h5", f"Raw output, {len(trace['output']):,} tokens"), tokens(trace["output"], "Raw output"),
            tag("h5", "Read as"), _events(trace.get("events") or ()),
            tag("h5", f"Time on the server, {seconds(trace['wall'])}" if trace.get("wall") else "Time on the server"),
            _spans(trace.get("spans") or (), trace.get("wall") or 0.0),
        ]
    )  # fmt: skip


def _prompt(prompt: Tokens, before: Json | None) -> Html:
    """The tokens; those that the exchange before had in its prompt or output too are folded."""
    known = [t[0] for t in (*before["prompt"], *before["output"])] if before and "prompt" in before else []
    same = next(
        (i for i, (a, b) in enumerate(zip(prompt, known, strict=False)) if a[0] != b), min(len(prompt), len(known))
    )
    if same < 16:
        return tokens(prompt, "Prompt")
    start = tag("details", tag("summary", f"the first {same:,} tokens, as in the exchange before"),
                tokens(prompt[:same], "Prompt, beginning"))  # fmt: skip
    return join([start, tokens(prompt[same:], "Prompt, what is new")])


def tokens(found: Tokens, name: str) -> Html:
    """Tokens as chips in turn of two tints: the id as title, control tokens marked, white space visible."""
    if not found:
        return tag("p", "none", class_="soft small")
    half = MOST_TOKENS // 2
    if len(found) <= MOST_TOKENS:
        chips = "".join(map(_chip, found))
    else:
        left = len(found) - 2 * half
        gap = f'<b class="gap">… {left:,} tokens left out …</b>'
        chips = "".join(map(_chip, found[:half])) + gap + "".join(map(_chip, found[-half:]))
    return tag(
        "div", Html(chips), class_="tokens", role="region", aria_label=f"{name}, {len(found):,} tokens", tabindex="0"
    )


def _chip(token: Sequence[Any]) -> str:
    number, text = attribute(token[0]), str(token[1])
    kind = " class=c" if CONTROL.fullmatch(text) else ""
    return f'<i{kind} title="{number}">{spaced(text) or "<u>∅</u>"}</i>'


def _events(events: Sequence[Json]) -> Html:
    if not events:
        return tag("p", "nothing", class_="soft small")
    rows = []
    for event in events[:MOST_EVENTS]:
        rest = {k: v for k, v in event.items() if k != "kind"}
        said = rest[next(iter(rest))] if len(rest) == 1 else rest
        rows.append([event.get("kind", ""), tag("code", said if isinstance(said, str) else compact(said))])
    made = table([Column("event", False), Column("what", False)], rows, caption="Events of the reader")
    more = len(events) - MOST_EVENTS
    return join([made, tag("p", f"{more:,} more events are left out.", class_="soft small") if more > 0 else ""])


def _spans(spans: Sequence[Json], wall: float) -> Html:
    if not spans:
        return tag("p", "no spans", class_="soft small")
    bars = span_bars([(s["name"], s["start"], s["end"]) for s in spans], wall)
    rows = [
        [s["name"], tag("span", bar, class_="spancell"), seconds(s["start"]), seconds(s["end"] - s["start"])]
        for s, bar in zip(spans, bars, strict=True)
    ]
    columns = [Column("span", False), Column("when", False), Column("from"), Column("time")]
    return table(columns, rows, caption="Spans of the server")


def _shortened(request: Any, before: Any) -> Any:
    """`request` without the tools and messages that the one before had as well."""
    if not isinstance(request, dict) or not isinstance(before, dict):
        return request
    short = dict(request)
    if short.get("tools") and short["tools"] == before.get("tools"):
        short["tools"] = f"the {len(short['tools'])} tools of the exchange before"
    old, new = before.get("messages"), short.get("messages")
    if isinstance(old, list) and isinstance(new, list) and old and new[: len(old)] == old:
        short["messages"] = [f"the {len(old)} messages of the exchange before", *new[len(old) :]]
    return short


def _body(name: str, body: Any) -> Html:
    if body is None:
        return tag("p", f"{name}: not kept", class_="soft small")
    text = pretty(body)
    left = len(text) - MOST_TEXT
    shown = join([text[:MOST_TEXT], tag("b", f"\n… {left:,} characters left out", class_="soft") if left > 0 else ""])
    return tag("details", tag("summary", name), tag("pre", shown, tabindex="0"))


def text_block(text: str) -> Html:
    """A text of a conversation, cut where it is very long."""
    left = len(text) - MOST_TEXT
    return tag("pre", html(text[:MOST_TEXT]), f"\n… {left:,} characters left out" if left > 0 else "", tabindex="0")
