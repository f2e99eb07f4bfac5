"""Constrained decoding: what a request may be answered with → a mask over the logits of each step.

    constrainer = Constrainer(tokenizer, width=151936, eos={151645}, wire=formats.get("qwen3_coder"))
    plan = constrainer.plan(tools, Constraint("required"))      # compiled once, kept
    engine.generate(prompt, sampling, limit, processor=plan.mask())  # a mask serves one generation

The grammar is that of `toolcalls.grammar`, run by llguidance. What it cannot hold of a schema it lets pass, and the
plan says so; a mask that cannot go on lets everything pass from there, and says so, too.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import llguidance.hf
import llguidance.numpy
import mlx.core as mx
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from punie_mlx.errors import ConfigError
from punie_mlx.toolcalls.calls import Tool
from punie_mlx.toolcalls.grammar import Constraint
from punie_mlx.toolcalls.grammar_relax import Relaxed, ask
from punie_mlx.toolcalls.wire import Format

log = logging.getLogger(__name__)

KEPT = 64  # compiled grammars
_QUIET = 0  # llguidance's log level
_LIMITS = LLParserLimits(step_lexer_fuel=5_000_000)  # a text with a length is looked through for each count


@dataclass(frozen=True)
class Vocabulary:
    """The tokens as llguidance knows them, and the width of the logits, of which the tokens may be fewer."""

    tokens: LLTokenizer
    width: int
    eos: frozenset[int]


@dataclass(frozen=True)
class Plan:
    """How a request is held to its grammar.

    state: "off", "lazy" (free text, until a call begins) or "enforced" (the whole answer). relaxed: what is held less
    narrowly than its schema. reason: why it is off, where one would expect it on. lark: the grammar.
    """

    state: str = "off"
    relaxed: tuple[Relaxed, ...] = ()
    reason: str = ""
    lark: str = ""
    _compiled: Compiled | None = None

    def mask(self, kind: type[Mask] | None = None) -> Mask | None:
        """A mask for one generation, of a `kind` of one's own if there is one; None where nothing is held."""
        return None if self._compiled is None else (kind or Mask)(self._compiled)


class Compiled:
    """A grammar for a vocabulary, compiled once. Its matchers share what they have computed: one that has failed fails
    all that are begun after it, so then it is compiled again."""

    def __init__(self, lark: str, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._lark = lark
        self._first: LLMatcher | None = None

    def begin(self) -> LLMatcher:
        """A matcher for one generation; its `get_error` says what is wrong with the grammar."""
        first = self._first
        if first is None:
            grammar = LLMatcher.grammar_from_lark(self._lark)
            first = self._first = LLMatcher(self.vocabulary.tokens, grammar, log_level=_QUIET, limits=_LIMITS)
        return first.deep_copy()

    def spoilt(self) -> None:
        """A matcher has failed."""
        self._first = None


class Mask:
    """A logits processor that lets only tokens pass with which the text can still be what the grammar wants.

    It never raises: `failed` says why it gave up, after which all tokens pass.
    """

    def __init__(self, compiled: Compiled) -> None:
        self.failed: str | None = None
        self._compiled = compiled
        self._matcher = compiled.begin()
        self._vocabulary = vocabulary = compiled.vocabulary
        self._seen = -1  # tokens before the first call: the prompt, or what of it was not cached
        self._over = False
        self._bits = llguidance.numpy.allocate_token_bitmask(1, vocabulary.tokens.vocab_size)
        self._before = np.zeros_like(self._bits)
        self._allowed: mx.array | None = None  # what `_before` says, as one truth value for each logit

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """`logits` with those of all other tokens at minus infinity. `tokens`: the newest ones at the end."""
        if self._over:
            return logits
        try:
            return self._masked(tokens, logits)
        except Exception as e:  # the engine's thread would die of it
            self._give_up(f"{type(e).__name__}: {e}")
            return logits

    def _masked(self, tokens: mx.array, logits: mx.array) -> mx.array:
        self._follow(self._newest(tokens, logits))
        return logits if self._over or self._allowed is None else mx.where(self._allowed, logits, -mx.inf)

    def _newest(self, tokens: mx.array, logits: mx.array) -> list[Any]:
        """The tokens that are new; waits until they are known, and the network goes on meanwhile."""
        size = tokens.shape[-1]
        new, self._seen = (size - self._seen if self._seen >= 0 else 0), size
        if new < 0:
            raise ValueError("there are fewer tokens than before")
        if not new:
            mx.async_eval(logits)
            return []
        newest = tokens[-1] if new == 1 else tokens[-new:]
        mx.async_eval(newest)
        mx.async_eval(logits)  # the network runs while the mask is made
        taken: Any = [newest.item()] if new == 1 else newest.tolist()
        return taken

    def _follow(self, new: Sequence[int]) -> None:
        """Let the grammar have the tokens that are new, and find out which may follow."""
        for token in new:
            if token in self._vocabulary.eos:
                self._over = True
                return
            if not self._matcher.consume_token(token):
                self._give_up(self._matcher.get_error() or f"token {token} does not fit the grammar")
                return
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._bits)
        if error := self._matcher.get_error():
            self._give_up(error)
        elif not np.array_equal(self._bits, self._before):
            self._before[:] = self._bits
            self._allowed = self._spread()

    def _spread(self) -> mx.array | None:
        """The bits as truth values; None where all are true. Raises `ValueError` where none is."""
        width, known = self._vocabulary.width, self._vocabulary.tokens.vocab_size
        bits = np.unpackbits(self._bits.view(np.uint8)[0], count=known, bitorder="little")[:width]
        if not bits.any():
            raise ValueError("the grammar allows no token here")
        if len(bits) < width:
            bits = np.pad(bits, (0, width - len(bits)))
        elif bits.all():
            return None
        return mx.array(bits.view(np.bool_))

    def _give_up(self, why: str) -> None:
        self.failed = why.strip().splitlines()[0] if why.strip() else "the grammar could not be followed"
        self._over = True
        self._compiled.spoilt()
        # what llguidance says may hold text of the answer, behind a colon
        log.warning("a constrained answer goes on unconstrained: %s", self.failed.partition(":")[0])


class Constrainer:
    """Makes plans for one model. May be asked by several threads; grammars are compiled once and kept."""

    def __init__(self, tokenizer: Any, *, width: int, eos: Collection[int], wire: Format) -> None:
        self._wire = wire
        self._plans: OrderedDict[str, Plan] = OrderedDict()
        self._lock = threading.Lock()
        self._vocabulary: Vocabulary | None = None
        self._markers: dict[str, int] = {}
        self._broken = ""
        try:
            inner = getattr(tokenizer, "_tokenizer", None)  # mlx_lm wraps transformers' tokenizer, which has one, too
            self._wrap(inner if hasattr(inner, "get_added_vocab") else tokenizer, width, eos)
        except (ValueError, RuntimeError) as e:
            self._broken = f"llguidance cannot use this tokenizer: {e}"
            log.warning("no answer can be constrained: %s", self._broken)

    def _wrap(self, tokenizer: Any, width: int, eos: Collection[int]) -> None:
        ends = sorted(e for e in eos if 0 <= e < width) or None
        tokens = llguidance.hf.from_tokenizer(tokenizer, eos_token=ends)
        self._vocabulary = Vocabulary(tokens, width, frozenset(tokens.eos_tokens))
        added = tokenizer.get_added_vocab()
        self._markers = {text: i for text, i in added.items() if i < width and tokens.is_special_token(i)}

    def plan(self, tools: Sequence[Tool], constraint: Constraint) -> Plan:
        """What to hold an answer to. Raises `ConfigError` where a demand can be met by no grammar at all."""
        demanded = constraint.choice not in ("auto", "none") or constraint.json_schema is not None
        if not demanded and not tools:
            return Plan()
        why = self._broken or ("" if self._wire.grammar else f"the format {self._wire.name!r} has no grammar")
        if why and demanded:
            raise ConfigError(f"neither a call nor a schema can be demanded of this model: {why}")
        if why:
            return Plan(reason=why)
        key = _key(tools, constraint)
        with self._lock:
            if key in self._plans:
                self._plans.move_to_end(key)
                return self._plans[key]
        plan = self._make(tools, constraint, "enforced" if demanded or constraint.choice == "none" else "lazy")
        with self._lock:
            self._plans[key] = plan
            while len(self._plans) > KEPT:
                self._plans.popitem(last=False)
        return plan

    def _make(self, tools: Sequence[Tool], constraint: Constraint, state: str) -> Plan:
        vocabulary = self._vocabulary
        assert vocabulary is not None
        made: dict[str, Compiled] = {}

        def refused(lark: str) -> str:
            made.clear()
            made[lark] = Compiled(lark, vocabulary)
            return made[lark].begin().get_error().strip()

        try:
            asked = ask(self._wire, tools, constraint, tokens=self._markers, refused=refused)
        except ConfigError as e:
            log.warning("an answer cannot be constrained: %s", e)
            return Plan(reason=str(e))
        return Plan(state, asked.relaxed, "", asked.lark, made[asked.lark])


def _key(tools: Sequence[Tool], constraint: Constraint) -> str:
    """What two requests have in common that can share a grammar."""
    turn = (constraint.choice, sorted(constraint.allowed or ()), constraint.allowed is None, constraint.parallel)
    schemas = [(t.name, t.parameters) for t in tools]
    return json.dumps([turn, constraint.reasoning, constraint.json_schema, schemas], default=repr)
