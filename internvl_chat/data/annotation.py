"""Annotation file -> its lines: what its content is, where each line starts, whether it only grew since last time."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from internvl_chat.data.containers import Kind, kind_of, write_lines
from internvl_chat.errors import DataError
from internvl_chat.log import get_logger

log = get_logger(__name__)

_BOM = b"\xef\xbb\xbf"
_READ_BYTES = 1 << 26

# Size, time of change and number of a file.
State = tuple[int, ...]


@dataclass(frozen=True)
class Content:
    """What a file held when it was read: hash and size. ``grown_from``: the content that it went on from.

    ``state``: what tells that the file has not changed since.
    """

    digest: str
    size: int
    grown_from: Content | None = None
    state: State = ()


@dataclass
class LineFile:
    """A JSONL file that lines are read from by their offsets; picklable, each process opens its own.

    A file that has changed since its content was looked at is not read: offsets into it mean nothing any more.
    """

    path: Path
    state: State
    _fd: int | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, path: Path) -> LineFile:
        return cls(path, _state_of(path.stat()))

    def close(self) -> None:
        """Let go of the file; it is opened, and compared, again when it is next read."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def check(self) -> None:
        """Raise DataError if the file has changed."""
        self._compare(self.path.stat())

    def _compare(self, stat: os.stat_result) -> None:
        if _state_of(stat) != self.state:
            raise DataError(
                f"{self.path}: changed after its index was opened, which is out of date now; start the run again"
            )

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_fd": None}

    def read(self, start: int, end: int | None) -> bytes:
        """Bytes between two offsets (None: the end), without the line break. Raises DataError if the file changed."""
        if self._fd is None:
            self._fd = os.open(self.path, os.O_RDONLY)
            self._compare(os.fstat(self._fd))
        return os.pread(self._fd, (self.state[0] if end is None else end) - start, start).rstrip(b"\r\n")


def look_at(path: Path, index_dir: Path) -> Content:
    """The file's content; read again only when its size or time of change differ from the last look."""
    stat = path.stat()
    seen = index_dir / f"seen-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:20]}.json"
    state = {"path": str(path.resolve()), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    state |= {"ctime_ns": stat.st_ctime_ns, "inode": stat.st_ino}  # the time of the content can be set back
    try:
        old = json.loads(seen.read_text(encoding="utf-8"))
        before = Content(str(old["digest"]), int(old["size"]), _grown_from(old.get("grown_from")), _state_of(stat))
        if all(old.get(k) == v for k, v in state.items()):
            return before
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        before = None  # never looked at, or changed by hand: hash it
    hasher = hashlib.blake2b()
    with path.open("rb") as file:
        grown = None
        if before is not None and before.size < stat.st_size:
            _feed(hasher, file, before.size)
            grown = Content(before.digest, before.size) if hasher.hexdigest() == before.digest else None
        _feed(hasher, file, None)
    if _state_of(path.stat()) != _state_of(stat):
        raise DataError(f"{path}: changed while it was read; wait until it is complete, and start again")
    digest = hasher.hexdigest()
    note = {**state, "digest": digest, "grown_from": grown and [grown.digest, grown.size]}
    replace_file(seen, lambda out: out.write(json.dumps(note).encode()))
    return Content(digest, stat.st_size, grown, _state_of(stat))


def _state_of(stat: os.stat_result) -> State:
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _grown_from(value: object) -> Content | None:
    return Content(str(value[0]), int(value[1])) if isinstance(value, list) else None


def _feed(hasher: hashlib.blake2b, file: BinaryIO, size: int | None) -> None:
    """Hash the next ``size`` bytes, or all that are left."""
    while block := file.read(_READ_BYTES if size is None else min(size, _READ_BYTES)):
        hasher.update(block)
        size = None if size is None else size - len(block)


def find_lines(path: Path, content: Content, index_dir: Path) -> tuple[Path, Kind]:
    """The JSONL file that has the annotation's lines: itself, or a copy in ``index_dir``, and what the annotation is.

    A JSON array, gzip or parquet file is unpacked once. Raises DataError if it is empty or cannot be unpacked.
    """
    kind = kind_of(path)
    if kind == "jsonl":
        return path, kind
    copy = index_dir / f"{path.stem[:40]}-{content.digest[:20]}.lines.jsonl"
    if not copy.is_file():
        log.info("%s is no JSONL: its lines are unpacked to %s", path, copy)
        replace_file(copy, lambda out: write_lines(path, kind, out))
    return copy, kind


def line_offsets(path: Path) -> np.ndarray:
    """Offset of each line, int64 (lines,). Blank lines at the end of the file are no lines; a BOM is stepped over."""
    ends: list[np.ndarray] = []
    position, last_content = 0, 0
    with path.open("rb") as file:
        begin = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
        file.seek(0)
        while block := file.read(_READ_BYTES):
            data = np.frombuffer(block, np.uint8)
            ends.append(np.flatnonzero(data == 10) + position + 1)
            if stripped := block.rstrip():
                last_content = position + len(stripped)
            position += len(block)
    starts = np.concatenate([[begin], *ends]).astype(np.int64)
    return starts[starts < last_content]


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Put a file in place whole or not at all. No other process, on any node, uses the name in between."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
