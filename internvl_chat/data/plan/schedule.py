"""Entries -> epochs -> steps -> ranks: what each rank loads for each micro-batch of the whole run.

A pure function of the entries' sizes, the seed and the budgets. The number of packs per optimizer step is part of it,
how these are dealt to ranks and accumulation is not: with 2 ranks x 4 or 8 x 1 the same packs make the same step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from internvl_chat.data.plan.group import group_samples
from internvl_chat.data.plan.pack import pack_samples

# Packs of this many steps are sorted by cost together.
_STEPS_PER_SORT = 32


@dataclass(frozen=True)
class Cost:
    """Relative work of a pack: ``token * tokens + tile * tiles + square * sum(tokens of each sample squared)``."""

    token: float = 1.0
    tile: float = 0.0
    square: float = 0.0


@dataclass(frozen=True)
class PlanSettings:
    """``packs_per_step`` counts packs (packed) or padded batches over all ranks and accumulation steps.

    Packed: ``max_tokens`` and ``max_tiles`` are the budgets of a pack. Padded: each holds ``batch_size`` samples.
    """

    packed: bool
    packs_per_step: int
    seed: int
    max_tokens: int = 0
    max_tiles: int = 0
    batch_size: int = 1
    by_length: bool = False
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class EpochPlan:
    """``entries[starts[p]:starts[p + 1]]`` are the samples of pack p; ``steps`` (S, P) holds pack numbers, -1 = none.

    Within a step packs are sorted by cost, heaviest first.
    """

    entries: np.ndarray
    starts: np.ndarray
    steps: np.ndarray

    def pack(self, number: int) -> np.ndarray:
        return self.entries[self.starts[number] : self.starts[number + 1]]


def plan_epoch(tokens: np.ndarray, tiles: np.ndarray, settings: PlanSettings, epoch: int) -> EpochPlan:
    """Plan of one epoch: every entry in exactly one pack, every pack in exactly one step."""
    rng = np.random.default_rng([settings.seed, epoch])
    order = rng.permutation(len(tokens))
    if settings.packed:
        packs = pack_samples(tokens, tiles, order, settings.max_tokens, settings.max_tiles)
    else:
        packs = group_samples(tokens, order, settings.batch_size, settings.packs_per_step, settings.by_length)
    starts = np.cumsum([0, *map(len, packs)]).astype(np.int64)
    entries = np.concatenate(packs).astype(np.int64)
    costs = _pack_costs(tokens[entries], tiles[entries], starts, settings.cost)
    sort = settings.packed or settings.by_length
    return EpochPlan(entries, starts, _arrange_steps(costs, settings.packs_per_step, rng, sort))


def _pack_costs(tokens: np.ndarray, tiles: np.ndarray, starts: np.ndarray, cost: Cost) -> np.ndarray:
    tokens = tokens.astype(np.float64)
    work = cost.token * tokens + cost.tile * tiles + cost.square * tokens**2
    return np.add.reduceat(work, starts[:-1])


def _arrange_steps(costs: np.ndarray, per_step: int, rng: np.random.Generator, sort: bool) -> np.ndarray:
    """Packs of like cost share a step, so that ranks wait little for each other; then the steps are shuffled."""
    numbers = _sort_in_windows(costs, _STEPS_PER_SORT * per_step, rng) if sort else np.arange(len(costs))
    steps = -(-len(costs) // per_step)
    padded = np.full(steps * per_step, -1, np.int64)
    padded[: len(numbers)] = numbers
    table = padded.reshape(steps, per_step)
    if sort:
        return table[rng.permutation(steps)]
    by_cost = np.argsort(np.where(table < 0, np.inf, -costs[table]), axis=1, kind="stable")
    return np.take_along_axis(table, by_cost, axis=1)


def _sort_in_windows(costs: np.ndarray, window: int, rng: np.random.Generator) -> np.ndarray:
    """Pack numbers in random windows, heaviest first in each: like cost side by side, yet each window a fair sample.

    Sorted over the whole epoch, text-only packs would gather in steps of their own.
    """
    order = rng.permutation(len(costs))
    parts = [order[start : start + window] for start in range(0, len(order), window)]
    return np.concatenate([part[np.argsort(-costs[part], kind="stable")] for part in parts])


class Schedule:
    """All steps of a run, over as many epochs as it takes. Plans are made when first asked for, and kept."""

    def __init__(self, tokens: np.ndarray, tiles: np.ndarray, settings: PlanSettings) -> None:
        self.settings = settings
        self._tokens = tokens
        self._tiles = tiles
        self._plans: list[EpochPlan] = []

    def plan(self, epoch: int) -> EpochPlan:
        """Plan of an epoch, counted from 0."""
        while len(self._plans) <= epoch:
            self._plans.append(plan_epoch(self._tokens, self._tiles, self.settings, len(self._plans)))
        return self._plans[epoch]

    def describe(self) -> str:
        """What a step is made of, with the fill of the budgets in the first epoch, for the log."""
        plan, settings = self.plan(0), self.settings
        packs = max(1, len(plan.starts) - 1)
        if not settings.packed:
            return f"{settings.packs_per_step} x {settings.batch_size} samples"
        samples = len(plan.entries) / packs
        fill = [100 * sizes.sum() / packs / most for sizes, most in self._budgets()]
        return (
            f"{settings.packs_per_step} packs ({samples:.1f} samples in a pack, {fill[0]:.1f} % of its tokens and "
            f"{fill[1]:.1f} % of its tiles filled)"
        )

    def _budgets(self) -> tuple[tuple[np.ndarray, int], tuple[np.ndarray, int]]:
        return (self._tokens, self.settings.max_tokens), (self._tiles, self.settings.max_tiles)

    def steps_in(self, epochs: float) -> int:
        """Optimizer steps in that many epochs; a fraction counts a part of the last one, rounded up."""
        whole = int(epochs)
        steps = sum(len(self.plan(epoch).steps) for epoch in range(whole))
        if epochs > whole:
            part = (epochs - whole) * len(self.plan(whole).steps)
            steps += int(np.ceil(part - 1e-9 * (1 + part)))  # 1.1 - 1 is more than 0.1
        return steps

    def locate(self, step: int) -> tuple[int, int]:
        """(epoch, step within it) of a step counted from 0 over the whole run."""
        epoch = 0
        while step >= len(self.plan(epoch).steps):
            step -= len(self.plan(epoch).steps)
            epoch += 1
        return epoch, step

    def epoch_at(self, step: int) -> float:
        """Epochs completed after ``step`` optimizer steps, as a fraction."""
        if step == 0:
            return 0.0
        epoch, done = self.locate(step - 1)
        return epoch + (done + 1) / len(self.plan(epoch).steps)

    def packs(self, step: int, share: int, shares: int) -> tuple[int, list[np.ndarray]]:
        """(epoch, packs) of one of ``shares`` equal parts of a step: part ``micro * ranks + rank`` belongs to a rank.

        Packs are dealt heaviest first to each part in turn, forth and back, so that parts weigh alike.
        """
        epoch, local = self.locate(step)
        plan = self.plan(epoch)
        row = plan.steps[local]
        if len(row) % shares:
            raise ValueError(f"{len(row)} packs per step cannot be dealt to {shares} parts")
        dealt = row.reshape(-1, shares)
        chosen = [dealt[turn, share if turn % 2 == 0 else shares - 1 - share] for turn in range(len(dealt))]
        return epoch, [plan.pack(int(number)) for number in chosen if number >= 0]
