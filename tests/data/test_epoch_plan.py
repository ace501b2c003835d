"""The plan of an epoch: every entry once, every step whole, like cost side by side, the same for any workers."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.data.plan import epoch as epoch_module
from internvl_chat.data.plan.cost import Cost, idle_share
from internvl_chat.data.plan.epoch import EpochPlan, PlanSettings, plan_epoch
from internvl_chat.data.plan.shuffle import shuffled
from internvl_chat.data.plan.sizes import ArraySizes
from tests.data.helpers import Case, properties, settings_and_sizes


def cost_of(entries: np.ndarray, sizes: ArraySizes, settings: PlanSettings) -> float:
    cost, longest = settings.cost, max(sizes.tokens[entries].tolist())
    tokens = [t if settings.packed else longest for t in sizes.tokens[entries].tolist()]
    tiles = sizes.tiles[entries].tolist()
    return sum(cost.token * t + cost.tile * n + cost.square * t * t for t, n in zip(tokens, tiles, strict=True))


@properties(150)
@given(settings_and_sizes(), st.integers(0, 3))
def test_an_epoch_shows_every_entry_once_within_the_budgets(case: Case, epoch: int) -> None:
    """So the tokens in the packs are those of the samples: nothing is split, nothing lost."""
    sizes, settings = case
    plan = plan_epoch(sizes, settings, epoch)
    numbers = plan.steps[plan.steps >= 0].tolist()
    assert sorted(numbers) == list(range(len(plan.starts) - 1))
    assert sorted(entry for number in numbers for entry in plan.pack(number).tolist()) == list(range(len(sizes)))
    assert all(len(plan.pack(number)) for number in numbers)
    assert plan.costs == pytest.approx([cost_of(plan.pack(n), sizes, settings) for n in range(len(numbers))])
    if settings.packed:
        budgets = [(sizes.tokens[plan.pack(n)].sum(), sizes.tiles[plan.pack(n)].sum()) for n in numbers]
        assert all(tokens <= 30 and tiles <= 6 for tokens, tiles in budgets)
    else:
        per_step = settings.batch_size * settings.packs_per_step
        whole, rest = divmod(len(sizes), per_step)
        lengths = sorted((len(plan.pack(number)) for number in numbers), reverse=True)
        assert lengths[: whole * settings.packs_per_step] == [settings.batch_size] * whole * settings.packs_per_step
        assert len(lengths) - whole * settings.packs_per_step == min(rest, settings.packs_per_step)


@properties(150)
@given(settings_and_sizes())
def test_steps_are_whole_and_heavy_packs_come_first(case: Case) -> None:
    """No rank is without a pack while another has two samples to share, and within a step costs fall."""
    sizes, settings = case
    plan = plan_epoch(sizes, settings, 0)
    packs = len(plan.starts) - 1
    assert plan.steps.shape == (math.ceil(packs / settings.packs_per_step), settings.packs_per_step)
    assert ((plan.steps < 0).any(axis=1)).sum() <= 1
    for row in plan.steps:
        costs = plan.costs[row[row >= 0]]
        assert (row[: len(costs)] >= 0).all(), "places without a pack are last"
        assert (np.diff(costs) <= 0).all()
    if not settings.packed and len(sizes) >= settings.packs_per_step:
        rest = len(sizes) % (settings.batch_size * settings.packs_per_step)
        assert (plan.steps < 0).sum() == (settings.packs_per_step - rest if 0 < rest < settings.packs_per_step else 0)
    if (settings.packed or settings.by_length) and len(plan.steps) <= 32:  # sorted in windows of 32 steps
        rows = sorted((plan.costs[row[row >= 0]].tolist() for row in plan.steps), key=lambda v: [-one for one in v])
        for heavier, lighter in pairwise(rows):
            assert min(heavier) >= max(lighter)


@pytest.mark.parametrize("samples", [64, 200, 1001])
@pytest.mark.parametrize("per_step", [3, 16, 60])
def test_every_step_is_whole_where_there_are_samples_enough(samples: int, per_step: int) -> None:
    """12 packs of 48 tiles on 60 ranks would leave 48 idle: the samples are dealt to all of them."""
    rng = np.random.default_rng(samples)
    sizes = ArraySizes(rng.integers(50, 2000, samples), rng.integers(0, 7, samples))
    plan = plan_epoch(sizes, PlanSettings(True, per_step, 0, 16384, 48, cost=Cost(1, 500)), 0)
    assert (plan.steps >= 0).all()
    # With about one sample for each, the largest of them decides.
    assert idle_share(plan.step_costs(), per_step, 1) < (0.25 if samples >= 3 * per_step else 0.5)
    fewest = max(sizes.tokens.sum() / 16384, sizes.tiles.sum() / 48)
    assert len(plan.steps) <= math.ceil(math.ceil(1.05 * fewest) / per_step)


@pytest.mark.parametrize("packed", [True, False])
def test_the_plan_is_the_same_for_any_number_of_processes_and_in_a_file(
    packed: bool, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epoch_module, "CHUNK", 400)
    rng = np.random.default_rng(1)
    sizes = ArraySizes(rng.integers(1, 900, 3000), rng.integers(0, 7, 3000))
    settings = PlanSettings(packed, 4, 7, 4000, 30, batch_size=2, by_length=not packed, worst_first=packed)

    def arrays(**how: object) -> list[list[object]]:
        return [array.tolist() for array in vars(plan_epoch(sizes, settings, 1, **how)).values()]  # type: ignore[arg-type]

    assert arrays() == arrays(workers=2) == arrays(workers=3, scratch=tmp_path)
    plan = plan_epoch(sizes, settings, 1)
    assert sorted(plan.entries.tolist()) == list(range(3000))
    if packed:
        assert len(plan.starts) - 1 <= 1.02 * max(sizes.tokens.sum() / 4000, sizes.tiles.sum() / 30) + 4


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    sizes = ArraySizes(np.arange(1, 201), np.zeros(200))

    def order(seed: int, epoch: int) -> list[int]:
        return plan_epoch(sizes, PlanSettings(False, 4, seed, batch_size=2), epoch).entries.tolist()

    assert len({tuple(order(seed, epoch)) for seed in (0, 1, 7) for epoch in (0, 1, 2)}) == 9
    assert order(3, 1) == order(3, 1)


def test_the_optimizer_sees_no_curriculum() -> None:
    """Steps are sorted by cost inside and shuffled among each other: cost says nothing about when."""
    rng = np.random.default_rng(0)
    sizes = ArraySizes(rng.integers(50, 4000, 20000), rng.integers(0, 13, 20000))
    plan = plan_epoch(sizes, PlanSettings(True, 8, 0, 16384, 48, cost=Cost(1, 1500, 0.05)), 0)
    costs = plan.step_costs().mean(axis=1)
    assert abs(np.corrcoef(np.arange(len(costs)), costs)[0, 1]) < 0.1


@properties(60)
@given(settings_and_sizes())
def test_worst_first_begins_with_the_most_work_tokens_and_tiles(case: Case) -> None:
    sizes, settings = case
    plain = plan_epoch(sizes, settings, 0)
    worst = plan_epoch(sizes, PlanSettings(**{**vars(settings), "worst_first": True}), 0)
    assert sorted(map(tuple, worst.steps.tolist())) == sorted(map(tuple, plain.steps.tolist()))

    def largest(plan: EpochPlan, steps: np.ndarray) -> tuple[float, int, int]:
        numbers = steps[steps >= 0].tolist()
        rows = [len(plan.pack(n)) if not settings.packed else 1 for n in numbers]
        tokens = [
            sizes.tokens[plan.pack(n)].sum() if settings.packed else r * sizes.tokens[plan.pack(n)].max()
            for n, r in zip(numbers, rows, strict=True)
        ]
        return max(plan.costs[numbers]), max(tokens), max(sizes.tiles[plan.pack(n)].sum() for n in numbers)

    assert largest(worst, worst.steps[:3]) == largest(worst, worst.steps)


@properties(150)
@given(settings_and_sizes(), st.integers(0, 1))
def test_padded_batches_keep_budgets_too(case: Case, epoch: int) -> None:
    """Rows x longest, and tiles; and a batch ends for a reason: the next sample would have broken a rule."""
    sizes, given = case
    changes = {"packed": False, "max_tokens": 45, "max_tiles": 7, "batch_size": 4, "packs_per_step": 1}
    settings = PlanSettings(**{**vars(given), **changes})
    plan = plan_epoch(sizes, settings, epoch)
    batches = [plan.pack(number) for number in range(len(plan.starts) - 1)]
    assert sorted(entry for batch in batches for entry in batch.tolist()) == list(range(len(sizes)))

    def legal(batch: np.ndarray) -> bool:
        tokens, tiles = sizes.tokens[batch], sizes.tiles[batch]
        return bool(len(batch) <= 4 and len(batch) * tokens.max() <= 45 and tiles.sum() <= 7)

    assert all(map(legal, batches))
    for batch, following in pairwise(batches):
        assert not legal(np.append(batch, following[0]))
    many = plan_epoch(sizes, PlanSettings(**{**vars(settings), "packs_per_step": 6}), epoch)
    assert (
        (many.steps >= 0).all()
        or len(many.starts) - 1 < 6
        or all(len(many.pack(n)) == 1 for n in many.steps[(many.steps < 0).any(axis=1)].ravel() if n >= 0)
    )
    assert all(legal(many.pack(number)) for number in range(len(many.starts) - 1))


@properties(100)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=400), st.integers(1, 8), st.integers(1, 4))
def test_grouping_by_length_pads_no_more_than_chance(lengths: list[int], batch: int, per_step: int) -> None:
    """Batches that are all full and lie in one window, that is: sorted lengths are the best there are."""
    sizes = ArraySizes(np.array((lengths * batch * per_step)[: 50 * batch * per_step]), np.zeros(50 * batch * per_step))

    def padding(by_length: bool) -> int:
        plan = plan_epoch(sizes, PlanSettings(False, per_step, 3, batch_size=batch, by_length=by_length), 0)
        batches = [sizes.tokens[plan.pack(number)] for number in range(len(plan.starts) - 1)]
        return sum(int(one.max()) * len(one) - int(one.sum()) for one in batches)

    if len(sizes.tokens) % (batch * per_step) == 0:
        assert padding(by_length=True) <= padding(by_length=False)


@properties(200)
@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 5))
def test_shuffled_is_a_permutation_computed_in_any_pieces(count: int, seed: int, epoch: int) -> None:
    whole = shuffled(np.arange(count), count, (seed, epoch))
    assert sorted(whole.tolist()) == list(range(count))
    cut = count // 3
    pieces = [shuffled(np.arange(*span), count, (seed, epoch)) for span in ((0, cut), (cut, count))]
    assert np.array_equal(np.concatenate(pieces), whole)


def test_shuffled_spreads_evenly() -> None:
    """Mean distance of neighbours and the fixed points of a good shuffle of 10,000: 1/3 of the range, about one."""
    for key in range(5):
        order = shuffled(np.arange(10_000), 10_000, (key, 0))
        assert np.abs(np.diff(order)).mean() == pytest.approx(10_000 / 3, rel=0.03)
        assert (order == np.arange(10_000)).sum() < 8
        assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.04


def test_planning_needs_no_torch_and_its_memory_does_not_follow_the_data() -> None:
    """A million samples: the plan itself is 10 MB; a process that plans needs little beside numpy."""
    code = """
import sys
import numpy as np
from internvl_chat.data.plan.epoch import PlanSettings, plan_epoch
from internvl_chat.data.plan.sizes import ArraySizes
assert "torch" not in sys.modules
rng = np.random.default_rng(0)
tiles = rng.integers(0, 13, 1_000_000).astype(np.int32)
sizes = ArraySizes((256 * tiles + rng.integers(20, 900, len(tiles))).astype(np.int32), tiles)
plan = plan_epoch(sizes, PlanSettings(True, 64, 0, 16384, 48), 0)
assert len(plan.entries) == len(tiles)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=200)
    assert int(done.stdout) < 300 * 1024, "KiB at the peak"
