"""What one data set gives to an epoch: entries as arithmetic over its usable lines, so that they cost no memory."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from internvl_chat.data.plan.shuffle import shuffled


@dataclass(frozen=True)
class Lines:
    """Some lines of an annotation of ``total`` lines, in order. Kept is the shorter list: of these, or of the others.

    ``numbers`` (N,), sorted, counted from 0; ``others``: they are the lines that are left out.
    """

    total: int
    numbers: np.ndarray
    others: bool

    @classmethod
    def of(cls, chosen: np.ndarray) -> Lines:
        """``chosen`` bool (total,)."""
        others = bool(2 * chosen.sum() > len(chosen))
        numbers = np.flatnonzero(~chosen if others else chosen)
        return cls(len(chosen), numbers.astype(np.uint32 if len(chosen) < 2**32 else np.int64), others)

    def __len__(self) -> int:
        return self.total - len(self.numbers) if self.others else len(self.numbers)

    def take(self, places: np.ndarray) -> np.ndarray:
        """Lines at ``places`` (N,) among these, int64 (N,)."""
        if not self.others:
            return self.numbers[places].astype(np.int64)
        return places + np.searchsorted(self._good_before, places, side="right")

    @cached_property
    def _good_before(self) -> np.ndarray:
        """How many good lines come before each of those left out; line k of the good is k plus the left-out before."""
        return self.numbers.astype(np.int64) - np.arange(len(self.numbers))

    def before(self, line: int) -> int:
        """How many of these lines have a smaller number than ``line``."""
        smaller = int(np.searchsorted(self.numbers, line))
        return min(line, self.total) - smaller if self.others else smaller

    def left_out(self, most: int) -> list[int]:
        """Numbers of the lines that are not among these; none if there are more than ``most``."""
        if self.total - len(self) > most:
            return []
        if self.others:
            found: list[int] = self.numbers.tolist()
            return found
        return np.setdiff1d(np.arange(self.total), self.numbers).tolist()


@dataclass(frozen=True)
class Share:
    """``count`` entries of an epoch, over and over the usable ``lines`` of a data set, in order.

    ``drawn``: by weight. Then an epoch goes on where the last one stopped, in an order drawn anew for each round, so
    that every line is seen equally often however few an epoch takes.
    """

    name: str
    lines: Lines
    count: int
    drawn: bool = False

    def locate(self, numbers: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Lines and visits, int64 (N,) each, of the entries ``numbers`` (N,) of this data set in an epoch."""
        if not self.drawn:  # a fraction takes the first lines
            rounds = -(-self.count // max(1, len(self.lines)))
            visits, places = np.divmod(numbers, max(1, len(self.lines)))
            return self.lines.take(places), visits + epoch * rounds
        visits, places = np.divmod(numbers + epoch * self.count, len(self.lines))
        places = shuffled(places, len(self.lines), (zlib.crc32(self.name.encode()),), rounds=visits)
        return self.lines.take(places), visits
