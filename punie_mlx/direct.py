"""A model that answers without a server: one JSON request a line on stdin, one JSON answer a line on stdout.

    python -m punie_mlx.direct --model DIR [--adapter DIR]

    → {"messages": […], "tools": […], "max_tokens": 512, "temperature": 0, "seed": 0, "seconds": 600}
    ← {"text", "tokens", "finish_reason", "usage", "trace": {prompt, output, events, spans, wall}, "error"}

Before the first answer comes a line {"event": "ready", …} with the fingerprint, the chat template, the vocabulary and
the control tokens: what a reader of calls has to know. It has the server's prompt and its draw from the same
probabilities, and nothing else of it: no grammar, no batch, no reader, no stop strings. Where a case fails through the
server and not through this, the server did it.

mlx_lm touch points (pinned by tests/contracts/test_mlx_lm_direct.py):

| name                                                                 | used for                             |
|----------------------------------------------------------------------|--------------------------------------|
| `generate.generate_step(prompt, model, max_tokens, sampler, prompt_cache)` |                                |
|                                                                      | tokens, one by one; it runs one ahead |
| `models.cache.{make_prompt_cache, can_trim_prompt_cache, trim_prompt_cache}`, a cache's `.offset` |         |
|                                                                      | the prefix that two prompts share    |
| `tuner.utils.load_adapters`                                          | the adapter, laid over the network   |
| `tokenizer.detokenizer`: `.add_token`, `.finalize`, `.last_segment`  | text, token by token                 |
| `tokenizer.eos_token_ids`, `.added_tokens_decoder`                   | end tokens, control tokens           |
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, TextIO

import mlx.core as mx

from punie_mlx import hardware, identity, weights
from punie_mlx.chat.messages import for_template, tools_for_template
from punie_mlx.chat.render import load_tokenizer, safe_prompt
from punie_mlx.errors import ModelError, PunieError

Json = dict[str, Any]
NO_SECONDS = 600.0


class Prefix:
    """The network's cache of the last prompt and its answer, of which the next prompt may begin with a part."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self._cache: list[Any] = []
        self._tokens: list[int] = []

    def take(self, prompt: list[int]) -> tuple[list[Any], list[int]]:
        """A cache of the longest known beginning of `prompt`, and the tokens after it, at least one."""
        from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache

        held = getattr(self._cache[0], "offset", None) if self._cache else None
        most = min(held or 0, len(self._tokens), len(prompt) - 1)
        shared = next((i for i in range(most) if self._tokens[i] != prompt[i]), most)
        if shared and held and can_trim_prompt_cache(self._cache):
            if held > shared:
                trim_prompt_cache(self._cache, held - shared)
        else:
            self._cache, shared = make_prompt_cache(self._network), 0
        self._tokens = []  # until it is told what the cache holds: a failure in between leaves it unused
        return self._cache, prompt[shared:]

    def keep(self, tokens: list[int]) -> None:
        """The cache was filled with `tokens`, and maybe fewer."""
        self._tokens = tokens


class Model:
    """A network with its tokenizer, in memory. Raises `ModelError`."""

    def __init__(self, model: Path, adapter: Path | None = None) -> None:
        self.name = Path(model).resolve().name
        if adapter is not None:
            identity.check_adapter(model, adapter)
        self.fingerprint = identity.fingerprint(model, adapter)
        self.tokenizer = load_tokenizer(model)
        self.network = _network(model, adapter)
        self.control = {i: token.content for i, token in self.tokenizer.added_tokens_decoder.items()}
        self.ends = frozenset(self.tokenizer.eos_token_ids)
        self._prefix = Prefix(self.network)

    def ready(self) -> Json:
        """What the first line says."""
        return {
            "event": "ready", "url": "", "model": self.name, "fingerprint": self.fingerprint, "pid": os.getpid(),
            "template": self.tokenizer.chat_template, "vocabulary": list(self.tokenizer.get_vocab()),
            "control": self.control,
        }  # fmt: skip

    def answer(self, request: Mapping[str, Any]) -> Json:
        """The model's answer to a request. Raises `PunieError` where the prompt cannot be rendered."""
        clock = _Clock()
        messages, tools = for_template(request["messages"]), tools_for_template(request.get("tools") or [])
        prompt = safe_prompt(self.tokenizer, messages, tools).tokens
        clock.phase("render")
        cache, rest = self._prefix.take(list(prompt))
        output, finish, error = self._generate(cache, rest, request, clock)
        self._prefix.keep([*prompt, *(token for token, _ in output)])
        shown = [pair for pair in output if pair[0] not in self.ends]
        trace = {
            "prompt": [[token, self.spelled(token)] for token in prompt],
            "output": [list(pair) for pair in shown],
            "events": [],
            "spans": clock.spans,
            "wall": clock.now(),
        }
        text = "".join(said for _, said in shown)
        usage = {
            "prompt_tokens": len(prompt), "completion_tokens": len(output), "total_tokens": len(prompt) + len(output),
            "prompt_tokens_details": {"cached_tokens": len(prompt) - len(rest)},
        }  # fmt: skip
        tokens = [token for token, _ in shown]
        return {"text": text, "tokens": tokens, "finish_reason": finish, "usage": usage, "trace": trace, "error": error}

    def _generate(
        self, cache: list[Any], rest: list[int], request: Mapping[str, Any], clock: _Clock
    ) -> tuple[list[tuple[int, str]], str, str | None]:
        """Tokens with the text that each completes, the end token among them; why it ended; and what went wrong."""
        limit, most = request.get("seconds") or NO_SECONDS, request["max_tokens"]
        output: list[tuple[int, str]] = []
        finish, error = "length", None
        steps = self.steps(rest, cache, most, request.get("temperature") or 0.0, request.get("seed") or 0)
        with closing(steps):
            for token, said, _ in steps:
                if token is None:
                    _append(output, said, self.ends)
                    continue
                if not output:
                    clock.phase("prefill")
                output.append((token, said))
                if token in self.ends:
                    finish = "stop"
                elif clock.now() > limit and error is None:
                    error = f"the answer took longer than {limit:g} s"
                    steps.send(True)
        clock.phase("decode")
        return output, finish, error

    def steps(
        self, rest: list[int], cache: list[Any] | None, most: int, temperature: float = 0.0, seed: int = 0
    ) -> Generator[tuple[int | None, str, Any], bool | None]:
        """Each token with the text that it completes and the log-probabilities [vocabulary] that it was drawn from.

        `rest`: the prompt's tokens that `cache` does not hold; without one, all of them. The end token comes without
        text. Text that was held back comes at the end, with None for a token. Whoever sends True wants no more tokens.
        """
        from mlx_lm.generate import generate_step
        from mlx_lm.models.cache import make_prompt_cache

        cache = make_prompt_cache(self.network) if cache is None else cache
        detokenizer = self.tokenizer.detokenizer
        sampler = _sampler(temperature, seed)
        with closing(
            generate_step(mx.array(rest), self.network, max_tokens=most, sampler=sampler, prompt_cache=cache)
        ) as tokens:
            for token, logprobs in tokens:
                end = token in self.ends
                if not end:
                    detokenizer.add_token(token)
                enough = yield int(token), "" if end else detokenizer.last_segment, logprobs
                if enough:
                    yield None, "", None  # to whoever sent
                if end or enough:
                    break
        detokenizer.finalize()
        if held_back := detokenizer.last_segment:  # each look at it says what came since the last one
            yield None, held_back, None

    def spelled(self, token: int) -> str:
        """`token` by itself as text."""
        return self.control.get(token) or self.tokenizer.decode([token])


class _Clock:
    """Seconds since a request arrived, and the phases that they were spent in."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._last = 0.0
        self.spans: list[Json] = []

    def now(self) -> float:
        return time.perf_counter() - self._start

    def phase(self, name: str) -> None:
        """What came since the last phase was `name`."""
        now = self.now()
        self.spans.append({"name": name, "start": self._last, "end": now})
        self._last = now


def _append(output: list[tuple[int, str]], text: str, ends: Iterable[int]) -> None:
    """Add the text that was held back to the last token that says something."""
    for i in reversed(range(len(output))):
        token, said = output[i]
        if token not in ends:
            output[i] = (token, said + text)
            return


def _network(model: Path, adapter: Path | None) -> Any:
    from mlx_lm.tuner.utils import load_adapters

    network = weights.load_lazily(model)
    if adapter is not None:
        try:
            network = load_adapters(network, str(adapter))
        except Exception as e:
            raise ModelError(f"the adapter {adapter} does not fit the model {model}: {e}") from e
    network.eval()
    if hardware.on_cpu():
        mx.disable_compile()  # on a CPU MLX runs a C++ compiler for each kernel, seconds at every start
        weights.compute_in_float32(network)
    mx.eval(network.parameters())
    return network


def _sampler(temperature: float, seed: int) -> Any:
    """Greedy at temperature 0; else a draw, with the random numbers that the server has for this seed."""
    if not temperature:
        return lambda logprobs: mx.argmax(logprobs, axis=-1)
    key = mx.random.key(seed)

    def draw(logprobs: mx.array) -> mx.array:
        nonlocal key
        keys = mx.random.split(key)
        key = keys[0]
        return mx.random.categorical(logprobs.astype(mx.float32) / temperature, key=keys[1])

    return draw


def run(model: Model, asked: TextIO, answers: TextIO) -> None:
    """Answer line by line, until there are no more."""

    def say(value: Mapping[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    say(model.ready())
    for line in asked:
        try:
            say(model.answer(json.loads(line)))
        except (PunieError, ValueError) as e:
            say({"text": "", "tokens": [], "finish_reason": None, "usage": None, "trace": None, "error": str(e)})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m punie_mlx.direct", description="A model without a server.")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--adapter", type=Path)
    given = parser.parse_args()
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else is printed is no answer
    try:
        run(Model(given.model, given.adapter), sys.stdin, answers)
    except PunieError as e:
        print(f"punie-mlx: {e}", file=sys.stderr)
        sys.exit(e.exit_code)


if __name__ == "__main__":
    main()
