"""Text of clients that cannot become control tokens: markers in it are broken up before a template sees them.

A tokenizer turns the spelling of an added token into that token wherever it stands, also in a tool's result. So a
sentinel, a private-use character that occurs nowhere else, goes into each such spelling, and the rendered text is
encoded in parts where a sentinel stands inside a marker:

    "a <|im_end|> b"  →  "a <", "|im_end|> b"

Text that only a template could complete to a marker gets its sentinel too: "<|im_end|" at an end of a text, or a
parameter that is named "tool_call" and shown as <tool_call>. What turns out to be no marker after rendering is not
split, so all other text has the tokens that it always had. The tags of thinking are broken up for the template alone:
one that looks for them in a message takes no text for a mode.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any

from punie_mlx.errors import DataError
from punie_mlx.toolcalls.formats import FORMATS

# Keys and values of a tool that templates look up or compare with: their own language, never a client's.
SCHEMA_WORDS = frozenset(
    {
        *("function", "name", "description", "parameters", "properties", "required", "type", "enum", "items"),
        *("anyOf", "oneOf", "allOf", "default", "format", "title", "strict", "return", "response", "nullable"),
        *("additionalProperties", "$ref", "$defs", "const", "minimum", "maximum", "minLength", "maxLength", "pattern"),
        *("string", "number", "integer", "boolean", "array", "object", "null"),
    }
)
PRIVATE_USE = range(0xE000, 0xF900)
LONG, MANY = 256, 1 << 14  # texts up to that many characters are remembered, and so many of them


class Markers:
    """Spellings that must not come out of a text; `find` sees overlapping ones, too."""

    def __init__(self, spellings: Iterable[str]) -> None:
        self.spellings = frozenset(s for s in spellings if len(s) > 1)
        self._lengths: dict[str, list[int]] = {}
        for spelling in self.spellings:
            self._lengths.setdefault(spelling[0], []).append(len(spelling))
        self._lengths = {first: sorted(set(lengths)) for first, lengths in self._lengths.items()}
        self._first = re.compile(f"[{re.escape(''.join(self._lengths))}]" if self._lengths else r"(?!)")
        self._heads = frozenset(s[:n] for s in self.spellings for n in range(1, len(s)))
        self._tails = frozenset(s[n:] for s in self.spellings for n in range(1, len(s)))
        self._cores = frozenset(core for s in self.spellings for core in _cores(s))
        self._longest = max(map(len, self.spellings), default=1)

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """Where a marker begins and ends in `text`."""
        for match in self._first.finditer(text):
            start = match.start()
            for length in self._lengths[text[start]]:
                found = text[start : start + length]
                if len(found) == length and found in self.spellings:
                    yield start, start + length

    def breaks(self, text: str) -> set[int]:
        """The places in `text` where a sentinel breaks each marker that it holds or that a template could complete."""
        found = {start + 1 for start, _ in self.find(text)}
        end = len(text.rstrip())  # templates strip: what they complete is the text without its white space
        start = len(text) - len(text.lstrip())
        reach = range(1, min(self._longest, end - start + 1))
        if any(text[end - n : end] in self._heads for n in reach) or text[start:end] in self._cores:
            found.add(end)
        if any(text[start : start + n] in self._tails for n in reach):
            found.add(start)
        return found


def _cores(spelling: str) -> Iterator[str]:
    """The inner parts of a marker that lack nothing but punctuation: "tool_call" of "</tool_call>"."""
    words = [i for i, c in enumerate(spelling) if c.isalnum()]
    if words:
        for start in range(1, words[0] + 1):
            for end in range(words[-1] + 1, len(spelling)):
                yield spelling[start:end]


class Vocabulary:
    """The markers of a tokenizer, and its encoding of a part of a text."""

    def __init__(self, tokenizer: Any) -> None:
        added = getattr(tokenizer, "added_tokens_decoder", None) or {}
        special = set(getattr(tokenizer, "all_special_tokens", ()))
        tokens = {str(t): t.special or str(t) in special for t in added.values()} | dict.fromkeys(special, True)
        self.control = frozenset(s for s, is_special in tokens.items() if is_special or _is_marker(s))
        self.markers = Markers(self.control)
        self.unbreakable = frozenset(s for s in self.control if len(s) == 1 and tokens[s])
        thinking = {tag.strip() for f in FORMATS.values() for tag in f.think if tag}
        self.shown = Markers(self.control | thinking)
        self._normalize = _normalizer(tokenizer) if any(t.normalized for t in added.values()) else None
        self._tokenizer = tokenizer
        self._anchor = self._find_anchor()

    def breaks(self, text: str) -> tuple[str, set[int]]:
        """`text` and where to break it. Where the tokenizer's normalizer makes a marker of it: as that leaves it."""
        if self.unbreakable and not self.unbreakable.isdisjoint(text):
            (character, *_) = self.unbreakable.intersection(text)
            raise DataError(f"the text holds {character!r}, which is a control token of this model: leave it out")
        if self._normalize and text:
            normal = self._normalize(text)
            if normal != text and sum(1 for _ in self.markers.find(normal)) > sum(1 for _ in self.markers.find(text)):
                text = normal
        return text, self.shown.breaks(text)

    def encode(self, text: str, cuts: Iterable[int], *, continued: bool = False) -> list[int]:
        """Token ids of `text`, which is encoded in parts where a cut is inside a marker.

        `continued`: it goes on behind another text.
        """
        cuts = sorted(cuts)
        inside: set[int] = set()
        for start, end in self.markers.find(text) if cuts else ():
            inside.update(cuts[bisect_right(cuts, start) : bisect_left(cuts, end)])
        parts = [text[a:b] for a, b in pairwise([0, *sorted(inside), len(text)])]
        first = self._continued(parts[0]) if continued else self._ids(parts[0])
        return first + [i for part in parts[1:] for i in self._continued(part)]

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _continued(self, part: str) -> list[int]:
        """The tokens of `part` in the middle of a text: without the space that some tokenizers put before a text."""
        if not self._anchor:
            return self._ids(part)
        before = self._ids(self._anchor)
        ids = self._ids(self._anchor + part)
        return ids[len(before) :] if ids[: len(before)] == before else self._ids(part)

    def _find_anchor(self) -> str:
        whole, before = self._ids("\na"), self._ids("\n")
        puts_a_space = whole[: len(before)] == before and whole[len(before) :] != self._ids("a")
        return "\n" if puts_a_space else ""


def _is_marker(spelling: str) -> bool:
    """An added token that begins or ends as a word or white space does is vocabulary, and stays as it is."""
    return len(spelling) > 1 and not any(c.isalnum() or c.isspace() for c in (spelling[0], spelling[-1]))


def _normalizer(tokenizer: Any) -> Callable[[str], str] | None:
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return normalizer.normalize_str if normalizer is not None else None


@lru_cache(maxsize=4)
def vocabulary(tokenizer: Any) -> Vocabulary:
    """The vocabulary of `tokenizer`, made once."""
    return Vocabulary(tokenizer)


class Sentinel:
    """Puts one character, which the `known` text does not hold, where a client's text must be broken."""

    def __init__(self, vocabulary: Vocabulary, known: str) -> None:
        free = (c for c in map(chr, PRIVATE_USE) if c not in known and self._escaped(c) not in known)
        self.character = next(free, "")
        if not self.character:
            raise DataError("the messages hold every private-use character of Unicode: leave some of them out")
        self._vocabulary = vocabulary
        self._broken: dict[str, str] = {}

    @classmethod
    def of(cls, vocabulary: Vocabulary, known: str, kept: dict[str, Sentinel]) -> Sentinel:
        """One that the `known` text does not hold: of those `kept`, where it is one of them."""
        made = cls(vocabulary, known)
        return kept.setdefault(made.character, made)

    @staticmethod
    def _escaped(character: str) -> str:
        return f"\\u{ord(character):04x}"

    def text(self, text: str, *, last: bool = False) -> str:
        """`text` with its sentinels; one more after the end of the `last`, where it could pass for a tag."""
        if last or len(text) > LONG:
            return self._break(text, last)
        if text not in self._broken:
            if len(self._broken) >= MANY:
                self._broken.clear()
            self._broken[text] = self._break(text, last)
        return self._broken[text]

    def _break(self, text: str, last: bool) -> str:
        text, breaks = self._vocabulary.breaks(text)
        end = len(text.rstrip())
        if last and end and not text[end - 1].isalnum():
            breaks.add(end)
        return self.character.join(text[a:b] for a, b in pairwise([0, *sorted(breaks), len(text)]))

    def value(self, value: Any, kept: frozenset[str] = frozenset()) -> Any:
        """A JSON value with sentinels in its strings and keys, but for those in `kept`."""
        try:
            return self._value(value, kept)
        except RecursionError as e:
            raise DataError("lists or objects are nested too deep for a chat template: flatten them") from e

    def _value(self, value: Any, kept: frozenset[str]) -> Any:
        match value:
            case str():
                return value if value in kept else self.text(value)
            case Mapping():
                return {self._value(k, kept): self._value(v, kept) for k, v in value.items()}
            case list() | tuple():
                return [self._value(v, kept) for v in value]
        return value

    def take_out(self, rendered: str) -> tuple[str, list[int]]:
        """The rendered text without sentinels, and where they were. A template may have escaped them as JSON does."""
        parts = rendered.replace(self._escaped(self.character), self.character).split(self.character)
        places, place = [], 0
        for part in parts[:-1]:
            place += len(part)
            places.append(place)
        return "".join(parts), places
