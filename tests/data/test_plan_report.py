"""Numbers about plans, against sums over every pack written out, and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from internvl_chat.data.plan import report
from internvl_chat.data.plan.cost import Cost, idle_share
from internvl_chat.data.plan.epoch import EpochPlan, PlanSettings, plan_epoch
from internvl_chat.data.plan.report import PlanNumbers, Spread, numbers_of, shape_of, shape_settings
from internvl_chat.data.plan.sizes import ArraySizes
from internvl_chat.tools.plan_budgets import Pair, advice, try_pairs

COST = Cost(1.0, 30.0, 0.01)
PACKED = PlanSettings(True, 8, 0, 500, 12, cost=COST)
PADDED = PlanSettings(False, 8, 0, batch_size=3, cost=COST)


@pytest.fixture(scope="module")
def sizes() -> ArraySizes:
    rng = np.random.default_rng(0)
    return ArraySizes(rng.integers(1, 300, 400), rng.integers(0, 7, 400))


def by_hand(tokens: list[int], tiles: list[int], starts: list[int], settings: PlanSettings) -> PlanNumbers:
    """One pack per step of one place."""
    packs = len(starts) - 1
    plan = EpochPlan(np.arange(len(tokens)), np.array(starts), np.arange(packs)[:, None], np.ones(packs))
    return numbers_of(plan, ArraySizes(np.array(tokens), np.array(tiles)), settings)


@pytest.mark.parametrize("settings", [PACKED, PADDED], ids=["packed", "padded"])
@pytest.mark.parametrize("piece", [7, 2**18])
def test_each_pack_is_summed_up(
    sizes: ArraySizes, settings: PlanSettings, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_PIECE", piece)
    plan = plan_epoch(sizes, settings, 0)
    found = numbers_of(plan, sizes, settings)
    assert found.packs == len(plan.starts) - 1 > 50 and found.steps == len(plan.steps)
    padded = 0
    for number in range(found.packs):
        pack = plan.pack(number)
        tokens, tiles = sizes.tokens[pack].tolist(), sizes.tiles[pack].tolist()
        assert found.samples[number] == len(pack)
        assert (found.tokens[number], found.tiles[number]) == (sum(tokens), sum(tiles))
        assert found.longest[number] == max(tokens)
        cost = sum(t + 30 * i + 0.01 * t * t for t, i in zip(tokens, tiles, strict=True))
        assert found.real[number] == pytest.approx(cost)
        padded += max(tokens) * len(tokens)
    total = int(sizes.tokens.sum())
    if settings.packed:
        assert (found.padding, found.positions) == (0, total)
        assert found.token_fill == pytest.approx(total / (500 * found.packs))
        assert found.tile_fill == pytest.approx(int(sizes.tiles.sum()) / (12 * found.packs))
    else:
        assert found.padding == pytest.approx(1 - total / padded) and found.padding > 0.1
        assert found.token_fill is None and found.tile_fill is None
    assert report.all_sizes(sizes)[0].tolist() == sizes.tokens.tolist()
    assert report.all_sizes(sizes)[1].tolist() == sizes.tiles.tolist()


def test_fill_by_hand() -> None:
    found = by_hand([4, 6, 5, 5, 1], [1, 1, 0, 0, 4], [0, 2, 4, 5], PlanSettings(True, 1, 0, 10, 4))
    assert found.token_fill == 21 / 30 and found.tile_fill == 6 / 12
    assert found.fewest_packs == 3  # 21 tokens
    assert by_hand([1, 1], [4, 1], [0, 1, 2], PlanSettings(True, 1, 0, 10, 4)).fewest_packs == 2  # 5 tiles
    padded = by_hand([4, 6, 5, 5, 1], [0] * 5, [0, 2, 4, 5], PlanSettings(False, 1, 0, batch_size=2))
    assert padded.padding == pytest.approx(1 - 21 / (12 + 10 + 1))


@pytest.mark.parametrize("settings", [PACKED, PADDED], ids=["packed", "padded"])
@pytest.mark.parametrize(("ranks", "accumulation"), [(1, 8), (2, 4), (8, 1), (2, 2)])
def test_waiting_is_that_of_the_plan(
    sizes: ArraySizes, settings: PlanSettings, ranks: int, accumulation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_epoch(sizes, settings, 0)
    numbers = numbers_of(plan, sizes, settings)
    monkeypatch.setattr(report, "_PIECE", 20)  # two steps at a time
    shape = shape_of(numbers, ranks, accumulation)
    costs = plan.step_costs()
    assert shape.idle == pytest.approx(idle_share(costs, ranks, accumulation), abs=1e-9)
    assert shape.idle_micro == pytest.approx(idle_share(costs, ranks, accumulation, True), abs=1e-9)
    assert 0 <= shape.idle <= shape.idle_micro + 1e-9 < 0.5
    padding = numbers.real.sum() / plan.costs.sum()
    assert shape.useful == pytest.approx((1 - shape.idle) * padding)
    assert (shape.useful < 0.9) is (not settings.packed)
    assert (shape.steps, shape.packs_per_step) == (len(plan.steps), 8)
    assert shape.without_pack == int((plan.steps < 0).sum())


def test_packs_that_cannot_be_dealt_are_an_error(sizes: ArraySizes) -> None:
    numbers = numbers_of(plan_epoch(sizes, PACKED, 0), sizes, PACKED)
    with pytest.raises(ValueError, match="cannot be dealt"):
        shape_of(numbers, 3, 1)


def test_other_numbers_of_ranks_keep_the_step_where_they_can() -> None:
    assert report.rank_counts(1) == [1]
    assert report.rank_counts(12) == [1, 2, 4, 8, 12]
    assert report.rank_counts(64) == [1, 2, 4, 8, 16, 32, 64]
    settings = PlanSettings(True, 48, 0, 10, 10)  # 12 ranks x 2 x 2 packs
    assert shape_settings(settings, 12, 12, 2) == (settings, 2)
    assert shape_settings(settings, 12, 4, 2) == (settings, 6)
    assert shape_settings(settings, 12, 8, 2) == (settings, 3)
    other, accumulation = shape_settings(settings, 12, 16, 2)
    assert (other.packs_per_step, accumulation) == (64, 2)


def test_spread() -> None:
    assert Spread.of(np.arange(1, 101)) == Spread(50.5, 5, 25, 50, 75, 95, 99, 100)
    assert Spread.of(np.array([7])) == Spread(7.0, 7, 7, 7, 7, 7, 7, 7)
    assert Spread.of(np.zeros(0)) == Spread()


# -- budgets ---------------------------------------------------------------------------------------------------------


def test_the_tiles_that_fill_are_found() -> None:
    """Of equal samples: 100 tokens and 1 tile make 10 in a pack of 1000; 5 of them if there is room for 5 tiles."""
    tokens, tiles = np.full(1200, 100), np.ones(1200, np.int64)
    pairs = try_pairs(tokens, tiles, PlanSettings(True, 8, 0, 1000, 5), (1000, 5))
    given, best, *rest = pairs
    assert given == Pair(1000, 5, 240, 30, 0.5, 1.0, given=True)
    assert best == Pair(1000, 10, 120, 15, 1.0, 1.0, best=True)
    assert [pair.max_tokens for pair in rest] == [8192, 16384, 32768] and all(pair.best for pair in rest)
    assert all(pair.token_fill > 0.9 for pair in rest)
    assert "--num_images_expected 10 instead of 5" in str(advice(pairs)) and "120 packs" in str(advice(pairs))
    wide = try_pairs(tokens, tiles, PlanSettings(True, 8, 0, 1000, 40), (1000, 40))
    assert "--num_images_expected 10 instead of 40" in str(advice(wide)) and "less memory" in str(advice(wide))
    fine = try_pairs(tokens, tiles, PlanSettings(True, 8, 0, 1000, 10), (1000, 10))
    assert (fine[0].given, fine[0].best) == (True, True) and advice(fine) is None
    text = try_pairs(tokens, np.zeros(1200, np.int64), PlanSettings(True, 8, 0, 1000, 40), (1000, 40))
    assert all(pair.max_tiles == 40 and pair.best for pair in text) and advice(text) is None


def test_a_part_of_the_data_stands_for_all() -> None:
    tokens, tiles = np.full(40_000, 1000), np.zeros(40_000, np.int64)
    (pair,) = [one for one in try_pairs(tokens, tiles, PADDED, None) if one.max_tokens == 8192]
    assert pair.packs == 5000 and pair.steps == 625 and pair.token_fill == pytest.approx(8000 / 8192)
    assert pair.tile_fill == 0 and not pair.given and advice([pair]) is None


def test_budgets_hold_the_largest_sample() -> None:
    tokens, tiles = np.array([40_000, 10, 10]), np.array([30, 0, 0])
    (pair,) = try_pairs(tokens, tiles, PADDED, None)
    assert pair.max_tokens == 65536 and pair.max_tiles >= 30 and pair.packs == 1
