"""Stop strings, found in the text as it comes: however the model spells them in tokens, they end the answer."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes text on up to the first of `stops`, holding back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [s for s in stops if s]
        self._held = ""
        self.found = False

    def feed(self, text: str) -> str:
        """The text that is safe to pass on. After a stop (`found`) there is no more."""
        if self.found:
            return ""
        text = self._held + text
        found = [(i + len(s), i) for s in self._stops if (i := text.find(s)) >= 0]
        if found:  # the one that is complete first, so that it makes no difference how the text was cut
            self.found, self._held = True, ""
            return text[: min(found)[1]]
        keep = max((_overlap(text, s) for s in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
