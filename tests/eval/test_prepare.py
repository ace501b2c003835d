"""Data that are looked at, and turned into the guide's layout: whatever is wrong is told at once."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from internvl_chat import cli
from internvl_chat.errors import ConfigError, DataError
from internvl_chat.eval.items import find_layout, load_items
from internvl_chat.eval.prepare import hash_of, prepare, verify
from internvl_chat.eval.registry import resolve, tasks
from internvl_chat.eval.sources import picture as picture_of
from internvl_chat.eval.sources import read_records, write_records
from internvl_chat.eval.task import Ask, Item, Layout, Record, Task
from internvl_chat.eval.tasks.common import one
from tests.eval.mini import write_task
from tests.eval.mini.common import jsonl, picture

RECORDS = [{"id": f"{number}", "q": f"Question {number}?", "image": f"data/toy/{number}.png"} for number in range(8)]


def _item(record: Record, ask: Ask) -> Item:
    return Item(record["id"], record["q"], one(picture_of(ask.root, record["image"]), ask), record.get("answer"))


def _guide(root: Path) -> Iterator[Record]:
    yield from read_records(root / "toy/questions.jsonl")


def _release(root: Path) -> Iterator[Record]:
    for path in sorted(root.glob("release/part-*.jsonl")):
        for record in read_records(path):
            yield {"id": record["key"], "q": record["text"], "image": f"data/toy/{record['key']}.png"}


def _write(root: Path, records: Iterable[Record]) -> None:
    write_records(root / "toy/questions.jsonl", records)


GUIDE = Layout("guide", ("toy/questions.jsonl",), _guide, "https://guide.example", write=_write)
RELEASE = Layout("release", ("release/part-*.jsonl",), _release, "https://release.example")
TASK = Task("toy", "Toy", (GUIDE, RELEASE), _item, None, max_new_tokens=4, count=len(RECORDS))


def put_guide(root: Path, records: Iterable[Record] = RECORDS) -> None:
    jsonl(root / "toy/questions.jsonl", records)
    for number in range(len(RECORDS)):
        picture(root / f"toy/{number}.png", number)


def put_release(root: Path) -> None:
    for part in range(2):
        of_part = [{"key": record["id"], "text": record["q"]} for record in RECORDS[part::2]]
        jsonl(root / f"release/part-{part}.jsonl", of_part)
    for number in range(len(RECORDS)):
        picture(root / f"toy/{number}.png", number)


# -- verify -----------------------------------------------------------------------------------------------------------


def test_good_data_of_either_layout(tmp_path: Path) -> None:
    put_guide(tmp_path / "a")
    put_release(tmp_path / "b")
    found = verify(TASK, tmp_path / "a")
    assert found.good and (found.layout, found.items, found.pictures) == ("guide", 8, 8)
    assert found.text() == "toy: good (guide layout, 8 items, 8 pictures or videos)"
    assert verify(TASK, tmp_path / "b").text().startswith("toy: good (release layout")
    unknown = verify(replace(TASK, count=None), tmp_path / "a")
    told = "toy: good (guide layout, 8 items, 8 pictures or videos; how many items there should be is not known)"
    assert unknown.good and unknown.text() == told


def test_what_is_missing_of_every_layout_and_where_it_is(tmp_path: Path) -> None:
    more = replace(RELEASE, files=("release/part-*.jsonl", "release/labels.json"))
    task = replace(TASK, layouts=(GUIDE, more))
    put_release(tmp_path)
    found = verify(task, tmp_path)
    assert not found.good and found.layout is None
    assert found.text().splitlines() == [
        "toy: not there",
        f"  release layout lacks {tmp_path}/release/labels.json, the rest is there (published at https://release.example)",
        f"  guide layout lacks {tmp_path}/toy/questions.jsonl (published at https://guide.example)",
    ]
    nowhere = verify(task, tmp_path / "nowhere").text()
    assert "the data folder" in nowhere and "--data_root" in nowhere and nowhere.count("lacks") == 2


def test_everything_that_is_wrong_at_once(tmp_path: Path) -> None:
    records = [dict(record) for record in RECORDS]
    records[1]["id"] = "0"
    del records[2]["q"]
    records[3]["q"] = "<image> and <image>?"
    put_guide(tmp_path, records[:7])
    (tmp_path / "toy/4.png").unlink()
    (tmp_path / "toy/5.png").write_bytes(b"")
    sums = {"toy/questions.jsonl": "md5:" + "0" * 32, "data/toy/6.png": "sha256:" + "1" * 64, "toy/gone.zip": "md5:2"}
    found = verify(replace(TASK, layouts=(replace(GUIDE, sums=sums),)), tmp_path)
    text = found.text()
    assert not found.good and found.layout == "guide" and found.hashed == 2
    md5 = hashlib.md5((tmp_path / "toy/questions.jsonl").read_bytes(), usedforsecurity=False).hexdigest()
    for told in (
        f"questions.jsonl: md5 {md5}, published is 00000000",
        "toy/6.png: sha256 ",
        "toy/gone.zip is not there (published at https://guide.example)",
        "2 records cannot be used: record 3 is not what toy has (KeyError: 'q'); record 4: item '3': 2 <image> in",
        "1 ids come twice: '0' (records 1 and 2)",
        f"1 pictures or videos are not there: {tmp_path}/toy/4.png",
        f"1 pictures or videos are empty files: {tmp_path}/toy/5.png",
    ):
        assert told in text, text
    assert text.startswith("toy: not as published (guide layout, 5 items, 5 pictures or videos)")


def test_many_of_one_kind_are_counted(tmp_path: Path) -> None:
    put_guide(tmp_path)
    for number in range(7):
        (tmp_path / f"toy/{number}.png").unlink()
    (problem,) = verify(TASK, tmp_path).problems
    assert problem.startswith("7 pictures or videos are not there: ") and problem.endswith("4.png and 2 more")


def test_hashes_that_fit_and_a_count_that_does_not(tmp_path: Path) -> None:
    put_guide(tmp_path, RECORDS[:5])
    path = tmp_path / "toy/questions.jsonl"
    sums = {"toy/questions.jsonl": f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest().upper()}"}
    found = verify(replace(TASK, layouts=(replace(GUIDE, sums=sums),)), tmp_path)
    assert found.problems == (
        "5 items, the public data set has 8: part of it, or another version (published at https://guide.example)",
    )
    whole = verify(replace(TASK, layouts=(replace(GUIDE, sums=sums),), count=5), tmp_path)
    assert whole.text() == "toy: good (guide layout, 5 items, 5 pictures or videos, 1 published hashes)"
    assert hash_of(path, "md5") == hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def test_a_file_that_is_cut_off_and_one_that_is_empty(tmp_path: Path) -> None:
    put_guide(tmp_path)
    path = tmp_path / "toy/questions.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    (problem,) = verify(TASK, tmp_path).problems
    assert problem.startswith("reading stopped after record 7: ") and "questions.jsonl:8: no JSON" in problem
    path.write_text("")
    assert "is empty; download or write it again" in verify(TASK, tmp_path).text()


def test_pictures_in_an_archive(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "toy.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "0.png")
    records = [{**RECORDS[number], "image": f"zip://{number}.png::{tmp_path}/toy.zip"} for number in range(2)]
    jsonl(tmp_path / "toy/questions.jsonl", records)
    found = verify(replace(TASK, count=2), tmp_path)
    assert found.pictures == 2
    assert len(found.problems) == 1 and "1.png" in found.problems[0] and "//0.png" not in found.problems[0]


# -- prepare ----------------------------------------------------------------------------------------------------------


def test_a_release_becomes_the_guide(tmp_path: Path) -> None:
    put_release(tmp_path)
    ask = Ask(tmp_path, 6)
    before = load_items(TASK, ask)
    said = prepare(TASK, tmp_path)
    path = tmp_path / "toy/questions.jsonl"
    assert said == [
        f"8 records of {tmp_path}/release/part-0.jsonl, {tmp_path}/release/part-1.jsonl (release)",
        f"wrote {path} ({path.stat().st_size} bytes)",
    ]
    after = load_items(TASK, ask)
    assert [(item.id, item.text) for item in after] == [(item.id, item.text) for item in before]
    assert verify(TASK, tmp_path).layout == "guide"


def test_what_is_there_stays_unless_asked(tmp_path: Path) -> None:
    put_release(tmp_path)
    path = jsonl(tmp_path / "toy/questions.jsonl", RECORDS[:1])
    before = path.read_bytes()
    assert "nothing to do" in prepare(TASK, tmp_path)[0] and str(path) in prepare(TASK, tmp_path)[0]
    assert path.read_bytes() == before
    two = replace(TASK, layouts=(replace(GUIDE, files=(*GUIDE.files, "toy/other.json")), RELEASE))
    with pytest.raises(DataError, match=r"questions.jsonl is there, but not toy/other.json; --overwrite writes all"):
        prepare(two, tmp_path)
    assert path.read_bytes() == before
    prepare(TASK, tmp_path, overwrite=True)
    assert len(list(read_records(path))) == 8


def test_files_of_the_release_are_not_in_the_way_and_never_written(tmp_path: Path) -> None:
    """The guide's layout has the labels of the release, and a folder of pictures that is there."""
    put_release(tmp_path)
    labels = tmp_path / "release/labels.json"
    labels.write_text('["the release\'s"]')
    before = labels.read_bytes()

    def write(root: Path, records: Iterable[Record]) -> None:
        _write(root, records)
        labels.write_text("written anew")

    guide = replace(GUIDE, files=("toy/questions.jsonl", "release/labels.json", "toy"), write=write)
    release = replace(RELEASE, files=(*RELEASE.files, "release/labels.json"))
    task = replace(TASK, layouts=(guide, release))
    said = prepare(task, tmp_path)
    assert labels.read_bytes() == before and len(said) == 2 and "wrote" in said[1] and "questions.jsonl" in said[1]
    assert len(prepare(task, tmp_path, overwrite=True)) == 2 and labels.read_bytes() == before
    assert not list((tmp_path / "release").glob(".kept*"))


def test_pope_beside_the_labels_of_its_release(tmp_path: Path) -> None:
    (task,) = resolve(["pope"])
    write_task("pope", tmp_path)
    (tmp_path / "pope/llava_pope_test.jsonl").unlink()
    labels = sorted((tmp_path / "pope/coco").iterdir())
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in labels]
    assert find_layout(task, tmp_path).name == "release"
    said = prepare(task, tmp_path)
    assert [line for line in said if "wrote" in line] == [line for line in said if "llava_pope_test.jsonl (" in line]
    prepare(task, tmp_path, overwrite=True)
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in labels] == before
    assert find_layout(task, tmp_path).name == "guide"


def test_annotations_that_two_tasks_share_are_not_in_the_way(tmp_path: Path) -> None:
    put_release(tmp_path)
    (tmp_path / "textvqa").mkdir()
    shared = tmp_path / "textvqa/textvqa_val_annotations.json"
    shared.write_text("{}")
    guide = replace(GUIDE, files=(*GUIDE.files, "textvqa/textvqa_val_annotations.json"))
    assert len(prepare(replace(TASK, layouts=(guide, RELEASE)), tmp_path)) == 2
    assert shared.read_text() == "{}"


def test_what_cannot_be_converted_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        prepare(TASK, tmp_path)
    assert "no release of it is below" in str(refused.value) and "https://release.example" in str(refused.value)
    assert "https://guide.example" not in str(refused.value), "that is what is to be written"
    with pytest.raises(ConfigError, match=r"nothing to convert, it is read as it is published: .*release.example"):
        prepare(replace(TASK, layouts=(RELEASE,)), tmp_path)


def test_a_release_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    put_release(tmp_path)
    with (tmp_path / "release/part-1.jsonl").open("a") as file:
        file.write('{"key": "cut')
    with pytest.raises(DataError, match=r"part-1.jsonl:5: no JSON"):
        prepare(TASK, tmp_path)
    assert not (tmp_path / "toy/questions.jsonl").exists()


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    put_release(tmp_path)

    def lose(root: Path, records: Iterable[Record]) -> None:
        write_records(root / "toy/questions.jsonl", list(records)[1:])

    with pytest.raises(DataError, match=r"8 records were read from release/part-\*.jsonl, but 7 written"):
        prepare(replace(TASK, layouts=(replace(GUIDE, write=lose), RELEASE)), tmp_path)
    elsewhere = replace(GUIDE, files=("toy/no.jsonl",))
    with pytest.raises(DataError, match=r"toy/no.jsonl was not written"):
        prepare(replace(TASK, layouts=(elsewhere, RELEASE)), tmp_path)


# -- all tasks, and the command line ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(tasks()))
def test_miniature_data_of_every_task_are_right_but_for_their_number(name: str, tmp_path: Path) -> None:
    (task,) = resolve([name])
    write_task(name, tmp_path)
    plain = replace(task, count=None, layouts=tuple(replace(layout, sums={}) for layout in task.layouts))
    found = verify(plain, tmp_path)
    assert found.good, found.text()
    assert found.items and found.layout == plain.layouts[0].name
    if task.count is not None:
        assert not verify(replace(plain, count=task.count), tmp_path).good


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [{"image": "data/scienceqa/a.png", "hint": "", "question": "Q?", "choices": ["a", "b"], "answer": 1}]
    jsonl(tmp_path / "scienceqa/scienceqa_test_img.jsonl", records)
    words = ["eval", "--verify", "scienceqa", "m3cot", "--data_root", str(tmp_path)]
    assert cli.main(words) == 1
    said = capsys.readouterr().out
    assert "sqa_test: not as published (guide layout, 1 items" in said and "the public data set has 2017" in said
    assert f"{tmp_path}/scienceqa/a.png" in said and "m3cot_test: not there" in said
    assert cli.main(["eval", "--prepare", "scienceqa", "--data_root", str(tmp_path)]) == 2
    assert "sqa_test: there is nothing to convert, it is read as it is published" in capsys.readouterr().err
    assert json.loads((tmp_path / "scienceqa/scienceqa_test_img.jsonl").read_text()) == records[0]
