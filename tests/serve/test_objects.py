"""The objects are OpenAI's: its own package takes them, strictly; log-probabilities name the bytes of each token."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from punie_mlx.chat.render import load_tokenizer
from punie_mlx.serve import objects
from punie_mlx.serve.answer import Answer, collect
from punie_mlx.serve.generation import Piece
from punie_mlx.toolcalls.calls import Tool
from punie_mlx.toolcalls.stream import StreamParser

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
TEXTS = ["Hello", f"First.\n\n{CALL}\n{CALL}", "<think>\nhm\n</think>\n\nSo.", "<tool_call>\n{no", ""]


def generation(prompt: int, completion: int, cached: int) -> Any:
    return SimpleNamespace(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached, guesses=None)


def answered(text: str, streamed: bool) -> tuple[list[dict[str, Any]], Answer]:
    answer = Answer(StreamParser("hermes", [Tool("f")]), offered=True, plan=None, streamed=streamed)
    return [d for c in text for d in answer.feed(c)] + answer.finish("stop"), answer


def through_the_wire(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


@pytest.mark.parametrize("text", TEXTS)
def test_a_whole_answer_is_what_openai_says_it_is(text: str, loaded: Any) -> None:
    found, answer = answered(text, streamed=False)
    pieces = [Piece("a", 5, None, -0.5, ((5, -0.5), (6, -2.0)))]
    choice = objects.choice(
        0, collect(found), answer.finish_reason("stop"), answer.extension(), objects.logprobs(pieces, loaded)
    )
    head = objects.head(objects.CHAT, "m", "fp")
    body = through_the_wire(objects.completion(head, [choice], objects.usage([generation(5, 7, 3)]), {"run": "1"}))
    taken = ChatCompletion.model_validate(body, strict=True)
    assert taken.model_dump(exclude_unset=True) == body  # nothing was changed or left out
    (first,) = taken.choices
    assert (first.finish_reason == "tool_calls") == bool(first.message.tool_calls)
    assert first.message.content is not None or first.message.tool_calls
    assert taken.usage and taken.usage.prompt_tokens_details and taken.usage.total_tokens == 12
    assert taken.metadata == {"run": "1"} and taken.id.startswith("chatcmpl-")
    assert (first.model_extra or {})["punie"]["grammar"]["state"] == "off"


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("with_usage", [False, True])
def test_a_stream_is_what_openai_says_it_is(text: str, with_usage: bool) -> None:
    found, answer = answered(text, streamed=True)
    head = objects.head(objects.CHUNK, "m", "fp")
    choices = [objects.part(0, {"role": "assistant"}), *(objects.part(0, delta) for delta in found)]
    choices.append(objects.part(0, {}, answer.finish_reason("stop"), answer.extension()))
    bodies = [objects.chunk(head, [choice], with_usage=with_usage) for choice in choices]
    if with_usage:
        bodies.append(objects.chunk(head, [], with_usage=True, usage=objects.usage([generation(5, 7, 3)])))
    for body in map(through_the_wire, bodies):
        taken = ChatCompletionChunk.model_validate(body, strict=True)
        assert taken.model_dump(exclude_unset=True) == body
        assert ("usage" in body) == with_usage
    assert [("punie" in b["choices"][0]) for b in bodies if b["choices"]] == [False] * (len(choices) - 1) + [True]


def test_plain_text_is_what_openai_says_it_is(loaded: Any) -> None:
    pieces = [Piece("ab", 5, None, -0.5, ((5, -0.5),)), Piece("", 6, None, -1.0), Piece("c", None, "stop")]
    choice = objects.text_choice(0, "abc", "stop", objects.text_logprobs(pieces, loaded, offset=3))
    head = objects.head(objects.TEXT, "m", "fp")
    body = through_the_wire(objects.completion(head, [choice], objects.usage([generation(5, 3, 0)])))
    taken = Completion.model_validate(body, strict=True)
    assert taken.model_dump(exclude_unset=True) == body and taken.id.startswith("cmpl-")
    found = taken.choices[0].logprobs
    assert found and found.text_offset == [3, 5] and found.token_logprobs == [-0.5, -1.0]


def test_usage_counts_the_prompt_once_and_every_answer() -> None:
    first = objects.usage([generation(10, 5, 4), generation(10, 6, 10)])
    assert first["prompt_tokens"] == 10 and first["completion_tokens"] == 11 and first["total_tokens"] == 21
    assert first["prompt_tokens_details"] == {"cached_tokens": 4}
    both = objects.usages([first, objects.usage([generation(3, 2, 1)])])
    assert (both["prompt_tokens"], both["completion_tokens"], both["total_tokens"]) == (13, 13, 26)
    assert both["prompt_tokens_details"] == {"cached_tokens": 5}
    assert objects.usages([])["total_tokens"] == 0


def test_each_answer_has_an_id_of_its_own() -> None:
    assert len({objects.head(objects.CHAT, "m", "fp")["id"] for _ in range(100)}) == 100


# ---- log-probabilities ----


@pytest.fixture(scope="module")
def loaded(tiny_base: Path) -> Any:
    tokenizer = load_tokenizer(tiny_base)
    control = {i: t.content for i, t in tokenizer.added_tokens_decoder.items()}
    return SimpleNamespace(tokenizer=tokenizer, control=control, vocabulary=len(tokenizer.get_vocab()) + 64)


def test_the_bytes_of_tokens_join_to_the_text(loaded: Any) -> None:
    text = '<tool_call>\nü 🌍 日本 "x"\t</tool_call><|im_end|>'
    ids = loaded.tokenizer.encode(text, add_special_tokens=False)
    found = objects.logprobs([Piece("", i, None, -0.5) for i in ids], loaded)["content"]
    assert bytes(b for one in found for b in one["bytes"]).decode() == text
    assert found[0]["token"] == "<tool_call>"
    assert any(one["token"] == "\ufffd" * len(one["token"]) for one in found)  # part of a character


def test_every_token_of_a_vocabulary_has_bytes(loaded: Any) -> None:
    vocabulary = loaded.tokenizer.get_vocab()
    assert all(objects.token_bytes(i, loaded) for i in vocabulary.values())
    assert objects.token_bytes(loaded.vocabulary - 1, loaded) == b""  # logits are wider than the vocabulary


def test_the_end_token_and_impossible_values(loaded: Any) -> None:
    pieces = [Piece("a", 5, None, -math.inf, ((5, math.nan),)), Piece("", None, "stop", -0.1)]
    (one,) = objects.logprobs(pieces, loaded)["content"]
    assert one["logprob"] == one["top_logprobs"][0]["logprob"] == objects.LEAST
    assert objects.logprobs([Piece("a", 5, None, -0.0)], loaded)["content"][0]["logprob"] == 0


def test_tokens_of_a_vocabulary_of_pieces() -> None:
    """Llama 2's kind: a low line for a blank, bytes spelled out."""
    pieces = ["▁the", "<0xE2>", "a", "<0xZZ"]
    tokenizer = Pieces(pieces)
    loaded: Any = SimpleNamespace(tokenizer=tokenizer, control={})
    assert [objects.token_bytes(i, loaded) for i in range(5)] == [b" the", b"\xe2", b"a", b"<0xZZ", b""]


class Pieces:
    def __init__(self, pieces: list[str]) -> None:
        self._pieces = pieces

    def convert_ids_to_tokens(self, token: int) -> str | None:
        return self._pieces[token] if token < len(self._pieces) else None
