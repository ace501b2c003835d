"""What an annotation file is, told by its content and not by its name, and how it becomes lines of JSON.

JSONL, a JSON array, JSON values spread over several lines, any of these under gzip, and parquet. Nothing is held whole:
a JSON array is decoded from a buffer that grows only for an item larger than it.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from internvl_chat.errors import DataError, first_line

Kind = Literal["jsonl", "json", "gzip", "parquet"]
BUFFER = 1 << 22
_HEAD = 1 << 16
_BOM = b"\xef\xbb\xbf"
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
# Start of a file -> what it is; how to go on.
_REFUSED = {
    b"PK\x03\x04": ("a zip archive", "unpack it"),
    b"BZh": ("compressed by bzip2", "unpack it, or use gzip"),
    b"\xfd7zXZ": ("compressed by xz", "unpack it, or use gzip"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstandard", "unpack it, or use gzip"),
    b"ARROW1": ("an Arrow file", "write it as parquet or JSONL"),
    b"\xff\xfe": ("UTF-16 text", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "save it as UTF-8"),
}
_BLANK = re.compile(r"[ \t\n\r]*")
_LITERAL = re.compile(r"[^\s,\]}]*")
# The longest piece that can look wrong only because the rest is not read yet: a pair of \uXXXX.
_EDGE = 16


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...

    def readline(self) -> bytes: ...


def kind_of(path: Path) -> Kind:
    """What the file is. Raises DataError if nothing is in it or nothing here can read it, OSError as ``open`` does."""
    with path.open("rb") as file:
        return _kind(path, file)


def write_lines(path: Path, kind: Kind, target: BinaryIO) -> int:
    """Write the file's items to ``target``, one JSON value per line in UTF-8; returns how many.

    Lines of a JSONL are copied as they are, faulty ones too. Raises DataError where the file is damaged or no JSON,
    ConfigError if a library is missing, OSError as reading and writing do.
    """
    count = 0
    for line in read_lines(path, kind):
        target.write(line + b"\n")
        count += 1
    return count


def where(kind: Kind, number: int) -> str:
    """What follows the file's name in a message about its item ``number``, counted from 1: ``:3`` or ``: item 3``."""
    return {"json": f": item {number}", "parquet": f": row {number}"}.get(kind, f":{number}")


def read_lines(path: Path, kind: Kind, buffer: int = BUFFER) -> Iterator[bytes]:
    """The lines that ``write_lines`` writes, without line breaks. Raises as it does."""
    found = False
    for line in _lines(path, kind, buffer):
        found = True
        yield line
    if not found:
        raise _empty(path)


def _lines(path: Path, kind: Kind, buffer: int) -> Iterator[bytes]:
    if kind == "parquet":
        from internvl_chat.data.parquet import read_rows

        yield from map(json_line, read_rows(path))
        return
    with path.open("rb") as plain:
        if kind != "gzip":
            yield from _read(path, kind, plain, buffer)
            return
        with gzip.open(plain) as packed:
            source = _Gzip(path, packed)
            inner = _kind(path, source)
            if inner in ("gzip", "parquet"):
                raise DataError(f"{path}: {inner} inside gzip; unpack it")
            packed.seek(0)
            yield from _read(path, inner, source, buffer)


def _empty(path: Path) -> DataError:
    mend = "write samples into it, or leave the data set out of the manifest"
    return DataError(f"{path}:1: the annotation is empty; {mend}")


def json_line(item: Any) -> bytes:
    """``item`` as one line of JSON, without a line break; half characters stay escaped, as UTF-8 has none."""
    try:
        return json.dumps(item, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(item).encode()


def _kind(path: Path, file: _Readable) -> Kind:
    head = file.read(_HEAD)
    if head.startswith(_GZIP):
        return "gzip"
    if head.startswith(_PARQUET):
        return "parquet"
    for magic, (what, mend) in _REFUSED.items():
        if head.startswith(magic):
            raise DataError(f"{path}: the annotation is {what}; {mend}")
    text = head.removeprefix(_BOM).lstrip()
    while not text:
        block = file.read(_HEAD)
        if not block:
            raise _empty(path)
        text = block.lstrip()
    more = file.read(_HEAD)
    spread = text.startswith(b"{") and _is_spread(text + more, whole=len(more) < _HEAD)
    return "json" if spread or text.startswith(b"[") else "jsonl"


def _is_spread(head: bytes, whole: bool) -> bool:
    """Whether the first object goes on behind the end of its first line. ``whole``: ``head`` is all there is.

    A first line of JSONL that is broken off is no such object: what follows does not continue it.
    """
    first, line_break, _ = head.partition(b"\n")
    if not line_break or _decode_prefix(first.decode("utf-8", "replace")) is None:
        return False
    text = head.decode("utf-8", "replace")
    error = _decode_prefix(text)
    return error is None or (error.pos >= len(text.rstrip()) if whole else _is_cut(error, text))


def _decode_prefix(text: str) -> json.JSONDecodeError | None:
    """What is wrong with the value that ``text`` begins with; None if it is whole."""
    try:
        json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        return error
    except (ValueError, RecursionError):  # too long a number, too deep: a whole value that the line's reader refuses
        return None
    return None


def _is_cut(error: json.JSONDecodeError, text: str) -> bool:
    """Whether the text may be wrong only because it ends too soon."""
    return error.msg.startswith("Unterminated string") or error.pos >= len(text) - _EDGE


def _read(path: Path, kind: Kind, source: _Readable, buffer: int) -> Iterator[bytes]:
    if kind == "json":
        yield from map(json_line, _values(_Window(path, source, buffer)))
        return
    blank, mark = 0, _BOM
    while line := source.readline():
        line, mark = line.removeprefix(mark).rstrip(b"\r\n"), b""
        if not line.strip():
            blank += 1  # written only if a line follows: at the end of a file they are no lines
            continue
        yield from [b""] * blank
        blank = 0
        yield line


def _values(window: _Window) -> Iterator[Any]:
    """The items of a JSON array, or JSON values one after the other."""
    number = 0
    if window.peek() != "[":
        while window.peek():
            number += 1
            yield window.take(number)
        return
    window.position += 1
    separator = "]" if window.peek() == "]" else ","
    while separator == ",":
        number += 1
        yield window.take(number)
        separator = window.peek()
        if separator not in (",", "]"):
            raise window.error(window.position, "',' or ']' is due behind an item", number)
        window.position += separator == ","
    window.position += 1
    if window.peek():
        raise window.error(window.position, "text behind the end of the array", number)


class _Window:
    """The part of a JSON text that is being decoded. What is behind is dropped, counting lines."""

    def __init__(self, path: Path, source: _Readable, size: int) -> None:
        self.position = 0
        self._path, self._source, self._size = path, source, size
        self._bytes = codecs.getincrementaldecoder("utf-8-sig")()
        self._decoder = json.JSONDecoder()
        self._text, self._ended = "", False
        self._line, self._column = 1, 1  # of the first character of the text

    def peek(self) -> str:
        """The next character that is not blank, "" at the end; the position moves to it."""
        while True:
            blank = _BLANK.match(self._text, self.position)
            self.position = blank.end() if blank else self.position
            if self.position < len(self._text):
                return self._text[self.position]
            if self._ended:
                return ""
            self._more()

    def take(self, number: int) -> Any:
        """Decode the value that begins at the position, which must not be blank, and step behind it."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self.position)
            except json.JSONDecodeError as error:
                if self._ended or not _is_cut(error, self._text):
                    raise self.error(error.pos, error.msg, number) from error
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
                raise self.error(self.position, str(error), number) from error
            else:
                if self._ended or not self._may_go_on():
                    self.position = end
                    return value
            self._more()

    def _may_go_on(self) -> bool:
        """Whether the value is a number or word that touches the end of what is read: 12 of 123, 1 of 1.5."""
        if self._text[self.position] in '{["':
            return False
        word = _LITERAL.match(self._text, self.position)
        return word is not None and word.end() == len(self._text)

    def _more(self) -> None:
        """Read on: as much again as is there, so that a large item is tried a few times and not once per block."""
        self._line, self._column = self._place(self.position)
        self._text, self.position = self._text[self.position :], 0
        block = self._source.read(max(self._size, len(self._text)))
        self._ended = not block
        try:
            self._text += self._bytes.decode(block, final=self._ended)
        except UnicodeDecodeError as error:
            line = self._place(len(self._text))[0] + error.object[: error.start].count(b"\n")
            raise DataError(f"{self._path}:{line}: not UTF-8 ({error.reason}); save the file as UTF-8") from error

    def _place(self, position: int) -> tuple[int, int]:
        """(line, column) of a position, counted from 1."""
        breaks = self._text.count("\n", 0, position)
        if not breaks:
            return self._line, self._column + position
        return self._line + breaks, position - self._text.rfind("\n", 0, position)

    def error(self, position: int, what: str, number: int) -> DataError:
        """The error of a file that is no JSON at a place."""
        line, column = self._place(position)
        ends = self._ended and position >= len(self._text.rstrip())
        mend = (
            "the file ends too soon; write it again" if ends else "often a comma after the last entry, or none between"
        )
        return DataError(f"{self._path}:{line}:{column}: item {number} is not JSON ({what}); {mend}")


class _Gzip:
    """Reads a packed file; what is wrong with the packing becomes a DataError."""

    def __init__(self, path: Path, file: gzip.GzipFile) -> None:
        self._path, self._file = path, file

    def read(self, size: int, /) -> bytes:
        with self._unpacking():
            return self._file.read(size)

    def readline(self) -> bytes:
        with self._unpacking():
            return self._file.readline()

    @contextmanager
    def _unpacking(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            what = f"{self._path}: the gzip file is damaged or cut off ({first_line(error)})"
            raise DataError(f"{what}; check with `gzip -t`, and copy or write it again") from error
