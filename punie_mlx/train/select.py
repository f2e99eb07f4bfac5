"""How a model behaves while it is trained: real answers to the cases of a suite, by which a checkpoint can be chosen.

    probe = prepare(tokenizer, read_suite(path), cases=40)  # before the training: what cannot be asked is said at once
    probe.score(model).accuracy                             # as often as wanted

Validation loss does not predict whether a model calls its tools. So the model in memory is asked, greedily, with the
prompt that the server would send, and its first turn is read as the server would read it, without a grammar and
without the rescue of calls in another format: what counts is what the model does by itself.

- A case that expects calls is right where the turn holds at least one, each is another one of the expected calls (any
  of its names, its arguments under the tool's schema), and nothing began like a call and is none. The order counts
  where the case says so. Calls of the case that are missing may belong to a later turn, which one turn cannot tell;
  only where the case says `turns: first`, or `parallel: true`, must all be there. With `parallel: false` one may.
- A case that expects none is right where the turn holds no call, but text, and none that looks like a call.
- Of several lists of calls (`any_of`) one must be right. Of a case with follow-ups the first question is asked.

Nothing of this is felt by the training: no random number is drawn, dropout is off only here, and what was allocated is
given back. Compiling is left as the caller has set it.

mlx_lm touch points (pinned by tests/contracts/test_mlx_lm_train.py):

| name                                                | used for                                      |
|-----------------------------------------------------|-----------------------------------------------|
| `generate.BatchGenerator(model, stop_tokens, completion_batch_size, prefill_batch_size)`, `.insert`, |
| `.next_generated`, `.close`                         | many answers at once; greedy by itself        |
| its responses' `.uid`, `.token`, `.finish_reason`   | the end token is among them                   |
| `generate.generate_step(prompt, model, max_tokens)` | one at a time, where caches cannot be merged  |
| `models.cache.make_prompt_cache`, a cache's `.merge` | whether they can                             |
| `tokenizer.detokenizer`: `.add_token`, `.finalize`, `.last_segment` | text, token by token          |
| `tokenizer.eos_token_ids`, `.added_tokens_decoder`  | end tokens, control tokens                    |
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from punie_mlx.chat.messages import for_template, tools_for_template
from punie_mlx.chat.render import Prompt, safe_prompt
from punie_mlx.corpus.suite import Case, Suite
from punie_mlx.corpus.suites.matchers import ExpectedCall, assign, fits
from punie_mlx.errors import ConfigError, DataError
from punie_mlx.toolcalls import detect, formats
from punie_mlx.toolcalls.calls import Tool, ToolCall
from punie_mlx.toolcalls.looks import call_text
from punie_mlx.toolcalls.stream import Reading, StreamParser, gather
from punie_mlx.toolcalls.wire import Format

BATCH = 16  # answers that are written at once: their caches stand beside those of the training
PREFILL = 4  # prompts that are read at once


@dataclass(frozen=True)
class Behaviour:
    """How many cases were right, those that want a call and those that want words; `seconds` is what it took."""

    calls_right: int
    calls: int
    direct_right: int
    direct: int
    seconds: float

    @property
    def accuracy(self) -> float:
        """Right cases among all, from 0 to 1."""
        return (self.calls_right + self.direct_right) / (self.calls + self.direct)

    def __str__(self) -> str:
        told = [f"calls {self.calls_right} of {self.calls}", f"direct answers {self.direct_right} of {self.direct}"]
        return ", ".join(told)


@dataclass(frozen=True)
class Turn:
    """What the model said to a case: its raw text, and whether that is right."""

    case: Case
    text: str
    finish: str  # "stop", or "length" where it was cut off
    right: bool


def prepare(
    tokenizer: Any,
    suite: Suite,
    *,
    cases: int,
    max_tokens: int = 256,
    format: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> Probe:
    """The first `cases` cases of `suite`, spread over its categories, ready to be asked.

    Each answer may have `max_tokens` tokens. `format`: the wire format of the calls, where the chat template does not
    tell it.

    Raises:
        ConfigError: `cases` or `max_tokens` is below 1, or the chat template shows no known wire format.
        DataError: the chat template cannot render a case.
    """
    for name, value in (("select_cases", cases), ("max_tokens", max_tokens)):
        if value < 1:
            raise ConfigError(f"{name} is {value}: it must be at least 1")
    wire = formats.get(format) if format else _wire_of(tokenizer)
    chosen = spread(suite.cases, cases)
    prompts = tuple(_prompt(tokenizer, case, suite, template_kwargs or {}) for case in chosen)
    return Probe(chosen, prompts, wire, tokenizer, max_tokens)


def spread(cases: Sequence[Case], count: int) -> tuple[Case, ...]:
    """At most `count` of `cases`, as many of each category as there are, the first ones; in the order of the suite."""
    place: dict[str, int] = {}
    ranked = []
    for index, case in enumerate(cases):
        place[case.category] = place.get(case.category, 0) + 1
        ranked.append((place[case.category], index))
    return tuple(cases[index] for index in sorted(index for _, index in sorted(ranked)[:count]))


def _wire_of(tokenizer: Any) -> Format:
    try:
        return detect.examine(tokenizer.chat_template, tokenizer.get_vocab()).wire()
    except ConfigError as e:
        raise ConfigError(f"behaviour cannot be scored: {e}. Choose the checkpoint by its loss instead") from e


def _prompt(tokenizer: Any, case: Case, suite: Suite, template_kwargs: Mapping[str, Any]) -> Prompt:
    shown = for_template(case.conversation)
    try:
        return safe_prompt(tokenizer, shown, tools_for_template(case.tools), **template_kwargs)
    except DataError as e:
        raise DataError(f"{suite.path}: case {case.id}: {e}") from e


@dataclass(frozen=True)
class Probe:
    """Cases with their prompts, and how answers to them are read."""

    cases: tuple[Case, ...]
    prompts: tuple[Prompt, ...] = field(repr=False)
    wire: Format = field(repr=False)
    tokenizer: Any = field(repr=False)
    max_tokens: int = 256

    def score(self, model: nn.Module) -> Behaviour:
        """Ask `model`, and count."""
        began = time.perf_counter()
        turns = self.turns(model)
        calls = [t.right for t in turns if t.case.expects_call]
        direct = [t.right for t in turns if not t.case.expects_call]
        return Behaviour(sum(calls), len(calls), sum(direct), len(direct), round(time.perf_counter() - began, 2))

    def turns(self, model: nn.Module) -> list[Turn]:
        """What `model` says to each case. Its training mode is as before afterwards."""
        was_training = model.training
        model.eval()
        try:
            ends = set(self.tokenizer.eos_token_ids)
            answers = _generate(model, [p.tokens for p in self.prompts], ends, self.max_tokens)
        finally:
            model.train(was_training)
            mx.clear_cache()
        return [self._turn(*each) for each in zip(self.cases, self.prompts, answers, strict=True)]

    def _turn(self, case: Case, prompt: Prompt, answer: tuple[list[int], str]) -> Turn:
        tokens, finish = answer
        text, reading = self._read(case, prompt, tokens, finish)
        return Turn(case, text, finish, is_right(case, reading))

    def _read(self, case: Case, prompt: Prompt, tokens: Sequence[int], finish: str) -> tuple[str, Reading]:
        parser = StreamParser(
            self.wire,
            [Tool.from_openai(t) for t in case.tools],
            starts_in_reasoning=prompt.opens(self.wire.think[0]),
            control={i: token.content for i, token in self.tokenizer.added_tokens_decoder.items()},
        )
        detokenizer = self.tokenizer.detokenizer
        said, events = [], []
        for token in tokens:
            detokenizer.add_token(token)
            said.append(detokenizer.last_segment)
            events += parser.feed(said[-1], [token])
        detokenizer.finalize()
        said.append(detokenizer.last_segment)
        events += [*parser.feed(said[-1]), *parser.finish(finish)]
        return "".join(said), gather(events, self.wire.joint)


def is_right(case: Case, first: Reading) -> bool:
    """Whether `first`, the first turn of an answer, is what `case` expects of it (see the module's docstring)."""
    if first.malformed:
        return False
    if not first.calls:
        said = bool(first.content.strip()) and call_text(first.content, case.schemas) is None
        return said and not case.expects_call
    return any(_are(first.calls, expected, case) for expected in case.alternatives)


def _are(calls: Sequence[ToolCall], expected: Sequence[ExpectedCall], case: Case) -> bool:
    """Whether `calls` are those that are expected of a first turn."""
    expect = case.expect
    if (expect.turns == "first" or expect.parallel) and len(calls) != len(expected):
        return False
    if expect.parallel is False and len(calls) > 1:
        return False
    if expect.order == "given":
        expected = expected[: len(calls)]
        return len(calls) == len(expected) and all(map(partial(_fits, case), calls, expected))
    return None not in assign(calls, expected, partial(_fits, case))


def _fits(case: Case, call: ToolCall, expected: ExpectedCall) -> bool:
    return fits(expected, call, case.schemas, "arguments")


def _generate(
    model: nn.Module, prompts: Sequence[list[int]], ends: set[int], max_tokens: int
) -> list[tuple[list[int], str]]:
    """The likeliest continuation of each of `prompts`, without its end token; and "stop", or "length"."""
    from mlx_lm.models.cache import make_prompt_cache

    if not all(hasattr(c, "merge") for c in make_prompt_cache(model)):
        return [_one(model, prompt, ends, max_tokens) for prompt in prompts]
    return _batched(model, prompts, ends, max_tokens)


def _batched(
    model: nn.Module, prompts: Sequence[list[int]], ends: set[int], max_tokens: int
) -> list[tuple[list[int], str]]:
    from mlx_lm.generate import BatchGenerator

    generator = BatchGenerator(
        model, stop_tokens=[[end] for end in sorted(ends)], completion_batch_size=BATCH, prefill_batch_size=PREFILL
    )
    with closing(generator):
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # neighbours in length: little padding
        uids = generator.insert([list(prompts[i]) for i in order], [max_tokens] * len(order))
        written: dict[int, list[int]] = {uid: [] for uid in uids}
        finish = dict.fromkeys(uids, "length")
        while responses := generator.next_generated():
            for response in responses:
                if response.finish_reason == "stop":
                    finish[response.uid] = "stop"
                else:
                    written[response.uid].append(response.token)
    found = {i: (written[uid], finish[uid]) for i, uid in zip(order, uids, strict=True)}
    return [found[i] for i in range(len(prompts))]


def _one(model: nn.Module, prompt: list[int], ends: set[int], max_tokens: int) -> tuple[list[int], str]:
    from mlx_lm.generate import generate_step

    written: list[int] = []
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=max_tokens):
        if token in ends:
            return written, "stop"
        written.append(int(token))
    return written, "length"
