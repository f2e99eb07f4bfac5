"""Prompt lookup: guess that what follows now is what followed the same words before, and verify the guess at once.

A tool call repeats its context: names of functions and parameters stand in the prompt, arguments in the question, the
answer quotes the result. So the last tokens are looked for in prompt and answer, and what followed them there is given
to the model in one forward pass together with the last token; guesses that the model would have made itself cost no
pass of their own (Saxena, "Prompt Lookup Decoding", 2023; Yang et al., "Inference with Reference: Lossless Acceleration
of Large Language Models", 2023).

Positions are processed and sampled one after the other, and a token counts only once the one before it is settled:
grammar masks, penalties and samplers see what they would see without guesses, and need not be rewound. A guess is
accepted where it equals the token that was sampled, so the distribution stays the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import mlx.core as mx

from punie_mlx.toolcalls import formats
from punie_mlx.toolcalls.calls import ToolCall

SIZES = (4, 3, 2)  # of the runs of tokens that are looked for, the longest first
FIRST = 4  # tokens of a guess to begin with
MOST = 16  # and at most
GAP = -1  # in a skeleton: anything
_VALUE = "\ue000value\ue001"  # stands in no tool's name

Processor = Callable[[mx.array, mx.array], mx.array]
Sampler = Callable[[mx.array], mx.array]
Progress = Callable[[int, int], None]


class Context:
    """The tokens so far, and where each run of them was last followed by something.

    `skeletons`: what the model is likely to write that stands in no prompt, such as the calls of its tools, with `GAP`
    in the place of their values. They are looked up as if they stood before the prompt, single tokens of them too: the
    marker that opens a call is one.
    """

    def __init__(self, tokens: Sequence[int] = (), skeletons: Sequence[int] = ()) -> None:
        self._tokens: list[int] = []
        self._follows: dict[tuple[int, ...], int] = {}  # run of tokens → the index behind its last place
        self._length = FIRST
        self.guessed = 0
        self.accepted = 0
        for token in skeletons:
            self.add(token, (*SIZES, 1))
        for token in tokens:
            self.add(token)

    def add(self, token: int, sizes: Sequence[int] = SIZES) -> None:
        """One more token; only now is it known what follows those before it."""
        here = len(self._tokens)
        for size in sizes:
            if size <= here:
                self._follows[tuple(self._tokens[here - size :])] = here
        self._tokens.append(token)

    def guess(self, most: int) -> list[int]:
        """Up to `most` tokens that may follow; none where nothing of what is last was seen before."""
        length = min(most, self._length)
        for size in (*SIZES, 1):
            start = self._follows.get(tuple(self._tokens[-size:])) if size <= len(self._tokens) else None
            if start is not None and length > 0:
                found = self._tokens[start : start + length]
                return found[: found.index(GAP)] if GAP in found else found
        return []

    def settle(self, guessed: int, accepted: int) -> None:
        """So many of a guess were right: guess more next time, or less."""
        if guessed:
            self._length = min(2 * self._length, MOST) if accepted == guessed else max(accepted + 1, 2)


class PromptLookup:
    """Stands where mlx_lm's engine has a draft model. `context` is that of the request that is served now.

    `progress` is told how many tokens of how many are prefilled, and may raise: mlx_lm has none with a draft model.
    """

    def __init__(self) -> None:
        self.context = Context()
        self.progress: Progress = lambda done, total: None

    def make_cache(self) -> list[Any]:
        return []  # it computes nothing


class _Rows:
    """Samples the rows of one forward pass, one after the other where a processor has to see the tokens before."""

    def __init__(self, sampler: Sampler, processors: Sequence[Processor], prompt: mx.array) -> None:
        self._sampler = sampler
        self._processors = processors
        self._seen = prompt  # for the processors: the tokens before the row that is next
        self._logits = self._logprobs = mx.array([])
        self._sampled: list[int] = []

    def take(self, logits: mx.array) -> None:
        """The logits of one pass: rows × vocabulary."""
        self._logits = logits
        if not self._processors:
            self._logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            self._sampled = _numbers(self._sampler(self._logprobs))

    def __getitem__(self, row: int) -> tuple[int, mx.array]:
        """The token of `row`, and its log-probabilities."""
        if not self._processors:
            return self._sampled[row], self._logprobs[row]
        logits = self._logits[row : row + 1]
        for processor in self._processors:
            logits = processor(self._seen, logits)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        (token,) = _numbers(self._sampler(logprobs))
        self._seen = mx.concatenate([self._seen, mx.array([token], self._seen.dtype)])
        return token, logprobs[0]


def steps(
    prompt: mx.array,
    model: Any,
    lookup: PromptLookup,
    stream: Any,
    *,
    max_tokens: int,
    prompt_cache: list[Any],
    sampler: Sampler,
    logits_processors: Sequence[Processor] | None = None,
    prefill_step_size: int = 2048,
    **_: Any,
) -> Generator[tuple[int, mx.array, bool]]:
    """Generate like mlx_lm's `speculative_generate_step`: token, log-probabilities, whether it was guessed.

    `prompt`: the tokens that `prompt_cache` (of trimmable caches) does not hold yet. `lookup.context` holds the whole
    prompt, and grows. However it ends, the cache holds no token that was not generated.
    """
    context = lookup.context
    guess: list[int] = []
    accepted = 0
    with mx.stream(stream):
        rows = _Rows(sampler, logits_processors or (), prompt)
        last = _prefill(prompt, model, prompt_cache, prefill_step_size, lookup.progress)
        try:
            left = max_tokens
            while left:
                guess, accepted = context.guess(left - 1), 0
                context.guessed += len(guess)
                rows.take(model(mx.array([[last, *guess]]), cache=prompt_cache)[0])
                for row in range(len(guess) + 1):
                    last, logprobs = rows[row]
                    context.add(last)
                    left -= 1
                    context.accepted += row < len(guess) and last == guess[row]
                    right = row < len(guess) and last == guess[row]
                    yield last, logprobs, right
                    if not right:
                        break
                    accepted += 1
                context.settle(len(guess), accepted)
                _rewind(prompt_cache, len(guess) - accepted)
                guess, accepted = [], 0
        finally:  # also where nobody wants more: the end token may have come within a guess
            context.settle(len(guess), accepted)
            _rewind(prompt_cache, len(guess) - accepted)


def _numbers(array: mx.array) -> list[int]:
    """The numbers of a one-dimensional array."""
    numbers: Any = array.tolist()
    return numbers


def _prefill(prompt: mx.array, model: Any, cache: list[Any], step: int, progress: Progress) -> int:
    """Run all of `prompt` but its last token, which is returned."""
    total = prompt.size
    while prompt.size > 1:
        progress(total - prompt.size, total)
        part = prompt[: min(step, prompt.size - 1)]
        model(part[None], cache=cache)
        mx.eval([c.state for c in cache])
        prompt = prompt[part.size :]
        mx.clear_cache()
    return _numbers(prompt)[0]


def _rewind(cache: list[Any], tokens: int) -> None:
    for layer in cache if tokens else ():
        layer.trim(tokens)


def skeletons(tokenizer: Any, wire: str, tools: Sequence[Mapping[str, Any]]) -> list[int]:
    """The calls of `tools` (OpenAI schemas) in the format `wire`, as tokens with `GAP` where the values stand."""
    made: list[int] = []
    for tool in tools:
        function = tool["function"]
        names = function.get("parameters", {}).get("properties")  # may be anything: a schema comes from the client
        values = dict.fromkeys(names, _VALUE) if isinstance(names, dict) else {}
        text = formats.render(wire, [ToolCall(function["name"], values)])
        for part in text.split(_VALUE):
            made += [*tokenizer.encode(part, add_special_tokens=False), GAP]
    return made
