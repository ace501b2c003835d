"""The loader: the same micro-batches for any number of workers, from any step on; a fault leaves its pack alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from internvl_chat.data.batch import Batch
from internvl_chat.data.corpus import Corpus, open_corpus
from internvl_chat.data.loader import MicroBatches, Place, make_loader
from internvl_chat.data.plan.epoch import PlanSettings
from internvl_chat.data.plan.schedule import Schedule
from tests.data.helpers import line, make_maker, spec_of, write_lines, write_noise

EPOCHS = 2


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Two data sets: text; pictures with augmentation, some lines with several, seen one and a half times."""
    folder = tmp_path_factory.mktemp("loader")
    for number in range(8):
        write_noise(folder / f"{number}.png", 30 + 17 * number, 90 - 7 * number, seed=number)
    texts = [line(f"What is {n} times {n}?", f"It is {n * n}. " * (1 + n % 5)) for n in range(14)]
    pictures = [line("<image>\nWhat?", f"Picture {n}.", image=f"{n}.png") for n in range(8)]
    several = [line("<image><image>\nWhich?", "Both.", image=[f"{n}.png", f"{n + 1}.png"]) for n in range(4)]
    specs = [
        spec_of(write_lines(folder / "text.jsonl", texts), name="text"),
        spec_of(
            write_lines(folder / "seen.jsonl", pictures + several),
            folder,
            name="seen",
            data_augment=True,
            repeat_time=1.5,
        ),
    ]
    return open_corpus(specs, make_maker(), folder / "index")


def make_schedule(corpus: Corpus, packed: bool, packs_per_step: int = 4) -> Schedule:
    budgets = {"max_tokens": 260, "max_tiles": 16} if packed else {}
    settings = PlanSettings(packed, packs_per_step, 5, **budgets, batch_size=2, by_length=not packed)
    return Schedule(corpus, settings)


def micro_batches(corpus: Corpus, packed: bool, place: Place, first_step: int = 0) -> MicroBatches:
    schedule = make_schedule(corpus, packed)
    return MicroBatches(corpus, schedule, place, first_step, schedule.steps_in(EPOCHS), pad_id=1)


def values(batch: Batch) -> tuple[object, ...]:
    def plain(value: object) -> object:
        return (value.dtype, value.shape, value.numpy().tobytes()) if isinstance(value, torch.Tensor) else value

    return tuple(plain(value) for value in vars(batch).values())


@pytest.fixture(scope="module")
def in_this_process(corpus: Corpus) -> dict[bool, list[tuple[object, ...]]]:
    place = Place(1, 2, 2)
    return {
        packed: [values(batch) for batch in make_loader(micro_batches(corpus, packed, place), 0, False)]
        for packed in (True, False)
    }


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_the_same_for_any_number_of_workers(
    corpus: Corpus, in_this_process: dict[bool, list[tuple[object, ...]]], packed: bool, workers: int
) -> None:
    loader = make_loader(micro_batches(corpus, packed, Place(1, 2, 2)), workers, pin_memory=False)
    assert [values(batch) for batch in loader] == in_this_process[packed]


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_starting_at_any_step_is_the_tail_of_the_whole_run(
    corpus: Corpus, in_this_process: dict[bool, list[tuple[object, ...]]], packed: bool
) -> None:
    whole = in_this_process[packed]
    for step in range(len(whole) // 2 + 1):
        tail = micro_batches(corpus, packed, Place(1, 2, 2), first_step=step)
        assert len(tail) == len(whole) - 2 * step
        assert [values(tail[item]) for item in range(len(tail))] == whole[2 * step :]
    with pytest.raises(IndexError):
        tail[0]


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (1, 4), (4, 1), (2, 2), (1, 2)])
def test_all_ranks_together_see_each_entry_once_per_epoch(
    corpus: Corpus, packed: bool, world: int, accumulation: int
) -> None:
    """Also the visits that augmentation is drawn for: a line that comes twice in an epoch has two addresses."""
    ranks = [micro_batches(corpus, packed, Place(rank, world, accumulation)) for rank in range(world)]
    steps = ranks[0].num_steps
    assert {len(rank) for rank in ranks} == {steps * accumulation}
    seen = Counter(address for rank in ranks for item in range(len(rank)) for address in rank[item].addresses)
    assert set(seen.values()) == {1}
    lines = Counter((address.dataset, address.line) for address in seen)
    # 12 lines of "seen" 1.5 times are the first six twice, the others once.
    expected = {("text", n): EPOCHS for n in range(14)}
    expected |= {("seen", n): EPOCHS * (2 if n < 6 else 1) for n in range(12)}
    assert lines == expected


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_a_step_holds_the_same_samples_for_any_cut(corpus: Corpus, packed: bool) -> None:
    def steps(world: int, accumulation: int) -> list[list[tuple[str, int, int]]]:
        ranks = [micro_batches(corpus, packed, Place(rank, world, accumulation)) for rank in range(world)]
        found = []
        for step in range(ranks[0].num_steps):
            items = [rank[step * accumulation + micro] for rank in ranks for micro in range(accumulation)]
            found.append(sorted((a.dataset, a.line, a.epoch) for batch in items for a in batch.addresses))
        return found

    assert steps(1, 4) == steps(4, 1) == steps(2, 2)


def test_no_batch_breaks_a_budget(corpus: Corpus) -> None:
    for item in range(len(batches := micro_batches(corpus, True, Place(0, 1, 4)))):
        assert batches[item].num_tokens <= 260
        assert batches[item].num_tiles <= 16


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_a_fault_on_loading_leaves_the_pack_rides_along_and_is_replaced_by_nothing(
    tmp_path: Path, packed: bool
) -> None:
    """A picture breaks after the index was built: the others stay where they are, the batch says what is missing."""
    for number in range(6):
        write_noise(tmp_path / f"{number}.png", 60, 40, seed=number)
    lines = [line("<image>\nWhat?", f"Picture {n}.", image=f"{n}.png") for n in range(6)]
    spec = spec_of(write_lines(tmp_path / "seen.jsonl", lines), tmp_path, name="seen")
    corpus = open_corpus([spec], make_maker(), tmp_path / "index")

    def load() -> list[Batch]:
        schedule = make_schedule(corpus, packed, packs_per_step=1)
        whole = MicroBatches(corpus, schedule, Place(0, 1, 1), 0, schedule.steps_in(1), pad_id=1)
        return [whole[item] for item in range(len(whole))]

    before = load()
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:300])
    (tmp_path / "4.png").unlink()
    after = load()
    assert len(after) == len(before)
    faults = {fault.line: fault for batch in after for fault in batch.faults}
    assert {line: fault.code for line, fault in faults.items()} == {3: "BROKEN_IMAGE", 5: "MISSING_IMAGE"}
    assert {fault.stage for fault in faults.values()} == {"load"}
    assert str(faults[5]).startswith(f"{tmp_path / 'seen.jsonl'}:5: picture '{tmp_path / '4.png'}' does not exist; ")
    for one, two in zip(before, after, strict=True):
        assert two.addresses == tuple(address for address in one.addresses if address.line not in (2, 4))


def test_a_batch_that_loses_all_its_samples_is_still_a_batch(tmp_path: Path) -> None:
    write_noise(tmp_path / "a.png", 60, 40)
    spec = spec_of(write_lines(tmp_path / "a.jsonl", [line("<image>", "Yes.", image="a.png")]), tmp_path)
    corpus = open_corpus([spec], make_maker(), tmp_path / "index")
    (tmp_path / "a.png").unlink()
    for packed in (True, False):
        schedule = make_schedule(corpus, packed, packs_per_step=2)
        for rank in range(2):
            batch = MicroBatches(corpus, schedule, Place(rank, 2, 1), 0, 1, pad_id=1)[0]
            assert (batch.num_tokens, batch.num_supervised, batch.num_tiles) == (0, 0, 0)


def test_the_loader_leaves_the_global_generator_alone(corpus: Corpus) -> None:
    before = torch.get_rng_state()
    next(iter(make_loader(micro_batches(corpus, True, Place(0, 1, 4)), 1, pin_memory=False)))
    assert torch.equal(before, torch.get_rng_state())
