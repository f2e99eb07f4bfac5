"""The text that has arrived and is not yet decided, and small matchers that can say "more text is needed".

A matcher looks at one place of the window and answers with the position after the match, `NO`, or `MORE` where what
is there may still become a match. Deciding only on `NO` and on matches makes the result the same for any chunking.
"""

from __future__ import annotations

import re

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
    """

    def __init__(self) -> None:
        self.text = ""
        self.pos = 0
        self.ended = False
        self.clean = True
        self._pending: list[str] = []
        self._pending_size = 0

    def feed(self, piece: str) -> bool:
        """Take in `piece`; return whether there is something new to look at."""
        held = len(self.text) - self.pos
        if not self._pending and held < _SMALL:
            self.text = self.text[self.pos :] + piece if held else piece
            self.pos = 0
            return True
        self._pending.append(piece)
        self._pending_size += len(piece)
        if self._pending_size * 8 < held and not self.ended:
            return False
        self.text = self.text[self.pos :] + "".join(self._pending)
        self.pos = 0
        self._pending, self._pending_size = [], 0
        return True

    def end(self, clean: bool) -> None:
        """No more will come."""
        self.ended, self.clean = True, clean
        self.feed("")


def literal(window: Window, at: int, expected: str) -> int:
    """Match `expected` at `at`."""
    text = window.text
    if text.startswith(expected, at):
        return at + len(expected)
    rest = len(text) - at
    return MORE if rest < len(expected) and expected.startswith(text[at:]) else NO


def spaces(window: Window, at: int) -> int:
    """The position after the white space at `at`."""
    found = _SPACES.match(window.text, at)
    return found.end() if found else at


def named(window: Window, at: int, opening: str) -> tuple[int, str]:
    """Match `opening`, a name on one line, and `>`; the name comes without spaces and quotes around it."""
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
    return (end + 1, name) if window.text[end] == ">" and name else (NO, "")
