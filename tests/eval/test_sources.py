"""Files of benchmarks -> records."""

from __future__ import annotations

import base64
import io
import json
import multiprocessing
from pathlib import Path

import pytest
from PIL import Image

from internvl_chat.data.storage import Medium
from internvl_chat.errors import DataError
from internvl_chat.eval.sources import picture, read_records, read_table, unpacked


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
