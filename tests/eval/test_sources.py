"""Files of benchmarks -> records."""

from __future__ import annotations

import base64
import fcntl
import io
import json
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from internvl_chat.data.storage import Medium
from internvl_chat.errors import ConfigError, DataError
from internvl_chat.eval.sources import picture, read_records, read_table, unpacked
from internvl_chat.eval.task import Record


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INTERNVL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/eval"


def url(colour: str) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), colour).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@pytest.fixture()
def packed(tmp_path: Path) -> Path:
    """Two records with three pictures inside, two of them alike."""
    path = tmp_path / "packed.jsonl"
    records = [{"id": 1, "image": url("red"), "more": {"all": [url("red"), "words"]}}, {"id": 2, "image": url("blue")}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_pictures_inside_become_files_once(packed: Path, cache: Path) -> None:
    first, second = unpacked([packed])
    assert (first["id"], first["more"]["all"][1]) == (1, "words")
    assert first["image"] == first["more"]["all"][0] != second["image"]
    with Image.open(second["image"]) as opened:
        assert opened.convert("RGB").getpixel((0, 0)) == (0, 0, 255)
    written = {path: path.stat().st_mtime_ns for path in cache.rglob("*.png")}
    assert len(written) == 2
    assert list(unpacked([packed])) == [first, second]
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.png")} == written


def test_another_file_is_unpacked_anew_and_what_a_kill_left_is_removed(packed: Path, cache: Path) -> None:
    list(unpacked([packed]))
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    left = cache / f".part-{folder.name}-killed"
    folder.rename(left)
    list(unpacked([packed]))
    assert folder.is_dir() and not left.exists()
    packed.write_text(packed.read_text() + json.dumps({"id": 3}) + "\n")
    assert len(list(unpacked([packed]))) == 3


def _unpack(path: Path) -> int:
    return len(list(unpacked([path])))


def test_processes_at_once(packed: Path, cache: Path) -> None:
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(_unpack, [packed] * 6) == [2] * 6
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1


@pytest.mark.parametrize("lost", ["gone", "empty", "all"])
def test_a_picture_that_is_lost_from_the_cache_is_unpacked_anew(packed: Path, cache: Path, lost: str) -> None:
    before = list(unpacked([packed]))
    pictures = {path: path.read_bytes() for path in cache.rglob("*.png")}
    for path in list(pictures)[: 2 if lost == "all" else 1]:
        path.write_bytes(b"") if lost == "empty" else path.unlink()
    if lost == "all":
        next(cache.rglob("records.jsonl")).unlink()
    assert list(unpacked([packed])) == before
    assert {path: path.read_bytes() for path in cache.rglob("*.png")} == pictures
    assert not list(cache.glob(".part-*"))


def test_words_that_begin_like_a_data_url_stay_words(packed: Path) -> None:
    words = {"question": "data: what is it?", "name": "data:0123.png"}
    packed.write_text(json.dumps({**words, "image": url("red")}) + "\n")
    (record,) = unpacked([packed])
    assert words.items() <= record.items()


def test_a_cache_that_cannot_be_made(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("INTERNVL_CACHE", str(tmp_path / "blocked/x"))
    with pytest.raises(ConfigError, match=r"INTERNVL_CACHE: .*blocked/x/eval cannot be written .*name another one"):
        list(unpacked([packed]))


def test_without_locks(packed: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may be at work on the same: what it has begun stays, and what it ends first is taken."""

    def refuse(file: object, kind: int) -> None:
        raise OSError("no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    before = list(unpacked([packed]))
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    begun = cache / f".part-{folder.name}-other"
    folder.rename(begun)

    def slow(path: Path) -> Iterator[Record]:
        yield from read_records(path)
        begun.rename(folder)

    slow.__module__, slow.__qualname__ = read_records.__module__, read_records.__qualname__  # the same key
    assert list(unpacked([packed], slow)) == before
    assert [path for path in cache.iterdir() if path.is_dir()] == [folder]


def test_a_damaged_picture_is_told_and_leaves_nothing(packed: Path, cache: Path) -> None:
    packed.write_text(json.dumps({"image": "data:image/png;base64,????"}) + "\n")
    with pytest.raises(DataError, match=r"packed\.jsonl: row 1: a picture is damaged"):
        list(unpacked([packed]))
    assert [path for path in cache.iterdir() if path.is_dir()] == []


def test_a_table_loses_no_words(tmp_path: Path) -> None:
    """pandas would read these words as nothing."""
    path = tmp_path / "table.tsv"
    words = ["None", "NA", "null", "nan", "N/A", ""]
    path.write_text("\t".join(f"c{n}" for n in range(6)) + "\n" + "\t".join(words) + "\n")
    (row,) = read_table(path)
    assert list(row.values()) == [*words[:-1], None]
    path.write_text("a\tb\n1\n")
    with pytest.raises(DataError, match=r"table\.tsv:2: not as many fields"):
        list(read_table(path))


def test_where_pictures_lie(tmp_path: Path) -> None:
    assert picture(tmp_path, "data/okvqa/1.jpg") == tmp_path / "okvqa/1.jpg"
    assert picture(tmp_path, "1.jpg", "mmvp/images") == tmp_path / "mmvp/images/1.jpg"
    assert picture(tmp_path, "/there/1.jpg", "x") == Path("/there/1.jpg")
    assert isinstance(picture(tmp_path, url("red")), Medium)
    with pytest.raises(DataError, match="picture 3: the name of a file"):
        picture(tmp_path, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is empty"), ('{"a": 1}\n[1]\n', r":2: '\[1\]' is no object"), ('{"a": 1}\n{"a', ":2: no JSON")],
)
def test_lines_that_are_no_records(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        list(read_records(path))
