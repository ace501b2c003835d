"""The steps of a run: the same however they are dealt to ranks, and each entry once though a run changes its shape."""

from __future__ import annotations

import errno
import multiprocessing
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.data.plan.cost import Cost, idle_share, parts_of_step
from internvl_chat.data.plan.epoch import EpochPlan, PlanSettings
from internvl_chat.data.plan.schedule import Schedule, Segment
from internvl_chat.data.plan.sizes import ArraySizes, Sizes
from internvl_chat.data.plan.store import PlanStore, plan_in_memory
from tests.data.helpers import Case, properties, settings_and_sizes


@properties(100)
@given(settings_and_sizes(), st.integers(0, 200))
def test_the_same_packs_make_a_step_for_any_number_of_ranks(case: Case, step: int) -> None:
    """ranks x accumulation x packs per device stays the same, so does the step; each pack has one owner."""
    sizes, settings = case
    schedule = Schedule(sizes, settings)
    epoch, local = schedule.locate(step)
    plan = schedule.plan_at(step)
    expected = sorted(plan.pack(n).tolist() for n in plan.steps[local] if n >= 0)
    cuts = [
        (ranks, shares)
        for shares in range(1, settings.packs_per_step + 1)
        if settings.packs_per_step % shares == 0
        for ranks in range(1, shares + 1)
        if shares % ranks == 0
    ]
    for ranks, shares in cuts:
        dealt = []
        for share in range(shares):
            at, packs = schedule.packs(step, share, shares, ranks)
            assert at == epoch
            assert len(packs) <= settings.packs_per_step // shares
            dealt += [pack.tolist() for pack in packs]
        assert sorted(dealt) == expected
    if settings.packs_per_step % 5:
        with pytest.raises(ValueError, match="cannot be dealt to 5 ranks x 1 micro-batches"):
            schedule.packs(step, 0, 5)


@properties(60)
@given(settings_and_sizes(), st.integers(0, 4))
def test_locate_epoch_at_ends_epoch_and_steps_in_agree(case: Case, epochs: int) -> None:
    schedule = Schedule(*case)
    total = schedule.steps_in(epochs)
    places = [schedule.locate(step) for step in range(total)]
    lengths = {epoch: len(schedule.plan_at(places.index((epoch, 0))).steps) for epoch in range(epochs)}
    assert places == [(e, local) for e in range(epochs) for local in range(lengths[e])]
    for step, (epoch, local) in enumerate(places):
        assert schedule.epoch_at(step + 1) == pytest.approx(float(epoch + Fraction(local + 1, lengths[epoch])))
        assert schedule.ends_epoch(step + 1) == (local + 1 == lengths[epoch])
    assert schedule.epoch_at(0) == 0.0
    assert not schedule.ends_epoch(0)
    assert schedule.epoch_at(total) == epochs


@pytest.mark.parametrize("tenths", range(1, 60))
def test_a_part_of_an_epoch_is_rounded_up_and_never_by_the_last_bit_of_a_float(tenths: int) -> None:
    """1.1 - 1 is a little more than 0.1: ten steps per epoch once made 12 steps of 1.1 epochs."""
    schedule = Schedule(ArraySizes(np.ones(10), np.zeros(10)), PlanSettings(False, 1, 0))
    assert schedule.steps_in(tenths / 10) == tenths
    assert schedule.steps_in(tenths / 10 + 0.01) == tenths + 1


# -- a run that goes on with other settings -----------------------------------------------------------------------


def seen_in(schedule: Schedule, first: int, last: int) -> Counter[tuple[int, int]]:
    """(epoch, entry) of all packs of some steps."""
    found: Counter[tuple[int, int]] = Counter()
    for step in range(first, last):
        epoch, packs = schedule.packs(step, 0, 1)
        found.update((epoch, entry) for pack in packs for entry in pack.tolist())
    return found


@properties(80)
@given(settings_and_sizes(), st.lists(st.tuples(st.integers(1, 12), st.booleans()), max_size=4), st.data())
def test_each_entry_is_seen_once_per_epoch_however_often_the_run_changes_its_shape(
    case: Case, changes: list[tuple[int, bool]], data: st.DataObject
) -> None:
    """Stopped at any step, also right after a change: other packs per step, packed or padded, other budgets."""
    sizes, settings = case
    epochs, done = 3, ()
    stops: list[tuple[Schedule, int, int]] = []
    schedule, first = Schedule(sizes, settings), 0
    for packs_per_step, packed in changes:
        last = data.draw(st.integers(first, schedule.steps_in(epochs)))
        stops.append((schedule, first, last))
        done = schedule.history(last)
        settings = PlanSettings(packed, packs_per_step, settings.seed, 40, 9, 1 + packs_per_step % 3)
        schedule, first = Schedule(sizes, settings, done), last
        assert sum(segment.steps for segment in done) == last
    stops.append((schedule, first, schedule.steps_in(epochs)))
    seen = sum((seen_in(*stop) for stop in stops), Counter())
    assert seen == Counter((epoch, entry) for epoch in range(epochs) for entry in range(len(sizes)))
    assert schedule.epoch_at(stops[-1][2]) == epochs
    # Nothing is known but the history: another process plans the same.
    told = [Segment.from_json(segment.as_json()) for segment in done]
    again = Schedule(sizes, settings, told)
    for step in range(stops[-1][1], stops[-1][2]):
        mine, other = schedule.packs(step, 0, 1), again.packs(step, 0, 1)
        assert mine[0] == other[0]
        assert [pack.tolist() for pack in mine[1]] == [pack.tolist() for pack in other[1]]


@pytest.mark.parametrize("stop", [1, 7, 20])
def test_eight_then_four_then_six_ranks_see_each_line_once(stop: int) -> None:
    rng = np.random.default_rng(0)
    sizes = ArraySizes(rng.integers(1, 30, 4000), rng.integers(0, 7, 4000))
    seen: Counter[tuple[int, int]] = Counter()
    done: tuple[Segment, ...] = ()
    first = 0
    for ranks in (8, 4, 6):
        schedule = Schedule(sizes, PlanSettings(True, ranks, 3, 100, 20), done)
        last = first + stop if ranks != 6 else schedule.steps_in(1)
        for step in range(first, last):
            for rank in range(ranks):
                epoch, packs = schedule.packs(step, rank, ranks)
                seen.update((epoch, entry) for pack in packs for entry in pack.tolist())
        done, first = schedule.history(last), last
    assert seen == Counter((0, entry) for entry in range(4000))
    assert [segment.settings.packs_per_step for segment in done] == [8, 4, 6]


def test_a_change_at_the_end_of_an_epoch_leaves_the_next_one_whole() -> None:
    sizes = ArraySizes(np.arange(1, 41), np.zeros(40))
    eight = PlanSettings(True, 8, 0, 50, 1)
    steps = Schedule(sizes, eight).steps_in(1)
    four = PlanSettings(True, 4, 0, 50, 1)
    changed = Schedule(sizes, four, [Segment(steps, eight)])
    assert changed.locate(steps) == (1, 0)
    assert changed.epoch_at(steps) == 1.0
    fresh = Schedule(sizes, four)
    for step in range(changed.steps_in(2) - steps):
        mine, other = changed.packs(steps + step, 0, 1), fresh.packs(fresh.steps_in(1) + step, 0, 1)
        assert [pack.tolist() for pack in mine[1]] == [pack.tolist() for pack in other[1]]


# -- on disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def large() -> tuple[ArraySizes, PlanSettings]:
    rng = np.random.default_rng(0)
    sizes = ArraySizes(rng.integers(1, 30, 500), rng.integers(0, 7, 500))
    return sizes, PlanSettings(True, 4, 3, 100, 20, cost=Cost(1, 20, 0.5))


def store_in(folder: Path, data: str = "data") -> PlanStore:
    return PlanStore(folder, data, kept_from=1)


def plans_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.startswith("plan-"))


def test_a_kept_plan_is_the_plan_and_is_not_made_twice(tmp_path: Path, large: tuple[ArraySizes, PlanSettings]) -> None:
    sizes, settings = large
    kept, made = Schedule(sizes, settings, planner=store_in(tmp_path).plan), Schedule(sizes, settings)
    for step in range(made.steps_in(2)):
        assert [p.tolist() for p in kept.packs(step, 1, 2)[1]] == [p.tolist() for p in made.packs(step, 1, 2)[1]]
        assert kept.digest(step) == made.digest(step)
    assert isinstance(kept.plan_at(0).entries, np.memmap)
    assert len(plans_in(tmp_path)) == 2
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    again = store_in(tmp_path).plan(sizes, settings, 0, "")
    assert np.array_equal(again.steps, made.plan_at(0).steps)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == stamps
    store_in(tmp_path, "other data").plan(sizes, settings, 0, "")
    assert len(plans_in(tmp_path)) == 3
    assert all(path.stat().st_mode & 0o055 == 0o055 for path in plans_in(tmp_path)), "others of the machine may read"


def test_small_epochs_are_not_written(tmp_path: Path, large: tuple[ArraySizes, PlanSettings]) -> None:
    assert len(PlanStore(tmp_path, "data").plan(*large, 0, "").entries) == 500
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "zeroed", "lost"])
def test_a_damaged_plan_is_made_anew(tmp_path: Path, large: tuple[ArraySizes, PlanSettings], damage: str) -> None:
    expected = store_in(tmp_path).plan(*large, 0, "").entries.tolist()
    (folder,) = plans_in(tmp_path)
    for name in ("entries", "steps"):
        file = folder / f"{name}.npy"
        content = file.read_bytes()
        if damage == "lost":
            file.unlink()
        else:
            file.write_bytes(content[:200] + bytes(len(content) - 200 if damage == "zeroed" else 0))
        assert store_in(tmp_path).plan(*large, 0, "").entries.tolist() == expected
    assert plans_in(tmp_path) == [folder]


def test_processes_that_want_the_same_plan_at_once_all_get_it(
    tmp_path: Path, large: tuple[ArraySizes, PlanSettings]
) -> None:
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(4, context) as pool:
        jobs = [pool.submit(_plan_many, tmp_path, *large) for _ in range(4)]
        found = [job.result(timeout=120) for job in jobs]
    assert found == [_plan_many(tmp_path / "alone", *large)] * 4
    assert len(plans_in(tmp_path)) == 12


def _plan_many(folder: Path, sizes: ArraySizes, settings: PlanSettings) -> list[list[int]]:
    folder.mkdir(exist_ok=True)
    return [store_in(folder).plan(sizes, settings, epoch, "").entries.tolist() for epoch in range(12)]


@pytest.mark.parametrize("where", ["mkdir", "fallocate"])
def test_a_folder_without_room_costs_memory_not_the_run(
    tmp_path: Path, large: tuple[ArraySizes, PlanSettings], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = tmp_path / "index"
    if where == "mkdir":
        folder.write_text("a file")
    else:
        monkeypatch.setattr("os.posix_fallocate", full)
    plan = store_in(folder).plan(*large, 0, "")
    assert not isinstance(plan.entries, np.memmap)
    assert sorted(plan.entries.tolist()) == list(range(500))
    assert where == "mkdir" or plans_in(folder) == []


def test_a_long_run_on_few_data_is_estimated_not_planned(large: tuple[ArraySizes, PlanSettings]) -> None:
    sizes, settings = ArraySizes(np.full(10, 20), np.zeros(10)), large[1]
    asked: list[int] = []

    def count(sizes: Sizes, settings: PlanSettings, epoch: int, name: str) -> EpochPlan:
        asked.append(epoch)
        return plan_in_memory(sizes, settings, epoch, name)

    schedule = Schedule(sizes, settings, planner=count)
    assert schedule.about_epochs(100_000) == pytest.approx(100_000 / schedule.steps_in(1))
    assert len(asked) <= 64
    assert schedule.about_epochs(3) == schedule.epoch_at(3)


# -- who does what ------------------------------------------------------------------------------------------------


def test_parts_of_a_step_weigh_alike() -> None:
    """Dealt forth and back, heaviest first: 8 packs on 2 ranks, equal sums."""
    sizes = ArraySizes(np.array([30, 29, 22, 21, 15, 14, 6, 5]), np.ones(8))
    schedule = Schedule(sizes, PlanSettings(packed=True, packs_per_step=8, seed=0, max_tokens=30, max_tiles=1))
    for shares, ranks in ((2, 2), (8, 2), (4, 2)):
        weights = Counter()
        for share in range(shares):
            packs = schedule.packs(0, share, shares, ranks)[1]
            weights[share % ranks] += sum(int(sizes.tokens[pack].sum()) for pack in packs)
        assert weights == {0: 71, 1: 71}


def test_idle_share_by_hand() -> None:
    """Two ranks, two micro-batches; 10, 8 | 4, 4: dealt 10 and 8, then 4 and 4, the other way round."""
    costs = np.array([[10.0, 8.0, 4.0, 4.0]])
    assert parts_of_step(np.arange(4), 2, 2).tolist() == [[[0], [1]], [[3], [2]]]
    assert idle_share(costs, 2, 2) == pytest.approx(1 - 26 / 28)
    assert idle_share(costs, 2, 2, each_micro_batch=True) == pytest.approx(1 - 26 / 28)
    assert idle_share(costs, 4, 1) == pytest.approx(1 - 26 / 40)
    assert idle_share(costs, 1, 4) == 0.0
    assert idle_share(np.array([[5.0, 0.0]]), 2, 1) == pytest.approx(0.5)


@properties(100)
@given(st.lists(st.integers(1, 100), min_size=24, max_size=24))
def test_the_deal_is_no_worse_than_taking_turns(values: list[int]) -> None:
    costs = np.array([sorted(values, reverse=True)], float)
    in_turns = costs.reshape(6, 4).sum(axis=0)
    assert idle_share(costs, 4, 6) <= 1 - in_turns.sum() / (4 * in_turns.max()) + 1e-12
