"""Numbers about a plan: how full its packs are, how much is padding, how long ranks wait for each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from internvl_chat.data.plan.cost import time_of_ranks
from internvl_chat.data.plan.epoch import EpochPlan, PlanSettings, pack_sums
from internvl_chat.data.plan.sizes import Sizes

# Packs, or entries, that are looked at together.
_PIECE = 2**18
PERCENTILES = (5, 25, 50, 75, 95, 99)


@dataclass(frozen=True)
class Spread:
    """Mean, percentiles (values that occur) and largest of some whole numbers; all 0 for none."""

    mean: float = 0.0
    p5: int = 0
    p25: int = 0
    p50: int = 0
    p75: int = 0
    p95: int = 0
    p99: int = 0
    max: int = 0

    @classmethod
    def of(cls, values: np.ndarray) -> Spread:
        if not len(values):
            return cls()
        p5, p25, p50, p75, p95, p99 = map(int, np.percentile(values, PERCENTILES, method="inverted_cdf"))
        return cls(float(values.mean()), p5, p25, p50, p75, p95, p99, int(values.max()))


@dataclass(frozen=True, eq=False)
class PlanNumbers:
    """What packs (or padded batches) hold: ``samples``, ``tokens``, ``tiles`` and ``longest`` sample, int64 (P,) each.

    ``real`` (P,): cost of their samples alone; the plan's own costs have the padding in them.
    """

    settings: PlanSettings
    plan: EpochPlan
    samples: np.ndarray
    tokens: np.ndarray
    tiles: np.ndarray
    longest: np.ndarray
    real: np.ndarray

    @property
    def packs(self) -> int:
        return len(self.samples)

    @property
    def steps(self) -> int:
        return len(self.plan.steps)

    @property
    def positions(self) -> int:
        """Tokens of the packs, with the padding if there is any."""
        return int((self.tokens if self.settings.packed else self.longest * self.samples).sum())

    @property
    def token_fill(self) -> float | None:
        """Share (0..1) of the token budget that positions take; None without a budget."""
        return self._share(self.positions, self.settings.max_tokens)

    @property
    def tile_fill(self) -> float | None:
        """The same of the tile budget."""
        return self._share(int(self.tiles.sum()), self.settings.max_tiles)

    @property
    def fewest_packs(self) -> int:
        """No plan of whole samples could do with fewer packs than the scarcer budget takes."""
        tokens, tiles = int(self.tokens.sum()), int(self.tiles.sum())
        return max(-(-tokens // max(1, self.settings.max_tokens)), -(-tiles // max(1, self.settings.max_tiles)))

    @property
    def padding(self) -> float:
        """Share (0..1) of all positions that hold no token."""
        return 1 - int(self.tokens.sum()) / self.positions if self.positions else 0.0

    def _share(self, used: int, budget: int) -> float | None:
        return used / (self.packs * budget) if self.packs and budget else None


def numbers_of(plan: EpochPlan, sizes: Sizes, settings: PlanSettings, epoch: int = 0) -> PlanNumbers:
    """Look at every pack of a plan made from these sizes."""
    samples = np.diff(plan.starts).astype(np.int64)
    tokens, tiles, longest, squares = pack_sums(plan, sizes, epoch)
    real = settings.cost.token * tokens + settings.cost.tile * tiles + settings.cost.square * squares
    return PlanNumbers(settings, plan, samples, tokens, tiles, longest, real)


@dataclass(frozen=True)
class Shape:
    """A plan dealt to so many ranks. Shares are 0..1 of the ranks' time.

    ``idle``: spent waiting if ranks meet once per step; ``idle_micro``: if in each micro-batch, as under ZeRO-3.
    ``useful``: spent on samples, neither waiting (once per step) nor on padding. ``without_pack``: places in the
    steps that have no pack or batch.
    """

    ranks: int
    accumulation: int
    packs_per_step: int
    steps: int
    idle: float
    idle_micro: float
    useful: float
    without_pack: int


def shape_of(numbers: PlanNumbers, ranks: int, accumulation: int) -> Shape:
    """Raises ValueError if the packs of a step cannot be dealt to so many."""
    plan, per_step = numbers.plan, numbers.settings.packs_per_step
    work = took = took_micro = 0.0
    for first in range(0, len(plan.steps), rows := max(1, _PIECE // per_step)):
        costs = plan.step_costs(slice(first, first + rows))
        some, some_micro = time_of_ranks(costs, ranks, accumulation)
        work, took, took_micro = work + costs.sum(), took + some, took_micro + some_micro
    empty = int((plan.steps < 0).sum())
    idle, idle_micro = (max(0.0, float(1 - work / time)) if time else 0.0 for time in (took, took_micro))
    useful = min(1.0, float(numbers.real.sum() / took)) if took else 0.0
    return Shape(ranks, accumulation, per_step, len(plan.steps), idle, idle_micro, useful, empty)


def rank_counts(world: int) -> list[int]:
    """Powers of two up to ``world``, and ``world``."""
    return sorted({2**power for power in range(world.bit_length())} | {world})


def shape_settings(settings: PlanSettings, world: int, ranks: int, accumulation: int) -> tuple[PlanSettings, int]:
    """Settings and accumulation with which ``ranks`` do what ``world`` ranks with this ``accumulation`` do.

    The same packs per step, accumulated more often, where they can be dealt evenly; else the same accumulation.
    """
    per_micro = settings.packs_per_step // (world * accumulation)
    more, rest = divmod(world * accumulation, ranks)
    if not rest:
        return settings, more
    return replace(settings, packs_per_step=ranks * accumulation * per_micro), accumulation


def all_sizes(sizes: Sizes, epoch: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (uint32) and tiles (uint32) of every entry, in order."""
    tokens, tiles = np.empty(len(sizes), np.uint32), np.empty(len(sizes), np.uint32)
    for span in _spans(len(sizes)):
        tokens[span], tiles[span] = sizes.take(np.arange(span.start, span.stop), epoch)
    return tokens, tiles


def _spans(count: int) -> Iterator[slice]:
    yield from (slice(first, min(first + _PIECE, count)) for first in range(0, count, _PIECE))


def balanced_tiles(tokens: int, tiles: int, max_tokens: int) -> int:
    """Tile budget at which data of so many tokens and tiles fill both budgets alike, rounded down; at least 1."""
    return max(1, max_tokens * tiles // max(1, tokens))
