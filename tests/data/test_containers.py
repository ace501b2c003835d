"""What a file is, by content; the same items come out of every container, whatever the layout and the buffer."""

from __future__ import annotations

import base64
import datetime
import gzip
import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.data.containers import kind_of, read_lines, where, write_lines
from internvl_chat.errors import ConfigError, DataError
from tests.data.helpers import picture_bytes, properties

json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**25), 10**25),
        st.floats(allow_nan=False),
        st.text(st.characters(exclude_categories=[]), max_size=6),  # half characters too
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def put(folder: Path, content: bytes | str, name: str = "notes.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines_of(path: Path) -> list[bytes]:
    target = io.BytesIO()
    count = write_lines(path, kind_of(path), target)
    lines = target.getvalue().split(b"\n")
    assert lines.pop() == b""
    assert len(lines) == count
    return lines


def items_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in lines_of(path)]


# -- what it is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ('{"a": 1}\n{"a": 2}\n', "jsonl"),
        ('\ufeff\r\n  {"a": 1}\n', "jsonl"),
        ('{"a": 1', "jsonl"),
        ('{"a": 1,\n{"a": 2}\n', "jsonl"),
        ('{"a": "x\n{"a": 2}\n', "jsonl"),
        ("{oops}\n" + '{"a": 1}\n' * 9, "jsonl"),
        ('{"a": 1} {"a": 2}\n', "jsonl"),
        ("hello\nworld\n", "jsonl"),
        ('{"a": "%s"}\n{"a": 1}\n' % ("x" * 200_000), "jsonl"),
        ('[{"a": 1}]', "json"),
        ("\ufeff\n [\n", "json"),
        (" " * 200_000 + "[1]", "json"),
        ('{\n  "a": 1\n}\n', "json"),
        ('{"a":\n1}{"a": 2}', "json"),
        ('{"a": 1,\n"b": 2', "json"),
        ('{\n"a": [%s1]}' % ("1,\n" * 60_000), "json"),
        ('{\n"a": [%s}' % ("1,\n" * 60_000), "json"),
    ],
)
def test_the_kind_is_told_by_the_content(tmp_path: Path, content: str, kind: str) -> None:
    assert kind_of(put(tmp_path, content, "notes.txt")) == kind


def test_packed_and_parquet_files_are_told_by_their_first_bytes(tmp_path: Path) -> None:
    assert kind_of(put(tmp_path, gzip.compress(b"{}"))) == "gzip"
    assert kind_of(put(tmp_path, b"PAR1....")) == "parquet"


@pytest.mark.parametrize(
    "content", [b"", b"\xef\xbb\xbf", b" \r\n\t\n", b" " * 300_000, gzip.compress(b"\n", mtime=0), b"[ ]"]
)
def test_an_empty_file_is_said_to_be_empty(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path, content)
    with pytest.raises(DataError, match=r"notes\.jsonl:1: the annotation is empty; write samples into it"):
        lines_of(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PK\x03\x04...", "a zip archive; unpack it"),
        (b"ARROW1..", "an Arrow file; write it as parquet"),
        ("[1]".encode("utf-16"), "UTF-16 text; save it as UTF-8"),
        (gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), "gzip inside gzip; unpack it"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(DataError, match=says):
        lines_of(put(tmp_path, content))


def test_messages_say_line_item_or_row() -> None:
    assert [f"a{where(kind, 3)}" for kind in ("jsonl", "gzip", "json", "parquet")] == [  # type: ignore[arg-type]
        "a:3", "a:3", "a: item 3", "a: row 3",
    ]  # fmt: skip


# -- lines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_lines_are_copied_faulty_ones_too(tmp_path: Path, pack: Any) -> None:
    text = b'\xef\xbb\xbf{"a": 1}\r\n\n{"a": \xff}\n  \n{"a":   1.10}\n\n \n'
    assert lines_of(put(tmp_path, pack(text))) == [b'{"a": 1}', b"", b'{"a": \xff}', b"", b'{"a":   1.10}']


@pytest.mark.parametrize("keep", [3, 12, 30, -9, -1])
def test_a_cut_off_gzip_file_says_so(tmp_path: Path, keep: int) -> None:
    packed = gzip.compress(b"".join(b'{"a": %d}\n' % (7**n) for n in range(99)))
    with pytest.raises(DataError, match=r"notes\.jsonl: the gzip file is damaged or cut off \(.*gzip -t"):
        lines_of(put(tmp_path, packed[:keep]))


def test_a_damaged_gzip_file_says_so(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(b'{"a": 1}\n' * 999))
    packed[20] ^= 255
    with pytest.raises(DataError, match="damaged"):
        lines_of(put(tmp_path, bytes(packed)))


# -- JSON ---------------------------------------------------------------------------------------------------------


@properties(60)
@given(
    st.lists(json_values, min_size=1, max_size=5),
    st.sampled_from([None, 0, 1, 4, "\t", " " * 40]),
    st.booleans(),
    st.sampled_from([1, 2, 3, 7, 20, 4096]),
    st.booleans(),
)
def test_an_array_gives_its_items_however_it_is_written(
    tmp_path: Path, items: list[Any], indent: Any, ascii_: bool, buffer: int, bom: bool
) -> None:
    text = json.dumps(items, indent=indent, ensure_ascii=ascii_ or not _whole(items))
    path = put(tmp_path, ("\ufeff" if bom else "") + text + "\n ")
    assert kind_of(path) == "json"
    assert [json.loads(line) for line in read_lines(path, "json", buffer)] == items
    packed = put(tmp_path, gzip.compress(path.read_bytes(), 1), "packed")
    assert list(read_lines(packed, "gzip", buffer)) == list(read_lines(path, "json", buffer))


def _whole(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


@properties(60)
@given(
    st.lists(st.dictionaries(st.text(max_size=3), json_values, min_size=1, max_size=3), min_size=1, max_size=4),
    st.sampled_from([0, 2, "\t"]),
    st.sampled_from(["", "\n", "\n\n  "]),
    st.sampled_from([1, 5, 4096]),
)
def test_spread_objects_give_items(tmp_path: Path, items: list[Any], indent: Any, between: str, buffer: int) -> None:
    path = put(tmp_path, between.join(json.dumps(item, indent=indent) for item in items))
    assert kind_of(path) == "json"
    assert [json.loads(line) for line in read_lines(path, "json", buffer)] == items


def test_an_item_larger_than_the_buffer_is_read_in_a_few_goes(tmp_path: Path) -> None:
    large = {"a": "x" * 3_000_000, "b": list(range(200_000))}
    path = put(tmp_path, json.dumps([{"a": 1}, large, large, 7]))
    assert [json.loads(line) for line in read_lines(path, "json", 1000)] == [{"a": 1}, large, large, 7]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"a": 1},\n {"a": 2,}]', ":2:10: item 2 is not JSON"),
        ('[{"a": 1}\n,\n]', ":3:1: item 2 is not JSON (Expecting value); often a comma after the last entry"),
        ('[{"a": 1}\n {"a": 2}]', ":2:2: item 1 is not JSON (',' or ']' is due behind an item)"),
        ('[{"a": 1}, {"a": tru}]', ":1:18: item 2 is not JSON (Expecting value)"),
        ('[{"a": 1}] x', ":1:12: item 1 is not JSON (text behind the end of the array)"),
        ('[{"a": 1}, {"b": [1, ', "item 2 is not JSON (Expecting value); the file ends too soon; write it again"),
        ('[{"a": 1}, {"b": "xy', "item 2 is not JSON (Unterminated string starting at)"),
        ('[{"a": 1}', ":1:10: item 1 is not JSON (',' or ']' is due behind an item); the file ends too soon"),
        ("[" + "1" * 5000 + "]", ":1:2: item 1 is not JSON (Exceeds the limit"),
        ("[" * 200_000, "item 1 is not JSON (maximum recursion"),
        ('{\n"a": 1\n}\n{"a": nul}', ":4:7: item 2 is not JSON"),
    ],
)
@pytest.mark.parametrize("buffer", [1, 64, 4096])
def test_an_error_names_line_column_and_item(tmp_path: Path, text: str, says: str, buffer: int) -> None:
    path = put(tmp_path, text)
    with pytest.raises(DataError) as error:
        list(read_lines(path, kind_of(path), buffer))
    assert str(error.value).startswith(str(path))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_an_array_in_another_encoding_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"notes\.jsonl:2: not UTF-8 \(.*\); save the file as UTF-8"):
        lines_of(put(tmp_path, '[1,\n"\u4f60"]'.encode("gb18030")))


# -- parquet ------------------------------------------------------------------------------------------------------


def write_parquet(folder: Path, columns: dict[str, Any]) -> Path:
    import pyarrow
    from pyarrow import parquet

    path = folder / "notes.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    return path


@properties(20)
@given(st.lists(st.text(max_size=8).map(lambda text: text.replace("\ud800", "")), min_size=1, max_size=150))
def test_rows_come_back(tmp_path: Path, texts: list[str]) -> None:
    turns = [[{"from": "human", "value": text}, {"from": "gpt", "value": "b"}] for text in texts]
    path = write_parquet(
        tmp_path, {"id": list(range(len(texts))), "conversations": turns, "image": [None] * len(texts)}
    )
    assert kind_of(path) == "parquet"
    expected = [{"id": n, "conversations": turn, "image": None} for n, turn in enumerate(turns)]
    assert items_of(path) == expected


def test_pictures_and_odd_types_become_json(tmp_path: Path) -> None:
    png = picture_bytes(3, 2)
    url = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    path = write_parquet(
        tmp_path,
        {
            "image": [{"bytes": png, "path": "a.png"}, {"bytes": None, "path": "b.png"}],
            "images": [[{"bytes": b"\xff\xd8\xff-", "path": None}], []],
            "raw": [png, b"text"],
            "score": [float("nan"), 1.5],
            "far": [float("inf"), -0.0],
            "day": [datetime.date(2024, 2, 29), None],
            "at": [datetime.datetime(2024, 2, 29, 1, 2), None],
            "price": [Decimal("1.10"), None],
            "took": [datetime.timedelta(seconds=2), None],
            "odd": [b"\xfe\x00\xfe", b""],
        },
    )
    first, second = items_of(path)
    assert first == {
        "image": url,
        "images": ["data:image/jpeg;base64,/9j/LQ=="],
        "raw": url,
        "score": None,
        "far": "inf",
        "day": "2024-02-29",
        "at": "2024-02-29T01:02:00",
        "price": "1.10",
        "took": "0:00:02",
        "odd": "data:application/octet-stream;base64,/gD+",
    }
    assert (second["image"], second["images"], second["raw"], second["score"]) == ("b.png", [], "text", 1.5)


@pytest.mark.parametrize("keep", [4, 40, -1])
def test_a_cut_off_parquet_file_says_so(tmp_path: Path, keep: int) -> None:
    path = write_parquet(tmp_path, {"a": [1, 2]})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"notes\.parquet: the parquet file cannot be read behind row 0 \("):
        lines_of(path)


def test_a_parquet_file_without_rows_is_empty(tmp_path: Path) -> None:
    import pyarrow

    with pytest.raises(DataError, match="is empty"):
        lines_of(write_parquet(tmp_path, {"a": pyarrow.array([], "int64")}))


def test_without_pyarrow_the_mend_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    path = put(tmp_path, b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"parquet needs pyarrow; pip install pyarrow"):
        lines_of(path)
