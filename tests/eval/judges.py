"""A judge with canned replies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class FakeJudge:
    """Replies by the first pattern that is found in what it is asked; of several replies one a question, in turn.

    ``asked``: what it was asked, with the temperature. A question that no pattern fits fails the test.
    """

    replies: Mapping[str, str | Sequence[str]]
    name: str = "fake"
    asked: list[tuple[str, float]] = field(default_factory=list)
    systems: list[str | None] = field(default_factory=list)
    used: dict[str, int] = field(default_factory=dict)

    def ask(self, text: str, *, system: str | None = None, temperature: float = 0.0, max_tokens: int = 1024) -> str:
        self.asked.append((text, temperature))
        self.systems.append(system)
        for pattern, reply in self.replies.items():
            if re.search(pattern, text, re.DOTALL):
                turn = self.used.get(pattern, 0)
                self.used[pattern] = turn + 1
                return reply if isinstance(reply, str) else reply[min(turn, len(reply) - 1)]
        raise AssertionError(f"the judge is asked what no reply is for: {text[-300:]!r}")

    @property
    def temperatures(self) -> list[float]:
        return [temperature for _, temperature in self.asked]
