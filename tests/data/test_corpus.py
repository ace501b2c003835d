"""What there is to see in an epoch: repeats, faults and their share, the ledger."""

from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.data.corpus import Corpus, open_corpus
from internvl_chat.data.faults import Fault, FaultCode, FaultRecord, Ledger, TooManyFaults, check_fault_share
from internvl_chat.data.manifest import DatasetSpec
from internvl_chat.errors import DataError
from tests.data.helpers import line, make_maker, spec_of, write_lines, write_noise


def text_set(folder: Path, count: int, name: str = "notes", **keys: Any) -> DatasetSpec:
    lines = [line(f"Say {number}.", f"{number}") for number in range(count)]
    return spec_of(write_lines(folder / f"{name}.jsonl", lines), name=name, **keys)


def open_here(folder: Path, *specs: DatasetSpec, **options: Any) -> Corpus:
    return open_corpus(specs, options.pop("maker", make_maker()), folder / "index", **options)


@pytest.fixture
def faulty(tmp_path: Path) -> DatasetSpec:
    """Ten lines, four of them unusable."""
    write_noise(tmp_path / "a.png", 90, 30)
    lines: list[Any] = [line(f"Say {number}.", f"{number}") for number in range(10)]
    lines[1] = line("<image>", "x", image="gone.png")
    lines[4] = '{"conversations": '
    lines[5] = line("Hi", "very " * 400)
    lines[8] = line("<image>\n<image>", "x", image="a.png")
    return spec_of(write_lines(tmp_path / "notes.jsonl", lines), tmp_path)


# -- repeats ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("repeat", "first", "second"),
    [(1, 1, 1), (2, 2, 2), (0.5, 1, 0), (0.3, 1, 0), (1.5, 2, 1), (2.3, 3, 2), (3.0, 3, 3)],
)
def test_repeats_are_whole_rounds_and_then_the_first_part_of_the_file(
    tmp_path: Path, repeat: float, first: int, second: int
) -> None:
    corpus = open_here(tmp_path, text_set(tmp_path, 10, repeat_time=repeat))
    seen = Counter(corpus.places().line.tolist())
    cut = round(10 * (repeat % 1)) or 10
    assert seen == {n: first if n < cut else second for n in range(10) if (first if n < cut else second)}


@pytest.mark.parametrize("lines", [7, 10, 100, 1000])
def test_the_part_of_a_file_is_not_one_short_by_the_last_bit_of_a_float(tmp_path: Path, lines: int) -> None:
    """0.29 x 100 is 28.999999999999996: the original takes 28 lines."""
    spec = text_set(tmp_path, lines)
    for hundredths in (29, 57, 58, 115, 230, 329):
        if lines * hundredths % 100 == 0:
            renewed = spec_of(spec.annotation, repeat_time=hundredths / 100)
            assert len(open_here(tmp_path, renewed)) == lines * hundredths // 100


def test_a_share_that_takes_nothing_is_an_error_not_an_empty_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'notes': repeat_time 0\.05 of 10 lines takes no usable line; raise it"):
        open_here(tmp_path, text_set(tmp_path, 10, repeat_time=0.05))


def test_every_visit_has_an_address_of_its_own(tmp_path: Path) -> None:
    """Over epochs too: augmentation is drawn anew each time a line is seen."""
    corpus = open_here(tmp_path, text_set(tmp_path, 10, repeat_time=2.5), text_set(tmp_path, 3, name="more"))
    addresses = [corpus.address(entry, epoch) for epoch in range(3) for entry in range(len(corpus))]
    assert len(set(addresses)) == len(addresses) == 3 * (25 + 3)
    assert {address.dataset for address in addresses} == {"notes", "more"}
    record = corpus.record_of(Fault(FaultCode.STALE, "a", "b"), len(corpus) - 1, 0)
    assert (record.file, record.line, record.stage) == (str(tmp_path / "more.jsonl"), 3, "load")


def test_an_entry_loads_the_sample_its_footprint_promises(tmp_path: Path) -> None:
    write_noise(tmp_path / "a.png", 90, 30)
    lines = [line("<image>", "x", image="a.png"), line("a", "b")]
    corpus = open_here(tmp_path, spec_of(write_lines(tmp_path / "notes.jsonl", lines), tmp_path, repeat_time=2))
    for entry in range(len(corpus)):
        sample = corpus.load(entry, epoch=1)
        assert sample.address == corpus.address(entry, 1)
        size = sample.footprint
        assert (size.tokens, size.tiles, size.supervised) == (
            corpus.column("tokens")[entry],
            corpus.column("tiles")[entry],
            corpus.column("supervised")[entry],
        )


# -- faults -------------------------------------------------------------------------------------------------------


def test_too_many_faults_stop_with_the_share_the_lines_and_the_mend(tmp_path: Path, faulty: DatasetSpec) -> None:
    with pytest.raises(TooManyFaults) as error:
        open_here(tmp_path, faulty, maker=make_maker(max_tokens=300), max_fault_share=0.3)
    message = str(error.value).splitlines()
    assert message[0] == "data set 'notes': 4 of 10 lines cannot be used, more than --max_fault_share 0.3:"
    file = tmp_path / "notes.jsonl"
    assert message[1].startswith(f"{file}:2: picture '{tmp_path / 'gone.png'}' does not exist; check 'image' and")
    assert message[2].startswith(f"{file}:5: not JSON (")
    assert message[3].startswith(f"{file}:6: ")
    assert "more than max_seq_length 300; raise --max_seq_length" in message[3]
    assert message[4].startswith(f"{file}:9: 2 <image> in the human turns but 1 pictures in 'image'; write <image>")
    assert "--max_fault_share" in message[5]
    assert [record.line for record in error.value.records] == [2, 5, 6, 9]


@pytest.mark.parametrize(("share", "stops"), [(0.0, True), (0.39, True), (0.4, False), (1.0, False)])
def test_the_limit_is_a_share_of_the_lines_and_inclusive(
    tmp_path: Path, faulty: DatasetSpec, share: float, stops: bool
) -> None:
    maker = make_maker(max_tokens=300)
    if stops:
        with pytest.raises(TooManyFaults):
            open_here(tmp_path, faulty, maker=maker, max_fault_share=share)
    else:
        corpus = open_here(tmp_path, faulty, maker=maker, max_fault_share=share)
        assert sorted(corpus.places().line.tolist()) == [0, 2, 3, 6, 7, 9]


def test_faulty_lines_are_no_entries_and_none_takes_their_place(tmp_path: Path, faulty: DatasetSpec) -> None:
    """A tenth of the file is its first line, whether or not later ones are good."""
    maker = make_maker(max_tokens=300)
    half = spec_of(faulty.annotation, faulty.root, repeat_time=1.5)
    corpus = open_here(tmp_path, half, maker=maker, max_fault_share=1.0)
    assert Counter(corpus.places().line.tolist()) == {0: 2, 2: 2, 3: 2, 6: 1, 7: 1, 9: 1}


def test_the_ledger_tells_data_set_file_line_reason_and_mend(tmp_path: Path, faulty: DatasetSpec) -> None:
    corpus = open_here(tmp_path, faulty, maker=make_maker(max_tokens=300), max_fault_share=1.0)
    Ledger(tmp_path / "out" / "faults.jsonl").rewrite(corpus.left_out())
    Ledger(tmp_path / "out" / "faults.jsonl").write([])
    entries = [json.loads(text) for text in (tmp_path / "out" / "faults.jsonl").read_text().splitlines()]
    codes = ["MISSING_IMAGE", "NOT_JSON", "TOO_LONG", "PLACEHOLDERS"]
    assert [(entry["line"], entry["code"]) for entry in entries] == list(zip([2, 5, 6, 9], codes, strict=True))
    assert {entry["dataset"] for entry in entries} == {"notes"}
    assert {entry["file"] for entry in entries} == {str(tmp_path / "notes.jsonl")}
    assert {entry["stage"] for entry in entries} == {"index"}
    assert all(entry["reason"] and entry["mend"] for entry in entries)


def test_a_ledger_takes_names_that_are_no_utf8(tmp_path: Path) -> None:
    """A folder name in another encoding must not end the run that reports it."""
    file = Path(os.fsdecode(b"caf\xe9.jsonl"))
    record = FaultRecord("notes", str(file), 1, 0, "load", "TURN", "\U0001f600 bad", "mend it")
    Ledger(tmp_path / "faults.jsonl").write([record])
    (entry,) = (tmp_path / "faults.jsonl").read_text(encoding="utf-8").splitlines()
    assert "\U0001f600 bad" in entry
    Ledger(None).write([record])


@pytest.mark.parametrize(("faults", "shown"), [(3, 3), (10, 10), (25, 10)])
def test_a_long_list_of_faults_is_cut_with_a_count(faults: int, shown: int) -> None:
    records = [FaultRecord("notes", "n.jsonl", n + 1, 0, "index", "TURN", "bad", "mend") for n in range(faults)]
    with pytest.raises(TooManyFaults) as error:
        check_fault_share("notes", faults, 100, 0.01, iter(records))
    lines = str(error.value).splitlines()
    assert sum(text == f"n.jsonl:{n + 1}: bad; mend" for n, text in enumerate(lines[1 : 1 + shown])) == shown
    assert (f"... and {faults - 10} more" in lines) is (faults > 10)
    assert list(error.value.records) == records
    check_fault_share("notes", 1, 100, 0.01, iter(records))


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    spec = spec_of(write_lines(tmp_path / "notes.jsonl", ["{}", "{}"]))
    with pytest.raises(DataError, match="no line of the manifest can be used"):
        open_here(tmp_path, spec, max_fault_share=1.0)


def test_limits_change_what_is_used_without_a_new_index(tmp_path: Path, faulty: DatasetSpec) -> None:
    for most, lines in ((300, 6), (100_000, 7), (300, 6)):
        assert len(open_here(tmp_path, faulty, maker=make_maker(max_tokens=most), max_fault_share=1.0)) == lines
    assert len(list((tmp_path / "index").glob("*.npy"))) == 1


def test_codes_keep_their_numbers() -> None:
    """They are bytes of the index: a new code gets a new number, and FORMAT in index.py goes up when one changes."""
    names = ["NONE", "NOT_JSON", "CONVERSATIONS", "TURN", "TURN_ORDER", "EMPTY_ANSWER", "PLACEHOLDERS", "MISSING_IMAGE"]
    names += ["BROKEN_IMAGE", "IMAGE_SIZE", "TOO_LONG", "TOO_MANY_TILES", "UNSUPPORTED", "STALE"]
    assert [FaultCode(number).name for number in range(len(names))] == names


def test_a_fault_crosses_process_borders_whole() -> None:
    fault = pickle.loads(pickle.dumps(Fault(FaultCode.TURN, "it is wrong", "mend it")))
    assert (fault.code, fault.reason, fault.mend) == (FaultCode.TURN, "it is wrong", "mend it")
    assert str(fault) == "it is wrong; mend it"
