"""A case before it has a number: what is asked, what is there, and what is expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from punie_mlx.corpus.skills import Ask
from punie_mlx.corpus.suites.proof import answer, expected_call, files_after
from punie_mlx.corpus.world import TOOLS


@dataclass(frozen=True)
class Draft:
    """One case; `history` are the messages before its query."""

    category: str
    query: str
    expect: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)
    follow_ups: Sequence[str] = ()
    history: Sequence[dict[str, Any]] = ()

    @property
    def questions(self) -> list[str]:
        """All that the user says, in its order."""
        said = [m["content"] for m in self.history if m["role"] == "user"]
        return [*said, self.query, *self.follow_ups]

    def case(self, number: int, offered: Sequence[str]) -> dict[str, Any]:
        """The case as it stands in the suite."""
        made: dict[str, Any] = {
            "id": f"agent-{number:03d}",
            "category": self.category,
            "source": "punie-mlx generate",
            "licence": "MIT",
        }
        if self.history:
            made["messages"] = [*self.history, {"role": "user", "content": self.query}]
        else:
            made["query"] = self.query
        if self.follow_ups:
            made["follow_ups"] = list(self.follow_ups)
        made |= {"tools": [TOOLS[name] for name in offered], "files": dict(self.files), "expect": dict(self.expect)}
        return made


def expect(asks: Sequence[Ask], last: Sequence[Ask] | None = None, **more: Any) -> dict[str, Any]:
    """That the calls of `asks` are made, and that the final answer tells what the results of `last` (all) say."""
    made: dict[str, Any] = {"calls": [expected_call(a) for a in asks], **more}
    told, files = answer(asks if last is None else last), files_after(asks)
    return {**made, **({"answer": told} if told else {}), **({"files": files} if files else {})}


def draft(category: str, ask: Ask, **more: Any) -> Draft:
    """A case of one question that wants one call."""
    return Draft(category, ask.query, expect([ask], **more), ask.files)
