"""Ctrl-C and SIGTERM while training: the first lets the step end and saves, a second Ctrl-C leaves at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAID = b"punie-mlx: stopping after this step; Ctrl-C again leaves at once\n"
SHOW_CURSOR = b"\x1b[?25h"  # the bar has hidden it, and who leaves at once cannot show it again


class Interrupt:
    """Remembers the first signal, in `signum` (0: none yet). A context manager: only inside are signals caught.

    Does nothing outside the main thread, where Python cannot catch any; a signal that is ignored stays ignored.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.signum = 0
        self._quiet = quiet
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            caught = [n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._caught) for number in caught}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self.signum = number
        for each in self._before:  # the kernel's own way out from now on: no Python code has to get a turn for it
            signal.signal(each, signal.SIG_DFL)
        if not self._quiet:
            # Not by print(), which must not be entered again while it prints.
            os.write(2, SAID + (SHOW_CURSOR if os.isatty(2) else b""))
