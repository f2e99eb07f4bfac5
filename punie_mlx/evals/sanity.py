"""Is it the model that was asked for, with the tools that were offered, that is being scored? Asked of the first cases,
before the rest is run: a template that drops the tools makes a good model look like one that cannot call any.

The prompt is known where the server tells it (`trace` of an exchange; the model without a server always does). Where it
does not, the number of prompt tokens tells something: with the tools it must be higher than without (`bare_tokens`
asks). Where nothing tells, that is said.

Tools that are not in the prompt are an error and no warning: the figure would be one of the template, and a figure in a
table loses its footnotes. Who wants it all the same (a base model whose template knows no tools, say) allows it, and
finds it among the result's warnings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import openai

from punie_mlx.errors import FingerprintError, ModelError

Json = Mapping[str, Any]
FINGERPRINT = re.compile(r"[0-9a-f]{64}")
WORD = re.compile(r"\w{4,}")
NOT_TOLD = (
    "it could not be checked that the offered tools are in the model's prompt: the server shows neither the prompt nor "
    "a number of tokens that tells"
)


def check(records: Sequence[Json], *, allow: bool = False, bare: int | None = None) -> list[str]:
    """Warnings about the prompts behind these case records (of format 2).

    Args:
        records: the first cases.
        allow: tools that are missing are a warning, not an error.
        bare: the prompt tokens of the first record's first request without its tools, from `bare_tokens`.

    Raises:
        ModelError: tools that were offered are not in the prompt.
    """
    offering = [(record, exchange) for record, exchange in _exchanges(records) if tool_names(exchange)]
    if not offering:
        return []
    told = [_missing(record, exchange) for record, exchange in offering]
    if all(t is None for t in told):
        told = [_too_few_tokens(offering[0], bare)]
    problem = next((t for t in told if t), None)
    if problem:
        advice = "mend the chat template (serve --chat-template FILE), or allow it if the model is to be scored so"
        if not allow:
            raise ModelError(f"{problem}: {advice}. No more was scored")
        return [problem]
    warnings = [NOT_TOLD] if all(t is None for t in told) else []
    return warnings + _unasked(records)


def _exchanges(records: Sequence[Json]) -> Iterator[tuple[Json, Json]]:
    for record in records:
        for exchange in record.get("trajectory") or []:
            yield record, exchange


def tool_names(exchange: Json) -> list[str]:
    """The tools that the request of an exchange offers."""
    request = exchange.get("request")
    tools = request.get("tools") if isinstance(request, Mapping) else None
    return [t["function"]["name"] for t in tools or []]


def prompt_text(exchange: Json) -> str | None:
    """The prompt that the model was shown, or None where nobody told."""
    trace = exchange.get("trace")
    if not isinstance(trace, Mapping) or not isinstance(trace.get("prompt"), Sequence):
        return None
    return "".join(str(text) for _, text in trace["prompt"]) or None


def _missing(record: Json, exchange: Json) -> str | None:
    """What is wrong with the prompt of an exchange; "" where nothing is, None where it is not known."""
    text = prompt_text(exchange)
    if text is None:
        return None
    names = tool_names(exchange)
    missing = [n for n in names if n not in text]
    if not missing:
        return ""
    which = "none" if len(missing) == len(names) else f"{len(names) - len(missing)}"
    return (
        f"case {record['id']}: of {len(names)} offered tools the model's prompt holds {which} "
        f"(it lacks {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''})"
    )


def _too_few_tokens(first: tuple[Json, Json], bare: int | None) -> str | None:
    """The same, told by the number of prompt tokens."""
    record, exchange = first
    used = (exchange.get("usage") or {}).get("prompt_tokens")
    names = tool_names(exchange)
    if not isinstance(used, int) or not used:
        return None
    if bare is not None and used <= bare:
        return (
            f"case {record['id']}: its prompt has {used} tokens with the {len(names)} offered tools and {bare} without "
            "them: they are not in it"
        )
    if used < len(names):
        return f"case {record['id']}: a prompt of {used} tokens cannot hold the names of {len(names)} tools"
    return "" if bare is not None else None


def _unasked(records: Sequence[Json]) -> list[str]:
    """Cases whose prompt is known and holds none of the words that were asked."""
    for record in records:
        words = WORD.findall(record.get("query") or "")
        texts = [t for e in record.get("trajectory") or [] if (t := prompt_text(e)) is not None]
        if words and texts and not any(w in texts[0] for w in words):
            return [f"case {record['id']}: the model's prompt holds no word of the query: does its template show it?"]
    return []


async def bare_tokens(client: openai.AsyncOpenAI, record: Json) -> int | None:
    """The prompt tokens of the record's first request without its tools; None where the server does not tell.

    Costs one request of one token; asked only where the server did not show the prompt.
    """
    first = next((e for _, e in _exchanges([record]) if tool_names(e)), None)
    if first is None or prompt_text(first) is not None:
        return None
    request = {k: first["request"][k] for k in ("model", "messages", "temperature") if k in first["request"]}
    try:
        response = await client.post(
            "/chat/completions", body={**request, "max_tokens": 1, "stream": False}, cast_to=dict[str, Any]
        )
        return int(response["usage"]["prompt_tokens"])
    except (openai.OpenAIError, LookupError, TypeError, ValueError):
        return None


def same_model(records: Sequence[Json], fingerprint: str) -> None:
    """Raise `FingerprintError` where a response says that another model than `fingerprint` made it.

    Each response of our server names its model, so one that was swapped in for some cases only is seen as well. What
    other servers say there is no fingerprint of ours, and is not looked at.
    """
    for record, exchange in _exchanges(records):
        response = exchange.get("response")
        said = response.get("system_fingerprint") if isinstance(response, Mapping) else None
        if isinstance(said, str) and FINGERPRINT.fullmatch(said) and said != fingerprint:
            raise FingerprintError(
                f"case {record['id']} was answered by another model ({said}) than the one asked for ({fingerprint}): "
                "the server was replaced while it was scored. The run is void"
            )
