"""What the data sets of short answers share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from internvl_chat.errors import DataError
from internvl_chat.eval.sources import read_records
from internvl_chat.eval.task import Answered, Item, Record
from internvl_chat.eval.tasks.short import commonest, guide_writer, kept, layout, marked, write_document
from tests.eval.mini.common import picture


def test_the_commonest_answer() -> None:
    assert commonest(["a", "b", "b", "a", "c"]) == "a"
    assert commonest(["x", "b", "b"]) == "b"


def test_pictures_go_to_the_guides_place_once(tmp_path: Path) -> None:
    made = picture(tmp_path / "cache/1f.png")
    assert kept(tmp_path, {"image": "data/a/b.png"}, "set/pics") == "data/a/b.png"
    assert kept(tmp_path, {"image": str(made)}, "set/pics") == "data/set/pics/1f.png"
    assert kept(tmp_path, {"image": str(made), "file": "x.jpg"}, "set/pics") == "data/set/pics/x.jpg"
    assert (tmp_path / "set/pics/x.jpg").read_bytes() == made.read_bytes()


def test_an_annotation_file_that_is_there_stays(tmp_path: Path) -> None:
    write_document(tmp_path / "gold.json", {"kept": 1})
    write = guide_writer("q.jsonl", "pics", "gold.json")
    write(tmp_path, [{"image": "data/a.png", "question": "Q", "question_id": 1, "answers": ["x"], "number": 0}])
    assert (tmp_path / "gold.json").read_text() == '{"kept": 1}'
    assert list(read_records(tmp_path / "q.jsonl")) == [{"image": "data/a.png", "question": "Q", "question_id": 1}]


def test_a_reader_names_the_record(tmp_path: Path) -> None:
    def read(root: Path) -> Iterator[Record]:
        yield {"a": 1}
        yield {"a": {}["b"]}

    records = layout("x", ("f.json",), read).read(tmp_path)
    assert next(iter(records)) == {"a": 1}
    with pytest.raises(DataError, match=r"f\.json: record 2 is not what is expected \(KeyError: 'b'\)"):
        list(layout("x", ("f.json",), read).read(tmp_path))


@pytest.mark.parametrize(("empty", "mark"), [(False, 0.0), (True, 1.0)])
def test_missing_answers(empty: bool, mark: float) -> None:
    score = marked(lambda answer, item: 1.0, "accuracy", lambda mean: [str(mean)], 100, empty)
    result = score(Answered([Item("1", "Q"), Item("2", "Q")], ["", "x"]))
    assert result.marks == [mark, 1.0]
    assert result.figures == {"accuracy": 50 + 50 * mark}
    assert result.lines == [str(0.5 + 0.5 * mark)]
