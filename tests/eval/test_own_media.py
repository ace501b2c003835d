"""Pictures of own data wherever they lie: files, archives, inside the record; and what cannot be one."""

from __future__ import annotations

import base64
import csv
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from internvl_chat import cli
from internvl_chat.data.opening import forget_archives
from internvl_chat.data.storage import Medium
from internvl_chat.errors import ConfigError, DataError
from internvl_chat.eval.items import digest_of, load_items
from internvl_chat.eval.own import load_task
from internvl_chat.eval.own_media import as_url, locate_picture
from internvl_chat.eval.prepare import prepare, verify
from internvl_chat.eval.report.pictures import open_thumbnail
from internvl_chat.eval.task import Ask, Item
from internvl_chat.infer.pictures import Shown, read_picture
from tests.eval.mini.common import jsonl, picture


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNVL_CACHE", str(tmp_path / "cache"))


def described(home: Path, **keys: Any) -> Path:
    path = home / "task.yaml"
    given = {"name": "mine", "data": "items.jsonl", "metric": "none", "prompt": "{question}"} | keys
    path.write_text(yaml.safe_dump(given))
    return path


def items_of(path: Path) -> list[Item]:
    return load_items(load_task(path), Ask(Path("nowhere"), 6))


def shown(items: list[Item]) -> list[Any]:
    return [one.source for item in items for one in item.shown]


def base64_of(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


@pytest.mark.parametrize("size", [(1, 1), (60, 60), (400, 300)])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".webp", ".bmp"])
def test_base64_of_any_size_in_tables_and_lines(tmp_path: Path, size: tuple[int, int], suffix: str) -> None:
    text = base64_of(picture(tmp_path / f"a{suffix}", 1, size))
    with (tmp_path / "t.tsv").open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([["index", "question", "image"], ["0", "What?", text]])
    wrapped = "\n".join(text[k : k + 76] for k in range(0, len(text), 76))
    url = f"data:image/x;base64,{text}"
    jsonl(tmp_path / "items.jsonl", [{"question": "What?", "image": one} for one in (text, wrapped, url, [text])])
    for name, count in (("t.tsv", 1), ("items.jsonl", 4)):
        path = described(tmp_path, data=name)
        found = shown(items_of(path))
        assert len(found) == count
        for source in found:
            assert isinstance(source, Path) and source.is_absolute() and len(source.name) < 40
            assert read_picture(source).size == size
        verdict = verify(load_task(path), tmp_path)
        assert verdict.good and verdict.pictures == 1, verdict.text()
    assert len(list((tmp_path / "cache/eval/own-pictures").iterdir())) == 1, "one picture, one file"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x" * 300, "neither the name of a file nor base64 of a picture"),
        ("what is this? " * 200, "neither the name of a file nor base64 of a picture"),
        (base64.b64encode(b"no picture at all" * 60).decode(), "neither the name of a file nor base64"),
        ("folder/" * 300, "neither the name"),
        ("a\0b", "neither the name"),
        (base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(90)).decode(), "inside the record is no picture"),
        ("iVBORw0KGgo" + "A" * 2000 + "?", "inside the record is no picture"),
        ("data:image/png;base64,abc", "inside the record is no picture"),
        ("data:text/plain,abc", "inside the record is no picture"),
        ("https://example.org/a.png", "is an address, and none is opened here; download it"),
        ("zip://a.png::https://example.org/a.zip", "is remote"),
    ],
)
def test_what_cannot_be_a_picture_is_said_once(tmp_path: Path, name: str, message: str) -> None:
    jsonl(tmp_path / "items.jsonl", [{"question": "What?", "image": name}])
    path = described(tmp_path)
    with pytest.raises(DataError) as error:
        items_of(path)
    assert message in str(error.value) and "record 1" in str(error.value) and len(str(error.value)) < 500
    assert "remote_media" not in str(error.value), "a flag of the training"
    (problem,) = verify(load_task(path), tmp_path).problems
    assert "1 records cannot be used: record 1: " in problem and message in problem


def test_names_that_look_like_base64_are_names(tmp_path: Path) -> None:
    for name in ("iVBORw0KGgo", "Qk0", "/9j/4AAQSkZJRg", "a" * 60, "R0lGODlh/" * 10 + "a.gif"):
        assert as_url(name) == name


def pack(folder: Path) -> None:
    """pics.zip and pics.tar, each with 000.png and in/001.png."""
    for number, name in enumerate(("000.png", "in/001.png")):
        picture(folder / "loose" / name, number)
    with zipfile.ZipFile(folder / "pics.zip", "w") as packed, tarfile.open(folder / "pics.tar", "w") as tar:
        for name in ("000.png", "in/001.png"):
            packed.write(folder / "loose" / name, name)
            tar.add(folder / "loose" / name, name)


@pytest.mark.parametrize("archive", ["pics.zip", "pics.tar"])
def test_members_of_archives_in_every_way_of_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archive: str
) -> None:
    home = tmp_path / "home"
    pack(home)
    kind = archive[-3:]
    ways = {
        ".": [f"{archive}/in/001.png", f"{kind}://in/001.png::{archive}", f"{home}/{archive}/in/001.png"],
        archive: ["in/001.png", "data/in/001.png"],
        f"{archive}/in": ["001.png"],
    }
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for root, names in ways.items():
        jsonl(home / "items.jsonl", [{"question": "?", "image": name} for name in names])
        path = described(home, root=root)
        monkeypatch.chdir(tmp_path)
        for source in shown(items_of(path.relative_to(tmp_path))):
            monkeypatch.chdir(elsewhere)
            assert isinstance(source, Medium)
            due = list(read_picture(home / "loose/in/001.png").getdata())
            assert list(read_picture(source).getdata()) == due
            # What predictions.jsonl names is enough for the report.
            thumbnail = open_thumbnail(source.name, elsewhere)
            assert thumbnail is not None and list(thumbnail.getdata()) == due
        assert verify(load_task(path), elsewhere).good


def test_a_member_that_is_not_there_is_told_with_the_items(tmp_path: Path) -> None:
    pack(tmp_path)
    (tmp_path / "broken.zip").write_bytes(b"PK" + bytes(100))
    for name, root, message in (
        ("pics.zip/001.png", ".", "pics.zip has no member '001.png'"),
        ("001.png", "pics.zip", "pics.zip has no member '001.png'"),
        ("zip://001.png::pics.zip", ".", "001.png"),
        ("broken.zip/001.png", ".", "is damaged"),
        ("none.zip/001.png", ".", "none.zip/001.png"),
        ("pics.zip/in", ".", "pics.zip has no member 'in'"),
    ):
        jsonl(tmp_path / "items.jsonl", [{"question": "?", "image": name}])
        with pytest.raises(DataError) as error:
            items_of(described(tmp_path, root=root))
        assert message in str(error.value), name


@pytest.mark.parametrize("archive", ["pics.zip", "pics.tar"])
def test_an_archive_that_is_replaced_is_noticed(tmp_path: Path, archive: str) -> None:
    """Without reading a picture, and also where its new one has the same size."""
    jsonl(tmp_path / "items.jsonl", [{"question": "?", "image": "000.png"}])
    path = described(tmp_path, root=archive)

    def digest() -> str:
        forget_archives()  # as another process, which comes later
        return digest_of(items_of(path)[0])

    pack(tmp_path)
    before = digest()
    with zipfile.ZipFile(tmp_path / "pics.zip", "a") as packed, tarfile.open(tmp_path / "pics.tar", "a") as tar:
        packed.writestr("more.txt", "more")
        tar.add(tmp_path / "items.jsonl", "more.txt")
    assert digest() == before, "its other members are nothing to it"
    content = bytearray((tmp_path / "loose/000.png").read_bytes())
    content[-20] ^= 1
    (tmp_path / "loose/000.png").write_bytes(content)
    os.utime(tmp_path / "loose/000.png", (1e9, 1e9))
    with zipfile.ZipFile(tmp_path / "pics.zip", "w") as packed, tarfile.open(tmp_path / "pics.tar", "w") as tar:
        packed.write(tmp_path / "loose/000.png", "000.png")
        tar.add(tmp_path / "loose/000.png", "000.png")
    assert digest() != before


def test_an_archive_that_is_lost_is_no_reason_to_fail(tmp_path: Path) -> None:
    gone = Medium("a.png", None, str(tmp_path / "gone.zip"), "a.png")
    assert digest_of(Item("1", "?", (Shown(gone, 1),)))


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("INTERNVL_CACHE", str(tmp_path / "blocked/x"))
    image = base64_of(picture(tmp_path / "a.png"))
    jsonl(tmp_path / "items.jsonl", [{"question": "What?", "image": f"data:image/png;base64,{image}"}])
    with pytest.raises(ConfigError, match=r"INTERNVL_CACHE: .*blocked/x/eval/own-pictures cannot be written"):
        items_of(described(tmp_path))


def test_pictures_are_named_from_the_root_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "home/pics/a.png")
    jsonl(tmp_path / "home/items.jsonl", [{"question": "?", "image": "a.png"}, {"question": "?", "video": "."}])
    path = described(tmp_path / "home", root="../home/pics")
    monkeypatch.chdir(tmp_path)
    image, video = shown(items_of(Path(os.path.relpath(path))))
    assert image == tmp_path / "home/pics/a.png" and video.source == tmp_path / "home/pics"
    assert locate_picture(tmp_path / "home", "data/pics/a.png") == tmp_path / "home/pics/a.png"


def test_own_data_are_looked_at_in_words_that_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "a.png")
    jsonl(tmp_path / "items.jsonl", [{"question": "?", "image": "a.png"}])
    path = described(tmp_path)
    assert cli.main(["eval", "--verify", str(path)]) == 0
    assert capsys.readouterr().out == "mine: good (own data, 1 items, 1 pictures or videos)\n"
    assert prepare(load_task(path), tmp_path) == ["own data need no preparing"]
    jsonl(tmp_path / "items.jsonl", [{"question": "?", "image": "a.png"}, {"question": "?", "image": "b.png"}])
    assert cli.main(["eval", "--verify", str(path)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "mine: cannot be used as it is (own data, 2 items, 2 pictures or videos)"
    assert said[1].strip() == f"1 pictures or videos are not there: {tmp_path}/b.png"
    (tmp_path / "items.csv").write_text("question,image\n")
    (problem,) = verify(load_task(described(tmp_path, data="items.csv")), tmp_path).problems
    assert problem.endswith(f"{tmp_path}/items.csv: there is no row below its header")
