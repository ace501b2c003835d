"""What a pack costs, relative to others: which packs share a step, and how long ranks wait for each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Cost:
    """Of a sample ``token * tokens + tile * tiles + square * tokens ** 2``: FLOPs, or any other unit."""

    token: float = 1.0
    tile: float = 0.0
    square: float = 0.0

    def of_samples(self, tokens: np.ndarray, tiles: np.ndarray) -> np.ndarray:
        """float64 (N,)."""
        tokens = tokens.astype(np.float64)
        return self.token * tokens + self.tile * tiles + self.square * tokens**2

    def of_packs(self, tokens: np.ndarray, tiles: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """float64 (P,): pack after pack, ``counts`` (P,) samples each, of which none is 0."""
        return np.add.reduceat(self.of_samples(tokens, tiles), _starts(counts)) if len(counts) else np.zeros(0)

    def of_padded(self, tokens: np.ndarray, tiles: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """The same for batches whose samples are padded to the longest."""
        if not len(counts):
            return np.zeros(0)
        longest = np.maximum.reduceat(tokens, _starts(counts)).repeat(counts)
        return self.of_packs(longest, tiles, counts)


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.cumsum(counts) - counts


def parts_of_step(row: np.ndarray, ranks: int, accumulation: int) -> np.ndarray:
    """A step's packs (P,), heaviest first -> (accumulation, ranks, P / accumulation / ranks): who does what when.

    Ranks take neighbours in ``row`` at the same time, so that they wait little for each other in each micro-batch
    (ZeRO-3 keeps them in step); the direction changes each time, so that their sums are alike (the others wait once per
    step only). Raises ValueError if the packs cannot be dealt evenly.
    """
    each, rest = divmod(len(row), ranks * accumulation)
    if rest:
        raise ValueError(f"{len(row)} packs per step cannot be dealt to {ranks} ranks x {accumulation} micro-batches")
    dealt = row.reshape(each * accumulation, ranks).copy()
    dealt[1::2] = dealt[1::2, ::-1]
    turns = dealt.reshape(each, accumulation, ranks)
    # Every second turn the micro-batches are served the other way round, too, so that they weigh alike.
    turns[1::2] = turns[1::2, ::-1]
    return turns.transpose(1, 2, 0)


def idle_share(costs: np.ndarray, ranks: int, accumulation: int, each_micro_batch: bool = False) -> float:
    """Share (0..1) of the ranks' time spent waiting for the slowest, for the packs' ``costs`` (S, P) of some steps.

    0 for a place without a pack. Ranks meet once per step, or in ``each_micro_batch``, as under ZeRO-3.
    """
    per_step, per_micro_batch = time_of_ranks(costs, ranks, accumulation)
    took = per_micro_batch if each_micro_batch else per_step
    return float(1 - costs.sum() / took) if took else 0.0


def time_of_ranks(costs: np.ndarray, ranks: int, accumulation: int) -> tuple[float, float]:
    """What all ranks together take for steps of such ``costs`` (S, P), waiting included.

    If they meet once per step, and if they meet in each micro-batch.
    """
    order = parts_of_step(np.arange(costs.shape[1]), ranks, accumulation)
    work = costs[:, order].sum(axis=-1)  # (S, accumulation, ranks)
    return float(work.sum(axis=1).max(axis=-1).sum() * ranks), float(work.max(axis=-1).sum() * ranks)
