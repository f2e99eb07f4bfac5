"""Runs a grammar with llguidance, for the tests beside: a small vocabulary, a matcher, walks through its masks."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache

import llguidance.hf
import llguidance.numpy
import numpy as np
from llguidance import LLMatcher
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from punie_mlx.toolcalls import formats
from punie_mlx.toolcalls.calls import Tool
from punie_mlx.toolcalls.grammar import Constraint, grammar
from punie_mlx.toolcalls.stream import Reading, StreamParser, gather, read

EOS = "<|end of turn|>"
# The markers of each format that are single tokens in the vocabulary of its models, and pieces of its wire for walks.
MARKERS = {
    "qwen3_coder": ("<tool_call>", "</tool_call>"),
    "seed_oss": ("<seed:tool_call>", "</seed:tool_call>", "<seed:think>", "</seed:think>"),
    "mimo": ("<tool_call>", "</tool_call>", "<think>", "</think>"),
    "hermes": ("<tool_call>", "</tool_call>"),
    "smollm3": ("<tool_call>", "</tool_call>"),
    "harmony": ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|call|>", "<|end|>", "<|return|>"),
    "mistral": ("[TOOL_CALLS]", "[ARGS]"),
    "llama3_json": ("<|python_tag|>",),
    "pythonic": ("<|tool_call_start|>", "<|tool_call_end|>"),
    "glm": (
        *("<tool_call>", "</tool_call>", "<think>", "</think>"),
        *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    ),
    "kimi": (
        "<|tool_calls_section_begin|>",
        "<|tool_call_begin|>",
        "<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
        "<|tool_calls_section_end|>",
    ),
    "minimax": ("<minimax:tool_call>", "</minimax:tool_call>", "<think>", "</think>"),
    "deepseek": (
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
    ),
    "gemma": ("<|tool_call>", "<tool_call|>", '<|"|>'),
    "json_fence": (),
}  # fmt: skip
PIECES = (
    "\n</parameter>\n<parameter=", "\n</parameter>\n</function>", "</parameter>\n<parameter=",
    "</parameter></function>", "</parameter>\n</function>", "</parameter>", "</function>", "</parameter><parameter=",
    "<function=run>", "</tool_call>", '</parameter>\n<parameter name="', "</parameter>\n</invoke>", "</invoke>",
    "</arg_value>\n<arg_key>", "</arg_value>", "</arg_value>\n</tool_call>", '"', '", "', '"}', "}", "]", ")", "'",
    "\\", '<|"|>', "\n", "\\n", "<tool_call>", "null", "</think>", "<think>", "<|end|>", "<|call|>",
    "\n<parameter=b>", "{", "[", '{"name": "', "[run(", "```", "1", "e5", ".", "<｜DSML｜",
    "</｜DSML｜parameter>\n</｜DSML｜invoke>",
)  # fmt: skip
NAMES = [n for n in formats.FORMATS if formats.FORMATS[n].grammar]

PLACE = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "at": {"$ref": "#/$defs/place"}},
    "required": ["name"],
}
TOOLS = [
    Tool(
        "write_file",
        parameters={
            "type": "object",
            "properties": {
                "path": {"type": "string"},
                "text": {"type": "string"},
                "mode": {"enum": ["new", "append"]},
                "times": {"type": "integer"},
                "size": {"type": ["number", "null"]},
                "force": {"type": "boolean"},
            },
            "required": ["path", "times"],
        },
    ),
    Tool(
        "write",
        parameters={
            "type": "object",
            "properties": {
                "tags": {"type": "array", "items": {"type": "string"}},
                "where": {"$ref": "#/$defs/place"},
                "either": {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "boolean"}}]},
                "count": {"const": 3},
                "any": {"type": "object"},
                "späť": {"type": "string", "nullable": True},
            },
            "required": [],
            "$defs": {"place": PLACE},
        },
    ),
    Tool("now"),
]


@cache
def tokenizer(markers: tuple[str, ...]) -> tuple[PreTrainedTokenizerFast, llguidance.LLTokenizer]:
    """Bytes, a few merges across the places where lexemes meet, and `markers` as tokens."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [
        ("Ċ", "<"),
        ("Ċ<", "/"),
        ("e", "r"),
        (">", "Ċ"),
        ('"', ":"),
        ("}", "}"),
        ('"', "}"),
        ("<", "/"),
        ("=", '"'),
    ]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    bare = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bare.decoder = decoders.ByteLevel()
    bare.add_special_tokens([AddedToken(EOS, special=True)])
    bare.add_tokens([AddedToken(m, special=not m.startswith("<")) for m in markers])
    whole = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token=EOS)
    return whole, llguidance.hf.from_tokenizer(whole)


class Machine:
    """A compiled grammar and the vocabulary that it was compiled for."""

    def __init__(self, lark: str, markers: tuple[str, ...]) -> None:
        self.lark, self.markers = lark, markers
        self.words, self.tokens = tokenizer(self.markers)
        self._matcher = LLMatcher(self.tokens, LLMatcher.grammar_from_lark(self.lark))
        assert not self._matcher.get_error(), f"{self._matcher.get_error()}\n{self.lark}"

    def begin(self) -> LLMatcher:
        return self._matcher.deep_copy()

    def decode(self, ids: list[int]) -> str:
        return str(self.words.decode(ids))

    def encode(self, text: str) -> list[int]:
        return self.words.encode(text, add_special_tokens=False)

    def stops_at(self, text: str) -> str | None:
        """None where `text` is accepted whole, else as much of it as may begin a turn."""
        matcher, ids = self.begin(), self.encode(text)
        taken = matcher.try_consume_tokens(ids)
        assert not matcher.get_error(), matcher.get_error()
        return None if taken == len(ids) and matcher.is_accepting() else self.decode(ids[:taken])

    def walk(self, seed: int, longest: int = 400) -> tuple[list[int], bool]:
        """Allowed tokens picked by chance, and pieces of wires where they fit; whether it came to an end."""
        chance, matcher, out = random.Random(seed), self.begin(), []
        mask = llguidance.numpy.allocate_token_bitmask(1, self.tokens.vocab_size)
        while len(out) < longest and not matcher.is_stopped():
            piece = self.encode(chance.choice(PIECES)) if chance.random() < 0.45 else []
            if piece and matcher.validate_tokens(piece) == len(piece):
                assert matcher.consume_tokens(piece)
                out += piece
                continue
            llguidance.numpy.fill_next_token_bitmask(matcher, mask)
            allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")[: self.tokens.vocab_size])
            assert len(allowed), f"a dead end after {self.decode(out)!r}"
            markers = [t for t in allowed if t >= 256]
            token = int(chance.choice(markers if markers and chance.random() < 0.3 else list(allowed)))
            if token == self.tokens.eos_token:
                break
            assert matcher.consume_token(token), matcher.get_error()
            out.append(token)
        return out, matcher.is_accepting()

    def read(self, ids: list[int], name: str, finish: str = "stop") -> Reading:
        """What the reader makes of `ids`, by text alone or with the markers' tokens."""
        if not self.markers:
            return read(self.decode(ids), name, TOOLS, finish=finish)
        control = {token: marker for marker, token in ids_of(self.markers).items()}
        parser = StreamParser(name, TOOLS, control=control)
        events, plain = [], []
        for token in [*ids, -1]:  # text between markers in one piece, since its tokens may split a character
            if token in control or token < 0:
                events += parser.feed(self.decode(plain))
                plain = []
                events += parser.feed(control[token], [token]) if token >= 0 else []
            else:
                plain.append(token)
        return gather([*events, *parser.finish(finish)])


def ids_of(markers: tuple[str, ...]) -> dict[str, int]:
    vocabulary = tokenizer(markers)[0].get_vocab()
    return {m: vocabulary[m] for m in markers}


@cache
def machine(name: str, markers: tuple[str, ...], constraint: Constraint = Constraint()) -> Machine:  # noqa: B008
    return Machine(grammar(name, TOOLS, constraint, tokens=ids_of(markers)), markers)


def modes(name: str) -> Iterator[tuple[str, ...]]:
    yield from dict.fromkeys([(), MARKERS[name]])
