"""Any container and format becomes InternVL JSONL that reads the same; what cannot be converted is listed."""

from __future__ import annotations

import argparse
import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.data.record import parse_record
from internvl_chat.errors import ConfigError, DataError
from internvl_chat.tools import convert_data
from tests.data.helpers import conversation, line, picture_bytes, write_noise

OPENAI = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
SWIFT = {"query": "a", "response": "b"}
GOOD = line("a", "b")
PAIR = {"question": "a", "chosen": "b", "rejected": "c"}


def convert(*args: Any) -> int:
    parser = argparse.ArgumentParser()
    convert_data.add_arguments(parser)
    return convert_data.run(parser.parse_args([str(arg) for arg in args]))


def put(folder: Path, items: list[Any], name: str = "in.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(items), encoding="utf-8")
    return path


def items_of(path: Path) -> list[Any]:
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new" / "out.jsonl"


@pytest.mark.parametrize("container", ["jsonl", "json", "gzip", "parquet"])
def test_every_container_gives_the_same_lines(tmp_path: Path, out: Path, container: str, capsys: Any) -> None:
    items = [{"id": n, "query": f"何 {n}?", "response": "b", "history": [["c", "d"]]} for n in range(70)]
    path = tmp_path / "in"
    lines = "".join(json.dumps(item) + "\n" for item in items).encode()
    if container == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(items), path)
    else:
        path.write_bytes(
            {"jsonl": lines, "json": json.dumps(items, indent=1).encode(), "gzip": gzip.compress(lines)}[container]
        )
    assert convert(path, out) == 0
    assert items_of(out) == [
        {"id": n, "conversations": conversation("c", "d", f"何 {n}?", "b")} for n in range(70)
    ]  # fmt: skip
    assert "何".encode() in out.read_bytes()
    assert [p.name for p in out.parent.iterdir()] == ["out.jsonl"]
    assert "70 of 70 items (swift 70)" in capsys.readouterr().out


def test_formats_may_be_mixed_and_pairs_are_kept(tmp_path: Path, out: Path, capsys: Any) -> None:
    assert convert(put(tmp_path, [OPENAI, SWIFT, GOOD, {**SWIFT, "rejected_response": "c"}, PAIR]), out) == 0
    assert items_of(out) == [GOOD, GOOD, GOOD, PAIR, PAIR]
    assert "5 of 5 items (swift 2, internvl 2, openai 1)" in capsys.readouterr().out


def test_what_cannot_be_converted_is_left_out_and_listed(tmp_path: Path, out: Path, capsys: Any) -> None:
    bad = [{"x": 1}, {**SWIFT, "tools": [1]}, line("a", ""), {**PAIR, "chosen": " "}, 7, {**SWIFT, "images": ["p"] * 2}]
    path = put(tmp_path, [GOOD, *bad, OPENAI])
    assert convert(path, out) == 1
    assert items_of(out)[:2] == [GOOD, line("<image>\n<image>\na", "b", image=["p", "p"])]
    faults = items_of(Path(f"{out}.faults.jsonl"))
    assert [(fault["line"], fault["code"]) for fault in faults] == [
        (2, "FORMAT"), (3, "FORMAT"), (4, "EMPTY_ANSWER"), (5, "FORMAT"), (6, "NOT_JSON"),
    ]  # fmt: skip
    assert {(fault["stage"], fault["file"], fault["kind"]) for fault in faults} == {("convert", str(path), "json")}
    said = capsys.readouterr().out
    assert "3 of 8 items (internvl 1, swift 1, openai 1)" in said
    assert f"left out 5 (FORMAT 3, EMPTY_ANSWER 1, NOT_JSON 1), all listed in {out}.faults.jsonl:" in said
    assert f"{path}: item 4: conversations[1] is an empty answer" in said


def test_many_faults_are_all_listed_and_an_old_list_goes(tmp_path: Path, out: Path, capsys: Any) -> None:
    assert convert(put(tmp_path, [GOOD] + [{"x": 1}] * 2500), out) == 1
    assert len(items_of(Path(f"{out}.faults.jsonl"))) == 2500
    assert capsys.readouterr().out.count("no known format") == 5
    assert convert(put(tmp_path, [GOOD]), out, "--overwrite") == 0
    assert [p.name for p in out.parent.iterdir()] == ["out.jsonl"]


def test_nothing_good_and_damage_leave_no_file(tmp_path: Path, out: Path) -> None:
    with pytest.raises(DataError, match=r"none of its 2 items can be converted; .* is not written:\n.*item 1: an item"):
        convert(put(tmp_path, [{"x": 1}, {"x": 2}]), out)
    assert [p.name for p in out.parent.iterdir()] == ["out.jsonl.faults.jsonl"]
    broken = tmp_path / "broken.json"
    broken.write_text(json.dumps([GOOD, GOOD])[:-9])
    with pytest.raises(DataError, match="item 2 is not JSON"):
        convert(broken, out)
    assert list(out.parent.iterdir()) == []


def test_columns_and_format_are_given_on_the_command_line(tmp_path: Path, out: Path) -> None:
    path = put(tmp_path, [{"frage": "a", "antwort": "b"}])
    assert convert(path, out, "--format", "alpaca", "--columns", "prompt=frage", "response=antwort") == 0
    assert items_of(out) == [GOOD]
    with pytest.raises(ConfigError, match="columns without a format"):
        convert(path, out, "--columns", "prompt=frage")
    with pytest.raises(ConfigError, match="no column 'promt'; did you mean 'prompt'"):
        convert(path, out, "--format", "alpaca", "--columns", "promt=frage")
    with pytest.raises(ConfigError, match="--columns prompt: write NAME=KEY"):
        convert(path, out, "--format", "alpaca", "--columns", "prompt")


def test_nothing_is_overwritten_by_accident(tmp_path: Path) -> None:
    path, other = put(tmp_path, [GOOD]), put(tmp_path, [PAIR], "other.jsonl")
    with pytest.raises(ConfigError, match=r"other\.jsonl exists already; choose another OUT, or pass --overwrite"):
        convert(path, other)
    for target in (path, tmp_path / "x" / ".." / "in.json"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(ConfigError, match="is the input itself"):
            convert(path, target, "--overwrite")
    ledger = put(tmp_path, [GOOD], "a.faults.jsonl")
    with pytest.raises(ConfigError, match="is the input itself"):
        convert(ledger, tmp_path / "a", "--overwrite")
    with pytest.raises(ConfigError, match=r"exists already; choose another OUT$"):
        convert(path, tmp_path, "--overwrite")
    with pytest.raises(ConfigError, match="nowhere is not a file"):
        convert(tmp_path / "nowhere", tmp_path / "b")
    assert convert(path, other, "--overwrite") == 0
    assert items_of(other) == [GOOD]


def test_embedded_pictures_become_files_named_by_content(tmp_path: Path, out: Path, capsys: Any) -> None:
    red, blue = picture_bytes(4, 2), picture_bytes(2, 4)
    first, second = (f"data:image/x;base64,{base64.b64encode(content).decode()}" for content in (red, blue))
    broken = "data:image/png;base64,A"
    path = put(
        tmp_path,
        [
            {**SWIFT, "images": [first, second, "own/c.png"]},
            {**PAIR, "image": first},
            {**SWIFT, "images": [broken]},
            {**SWIFT, "images": ["data:image/svg+xml;utf8,<svg/>"]},
        ],
    )
    assert convert(path, out, "--media_dir", tmp_path / "pics") == 1
    assert [fault["code"] for fault in items_of(Path(f"{out}.faults.jsonl"))] == ["BROKEN_IMAGE", "BROKEN_IMAGE"]
    items = items_of(out)
    images = items[0]["image"]
    assert images[2] == "own/c.png"
    assert [(out.parent / name).read_bytes() for name in images[:2]] == [red, blue]
    assert images[0].startswith("../pics/") and images[0].endswith(".png") and items[1]["image"] == images[0]
    assert len(list((tmp_path / "pics").iterdir())) == 2
    assert f"wrote 2 media to {tmp_path / 'pics'}; give the data set the root {out.parent}" in capsys.readouterr().out
    assert convert(path, out, "--media-dir", tmp_path / "pics", "--root", tmp_path, "--overwrite") == 1
    assert items_of(out)[0]["image"][0] == images[0].removeprefix("../")


def test_a_hugging_face_table_with_pictures_inside_becomes_lines_and_files(tmp_path: Path, out: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    red, blue = picture_bytes(4, 2), picture_bytes(2, 4)
    question = [{"type": "image", "text": None}, {"type": "text", "text": "Or "}, {"type": "image", "text": None}]
    answer = [{"type": "text", "text": "b"}]
    talk = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    row = {"messages": talk, "images": [{"bytes": red, "path": None}, {"bytes": blue, "path": "b.png"}]}
    text = {"messages": [{"role": "user", "content": answer}, {"role": "assistant", "content": answer}], "images": None}
    parquet.write_table(pyarrow.Table.from_pylist([row, text]), tmp_path / "in.parquet")
    assert convert(tmp_path / "in.parquet", out, "--media_dir", out.parent / "pics") == 0
    first, second = items_of(out)
    assert first["conversations"] == conversation("<image>\nOr <image>\n", "b")
    assert [(out.parent / name).read_bytes() for name in first["image"]] == [red, blue]
    assert second == line("b", "b")


def test_without_a_folder_embedded_pictures_stay(tmp_path: Path, out: Path) -> None:
    url = f"data:image/png;base64,{base64.b64encode(picture_bytes(4, 2)).decode()}"
    assert convert(put(tmp_path, [{**SWIFT, "images": [url]}]), out) == 0
    assert items_of(out)[0]["image"] == url


OBJECTS = '[{"caption": "bus", "bbox": [20, 10, 60, 40], "bbox_type": "real", "image": 0}]'


def test_boxes_are_written_into_the_text_where_a_root_is_given(tmp_path: Path, out: Path) -> None:
    write_noise(tmp_path / "street.png", 200, 100)
    item = {"query": "Find <ref-object>", "response": "<bbox>", "images": ["street.png"], "objects": OBJECTS}
    path = put(tmp_path, [item, {**item, "images": ["gone.png"]}, {**item, "response": "no"}, GOOD])
    assert convert(path, out) == 0
    assert items_of(out)[0] == line("<image>\nFind <ref-object>", "<bbox>", image="street.png", objects=OBJECTS)
    assert convert(path, out, "--root", tmp_path, "--overwrite") == 1
    expected = line("<image>\nFind <ref>bus</ref>", "<box>[[100, 100, 300, 400]]</box>", image="street.png")
    assert items_of(out) == [expected, GOOD]
    codes = [(fault["line"], fault["code"]) for fault in items_of(Path(f"{out}.faults.jsonl"))]
    assert codes == [(2, "MISSING_IMAGE"), (3, "OBJECTS")]


def test_a_root_that_cannot_be_is_refused(tmp_path: Path, out: Path) -> None:
    path = put(tmp_path, [GOOD])
    with pytest.raises(ConfigError, match=r"--root .*nowhere does not exist"):
        convert(path, out, "--root", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="--media_dir: --root s3://b is no folder"):
        convert(path, out, "--root", "s3://b", "--media_dir", tmp_path / "pics")


def test_what_comes_out_is_read_like_what_went_in(tmp_path: Path, out: Path) -> None:
    items = [
        OPENAI,
        {**SWIFT, "images": ["a", "b"], "videos": ["c"], "system": "s", "note": "\ud800"},
        line("a", "b", image="x"),
    ]
    assert convert(put(tmp_path, items), out) == 0
    texts = out.read_text(encoding="utf-8").splitlines()
    assert [parse_record(text) for text in texts] == [parse_record(item) for item in items]


def test_what_another_flag_would_do_is_said(tmp_path: Path, out: Path, capsys: Any) -> None:
    write_noise(tmp_path / "p.png", 200, 100)
    url = f"data:image/png;base64,{base64.b64encode(picture_bytes(200, 100)).decode()}"
    boxed = {"query": "<ref-object>", "response": "<bbox>", "images": ["p.png"], "objects": OBJECTS}
    shares = {**boxed, "objects": OBJECTS.replace("real", "norm1000")}
    path = put(tmp_path, [boxed, {**boxed, "images": [url]}, shares, {**SWIFT, "images": [url, url]}, GOOD])
    assert convert(path, out) == 0
    said = capsys.readouterr().out
    assert "2 items keep their 'objects' in pixels; --root writes the boxes into the text" in said
    assert "3 media stay embedded; --media_dir writes them to files" in said
    assert convert(path, out, "--root", tmp_path, "--media_dir", tmp_path / "pics", "--overwrite") == 0
    said = capsys.readouterr().out
    assert "objects" not in said and "embedded" not in said
