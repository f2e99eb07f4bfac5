"""A stopwatch for work that goes on in pieces: what an agent framework does between its requests and tools, say."""

from __future__ import annotations

import time


class Stopwatch:
    """Sums up the seconds between `go` and `halt`. None of them have passed before the first `go`."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._since: float | None = None
        self._used = False

    def go(self) -> None:
        """Run; nothing changes where it runs already."""
        if self._since is None:
            self._since, self._used = time.perf_counter(), True

    def halt(self) -> bool:
        """Stand still; nothing changes where it stands already. Says whether it ran."""
        if self._since is None:
            return False
        self._sum += time.perf_counter() - self._since
        self._since = None
        return True

    @property
    def seconds(self) -> float | None:
        """The sum; None where it never ran."""
        return self._sum if self._used else None
