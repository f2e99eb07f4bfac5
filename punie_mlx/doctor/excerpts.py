"""Pieces of renderings: what stands between words, around a word, and how turns of a role are framed."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote

from punie_mlx.doctor import cases
from punie_mlx.doctor.findings import Skip
from punie_mlx.doctor.specimen import Specimen

REACH, MOST = 70, 220
_TAG = 32  # characters of a tag or control token that is not cut through
CUT = "…"
_FIRST_WORD = re.compile(r"\W*\w+")


def around(text: str, *words: str, reach: int = REACH) -> str:
    """`text` from a little before the first of `words` to a little after the last of them, cut with "…"."""
    places = [(text.find(w), text.find(w) + len(w)) for w in words if w in text]
    start, end = (min(p[0] for p in places), max(p[1] for p in places)) if places else (len(text), len(text))
    return piece(text, start - reach, end + reach)


def piece(text: str, start: int, end: int) -> str:
    """The characters from `start` to `end`, with "…" where text is left out, and in the middle of a long one."""
    start, end = _before_tag(text, max(0, start)), _behind_tag(text, min(len(text), end))
    found = text[start:end]
    if end - start > MOST:
        found = (
            text[start : _behind_tag(text, start + MOST // 2)] + CUT + text[_before_tag(text, end - MOST // 2) : end]
        )
    return (CUT if start else "") + found + (CUT if end < len(text) else "")


def short(text: str) -> str:
    """`text`, with "…" in the middle of a long one."""
    return piece(text, 0, len(text))


def _before_tag(text: str, at: int) -> int:
    """`at`, or where the tag or token begins in which it stands."""
    opened = text.rfind("<", max(0, at - _TAG), at)
    return at if opened < 0 or ">" in text[opened:at] else opened


def _behind_tag(text: str, at: int) -> int:
    """`at`, or where the tag or token ends in which it stands."""
    closed = text.find(">", at, at + _TAG)
    return at if closed < 0 or _before_tag(text, at) == at else closed + 1


def between(text: str, before: str, after: str) -> str:
    """What stands between `before` and the `after` that follows it. Raises `Skip` where they do not."""
    start = text.find(before)
    end = text.find(after, start + len(before))
    if start < 0 or end < 0:
        raise Skip("the prompt does not show the conversation: another check says so")
    return text[start + len(before) : end]


def after(text: str, word: str) -> str:
    """What follows the last `word`. Raises `Skip`."""
    if word not in text:
        raise Skip("the prompt does not show the conversation: another check says so")
    return text[text.rfind(word) + len(word) :]


def shared(*texts: str) -> str:
    """What all `texts` begin with."""
    same = next((i for i, characters in enumerate(zip(*texts, strict=False)) if len({*characters}) > 1), None)
    return texts[0][: min(map(len, texts)) if same is None else same]


def shared_end(*texts: str) -> str:
    """What all `texts` end with."""
    return shared(*(t[::-1] for t in texts))[::-1]


_CODE = re.compile(r"\\+u([0-9a-fA-F]{4})")


def _by_number(text: str) -> str:
    return _CODE.sub(lambda m: chr(int(m[1], 16)), text)


ESCAPES: tuple[Callable[[str], str], ...] = (_by_number, html.unescape, unquote)
"""Each reads one kind of escapes."""


def plain(text: str) -> str:
    """`text` without what has checks of its own: escapes and white space."""
    for read in ESCAPES:
        text = read(text)
    return "".join(text.split())


def told(text: str, words: str) -> bool:
    """Whether `text` holds `words`, be they escaped or spaced in another way."""
    return words in text or plain(words) in plain(text)


@dataclass(frozen=True)
class Frame:
    """What stands right before and after a user's text, and what the assistant's turns begin with, apart from it."""

    before: str
    after: str
    assistant: str

    @classmethod
    def of(cls, specimen: Specimen) -> Frame:
        """Raises `Skip`."""
        messages = [cases.user(), cases.answer(), cases.user(cases.SECOND), cases.answer(cases.SECOND_ANSWER)]
        text = cases.seen(specimen, messages, add_generation_prompt=False)
        to_user = between(text, cases.ANSWER, cases.SECOND)
        to_answer = between(text, cases.FIRST, cases.ANSWER)
        joint = len(shared(to_user, to_answer))
        before = shared_end(text[: text.find(cases.FIRST)], to_user[joint:])
        last = between(text, cases.SECOND, cases.SECOND_ANSWER)
        return cls(before, shared(to_answer, last), to_answer[joint:])

    @property
    def assistant_word(self) -> str:
        """The first word that only the assistant's turns begin with."""
        found = _FIRST_WORD.match(self.assistant)
        return found[0].strip() if found else ""

    def opens(self, text: str, word: str) -> bool:
        """Whether `word` stands in `text` as the beginning of an assistant's turn."""
        return bool(self.assistant.strip()) and text[: max(0, text.rfind(word))].endswith(self.assistant)

    def holds(self, text: str, word: str) -> bool:
        """Whether `word` stands in `text` as a user's would."""
        start = text.rfind(word)
        if start < 0 or not self.before.strip() or not text[:start].endswith(self.before):
            return False
        follows = shared(text[start + len(word) :], self.after)
        return bool(follows.strip()) or not self.after.strip()
