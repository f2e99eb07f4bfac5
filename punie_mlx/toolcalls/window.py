"""The text that has arrived and is not yet decided, and small matchers that can say "more text is needed".

A matcher looks at one place of the window and answers with the position after the match, `NO`, or `MORE` where what
is there may still become a match. Deciding only on `NO` and on matches makes the result the same for any chunking.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

NO = -1
MORE = -2
_SPACES = re.compile(r"\s*")
_NAME = re.compile(r"[^<>\n]*")
_NAME_LIMIT = 200
_SMALL = 2048


class Window:
    """Undecided text: `text[pos:]`. `ended` is set when no more will come, `clean` when the model stopped by itself.

    A reader that waits looks at everything held again when more comes. To keep that linear in total, a long held text
    takes in new pieces only when together they are worth the look: at least an eighth of what is held.

    `solid` holds the markers that are single tokens of the vocabulary, where token ids are fed: such a marker stands
    only where its token does, and the same characters in ordinary tokens are data.
    """

    def __init__(self, solid: Collection[str] = ()) -> None:
        self.text = ""
        self.pos = 0
        self.ended = False
        self.clean = True
        self.barren = False  # all text is there, and nothing in it closes a value: see `tagged`
        self.solid = frozenset(solid)
        self._base = 0  # how many characters were consumed before text[0]
        self._fed = 0
        self._tokens: set[int] = set()  # where the markers' tokens stand, counted from the first character fed
        self._pending: list[str] = []
        self._pending_size = 0

    def feed(self, piece: str, tokens: Sequence[int] = ()) -> bool:
        """Take in `piece`, in which marker tokens stand at the offsets `tokens`; return whether to look at it now."""
        if tokens:
            self._tokens.update(self._fed + at for at in tokens)
        self._fed += len(piece)
        held = len(self.text) - self.pos
        if not self._pending and held < _SMALL:
            self._base += self.pos
            self.text = self.text[self.pos :] + piece if held else piece
            self.pos = 0
            return True
        self._pending.append(piece)
        self._pending_size += len(piece)
        if self._pending_size * 8 < held and not self.ended:
            return False
        self._base += self.pos
        self.text = self.text[self.pos :] + "".join(self._pending)
        self.pos = 0
        self._pending, self._pending_size = [], 0
        return True

    def end(self, clean: bool) -> None:
        """No more will come."""
        self.ended, self.clean = True, clean
        self.feed("")

    def is_token(self, at: int) -> bool:
        """Whether a marker's own token begins at `at`."""
        return self._base + at in self._tokens


def literal(window: Window, at: int, expected: str) -> int:
    """Match `expected` at `at`."""
    text = window.text
    if text.startswith(expected, at):
        if expected in window.solid and not window.is_token(at):
            return NO
        return at + len(expected)
    rest = len(text) - at
    if rest < len(expected) and expected.startswith(text[at:]):
        return NO if rest and expected in window.solid else MORE
    return NO


def before_newline(text: str, start: int, to: int) -> int:
    """Where `text[start:to]` ends without a newline that may be the framing one before what comes next."""
    if to > start and text[to - 1] == "\n":
        to -= 1
    if to > start and text[to - 1] == "\r" and text[to : to + 1] in ("", "\n"):
        to -= 1
    return to


def spaces(window: Window, at: int) -> int:
    """The position after the white space at `at`."""
    found = _SPACES.match(window.text, at)
    return found.end() if found else at


def first(window: Window, at: int, expected: Sequence[str]) -> tuple[int, str]:
    """Match any of `expected` at `at`: the position after it and which it was; `MORE` where one may still come."""
    best = NO
    for marker in expected:
        end = literal(window, at, marker)
        if end > 0:
            return end, marker
        best = min(best, end)
    return best, ""


def named(window: Window, at: int, opening: str, closing: str = ">") -> tuple[int, str]:
    """Match `opening`, a name on one line, and `closing`; the name comes without spaces and quotes around it."""
    start = literal(window, at, opening)
    if start < 0:
        return start, ""
    found = _NAME.match(window.text, start)
    end = found.end() if found else start
    if end - start > _NAME_LIMIT:
        return NO, ""
    if end == len(window.text):
        return MORE, ""
    name = window.text[start:end].strip()
    if len(name) > 1 and name[0] == name[-1] and name[0] in "\"'":
        name = name[1:-1]
    after = literal(window, end, closing)
    return (after, name) if name else (NO, "")
