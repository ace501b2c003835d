"""Lines -> rows of an index: measured in parallel, in parts by the processes of a machine, then put together."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from internvl_chat.data.annotation import LineFile, line_offsets, replace_file
from internvl_chat.data.faults import MEDIA_FAULTS, Fault, FaultCode
from internvl_chat.data.manifest import DatasetSpec
from internvl_chat.data.sample import SampleMaker
from internvl_chat.errors import DataError
from internvl_chat.log import get_logger

log = get_logger(__name__)

# ``code``: 0, a FaultCode, or a Cut.
INDEX_DTYPE = np.dtype([("offset", "<i8"), ("tokens", "<u4"), ("tiles", "<u2"), ("supervised", "<u4"), ("code", "u1")])
_SIZES = ("tokens", "tiles", "supervised", "code")
_MOST_TILES = np.iinfo(np.uint16).max
_CHUNK_LINES = 256
# Lines whose declared picture sizes are compared with the pictures, before these are believed.
_VERIFIED = 100


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Crew:
    """The processes of a machine that build indexes together. ``barrier`` waits for all of them.

    ``name`` is theirs alone: another job may build the same index at the same time.
    """

    rank: int = 0
    size: int = 1
    name: str = ""
    barrier: Callable[[], None] = _nothing

    @contextmanager
    def first(self) -> Iterator[None]:
        """Rank 0 runs the block, then the others do."""
        if self.rank:
            self.barrier()
        try:
            yield
        finally:
            if not self.rank:
                self.barrier()

    @contextmanager
    def together(self) -> Iterator[None]:
        """The block ends when all have ended it."""
        try:
            yield
        finally:
            self.barrier()


ALONE = Crew()


def measure_part(
    file: LineFile,
    target: Path,
    spec: DatasetSpec,
    maker: SampleMaker,
    workers: int,
    crew: Crew,
    known: np.ndarray | None,
) -> None:
    """Measure this process's share of the lines that are not ``known`` and leave it in a file beside ``target``.

    Raises DataError if the annotation changed meanwhile.
    """
    lines = file.path
    offsets = line_offsets(lines)
    ends = np.append(offsets[1:], lines.stat().st_size)
    file.check()
    begin = 0 if known is None else len(known)
    starts = range(begin + crew.rank * _CHUNK_LINES, len(offsets), crew.size * _CHUNK_LINES)
    spans = [(offsets[s : s + _CHUNK_LINES].copy(), ends[s : s + _CHUNK_LINES].copy()) for s in starts]
    job = (lines, spec, maker, _declared_sizes_hold(file, offsets, ends, spec, maker))
    if workers > 1 and len(spans) > 1:
        # Forked processes have the tokenizer already; sent along with each span, it would take longer than the span.
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(min(workers, len(spans)), context, _set_job, job) as pool:
            chunks = list(pool.map(_run_job, spans))
    else:
        chunks = [_measure_span(span, *job) for span in spans]
    rows = np.concatenate(chunks) if chunks else np.zeros(0, INDEX_DTYPE)
    file.close()
    file.check()
    replace_file(_part(target, crew, crew.rank), lambda out: np.save(out, rows))


def merge_parts(file: LineFile, target: Path, crew: Crew, known: np.ndarray | None, there: bool) -> None:
    """Put the parts of all processes together and remove them.

    ``there``: whether another job has finished the same index meanwhile, which then stands. Raises DataError if a part
    is missing, or the annotation changed meanwhile.
    """
    paths = [_part(target, crew, rank) for rank in range(crew.size)]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing and there:  # a process of ours found it and had nothing to do
        for path in paths:
            path.unlink(missing_ok=True)
        return
    if missing:
        raise DataError(f"{file.path}: its index is not complete, {missing[0]} is missing; see what its process said")
    offsets = line_offsets(file.path)
    file.check()
    table = np.zeros(len(offsets), INDEX_DTYPE)
    begin = 0
    if known is not None:
        begin = len(known)
        table[:begin] = known
    for rank, path in enumerate(paths):
        rows, done = np.load(path), 0
        for start in range(begin + rank * _CHUNK_LINES, len(table), crew.size * _CHUNK_LINES):
            count = min(_CHUNK_LINES, len(table) - start)
            table[start : start + count] = rows[done : done + count]
            done += count
    replace_file(target, lambda out: np.save(out, table))
    for path in paths:
        path.unlink(missing_ok=True)
    faults = int(((table["code"] > 0) & (table["code"] <= max(FaultCode))).sum())
    known_before = f", {begin} known before" if begin else ""
    log.info("index of %s: %d lines, %d faulty%s", file.path, len(table), faults, known_before)


def look_again(file: LineFile, target: Path, spec: DatasetSpec, maker: SampleMaker) -> None:
    """Measure anew the lines whose media were missing or broken; the index is replaced if one is not any more."""
    table = np.load(target, mmap_mode="r")
    doubtful = np.flatnonzero(np.isin(table["code"], MEDIA_FAULTS))
    if not len(doubtful):
        return
    ends = np.append(table["offset"][1:], file.state[0])
    rows = {int(n): measure_line(file.read(int(table["offset"][n]), int(ends[n])), spec, maker) for n in doubtful}
    file.close()
    changed = {number: row for number, row in rows.items() if row[3] != table["code"][number]}
    if changed:
        renewed = np.array(table)
        for number, row in changed.items():
            renewed[number] = (table["offset"][number], *row)
        replace_file(target, lambda out: np.save(out, renewed))


def measure_line(
    line: bytes, spec: DatasetSpec, maker: SampleMaker, trust_sizes: bool = False
) -> tuple[int, int, int, int]:
    """(tokens, tiles, supervised, code) of a line; a faulty line has size 0."""
    try:
        footprint, cut = maker.measure(line, spec, trust_sizes)
    except Fault as fault:
        return 0, 0, 0, int(fault.code)
    return footprint.tokens, min(footprint.tiles, _MOST_TILES), footprint.supervised, int(cut or FaultCode.NONE)


def _part(target: Path, crew: Crew, rank: int) -> Path:
    return target.with_name(f"{target.stem}.{crew.name or os.getpid()}.part{rank}of{crew.size}")


_Span = tuple[np.ndarray, np.ndarray]
_Job = tuple[Path, DatasetSpec, SampleMaker, bool]
_job: list[_Job] = []  # what a process of the pool works on


def _set_job(*job: object) -> None:
    _job[:] = [job]  # type: ignore[list-item]


def _run_job(span: _Span) -> np.ndarray:
    return _measure_span(span, *_job[0])


def _measure_span(span: _Span, lines: Path, spec: DatasetSpec, maker: SampleMaker, trust_sizes: bool) -> np.ndarray:
    """Rows of the lines that start and end at the given offsets."""
    rows = np.zeros(len(span[0]), INDEX_DTYPE)
    rows["offset"] = span[0]
    with lines.open("rb") as file:
        for number, (start, end) in enumerate(zip(*span, strict=True)):
            file.seek(start)
            sizes = measure_line(file.read(end - start).rstrip(b"\r\n"), spec, maker, trust_sizes)
            for name, value in zip(_SIZES, sizes, strict=True):
                rows[name][number] = value
    return rows


def _declared_sizes_hold(
    file: LineFile, offsets: np.ndarray, ends: np.ndarray, spec: DatasetSpec, maker: SampleMaker
) -> bool:
    """Whether the pictures of lines spread over the file have the sizes that these give. A warning, if not."""
    for number in np.unique(np.linspace(0, len(offsets) - 1, _VERIFIED).astype(int)) if len(offsets) else ():
        wrong = maker.contradicted_size(file.read(int(offsets[number]), int(ends[number])), spec)
        if wrong is not None:
            log.warning("%s:%d: %s; the sizes are taken from the pictures instead", spec.annotation, number + 1, wrong)
            return False
    return True
