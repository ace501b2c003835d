"""Indexes that are built together, grow with their file, come from other containers, or trust declared sizes."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from internvl_chat.data import index_build
from internvl_chat.data.corpus import open_corpus
from internvl_chat.data.faults import FaultCode
from internvl_chat.data.index import explain_faults, open_index, open_indexes
from internvl_chat.data.index_build import Crew
from internvl_chat.data.sample import SampleMaker
from internvl_chat.errors import ConfigError, DataError
from tests.data.helpers import line, make_maker, spec_of, write_lines, write_noise

fork = multiprocessing.get_context("fork")


def lines_of(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [line(f"Say {number}.", f"{number} " * (number % 7 + 1)) for number in range(start, start + count)]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every line that is measured."""
    seen: list[bytes] = []
    measure = SampleMaker.measure

    def spy(self: SampleMaker, text: bytes, *rest: Any) -> Any:
        seen.append(text)
        return measure(self, text, *rest)

    monkeypatch.setattr(SampleMaker, "measure", spy)
    return seen


# -- together -----------------------------------------------------------------------------------------------------


def test_processes_of_a_machine_share_the_work_and_get_the_same_index(tmp_path: Path) -> None:
    specs = [
        spec_of(write_lines(tmp_path / f"{name}.jsonl", lines_of(count)), name=name)
        for name, count in (("long", 1000), ("short", 3))
    ]
    alone = open_indexes(specs, make_maker(), tmp_path / "alone")
    barrier, done = fork.Barrier(3), fork.Queue()

    def work(rank: int) -> None:
        crew = Crew(rank, 3, "job", barrier.wait)
        seen: list[int] = []
        measure = index_build.measure_line
        index_build.measure_line = lambda *args: (seen.append(1), measure(*args))[1]  # type: ignore[assignment]
        indexes = open_indexes(specs, make_maker(), tmp_path / "shared", crew=crew)
        done.put((rank, len(seen), [index.table.tobytes() for index in indexes]))

    processes = [fork.Process(target=work, args=(rank,)) for rank in range(3)]
    for process in processes:
        process.start()
    results = [done.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert all(tables == [index.table.tobytes() for index in alone] for _, _, tables in results)
    # Spans of 256 lines, dealt in turn: 256 + 232, 256, 256 lines, and the short file on the first.
    assert sorted(count for _, count, _ in results) == [256, 256, 488 + 3]
    assert {path.suffix for path in (tmp_path / "shared").iterdir()} == {".npy", ".json"}


def test_two_data_sets_of_one_file_share_an_index(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", lines_of(300))
    one, two = open_indexes([spec_of(path, name="a"), spec_of(path, name="b")], make_maker(), tmp_path / "index")
    assert one == two
    assert len(one) == 300


def test_two_jobs_that_build_the_same_index_do_not_mix_their_parts(tmp_path: Path) -> None:
    spec = spec_of(write_lines(tmp_path / "a.jsonl", lines_of(700)))
    expected = open_index(spec, make_maker(), tmp_path / "alone").table
    tables: dict[str, Any] = {}

    def job(name: str, barrier: threading.Barrier, rank: int) -> None:
        crew = Crew(rank, 2, name, barrier.wait)
        tables[f"{name}{rank}"] = open_indexes([spec], make_maker(), tmp_path / "shared", crew=crew)[0].table

    barriers = {name: threading.Barrier(2, timeout=60) for name in ("one", "two")}
    threads = [threading.Thread(target=job, args=(n, barriers[n], r)) for n in barriers for r in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(tables) == 4
    assert all(np.array_equal(table, expected) for table in tables.values())


def test_a_part_that_did_not_come_is_one_message(tmp_path: Path) -> None:
    spec = spec_of(write_lines(tmp_path / "a.jsonl", lines_of(3)))
    with pytest.raises(DataError, match=r"its index is not complete, .*part1of2 is missing; see what its process said"):
        open_indexes([spec], make_maker(), tmp_path / "index", crew=Crew(0, 2, "job"))


# -- growth -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", ""], ids=["closed", "open"])
def test_of_a_file_that_grew_only_what_is_new_is_measured(tmp_path: Path, end: str, measured: list[bytes]) -> None:
    path, spec = tmp_path / "a.jsonl", spec_of(tmp_path / "a.jsonl")
    text = [json.dumps(item) for item in lines_of(20)]
    path.write_text("\n".join(text[:15]) + end)
    open_index(spec, make_maker(), tmp_path / "index")
    measured.clear()
    path.write_text("\n".join(text) + "\n")
    grown = open_index(spec, make_maker(), tmp_path / "index")
    assert [json.loads(one) for one in measured] == [json.loads(one) for one in text[14:]]
    assert np.array_equal(grown.table, open_index(spec, make_maker(), tmp_path / "fresh").table)


def test_a_last_line_that_went_on_is_measured_anew(tmp_path: Path) -> None:
    path, spec = tmp_path / "a.jsonl", spec_of(tmp_path / "a.jsonl")
    good = json.dumps(lines_of(1)[0])
    path.write_text(f"{good}\n{good[:30]}")
    assert open_index(spec, make_maker(), tmp_path / "index").table["code"].tolist() == [0, FaultCode.NOT_JSON]
    path.write_text(f"{good}\n{good}\n{good}\n")
    assert open_index(spec, make_maker(), tmp_path / "index").table["code"].tolist() == [0, 0, 0]


def test_a_longer_file_that_begins_otherwise_is_measured_whole(tmp_path: Path, measured: list[bytes]) -> None:
    path, spec = tmp_path / "a.jsonl", spec_of(tmp_path / "a.jsonl")
    write_lines(path, lines_of(10))
    open_index(spec, make_maker(), tmp_path / "index")
    measured.clear()
    write_lines(path, lines_of(12, start=1))
    open_index(spec, make_maker(), tmp_path / "index")
    assert len(measured) == 12


def test_pictures_of_old_lines_are_looked_for_again_when_the_file_grew(tmp_path: Path) -> None:
    path, spec = tmp_path / "a.jsonl", spec_of(tmp_path / "a.jsonl", tmp_path)
    items = [line("<image>", "x", image="a.png"), *lines_of(2)]
    write_lines(path, items)
    assert open_index(spec, make_maker(), tmp_path / "index").table["code"].tolist() == [FaultCode.MISSING_IMAGE, 0, 0]
    write_noise(tmp_path / "a.png", 30, 30)
    write_lines(path, [*items, *lines_of(1)])
    assert open_index(spec, make_maker(), tmp_path / "index").table["code"].tolist() == [0] * 4


def test_a_file_that_changes_while_it_is_in_use_is_refused(tmp_path: Path) -> None:
    path, spec = tmp_path / "a.jsonl", spec_of(tmp_path / "a.jsonl")
    write_lines(path, lines_of(3))
    index = open_index(spec, make_maker(), tmp_path / "index")
    write_lines(path, lines_of(3, start=5))
    os.utime(path, ns=(1, 1))
    with pytest.raises(DataError, match=r"a\.jsonl: changed after its index was opened, which is out of date now"):
        index.line(0)


# -- other containers ---------------------------------------------------------------------------------------------


def test_every_container_gives_the_index_of_its_lines(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    items = lines_of(30)
    plain = open_index(spec_of(write_lines(tmp_path / "a.jsonl", items)), make_maker(), tmp_path / "index")
    (tmp_path / "b.json").write_text(json.dumps(items, indent=1))
    (tmp_path / "c.json").write_text("\n".join(json.dumps(item, indent=1) for item in items))
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(items), tmp_path / "e.parquet")
    for name in ("b.json", "c.json", "d.jsonl.gz", "e.parquet"):
        index = open_index(spec_of(tmp_path / name), make_maker(), tmp_path / "index")
        for column in ("tokens", "tiles", "supervised", "code"):
            assert np.array_equal(index.table[column], plain.table[column])
        assert json.loads(index.line(7)) == items[7]


def test_a_fault_in_an_array_is_named_by_its_item(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([*lines_of(2), line("Hi", "")]))
    spec = spec_of(tmp_path / "a.json")
    (fault,) = explain_faults(open_index(spec, make_maker(), tmp_path / "index"), spec, make_maker())
    assert str(fault).startswith(f"{tmp_path / 'a.json'}: item 3: conversations[1] is an empty answer")


# -- declared sizes -----------------------------------------------------------------------------------------------


def pictured(folder: Path, count: int, width: int = 90) -> list[dict[str, Any]]:
    for number in range(count):
        write_noise(folder / f"{number}.png", 90, 30, seed=number)
    return [line("<image>", "x", image=f"{n}.png", width=width, height=30) for n in range(count)]


def test_declared_sizes_are_believed_once_a_sample_of_them_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(write_lines(tmp_path / "a.jsonl", pictured(tmp_path, 300)), tmp_path)
    opened: list[Any] = []
    read = index_build.SampleMaker.measure.__globals__["read_image_size"]
    monkeypatch.setitem(
        index_build.SampleMaker.measure.__globals__, "read_image_size", lambda m: (opened.append(m), read(m))[1]
    )
    (tmp_path / "77.png").unlink()
    index = open_index(spec, make_maker(), tmp_path / "index")
    assert set(index.table["tiles"].tolist()) == {0, 4}
    assert index.table["code"].tolist() == [FaultCode.MISSING_IMAGE if n == 77 else 0 for n in range(300)]
    assert len(opened) <= 102


def test_a_declared_size_that_is_wrong_makes_all_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    items = pictured(tmp_path, 5)
    items[3] |= {"width": 30}
    spec = spec_of(write_lines(tmp_path / "a.jsonl", items), tmp_path)
    index = open_index(spec, make_maker(), tmp_path / "index")
    assert index.table["tiles"].tolist() == [4] * 5
    assert "a.jsonl:4: picture '3.png' is 90 x 30, width and height say 30 x 30; the sizes are taken" in caplog.text


# -- what an epoch is made of -------------------------------------------------------------------------------------


def test_weights_set_the_shares_of_an_epoch(tmp_path: Path) -> None:
    specs = [
        spec_of(write_lines(tmp_path / f"{name}.jsonl", lines_of(count)), name=name, weight=weight)
        for name, count, weight in (("a", 90, 1.0), ("b", 10, 3.0))
    ]
    corpus = open_corpus(specs, make_maker(), tmp_path / "index")
    assert len(corpus) == 100
    places = corpus.places()
    rare = places.line[places.dataset == 0]
    assert len(set(rare.tolist())) == len(rare) == 25
    assert rare.max() > 30  # drawn from all of the file, not its start
    assert np.bincount(places.line[places.dataset == 1]).tolist().count(8) == 5
    addresses = {corpus.address(entry, epoch) for entry in range(100) for epoch in range(2)}
    assert len(addresses) == 200
    # A data set that is taken in part goes on where it stopped: each line is seen equally often over the epochs.
    seen = Counter(corpus.places(np.arange(25), epoch).line[n] for epoch in range(18) for n in range(25))
    assert set(seen.values()) == {5}
    assert len(seen) == 90
    with pytest.raises(ConfigError, match="data set 'b' has no weight, others have; give every data set one, or none"):
        open_corpus([specs[0], spec_of(specs[1].annotation, name="b")], make_maker(), tmp_path / "index")


def test_held_out_lines_are_never_trained_on_and_stay_so_when_the_file_grows(tmp_path: Path) -> None:
    def split(count: int) -> tuple[set[int], set[int]]:
        spec = spec_of(write_lines(tmp_path / "a.jsonl", lines_of(count)), eval_share=0.2, repeat_time=2)
        parts = [open_corpus([spec], make_maker(), tmp_path / "index", split=s) for s in ("train", "eval")]  # type: ignore[arg-type]
        assert [len(part) / len(set(part.places().line.tolist())) for part in parts] == [2, 1]
        return set(parts[0].places().line.tolist()), set(parts[1].places().line.tolist())

    train, held_out = split(200)
    assert train | held_out == set(range(200))
    assert not train & held_out
    assert 25 <= len(held_out) <= 55
    _, more = split(300)
    assert {number for number in more if number < 200} == held_out


def test_a_data_set_for_evaluation_is_not_trained_on(tmp_path: Path) -> None:
    train = spec_of(write_lines(tmp_path / "a.jsonl", lines_of(3)), name="a")
    test = spec_of(write_lines(tmp_path / "b.jsonl", lines_of(4)), name="b", split="eval")
    assert open_corpus([train, test], make_maker(), tmp_path / "index").places().dataset.tolist() == [0] * 3
    assert (
        open_corpus([train, test], make_maker(), tmp_path / "index", split="eval").places().dataset.tolist() == [1] * 4
    )


def test_image_limits_of_a_data_set_are_faults(tmp_path: Path) -> None:
    from internvl_chat.data.manifest import ImageLimits

    for name, size in (("small", (20, 5)), ("long", (300, 10)), ("good", (60, 40)), ("big", (200, 150))):
        write_noise(tmp_path / f"{name}.png", *size)
    items = [line("<image>", "x", image=f"{name}.png") for name in ("small", "long", "good", "big")]
    limits = ImageLimits(min_image_side=8, max_image_pixels=20_000, max_image_ratio=20)
    spec = spec_of(write_lines(tmp_path / "a.jsonl", items), tmp_path, image_limits=limits)
    index = open_index(spec, make_maker(), tmp_path / "index")
    faults = [str(fault) for fault in explain_faults(index, spec, make_maker())]
    assert [fault.split(":", 1)[1] for fault in faults] == [
        "1: picture 'small.png' is 20 x 5, outside min_image_side 8 of the manifest; remove the line, or change the "
        "limit",
        "2: picture 'long.png' is 300 x 10, outside max_image_ratio 20 of the manifest; remove the line, or change the "
        "limit",
        "4: picture 'big.png' is 200 x 150, outside max_image_pixels 20000 of the manifest; remove the line, or change "
        "the limit",
    ]


# -- every line that is left out has an entry in the ledger --------------------------------------------------------


def test_a_wrong_declared_size_that_no_sample_caught_is_explained(tmp_path: Path) -> None:
    items = pictured(tmp_path, 300)
    items[1] |= {"width": 4000, "height": 1000}  # not among those that are looked into
    spec = spec_of(write_lines(tmp_path / "a.jsonl", items), tmp_path)
    maker = make_maker(max_tokens=200)
    corpus = open_corpus([spec], maker, tmp_path / "index")
    assert len(corpus) == 299
    (fault,) = corpus.left_out()
    assert fault.line == 2
    assert "more than max_seq_length 200" in fault.reason


def test_faults_that_hang_on_a_picture_are_looked_at_again(tmp_path: Path) -> None:
    write_noise(tmp_path / "a.png", 50, 50)
    boxed = line("<image>", "<bbox>", image="a.png", objects=[{"bbox": [60, 60, 90, 90]}])
    spec = spec_of(write_lines(tmp_path / "a.jsonl", [boxed, *lines_of(2)]), tmp_path)
    assert open_index(spec, make_maker(), tmp_path / "index").table["code"].tolist() == [FaultCode.OBJECTS, 0, 0]
    write_noise(tmp_path / "a.png", 200, 100)
    assert open_index(spec, make_maker(), tmp_path / "index").table["code"].tolist() == [0, 0, 0]


def test_a_fault_that_is_gone_since_is_listed_all_the_same(tmp_path: Path) -> None:
    spec = spec_of(write_lines(tmp_path / "a.jsonl", [line("<image>", "x", image="a.png")]), tmp_path)
    index = open_index(spec, make_maker(), tmp_path / "index")
    write_noise(tmp_path / "a.png", 50, 50)
    (fault,) = explain_faults(index, spec, make_maker())
    assert (fault.code, fault.reason) == ("MISSING_IMAGE", "was faulty when the index was built")


@pytest.mark.parametrize(
    "name", ["x" * 5000, "/proc/1/root/no/such", "file://[abc/x.png", "zip://x::" * 1500 + "a.zip", "a\0b.png"]
)
def test_an_impossible_name_is_the_fault_of_its_line_alone(tmp_path: Path, name: str) -> None:
    items = [line("<image>", "x", image=name, width=30, height=30), *lines_of(1)]
    spec = spec_of(write_lines(tmp_path / "a.jsonl", items), tmp_path)
    index = open_index(spec, make_maker(), tmp_path / "index")
    assert index.table["code"][1] == 0
    (fault,) = explain_faults(index, spec, make_maker())
    assert fault.code in ("MISSING_IMAGE", "BROKEN_IMAGE", "UNREADABLE")
    assert len(str(fault)) < 1000


def test_an_index_holds_two_files_open(tmp_path: Path) -> None:
    """Manifests name hundreds of data sets, and a process may open a thousand files."""
    items = [*pictured(tmp_path, 5), line("<image>", "x", image="gone.png")]
    spec = spec_of(write_lines(tmp_path / "a.jsonl", items), tmp_path)
    kept, before = [], len(list(Path("/proc/self/fd").iterdir()))
    for number in range(4):
        kept.append(open_index(spec, make_maker(), tmp_path / f"index{number // 2}"))
        kept[-1].line(0)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2 * len(kept)  # lines and table


# -- files that change at the wrong moment -------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["measure_part", "merge_parts"])
@pytest.mark.parametrize("change", ["replaced", "grown"])
def test_an_annotation_that_changes_while_it_is_indexed_is_refused(
    tmp_path: Path, moment: str, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "a.jsonl", lines_of(10))
    content, spec = path.read_bytes(), spec_of(path)
    step = getattr(index_build, moment)

    def change_first(*args: Any) -> Any:
        path.write_bytes(content[:700] if change == "replaced" else content + content)
        return step(*args)

    monkeypatch.setattr(index_build, moment, change_first)
    with pytest.raises(DataError, match="changed after its index was opened"):
        open_index(spec, make_maker(), tmp_path / "index")
    monkeypatch.undo()
    path.write_bytes(content)
    assert len(open_index(spec, make_maker(), tmp_path / "index")) == 10


def test_a_change_of_the_same_size_with_its_time_set_back_is_seen(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [line("Hi", "Ho")])
    spec, stat = spec_of(path), path.stat()
    assert open_index(spec, make_maker(), tmp_path / "index").table["code"].tolist() == [0]
    path.write_bytes(path.read_bytes().replace(b"Ho", b"  "))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    table = open_index(spec, make_maker(), tmp_path / "index").table
    assert table["code"].tolist() == [FaultCode.EMPTY_ANSWER]


def test_an_index_that_another_job_finishes_in_between_is_taken(tmp_path: Path) -> None:
    spec = spec_of(write_lines(tmp_path / "a.jsonl", lines_of(600)))
    expected = open_index(spec, make_maker(), tmp_path / "alone").table
    arrived: list[int] = []

    def other_job() -> None:
        arrived.append(1)
        if len(arrived) == 1:  # behind the first process's look, before the second's
            open_index(spec, make_maker(), tmp_path / "index")

    index = open_indexes([spec], make_maker(), tmp_path / "index", crew=Crew(0, 2, "job", other_job))[0]
    assert np.array_equal(index.table, expected)
    assert not list((tmp_path / "index").glob("*.part*"))
