"""The plan of a run: each epoch shows every entry once, each step is the same however it is dealt to ranks."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.data.plan.schedule import Cost, PlanSettings, Schedule, plan_epoch
from tests.data.helpers import properties


@st.composite
def settings_and_sizes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, PlanSettings]:
    packed = draw(st.booleans())
    settings = PlanSettings(
        packed=packed,
        packs_per_step=draw(st.sampled_from([1, 2, 4, 6, 12])),
        seed=draw(st.integers(0, 2**31)),
        max_tokens=30,
        max_tiles=6,
        batch_size=1 if packed else draw(st.integers(1, 4)),
        by_length=not packed and draw(st.booleans()),
        cost=draw(st.sampled_from([Cost(), Cost(1.0, 20.0, 0.5)])),
    )
    sizes = draw(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 6)), min_size=1, max_size=120))
    tokens, tiles = np.array(sizes).T
    return tokens.astype(np.int32), tiles.astype(np.int32), settings


def cost_of(entries: np.ndarray, tokens: np.ndarray, tiles: np.ndarray, cost: Cost) -> float:
    work = [cost.token * t + cost.tile * n + cost.square * t * t for t, n in zip(tokens, tiles, strict=True)]
    return float(sum(work[entry] for entry in entries))


@properties(150)
@given(settings_and_sizes(), st.integers(0, 3))
def test_an_epoch_shows_every_entry_once(case: tuple[np.ndarray, np.ndarray, PlanSettings], epoch: int) -> None:
    tokens, tiles, settings = case
    plan = plan_epoch(tokens, tiles, settings, epoch)
    numbers = plan.steps[plan.steps >= 0].tolist()
    assert sorted(numbers) == list(range(len(plan.starts) - 1))
    assert sorted(entry for number in numbers for entry in plan.pack(number)) == list(range(len(tokens)))
    if settings.packed:
        assert all(tokens[plan.pack(n)].sum() <= 30 and tiles[plan.pack(n)].sum() <= 6 for n in numbers)
    else:
        sizes = sorted((len(plan.pack(number)) for number in numbers), reverse=True)
        assert set(sizes[:-1]) <= {settings.batch_size}
        assert len(numbers) == math.ceil(len(tokens) / settings.batch_size)


@properties(150)
@given(settings_and_sizes())
def test_steps_are_full_but_one_and_heavy_packs_come_first(
    case: tuple[np.ndarray, np.ndarray, PlanSettings],
) -> None:
    """Places without a pack are in a single step; where all packs are sorted by cost, in the lightest one."""
    tokens, tiles, settings = case
    plan = plan_epoch(tokens, tiles, settings, 0)
    packs = len(plan.starts) - 1
    assert plan.steps.shape == (math.ceil(packs / settings.packs_per_step), settings.packs_per_step)
    with_holes = np.flatnonzero((plan.steps < 0).any(axis=1))
    assert len(with_holes) <= 1
    costs = [[cost_of(plan.pack(n), tokens, tiles, settings.cost) for n in row if n >= 0] for row in plan.steps]
    for row, values in zip(plan.steps, costs, strict=True):
        assert (row[: len(values)] >= 0).all(), "places without a pack are last"
        assert values == sorted(values, reverse=True)
    if (settings.packed or settings.by_length) and len(plan.steps) <= 32:  # sorted in windows of 32 steps
        by_weight = sorted(costs, key=lambda values: [-value for value in values])
        for heavier, lighter in pairwise(by_weight):
            assert min(heavier) >= max(lighter)
        if len(with_holes):
            assert max(costs[with_holes[0]]) == min(max(values) for values in costs)


@properties(100)
@given(settings_and_sizes(), st.integers(0, 200))
def test_the_same_packs_make_a_step_for_any_number_of_ranks(
    case: tuple[np.ndarray, np.ndarray, PlanSettings], step: int
) -> None:
    """ranks x accumulation x packs per device stays the same, so does the step; each pack has one owner."""
    tokens, tiles, settings = case
    schedule = Schedule(tokens, tiles, settings)
    epoch, local = schedule.locate(step)
    row = schedule.plan(epoch).steps[local]
    expected = sorted(schedule.plan(epoch).pack(n).tolist() for n in row if n >= 0)
    for shares in (n for n in range(1, settings.packs_per_step + 1) if settings.packs_per_step % n == 0):
        dealt = []
        for share in range(shares):
            at, packs = schedule.packs(step, share, shares)
            assert at == epoch
            assert len(packs) <= settings.packs_per_step // shares
            dealt += [pack.tolist() for pack in packs]
        assert sorted(dealt) == expected
    if settings.packs_per_step % 5:
        with pytest.raises(ValueError, match="cannot be dealt to 5 parts"):
            schedule.packs(step, 0, 5)


@properties(60)
@given(settings_and_sizes())
def test_a_plan_depends_on_seed_and_epoch_alone(case: tuple[np.ndarray, np.ndarray, PlanSettings]) -> None:
    tokens, tiles, settings = case
    one, two = (Schedule(tokens, tiles, settings) for _ in range(2))
    two.plan(3)  # asked for in another order
    for epoch in range(3):
        for mine, other in zip(vars(one.plan(epoch)).values(), vars(two.plan(epoch)).values(), strict=True):
            assert np.array_equal(mine, other)


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    tokens, tiles = np.arange(1, 201, dtype=np.int32), np.zeros(200, np.int32)

    def order(seed: int, epoch: int) -> list[int]:
        plan = plan_epoch(tokens, tiles, PlanSettings(False, 4, seed, batch_size=2), epoch)
        return plan.entries.tolist()

    assert len({tuple(order(seed, epoch)) for seed in (0, 1, 7) for epoch in (0, 1, 2)}) == 9


@properties(60)
@given(settings_and_sizes(), st.integers(0, 4))
def test_locate_and_epoch_at_and_steps_in_agree(case: tuple[np.ndarray, np.ndarray, PlanSettings], epochs: int) -> None:
    schedule = Schedule(*case)
    total = schedule.steps_in(epochs)
    places = [schedule.locate(step) for step in range(total)]
    assert places == [(e, local) for e in range(epochs) for local in range(len(schedule.plan(e).steps))]
    for step, (epoch, local) in enumerate(places):
        done = epoch + Fraction(local + 1, len(schedule.plan(epoch).steps))
        assert schedule.epoch_at(step + 1) == pytest.approx(float(done))
    assert schedule.epoch_at(0) == 0.0
    assert schedule.epoch_at(total) == epochs


@pytest.mark.parametrize("tenths", range(1, 60))
def test_a_part_of_an_epoch_is_rounded_up_and_never_by_the_last_bit_of_a_float(tenths: int) -> None:
    """1.1 - 1 is a little more than 0.1: ten steps per epoch once made 12 steps of 1.1 epochs."""
    schedule = Schedule(np.ones(10, np.int32), np.zeros(10, np.int32), PlanSettings(False, 1, 0))
    assert schedule.steps_in(tenths / 10) == tenths
    assert schedule.steps_in(tenths / 10 + 0.01) == tenths + 1


@properties(100)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=400), st.integers(1, 8), st.integers(1, 4))
def test_grouping_by_length_pads_no_more_than_chance(lengths: list[int], batch: int, per_step: int) -> None:
    """Batches that are all full and lie in one window, that is: sorted lengths are the best there are."""
    lengths = (lengths * batch)[: 50 * batch * per_step]
    tokens, tiles = np.array(lengths, np.int32), np.zeros(len(lengths), np.int32)

    def padding(by_length: bool) -> int:
        plan = plan_epoch(tokens, tiles, PlanSettings(False, per_step, 3, batch_size=batch, by_length=by_length), 0)
        batches = [tokens[plan.pack(number)] for number in range(len(plan.starts) - 1)]
        return sum(int(one.max()) * len(one) - int(one.sum()) for one in batches)

    assert padding(by_length=True) <= padding(by_length=False)


def test_parts_of_a_step_weigh_alike() -> None:
    """Dealt forth and back, heaviest first: 8 packs on 2 ranks, equal sums."""
    tokens = np.array([30, 29, 22, 21, 15, 14, 6, 5], np.int32)
    settings = PlanSettings(packed=True, packs_per_step=8, seed=0, max_tokens=30, max_tiles=1)
    schedule = Schedule(tokens, np.ones(8, np.int32), settings)
    weights = [sum(int(tokens[pack].sum()) for pack in schedule.packs(0, share, 2)[1]) for share in range(2)]
    assert weights == [71, 71]
