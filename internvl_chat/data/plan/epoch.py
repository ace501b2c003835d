"""Entries -> packs -> steps of one epoch, in pieces: what is in memory does not grow with the data.

A pure function of the entries' sizes, the seed, the epoch and the settings, whatever the number of processes. The
number of packs per optimizer step is part of it, how these are dealt to ranks and accumulation is not: with 2 ranks x 4
or 8 x 1 the same packs make the same step.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from internvl_chat.data.plan.cost import Cost
from internvl_chat.data.plan.group import STEPS_PER_WINDOW, group_samples
from internvl_chat.data.plan.level import donors, split_batches, spread_out
from internvl_chat.data.plan.pack import NO_LIMIT, Budgets, pack_run
from internvl_chat.data.plan.shuffle import shuffled
from internvl_chat.data.plan.sizes import Sizes

# Samples that are packed by themselves, and may be so by another process.
CHUNK = 2**18
# Packs of this many steps are sorted by cost together.
_STEPS_PER_SORT = 32


@dataclass(frozen=True)
class PlanSettings:
    """``packs_per_step`` counts packs (packed) or padded batches over all ranks and accumulation steps.

    ``max_tokens`` and ``max_tiles`` are the budgets of a pack. Padded batches hold at most ``batch_size`` samples;
    where budgets are given (0: none), they keep them too, padding counted.
    ``worst_first``: an epoch begins with the steps that take most work, most tokens, most tiles.
    """

    packed: bool
    packs_per_step: int
    seed: int
    max_tokens: int = 0
    max_tiles: int = 0
    batch_size: int = 1
    by_length: bool = False
    cost: Cost = field(default_factory=Cost)
    worst_first: bool = False

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> PlanSettings:
        """Raises TypeError or KeyError for what ``as_json`` did not write."""
        return cls(**{**values, "cost": Cost(**values["cost"])})


@dataclass(frozen=True)
class EpochPlan:
    """``entries[starts[p]:starts[p + 1]]`` are the samples of pack p; ``steps`` (S, P) holds pack numbers, -1 = none.

    Within a step packs are sorted by their ``costs`` (packs,), heaviest first.
    """

    entries: np.ndarray
    starts: np.ndarray
    steps: np.ndarray
    costs: np.ndarray

    def pack(self, number: int) -> np.ndarray:
        return self.entries[self.starts[number] : self.starts[number + 1]]

    def step_costs(self, which: slice = slice(None)) -> np.ndarray:
        """Costs of the packs of each step, or of some, float64 (S, P), 0 where there is none."""
        steps = self.steps[which]
        return np.where(steps < 0, 0.0, self.costs[steps])


@dataclass(frozen=True)
class _Run:
    """Packs one after the other: their entries, how many each has, its cost; and entries that are in none yet."""

    entries: np.ndarray
    counts: np.ndarray
    costs: np.ndarray
    loose: np.ndarray


def plan_epoch(
    sizes: Sizes, settings: PlanSettings, epoch: int, workers: int = 1, scratch: Path | None = None
) -> EpochPlan:
    """Plan of one epoch: every entry in exactly one pack, every pack in exactly one step.

    With ``workers`` processes, and the entries in a memory-mapped file in the folder ``scratch`` if one is given.
    """
    dtype = np.uint32 if len(sizes) < 2**32 else np.int64
    count = len(sizes)
    entries = np.empty(count, dtype) if scratch is None else _file_of(scratch / "entries.npy", dtype, count)
    done = 0
    counts, costs, loose = [], [], []
    for run in _runs(sizes, settings, epoch, workers):
        entries[done : done + len(run.entries)] = run.entries
        done += len(run.entries)
        counts.append(run.counts)
        costs.append(run.costs)
        loose.append(run.loose)
    if settings.packed:
        rest = _pack_rest(sizes, settings, epoch, np.concatenate(loose))
        entries[done:] = rest.entries
        counts.append(rest.counts)
        costs.append(rest.costs)
    all_counts, all_costs = np.concatenate(counts), np.concatenate(costs)
    all_counts, all_costs = _fill_last_step(sizes, settings, epoch, entries, all_counts, all_costs)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(all_counts)])
    sort = settings.packed or settings.by_length
    steps = _arrange_steps(all_costs, settings.packs_per_step, (settings.seed, epoch), sort)
    plan = EpochPlan(entries, starts, steps, all_costs)
    return _worst_first(plan, sizes, settings, epoch) if settings.worst_first else plan


def _runs(sizes: Sizes, settings: PlanSettings, epoch: int, workers: int) -> Iterator[_Run]:
    chunk = CHUNK
    if not settings.packed:  # whole windows of length grouping
        per_window = STEPS_PER_WINDOW * settings.batch_size * settings.packs_per_step
        chunk = -(-CHUNK // per_window) * per_window
    spans = [(start, min(start + chunk, len(sizes))) for start in range(0, len(sizes), chunk)]
    job = partial(_plan_span, sizes, settings, epoch)
    if workers < 2 or len(spans) < 2:
        yield from map(job, spans)
        return
    # Forked processes have the sizes already.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(min(workers, len(spans)), context, _set_job, (job,)) as pool:
        yield from pool.map(_run_job, spans)


# Of a worker process, which lives for one plan.
_job: partial[_Run] | None = None


def _set_job(job: partial[_Run]) -> None:
    global _job
    _job = job


def _run_job(span: tuple[int, int]) -> _Run:
    assert _job is not None
    return _job(span)


def _plan_span(sizes: Sizes, settings: PlanSettings, epoch: int, span: tuple[int, int]) -> _Run:
    """The entries at some places of the epoch's random order."""
    order = shuffled(np.arange(*span), len(sizes), (settings.seed, epoch))
    tokens, tiles = sizes.take(order, epoch)
    if settings.packed:
        packs, loose = pack_run(tokens, tiles, _budgets(settings))
        return _run_of(order, tokens, tiles, packs, loose, settings)
    window = STEPS_PER_WINDOW * settings.batch_size * settings.packs_per_step
    batches = group_samples(tokens, tiles, settings.batch_size, _budgets(settings), window if settings.by_length else 0)
    return _run_of(order, tokens, tiles, batches, np.empty(0, np.int64), settings)


def _pack_rest(sizes: Sizes, settings: PlanSettings, epoch: int, entries: np.ndarray) -> _Run:
    """What the chunks have left over, packed together."""
    tokens, tiles = sizes.take(entries, epoch)
    packs, loose = pack_run(tokens, tiles, _budgets(settings), keep_all=True)
    return _run_of(entries, tokens, tiles, packs, loose, settings)


def _budgets(settings: PlanSettings) -> Budgets:
    return Budgets(settings.max_tokens or NO_LIMIT, settings.max_tiles or NO_LIMIT)


def _run_of(
    order: np.ndarray,
    tokens: np.ndarray,
    tiles: np.ndarray,
    packs: list[np.ndarray],
    loose: np.ndarray,
    settings: PlanSettings,
) -> _Run:
    counts = np.array([len(pack) for pack in packs], np.int32)
    flat = np.concatenate(packs) if packs else np.empty(0, np.int64)
    cost_of = settings.cost.of_packs if settings.packed else settings.cost.of_padded
    return _Run(order[flat], counts, cost_of(tokens[flat], tiles[flat], counts), order[loose])


def _fill_last_step(
    sizes: Sizes, settings: PlanSettings, epoch: int, entries: np.ndarray, counts: np.ndarray, costs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Spread the last packs so that the last step is whole; ``entries`` changes in place. New counts and costs."""
    missing = -len(counts) % settings.packs_per_step
    if not missing or not len(counts):
        return counts, costs
    # Half a padded batch keeps every budget that the whole one kept; packs are filled anew.
    giving = donors(len(counts), missing) if settings.packed else settings.packs_per_step - missing
    begin = len(entries) - int(counts[-giving:].sum())
    given = np.array(entries[begin:])
    tokens, tiles = sizes.take(given, epoch)
    work = settings.cost.of_samples(tokens, tiles)
    packs = (
        spread_out(tokens, tiles, work, giving + missing, _budgets(settings))
        if settings.packed
        else split_batches(counts[-giving:].tolist(), missing)
    )
    if packs is None:
        return counts, costs
    run = _run_of(given, tokens, tiles, packs, np.empty(0, np.int64), settings)
    entries[begin:] = run.entries
    return np.append(counts[:-giving], run.counts), np.append(costs[:-giving], run.costs)


def _file_of(path: Path, dtype: type, count: int) -> np.ndarray:
    """An array in a file. Raises OSError if the disk is full, now and not when it is written to."""
    array = np.lib.format.open_memmap(path, "w+", dtype, (count,))
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # of a file system that cannot
                raise
    return array


def _arrange_steps(costs: np.ndarray, per_step: int, key: tuple[int, int], sort: bool) -> np.ndarray:
    """Packs of like cost share a step, so that ranks wait little for each other; then the steps are shuffled."""
    numbers = _sort_in_windows(costs, _STEPS_PER_SORT * per_step, (*key, 1)) if sort else np.arange(len(costs))
    steps = -(-len(costs) // per_step)
    padded = np.full(steps * per_step, -1, np.int32)
    padded[: len(numbers)] = numbers
    table = padded.reshape(steps, per_step)
    if sort:
        return table[shuffled(np.arange(steps), steps, (*key, 2))]
    by_cost = np.argsort(np.where(table < 0, np.inf, -costs[table]), axis=1, kind="stable")
    return np.take_along_axis(table, by_cost, axis=1)


def _sort_in_windows(costs: np.ndarray, window: int, key: tuple[int, ...]) -> np.ndarray:
    """Pack numbers in random windows, heaviest first in each: like cost side by side, yet each window a fair sample.

    Sorted over the whole epoch, text-only packs would gather in steps of their own.
    """
    order = shuffled(np.arange(len(costs)), len(costs), key)
    parts = [order[start : start + window] for start in range(0, len(order), window)]
    return np.concatenate([part[np.argsort(-costs[part], kind="stable")] for part in parts])


def pack_sums(plan: EpochPlan, sizes: Sizes, epoch: int) -> tuple[np.ndarray, ...]:
    """Of each pack tokens, tiles, longest sample, and the sum of its samples' tokens squared, int64 (packs,) each."""
    packs = len(plan.starts) - 1
    tokens, tiles, longest, squares = (np.zeros(packs, np.int64) for _ in range(4))
    for first in range(0, packs, CHUNK):
        part = slice(first, min(first + CHUNK, packs))
        begins = plan.starts[part] - plan.starts[first]
        some = sizes.take(np.asarray(plan.entries[plan.starts[first] : plan.starts[part.stop]]), epoch)
        tokens[part], tiles[part] = (np.add.reduceat(values, begins) for values in some)
        longest[part] = np.maximum.reduceat(some[0], begins)
        squares[part] = np.add.reduceat(some[0] ** 2, begins)
    return tokens, tiles, longest, squares


def _worst_first(plan: EpochPlan, sizes: Sizes, settings: PlanSettings, epoch: int) -> EpochPlan:
    """Steps with the pack of most work, of most tokens and of most tiles first: what runs out of memory does so now."""
    tokens, tiles, longest, _ = pack_sums(plan, sizes, epoch)
    most = tokens if settings.packed else longest * np.diff(plan.starts)
    heaviest = [int(np.append(values, -1)[plan.steps].max(axis=1).argmax()) for values in (plan.costs, most, tiles)]
    front = list(dict.fromkeys(heaviest))
    rest = np.delete(np.arange(len(plan.steps)), front)
    return EpochPlan(plan.entries, plan.starts, plan.steps[np.concatenate([front, rest])], plan.costs)
