"""What the tests of the readers share: a measure of work that is the same on every machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType

import pytest

from punie_mlx.toolcalls.window import Window

A_LOOK = 64  # characters that are looked at again in the time of a call
Work = Callable[[Callable[[], object]], int]


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Counts what a reading does: the functions that are called, and the characters that are held for another look.

    What grows with the square of a text shows here, and a busy machine does not. A search through all that is held
    counts as one call: what such searches cost is for `scripts/fuzz_parse.py` and `scripts/bench_parse.py` to measure.
    """
    held = 0
    feed = Window.feed

    def counting(self: Window, piece: str, tokens: tuple[int, ...] = ()) -> bool:
        nonlocal held
        look = feed(self, piece, tokens)
        held += len(self.text) - self.pos if look else 0
        return look

    def count(function: Callable[[], object]) -> int:
        nonlocal held
        calls, held = 0, 0

        def profile(frame: FrameType, event: str, argument: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        before = sys.getprofile()
        sys.setprofile(profile)
        try:
            function()
        finally:
            sys.setprofile(before)
        return calls + held // A_LOOK

    monkeypatch.setattr(Window, "feed", counting)
    return count
