"""JSONL -> memory-mapped index: per line its offset, footprint and fault code, 21 bytes each.

Built once in parallel, keyed by the file's content and by all that the footprints depend on, written atomically, shared
by every process of the machine through the page cache. Nothing of the annotation is held in memory.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from internvl_chat.data.address import Address
from internvl_chat.data.faults import MEDIA_FAULTS, Fault, FaultCode, FaultRecord
from internvl_chat.data.manifest import DatasetSpec
from internvl_chat.data.sample import Footprint, Limits, SampleMaker
from internvl_chat.errors import DataError
from internvl_chat.log import get_logger

log = get_logger(__name__)

# Goes into the key: raise it when the meaning of a column changes.
FORMAT = 2
INDEX_DTYPE = np.dtype([("offset", "<i8"), ("tokens", "<i4"), ("tiles", "<i4"), ("supervised", "<i4"), ("fault", "u1")])
_BOM = b"\xef\xbb\xbf"
_READ_BYTES = 1 << 26
_START_BYTES = 1 << 16
_CHUNK_LINES = 256


@dataclass
class LineIndex:
    """Random access to the lines of one annotation and to their footprints. Picklable; each process opens its own."""

    annotation: Path
    table_path: Path
    _table: np.ndarray | None = field(default=None, repr=False, compare=False)
    _fd: int | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_table": None, "_fd": None}

    @property
    def table(self) -> np.ndarray:
        """Structured array (lines,) of INDEX_DTYPE, memory-mapped."""
        if self._table is None:
            self._table = np.load(self.table_path, mmap_mode="r")
        return self._table

    def __len__(self) -> int:
        return len(self.table)

    def line(self, number: int) -> bytes:
        """Bytes of a line, counted from 0."""
        if self._fd is None:
            self._fd = os.open(self.annotation, os.O_RDONLY)
        start = int(self.table["offset"][number])
        last = number + 1 == len(self.table)
        end = os.fstat(self._fd).st_size if last else int(self.table["offset"][number + 1])
        return os.pread(self._fd, end - start, start).rstrip(b"\r\n")

    def footprint(self, number: int) -> Footprint:
        row = self.table[number]
        return Footprint(int(row["tokens"]), int(row["tiles"]), int(row["supervised"]))


def open_index(
    spec: DatasetSpec,
    maker: SampleMaker,
    index_dir: Path,
    workers: int = 1,
    rebuild: bool = False,
    look_again: bool = True,
) -> LineIndex:
    """The index of a data set, built if it is missing, the file changed, or ``rebuild``.

    With ``look_again`` lines whose pictures were missing or broken are measured anew: the user may have mended them.
    Raises DataError if the annotation cannot be read, is no JSONL at all, or the index cannot be written.
    """
    try:
        index_dir.mkdir(parents=True, exist_ok=True)
        digest = _content_digest(spec.annotation, index_dir)
        key = hashlib.sha256(f"{FORMAT}\0{digest}\0{maker.fingerprint(spec)}".encode()).hexdigest()
        path = index_dir / f"{spec.annotation.stem[:40]}-{key[:20]}.npy"
        if rebuild or not _is_index(path):
            _check_is_jsonl(spec)
            _replace(path, _build(spec, maker, workers))
        elif look_again:
            _look_again(path, spec, maker)
    except OSError as error:
        raise DataError(
            f"data set {spec.name!r}: {error.filename or index_dir}: {error.strerror}; the annotation must be readable "
            f"and --index_dir ({index_dir}) must be a folder with room to write"
        ) from error
    except BrokenProcessPool as error:
        raise DataError(
            f"data set {spec.name!r}: a process that built the index was killed, most likely for want of memory; "
            "lower --index_workers"
        ) from error
    return LineIndex(spec.annotation, path)


def _is_index(path: Path) -> bool:
    """Whether there is an index, whole and of today's columns (a full disk or a lost node leaves other things)."""
    try:
        return np.load(path, mmap_mode="r").dtype == INDEX_DTYPE
    except (OSError, ValueError, EOFError):
        return False


def _check_is_jsonl(spec: DatasetSpec) -> None:
    """Raise DataError for the usual mistakes: nothing in it, one JSON array, one object over several lines."""
    with spec.annotation.open("rb") as file:
        start = file.read(_START_BYTES).removeprefix(_BOM).lstrip()
    where = f"{spec.annotation}:1: data set {spec.name!r}: the annotation is"
    if not start:
        raise DataError(f"{where} empty; write samples into it, or leave the data set out of the manifest")
    if start.startswith(b"[") or start.split(b"\n", 1)[0].strip() == b"{":
        what = "one JSON array" if start.startswith(b"[") else "JSON written over several lines"
        mend = "write one object per line, e.g. json.dumps(item) and a line break for each"
        raise DataError(f"{where} {what}, not JSONL; {mend}")


def usable_lines(index: LineIndex, limits: Limits) -> np.ndarray:
    """bool (lines,): neither faulty nor larger than the run allows."""
    table = index.table
    good: np.ndarray = table["fault"] == 0
    return good & (table["tokens"] <= limits.max_tokens) & (table["tiles"] <= limits.max_tiles)


def explain_faults(index: LineIndex, spec: DatasetSpec, maker: SampleMaker) -> Iterator[FaultRecord]:
    """Ledger entries of the lines that are not usable, in order, found one by one by measuring them again."""
    for number in np.flatnonzero(~usable_lines(index, maker.limits)):
        try:
            maker.check_limits(maker.measure(index.line(int(number)), spec))
        except Fault as fault:
            yield FaultRecord.of(fault, Address(spec.name, int(number)), spec.annotation, stage="index")


def _build(spec: DatasetSpec, maker: SampleMaker, workers: int) -> np.ndarray:
    offsets = _line_offsets(spec.annotation)
    table = np.zeros(len(offsets), INDEX_DTYPE)
    table["offset"] = offsets
    ends = np.append(offsets[1:], spec.annotation.stat().st_size)
    starts = range(0, len(offsets), _CHUNK_LINES)
    spans = [(offsets[s : s + _CHUNK_LINES].copy(), ends[s : s + _CHUNK_LINES].copy()) for s in starts]
    if workers > 1 and len(spans) > 1:
        # Forked processes have the tokenizer already; sent along with each span, it would take longer than the span.
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(min(workers, len(spans)), context, _set_job, (spec, maker)) as pool:
            chunks = list(pool.map(_run_job, spans))
    else:
        chunks = [_measure_span(span, spec, maker) for span in spans]
    for column, values in zip(("tokens", "tiles", "supervised", "fault"), zip(*chunks, strict=True), strict=False):
        table[column] = np.concatenate(values)
    log.info("index of %s: %d lines, %d faulty", spec.annotation, len(table), int((table["fault"] > 0).sum()))
    return table


_Span = tuple[np.ndarray, np.ndarray]
_job: list[tuple[DatasetSpec, SampleMaker]] = []  # what a process of the pool works on


def _set_job(spec: DatasetSpec, maker: SampleMaker) -> None:
    _job[:] = [(spec, maker)]


def _run_job(span: _Span) -> tuple[np.ndarray, ...]:
    return _measure_span(span, *_job[0])


def _measure_span(span: _Span, spec: DatasetSpec, maker: SampleMaker) -> tuple[np.ndarray, ...]:
    """tokens, tiles, supervised, fault of the lines that start and end at the given offsets."""
    rows = np.zeros((4, len(span[0])), np.int64)
    with spec.annotation.open("rb") as file:
        for number, (start, end) in enumerate(zip(*span, strict=True)):
            file.seek(start)
            rows[:, number] = measure_line(file.read(end - start).rstrip(b"\r\n"), spec, maker)
    return tuple(rows)


def measure_line(line: bytes, spec: DatasetSpec, maker: SampleMaker) -> tuple[int, int, int, int]:
    """(tokens, tiles, supervised, fault code) of a line; a faulty line has size 0."""
    try:
        footprint = maker.measure(line, spec)
    except Fault as fault:
        return 0, 0, 0, int(fault.code)
    return footprint.tokens, footprint.tiles, footprint.supervised, int(FaultCode.NONE)


def _look_again(path: Path, spec: DatasetSpec, maker: SampleMaker) -> None:
    index = LineIndex(spec.annotation, path)
    changed: dict[int, tuple[int, int, int, int]] = {}
    for number in np.flatnonzero(np.isin(index.table["fault"], MEDIA_FAULTS)).tolist():
        row = measure_line(index.line(number), spec, maker)
        if row[3] != index.table["fault"][number]:
            changed[number] = row
    if changed:
        table = np.load(path)
        for number, row in changed.items():
            table[number] = (table["offset"][number], *row)
        _replace(path, table)


def _line_offsets(path: Path) -> np.ndarray:
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


def _content_digest(path: Path, index_dir: Path) -> str:
    """Hash of the file's content; read again only when its size or time of change differ from the last look."""
    stat = path.stat()
    seen = index_dir / f"seen-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:20]}.json"
    state = {"path": str(path.resolve()), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    try:
        old = json.loads(seen.read_text(encoding="utf-8"))
        if all(old.get(k) == v for k, v in state.items()):
            return str(old["digest"])
    except (OSError, ValueError, KeyError, AttributeError):
        pass  # never looked at, or changed by hand: hash it
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "blake2b").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)
    _replace(seen, json.dumps({**state, "digest": digest}).encode())
    return digest


def _digest(file: object) -> str:  # Python 3.10 has no hashlib.file_digest
    hasher = hashlib.blake2b()
    while block := file.read(_READ_BYTES):  # type: ignore[attr-defined]
        hasher.update(block)
    return hasher.hexdigest()


def _replace(path: Path, content: bytes | np.ndarray) -> None:
    """Put a file in place whole or not at all. No other process, on any node, uses the name in between."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                np.save(file, content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
