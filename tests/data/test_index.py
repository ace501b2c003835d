"""The index of an annotation: keyed by content, atomic, the same however it was built, 19 bytes per line."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from internvl_chat.data import annotation, index_build
from internvl_chat.data.annotation import LineFile
from internvl_chat.data.faults import FaultCode
from internvl_chat.data.index import LineIndex, explain_faults, open_index
from internvl_chat.data.index_build import INDEX_DTYPE
from internvl_chat.data.manifest import DatasetSpec
from internvl_chat.errors import DataError
from tests.data.helpers import line, make_maker, spec_of, write_lines, write_noise

GOOD = json.dumps(line("What?", "This."))
fork = multiprocessing.get_context("fork")


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The annotations that were indexed, one entry per build."""
    made: list[Path] = []
    measure = index_build.measure_part

    def spy(lines: Path, target: Path, spec: DatasetSpec, *rest: Any) -> None:
        made.append(spec.annotation)
        measure(lines, target, spec, *rest)

    monkeypatch.setattr(index_build, "measure_part", spy)
    return made


@pytest.fixture
def notes(tmp_path: Path) -> DatasetSpec:
    return spec_of(write_lines(tmp_path / "notes.jsonl", [GOOD, line("Why?", "Because."), GOOD]), tmp_path)


# -- the key ------------------------------------------------------------------------------------------------------


def test_an_index_is_built_once_and_opened_after(notes: DatasetSpec, tmp_path: Path, builds: list[Path]) -> None:
    first = open_index(notes, make_maker(), tmp_path / "index")
    second = open_index(notes, make_maker(), tmp_path / "index")
    assert builds == [notes.annotation]
    assert first == second
    assert np.array_equal(first.table, second.table)


def test_a_touched_file_is_not_indexed_again(notes: DatasetSpec, tmp_path: Path, builds: list[Path]) -> None:
    open_index(notes, make_maker(), tmp_path / "index")
    os.utime(notes.annotation, ns=(1, 1))
    open_index(notes, make_maker(), tmp_path / "index")
    assert len(builds) == 1


def test_a_copy_of_the_file_elsewhere_shares_the_index(notes: DatasetSpec, tmp_path: Path, builds: list[Path]) -> None:
    open_index(notes, make_maker(), tmp_path / "index")
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / "notes.jsonl"
    copy.write_bytes(notes.annotation.read_bytes())
    open_index(spec_of(copy, tmp_path, name="copy"), make_maker(), tmp_path / "index")
    assert len(builds) == 1


def test_an_edited_file_is_indexed_again(notes: DatasetSpec, tmp_path: Path, builds: list[Path]) -> None:
    """Even if it is as long as before."""
    before = open_index(notes, make_maker(), tmp_path / "index")
    notes.annotation.write_bytes(notes.annotation.read_bytes().replace(b"Because", b"Perhaps"))
    os.utime(notes.annotation, ns=(2, 2))
    after = open_index(notes, make_maker(), tmp_path / "index")
    assert len(builds) == 2
    assert before.table_path != after.table_path
    assert b"Perhaps" in after.line(1)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ({"template": "Hermes-2"}, False),
        ({"tokens_per_tile": 3}, False),
        ({"max_tiles": 5}, False),
        ({"min_tiles": 2}, False),
        ({"thumbnail": False}, False),
        ({"size": 56}, False),
        ({"dynamic": False}, False),
        ({"max_tokens": 50}, True),
        ({"max_samples_tiles": 3}, True),
        ({"backend": "pillow"}, True),
        ({"seed": 4}, True),
        ({"mean": (0.5, 0.5, 0.5)}, True),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_the_key_holds_what_footprints_depend_on_and_no_more(
    notes: DatasetSpec, tmp_path: Path, builds: list[Path], other: dict[str, Any], same: bool
) -> None:
    open_index(notes, make_maker(), tmp_path / "index")
    open_index(notes, make_maker(**other), tmp_path / "index")
    assert (len(builds) == 1) is same


def test_a_tile_limit_of_the_data_set_is_part_of_the_key(
    notes: DatasetSpec, tmp_path: Path, builds: list[Path]
) -> None:
    open_index(notes, make_maker(), tmp_path / "index")
    open_index(spec_of(notes.annotation, notes.root, max_dynamic_patch=3), make_maker(), tmp_path / "index")
    assert len(builds) == 2


def test_the_same_relative_root_in_another_folder_is_another_key(
    tmp_path: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two projects with the same annotation and root "images": the pictures are not the same, nor are their sizes."""
    for number, project in enumerate(("one", "two")):
        (tmp_path / project / "images").mkdir(parents=True)
        write_noise(tmp_path / project / "images" / "a.png", (20, 300)[number], (20, 100)[number])
        annotation = write_lines(tmp_path / project / "a.jsonl", [line("<image>", "Yes.", image="a.png")])
        monkeypatch.chdir(tmp_path / project)
        index = open_index(spec_of(annotation, "images"), make_maker(), tmp_path / "index")
        assert index.footprint(0).tiles == (1, 4)[number]
    assert len(builds) == 2


def test_rebuild_builds_anew(notes: DatasetSpec, tmp_path: Path, builds: list[Path]) -> None:
    for _ in range(2):
        open_index(notes, make_maker(), tmp_path / "index", rebuild=True)
    assert len(builds) == 2


# -- lines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (f"{GOOD}\n{GOOD}\n", [GOOD, GOOD]),
        (f"{GOOD}\n{GOOD}", [GOOD, GOOD]),
        (f"\ufeff{GOOD}\n{GOOD}\n", [GOOD, GOOD]),
        (f"{GOOD}\r\n{GOOD}\r\n", [GOOD, GOOD]),
        (f"{GOOD}\r\n{GOOD}\r\n\r\n \r\n", [GOOD, GOOD]),
        (f"{GOOD}\n{GOOD}\n\n\n   \n\n", [GOOD, GOOD]),
        (f"{GOOD}\n\n{GOOD}\n", [GOOD, "", GOOD]),
        (f"\n{GOOD}\n", ["", GOOD]),
        (GOOD, [GOOD]),
    ],
    ids=["plain", "no-newline", "bom", "crlf", "crlf-blank-end", "blank-end", "blank-middle", "blank-start", "one"],
)
def test_lines_are_what_an_editor_shows(tmp_path: Path, content: str, lines: list[str]) -> None:
    (tmp_path / "a.jsonl").write_bytes(content.encode())
    index = open_index(spec_of(tmp_path / "a.jsonl"), make_maker(), tmp_path / "index")
    assert len(index) == len(lines)
    assert [index.line(number).decode().strip() for number in range(len(index))] == lines
    assert [bool(fault) for fault in index.table["code"]] == [not text for text in lines]
    assert all(index.footprint(n) == index.footprint(len(index) - 1) for n, text in enumerate(lines) if text)


def test_a_blank_line_in_the_middle_is_a_fault_with_its_number(tmp_path: Path) -> None:
    spec = spec_of(write_lines(tmp_path / "a.jsonl", [GOOD, "", "  ", GOOD]))
    index = open_index(spec, make_maker(), tmp_path / "index")
    faults = list(explain_faults(index, spec, make_maker()))
    assert [str(fault) for fault in faults] == [
        f"{tmp_path / 'a.jsonl'}:{number}: blank line; write one JSON object per line (JSONL), no line breaks in it"
        for number in (2, 3)
    ]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64])
def test_line_starts_do_not_depend_on_the_blocks_they_are_read_in(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotation, "_READ_BYTES", block)
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfone\ntwo\r\n\nfour\n \n\n")
    assert annotation.line_offsets(tmp_path / "a").tolist() == [3, 7, 12, 13]
    (tmp_path / "b").write_bytes(b"\n\n")
    assert annotation.line_offsets(tmp_path / "b").tolist() == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty; write samples into it"),
        ("\ufeff\n \n", "is empty; write samples into it"),
    ],
    ids=["empty", "bom-only"],
)
def test_an_empty_file_is_one_message(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content.encode())
    with pytest.raises(DataError) as error:
        open_index(spec_of(tmp_path / "a.jsonl", name="shop"), make_maker(), tmp_path / "index")
    assert str(error.value).startswith(f"{tmp_path / 'a.jsonl'}:1: the annotation {says}")
    assert "\n" not in str(error.value)


# -- building -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> DatasetSpec:
    """700 lines, some with pictures, some faulty: more than two spans of work."""
    folder = tmp_path_factory.mktemp("mixed")
    write_noise(folder / "a.png", 90, 30)
    kinds: list[Callable[[int], Any]] = [
        lambda n: line(f"What is {n}?", f"A number: {n}."),
        lambda n: line("<image>\nWhat?", f"Picture {n}.", image="a.png"),
        lambda n: line("Hello", "world " * (n % 60)),
        lambda n: line("<image>", "x", image=f"gone{n}.png"),
        lambda n: '{"broken": ',
    ]
    lines = [kinds[n % 7 if n % 7 < len(kinds) else 0](n) for n in range(700)]
    return spec_of(write_lines(folder / "mixed.jsonl", lines), folder)


def test_a_parallel_build_is_the_serial_build(mixed: DatasetSpec, tmp_path: Path) -> None:
    serial = open_index(mixed, make_maker(), tmp_path / "serial", workers=1)
    parallel = open_index(mixed, make_maker(), tmp_path / "parallel", workers=2)
    assert serial.table_path.name == parallel.table_path.name
    assert serial.table_path.read_bytes() == parallel.table_path.read_bytes()
    codes = {FaultCode(code) for code in np.unique(serial.table["code"]).tolist()}
    assert codes == {FaultCode.NONE, FaultCode.NOT_JSON, FaultCode.MISSING_IMAGE, FaultCode.EMPTY_ANSWER}


def test_the_tokenizer_is_not_sent_with_each_piece_of_work(
    mixed: DatasetSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unpickling a large vocabulary takes longer than the 256 lines it is for: two workers took 20 times as long."""
    pickled: list[int] = []
    monkeypatch.setattr(
        "internvl_chat.data.tokens.Encoder.__getstate__", lambda self: pickled.append(1) or self.__dict__, raising=True
    )
    open_index(mixed, make_maker(), tmp_path / "index", workers=2)
    assert not pickled


def test_good_lines_have_the_size_of_their_samples(mixed: DatasetSpec, tmp_path: Path) -> None:
    maker = make_maker()
    index = open_index(mixed, maker, tmp_path / "index")
    for number in range(0, 700, 13):
        if index.table["code"][number] == 0:
            assert index.footprint(number) == maker.measure(index.line(number), mixed)[0]
        else:
            assert index.footprint(number).tokens == 0


def build_and_die(spec: DatasetSpec, folder: Path, half_written: bool) -> None:
    """Killed before anything is written, or in the middle of the file."""

    def die(file: Any, table: np.ndarray) -> None:
        if half_written:
            file.write(b"\x93NUMPY" + bytes(50))
            file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    np.save = die  # type: ignore[assignment]
    open_index(spec, make_maker(), folder)


@pytest.mark.parametrize("half_written", [False, True])
def test_a_killed_build_leaves_nothing_that_could_be_taken_for_an_index(
    notes: DatasetSpec, tmp_path: Path, half_written: bool
) -> None:
    folder = tmp_path / "index"
    process = fork.Process(target=build_and_die, args=(notes, folder, half_written))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not list(folder.glob("*.npy"))
    assert len(open_index(notes, make_maker(), folder)) == 3
    assert len(list(folder.glob("*.npy"))) == 1


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY half", b"not an index at all"])
def test_a_damaged_index_is_built_again(notes: DatasetSpec, tmp_path: Path, builds: list[Path], content: bytes) -> None:
    """A full disk or a lost node may leave an empty file in spite of all care."""
    index = open_index(notes, make_maker(), tmp_path / "index")
    expected = index.table_path.read_bytes()
    index.table_path.write_bytes(content)
    assert open_index(notes, make_maker(), tmp_path / "index").table_path.read_bytes() == expected
    assert len(builds) == 2


@pytest.mark.parametrize("content", ["", "[1]", "null", '{"path": 1}', "{"])
def test_a_damaged_note_of_the_last_look_is_written_again(notes: DatasetSpec, tmp_path: Path, content: str) -> None:
    open_index(notes, make_maker(), tmp_path / "index")
    (seen,) = (tmp_path / "index").glob("seen-*.json")
    expected = seen.read_text()
    seen.write_text(content)
    open_index(notes, make_maker(), tmp_path / "index")
    assert seen.read_text() == expected


def test_a_full_disk_is_one_message_and_leaves_nothing_behind(
    notes: DatasetSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DataError, match=r"data set 'notes': .*No space left on device; .*--index_dir \("):
        open_index(notes, make_maker(), tmp_path / "index")
    assert not list((tmp_path / "index").glob("*.npy*"))


def test_an_index_folder_that_cannot_be_is_one_message(notes: DatasetSpec, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"data set 'notes': .*(Not a directory|File exists); .*--index_dir \("):
        open_index(notes, make_maker(), tmp_path / "file" / "index")


def test_a_killed_worker_is_one_message(mixed: DatasetSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_build, "_measure_span", lambda *args: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(DataError, match="was killed, most likely for want of memory; lower --index_workers"):
        open_index(mixed, make_maker(), tmp_path / "index", workers=2)


def test_an_annotation_with_a_long_name_has_an_index_too(tmp_path: Path) -> None:
    """A name may have 255 bytes; that of the index has a key and, while it is written, more."""
    annotation = write_lines(tmp_path / ("é" * 120 + ".jsonl"), [GOOD])
    assert len(open_index(spec_of(annotation), make_maker(), tmp_path / "index")) == 1


def build_often(spec: DatasetSpec, folder: Path, times: int) -> None:
    for _ in range(times):
        open_index(spec, make_maker(), folder, rebuild=True)


def test_processes_that_build_at_once_do_not_disturb_each_other(mixed: DatasetSpec, tmp_path: Path) -> None:
    """Also a reader in between: what it opens is whole at any time."""
    expected = open_index(mixed, make_maker(), tmp_path / "alone").table
    folder = tmp_path / "index"
    processes = [fork.Process(target=build_often, args=(mixed, folder, 2)) for _ in range(3)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        for path in folder.glob("*.npy"):
            assert np.array_equal(np.load(path, mmap_mode="r"), expected)
        time.sleep(0.01)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert np.array_equal(open_index(mixed, make_maker(), folder).table, expected)
    assert not list(folder.glob("*.tmp"))


# -- what changes on disk afterwards ------------------------------------------------------------------------------


def test_pictures_mended_after_the_index_was_built_are_found(tmp_path: Path, builds: list[Path]) -> None:
    (tmp_path / "b.png").write_text("not a picture")
    lines = [line("<image>", "x", image=name) for name in ("a.png", "b.png", "c.png")] + [GOOD]
    spec, maker = spec_of(write_lines(tmp_path / "a.jsonl", lines), tmp_path), make_maker()

    def codes() -> list[str]:
        return [FaultCode(code).name for code in open_index(spec, maker, tmp_path / "index").table["code"].tolist()]

    assert codes() == ["MISSING_IMAGE", "BROKEN_IMAGE", "MISSING_IMAGE", "NONE"]
    write_noise(tmp_path / "a.png", 90, 30)
    assert codes() == ["NONE", "BROKEN_IMAGE", "MISSING_IMAGE", "NONE"]
    write_noise(tmp_path / "b.png", 30, 30)
    (tmp_path / "c.png").write_text("not a picture")
    assert codes() == ["NONE", "NONE", "BROKEN_IMAGE", "NONE"]
    index = open_index(spec, maker, tmp_path / "index")
    assert [index.footprint(number).tiles for number in range(4)] == [4, 1, 0, 0]
    assert len(builds) == 1


def test_what_is_open_stays_as_it_was_when_the_index_is_renewed(tmp_path: Path) -> None:
    """A run that goes on while another starts: its plan must not change under it."""
    spec = spec_of(write_lines(tmp_path / "a.jsonl", [line("<image>", "x", image="a.png")]), tmp_path)
    running = open_index(spec, make_maker(), tmp_path / "index")
    assert running.table["code"].tolist() == [FaultCode.MISSING_IMAGE]
    write_noise(tmp_path / "a.png", 90, 30)
    started = open_index(spec, make_maker(), tmp_path / "index")
    assert started.table["code"].tolist() == [FaultCode.NONE]
    assert running.table["code"].tolist() == [FaultCode.MISSING_IMAGE]


# -- size ---------------------------------------------------------------------------------------------------------


def test_an_index_travels_to_other_processes_as_paths(notes: DatasetSpec, tmp_path: Path) -> None:
    index = open_index(notes, make_maker(), tmp_path / "index")
    index.line(0)
    twin: LineIndex = pickle.loads(pickle.dumps(index))
    assert len(pickle.dumps(index)) < 1000
    assert twin.line(2) == index.line(2)


def memory_of_reading(annotation: Path, table_path: Path, connection: Any) -> None:
    """Bytes that opening an index and reading lines of it takes: its mapped pages, and all that is not shared."""
    process = psutil.Process()
    before = process.memory_info().rss
    index = LineIndex(LineFile.of(annotation), table_path)
    assert int(index.table["tokens"].sum()) + sum(len(index.line(n)) for n in range(0, len(index), 97)) > 0
    after = process.memory_info().rss
    mapped = sum(area.rss for area in process.memory_maps() if area.path == str(table_path))
    connection.send((mapped, after - before - mapped))


def test_a_hundred_thousand_lines_take_19_bytes_each(tmp_path: Path, builds: list[Path]) -> None:
    count = 100_000
    path = tmp_path / "big.jsonl"
    with path.open("w") as file:
        for number in range(count):
            file.write(f'{{"id": {number}, "conversations": [{{"from": "human", "value": "a"}}, ')
            file.write('{"from": "gpt", "value": "b"}]}\n')
    start = time.process_time()
    index = open_index(spec_of(path), make_maker(), tmp_path / "index")
    built = time.process_time() - start
    assert len(index) == count
    assert index.table.dtype == INDEX_DTYPE
    assert INDEX_DTYPE.itemsize == 19
    assert index.table_path.stat().st_size <= 19 * count + 256
    assert b'"id": 99999,' in index.line(count - 1)

    start = time.process_time()
    open_index(spec_of(path), make_maker(), tmp_path / "index")
    reopened = time.process_time() - start
    assert len(builds) == 1
    ours, theirs = fork.Pipe()
    process = fork.Process(target=memory_of_reading, args=(path, index.table_path, theirs))
    process.start()
    mapped, private = ours.recv()
    process.join(60)
    print(
        f"100,000 lines: built in {built:.1f} s, opened in {reopened:.3f} s; {mapped} bytes mapped, {private} private"
    )
    assert reopened < 0.5
    assert 0 < mapped <= 19 * count + 8192
    assert private < 4 * 2**20  # of the interpreter: the same for any number of lines
