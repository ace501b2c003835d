"""What a plan is made from: how large each entry of an epoch is. Nothing else of the data is known here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Sizes(Protocol):
    """Sizes of the entries ``0 .. len - 1`` of any epoch; asked for in pieces, so that they need not be in memory."""

    def __len__(self) -> int: ...

    def take(self, entries: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and tiles of ``entries`` (N,), int64 (N,) each."""
        ...


@dataclass(frozen=True)
class ArraySizes:
    """Sizes that are in memory and the same in each epoch."""

    tokens: np.ndarray
    tiles: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, entries: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """See ``Sizes``."""
        return self.tokens[entries].astype(np.int64), self.tiles[entries].astype(np.int64)


@dataclass(frozen=True)
class SizesOfSome:
    """Some entries of another table, numbered anew: ``entries`` (N,) of it."""

    of: Sizes
    entries: np.ndarray

    def __len__(self) -> int:
        return len(self.entries)

    def take(self, entries: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """See ``Sizes``."""
        return self.of.take(self.entries[entries], epoch)
