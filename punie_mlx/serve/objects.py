"""The objects of OpenAI's API, as JSON values: completions, chunks, choices, usage, log-probabilities."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from punie_mlx.serve.engine import Loaded
    from punie_mlx.serve.generation import Generation, Piece

Json = dict[str, Any]

CHAT, CHUNK, TEXT = "chat.completion", "chat.completion.chunk", "text_completion"
_PREFIXES = {CHAT: "chatcmpl-", CHUNK: "chatcmpl-", TEXT: "cmpl-"}
LEAST = -9999.0  # what the API says for a probability of nothing, since JSON has no infinity


def head(kind: str, model: str, fingerprint: str) -> Json:
    """What all objects of one answer begin with; `kind` is `CHAT`, `CHUNK` or `TEXT`."""
    return {
        "id": _PREFIXES[kind] + uuid.uuid4().hex,
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": fingerprint,
    }


def completion(head: Json, choices: Sequence[Json], usage: Json, metadata: Mapping[str, str] | None = None) -> Json:
    """A whole answer."""
    return {**head, "choices": list(choices), "usage": usage, **({"metadata": dict(metadata)} if metadata else {})}


def chunk(head: Json, choices: Sequence[Json], *, with_usage: bool = False, usage: Json | None = None) -> Json:
    """A part of a streamed answer; `with_usage`: the client wants usage in the stream, so that each part names it."""
    return {**head, "choices": list(choices), **({"usage": usage} if with_usage else {})}


def choice(index: int, message: Json, finish_reason: str, punie: Json, logprobs: Json | None = None) -> Json:
    """One of the answers to a request; `punie` is what OpenAI's API has no place for."""
    return {
        "index": index, "message": message, "logprobs": logprobs, "finish_reason": finish_reason, "punie": punie,
    }  # fmt: skip


def part(
    index: int, delta: Json, finish_reason: str | None = None, punie: Json | None = None, logprobs: Json | None = None
) -> Json:
    """Part of one of the answers; the last, with `finish_reason`, has `punie`."""
    out = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
    return out if punie is None else {**out, "punie": punie}


def text_choice(index: int, text: str, finish_reason: str | None, logprobs: Json | None = None) -> Json:
    """One of the answers to a request for plain text, or part of one."""
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def usage(generations: Iterable[Generation]) -> Json:
    """The tokens of one prompt and of all answers to it; several prompts are summed by `usages`."""
    answers = list(generations)
    prompt = max((g.prompt_tokens for g in answers), default=0)
    generated = sum(g.completion_tokens for g in answers)
    guesses = [g.guesses for g in answers if g.guesses is not None]
    accepted = sum(g.accepted for g in guesses)
    predicted = {
        "accepted_prediction_tokens": accepted,
        "rejected_prediction_tokens": sum(g.guessed for g in guesses) - accepted,
    }
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        # The first answer's, which the prompt is counted for: the others find it in the cache that this one filled.
        "prompt_tokens_details": {"cached_tokens": answers[0].cached_tokens if answers else 0},
        **({"completion_tokens_details": predicted} if guesses else {}),
    }


def usages(each: Iterable[Json]) -> Json:
    """The sum of what several prompts used."""
    total = usage(())
    for one in each:
        for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
            total[key] += one[key]
        total["prompt_tokens_details"]["cached_tokens"] += one["prompt_tokens_details"]["cached_tokens"]
    return total


# ---- log-probabilities ----


def logprobs(pieces: Iterable[Piece], loaded: Loaded) -> Json:
    """The tokens of `pieces` and how likely each was; the end token is none of the answer."""
    found = [
        {**_token(p.token, p.logprob, loaded), "top_logprobs": [_token(t, value, loaded) for t, value in p.top]}
        for p in pieces
        if p.token is not None
    ]
    return {"content": found, "refusal": None}


def text_logprobs(pieces: Iterable[Piece], loaded: Loaded, offset: int = 0) -> Json:
    """The same in the shape that plain text has; `offset`: where in the answer the first piece begins."""
    out: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for piece in pieces:
        if piece.token is not None:
            out["tokens"].append(_spelled(piece.token, loaded))
            out["token_logprobs"].append(_finite(piece.logprob))
            out["top_logprobs"].append({_spelled(token, loaded): _finite(value) for token, value in piece.top})
            out["text_offset"].append(offset)
        offset += len(piece.text)
    return out


def _token(token: int, value: float, loaded: Loaded) -> Json:
    return {
        "token": _spelled(token, loaded), "logprob": _finite(value), "bytes": list(token_bytes(token, loaded)),
    }  # fmt: skip


def _finite(value: float) -> float:
    return value if value > LEAST else LEAST  # NaN is no number to send, either


def _spelled(token: int, loaded: Loaded) -> str:
    return token_bytes(token, loaded).decode("utf-8", "replace")


def token_bytes(token: int, loaded: Loaded) -> bytes:
    """The bytes that `token` writes, which may be part of a character."""
    if token in loaded.control:
        return loaded.control[token].encode()
    piece = loaded.tokenizer.convert_ids_to_tokens(token)
    if not isinstance(piece, str):  # the logits are wider than the vocabulary
        return b""
    if byte_level(loaded.tokenizer):
        table = _bytes_of_characters()
        if all(c in table for c in piece):
            return bytes(table[c] for c in piece)
    elif len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("▁", " ").encode()


@lru_cache(maxsize=8)
def byte_level(tokenizer: Any) -> bool:
    """Whether `tokenizer` spells tokens as bytes, one character for each."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and '"ByteLevel"' in json.dumps(json.loads(backend.to_str()).get("decoder"))


@lru_cache(maxsize=1)
def _bytes_of_characters() -> dict[str, int]:
    """The byte for which each character stands in byte-level vocabularies: printable ones are their own."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
