"""Annotation -> memory-mapped index: per line its offset, footprint and fault code, 19 bytes each.

Built once by all processes of a machine together, keyed by the file's content and by all that the footprints depend on,
written atomically, shared through the page cache. A file that grew is measured only where it is new. Nothing of the
annotation is held in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from internvl_chat.data import index_build
from internvl_chat.data.address import Address
from internvl_chat.data.annotation import Content, LineFile, find_lines, look_at
from internvl_chat.data.containers import Kind
from internvl_chat.data.faults import Cut, Fault, FaultCode, FaultRecord
from internvl_chat.data.fit import Footprint, Limits, check_limits
from internvl_chat.data.index_build import ALONE, INDEX_DTYPE, Crew
from internvl_chat.data.manifest import DatasetSpec
from internvl_chat.data.sample import SampleMaker
from internvl_chat.errors import DataError

# Goes into the key: raise it when the meaning of a column changes.
FORMAT = 3


@dataclass
class LineIndex:
    """Random access to the lines of one annotation and to their footprints. Picklable; each process opens its own."""

    lines: LineFile
    table_path: Path
    kind: Kind = "jsonl"
    _table: np.ndarray | None = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_table": None}

    @property
    def table(self) -> np.ndarray:
        """Structured array (lines,) of INDEX_DTYPE, memory-mapped."""
        if self._table is None:
            self._table = np.load(self.table_path, mmap_mode="r")
        return self._table

    def __len__(self) -> int:
        return len(self.table)

    def line(self, number: int) -> bytes:
        """Bytes of a line, counted from 0. Raises DataError if the annotation changed since the index was opened."""
        offsets = self.table["offset"][number : number + 2].tolist()
        return self.lines.read(offsets[0], offsets[1] if len(offsets) > 1 else None)

    def footprint(self, number: int) -> Footprint:
        row = self.table[number]
        return Footprint(int(row["tokens"]), int(row["tiles"]), int(row["supervised"]))


def open_indexes(
    specs: Sequence[DatasetSpec],
    maker: SampleMaker,
    index_dir: Path,
    workers: int = 1,
    rebuild: bool = False,
    look_again: bool = True,
    crew: Crew = ALONE,
) -> list[LineIndex]:
    """The index of each data set, built if it is missing, its file changed, or ``rebuild``.

    ``crew``: the processes of this machine that call this together, and share the work. With ``look_again`` lines whose
    pictures were missing or broken are measured anew: the user may have mended them.
    Raises DataError if an annotation cannot be read, or an index cannot be written.
    """
    jobs: list[_Job] = []
    with crew.first():  # one process reads and unpacks the files; the others find its notes
        jobs += [_prepare(spec, maker, index_dir, rebuild) for spec in specs]
    indexes = {job.path: job for job in jobs}.values()  # two data sets may share one
    with crew.together():
        for job in (job for job in indexes if not job.done):
            with _explained(job.spec, index_dir):
                index_build.measure_part(job.lines, job.path, job.spec, maker, workers, crew, job.known())
    with crew.together():
        if crew.rank == 0:
            for job in indexes:
                with _explained(job.spec, index_dir):
                    job.finish(maker, crew, look_again)
    for job in jobs:
        if not is_index(job.path):
            raise DataError(f"data set {job.spec.name!r}: its index was not finished; see what the first process said")
    return [LineIndex(job.lines, job.path, job.kind) for job in jobs]


def open_index(
    spec: DatasetSpec,
    maker: SampleMaker,
    index_dir: Path,
    workers: int = 1,
    rebuild: bool = False,
    look_again: bool = True,
) -> LineIndex:
    """The index of one data set; see ``open_indexes``."""
    return open_indexes([spec], maker, index_dir, workers, rebuild, look_again)[0]


@dataclass(frozen=True)
class _Job:
    """An index to be opened: ``path`` is there already if ``done``; ``before``: that of the file before it grew."""

    spec: DatasetSpec
    lines: LineFile
    kind: Kind
    path: Path
    done: bool
    before: Path | None

    def known(self) -> np.ndarray | None:
        """Rows of the lines that were there, whole, before the file grew."""
        if self.before is None or not is_index(self.before):
            return None
        old = np.load(self.before, mmap_mode="r")
        # The last line may have gone on without a line break.
        return old[:-1]

    def finish(self, maker: SampleMaker, crew: Crew, look_again: bool) -> None:
        """Put the parts together, if it was not there."""
        if not self.done:
            index_build.merge_parts(self.lines, self.path, crew, self.known(), is_index(self.path))
        if look_again and (self.done or self.before is not None):
            index_build.look_again(self.lines, self.path, self.spec, maker)


def _prepare(spec: DatasetSpec, maker: SampleMaker, index_dir: Path, rebuild: bool) -> _Job:
    with _explained(spec, index_dir):
        index_dir.mkdir(parents=True, exist_ok=True)
        content = look_at(spec.annotation, index_dir)
        lines, kind = find_lines(spec.annotation, content, index_dir)
        file = LineFile(lines, content.state) if kind == "jsonl" else LineFile.of(lines)
        path = _path_of(spec, maker, index_dir, content)
        grown = content.grown_from if kind == "jsonl" and not rebuild else None
        before = None if grown is None else _path_of(spec, maker, index_dir, grown)
    return _Job(spec, file, kind, path, not rebuild and is_index(path), before)


def _path_of(spec: DatasetSpec, maker: SampleMaker, index_dir: Path, content: Content) -> Path:
    key = hashlib.sha256(f"{FORMAT}\0{content.digest}\0{maker.fingerprint(spec)}".encode()).hexdigest()
    return index_dir / f"{spec.annotation.stem[:40]}-{key[:20]}.npy"


@contextmanager
def _explained(spec: DatasetSpec, index_dir: Path) -> Iterator[None]:
    try:
        yield
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


def is_index(path: Path) -> bool:
    """Whether there is an index, whole and of today's columns (a full disk or a lost node leaves other things)."""
    try:
        return np.load(path, mmap_mode="r").dtype == INDEX_DTYPE
    except (OSError, ValueError, EOFError):
        return False


def usable_lines(index: LineIndex, limits: Limits) -> np.ndarray:
    """bool (lines,): neither faulty nor larger than the run allows."""
    table = index.table
    good: np.ndarray = (table["code"] == 0) | (table["code"] >= min(Cut))
    return good & (table["tokens"] <= limits.max_tokens) & (table["tiles"] <= limits.max_tiles)


def explain_faults(index: LineIndex, spec: DatasetSpec, maker: SampleMaker) -> Iterator[FaultRecord]:
    """Ledger entry of every line that is not usable, in order, found one by one by measuring it again."""
    for number in np.flatnonzero(~usable_lines(index, maker.limits)):
        yield explain_line(index, spec, maker, int(number))


def explain_line(index: LineIndex, spec: DatasetSpec, maker: SampleMaker, number: int) -> FaultRecord:
    """Ledger entry of a line that is not usable: what the index says of it, in words."""
    code = int(index.table["code"][number])
    fault = Fault(FaultCode.STALE, "was faulty when the index was built", "run again with --rebuild_index True")
    try:
        if code == FaultCode.NONE or code >= min(Cut):  # too large: the sizes are those of the index
            check_limits(index.footprint(number), maker.limits)
        else:
            maker.measure(index.line(number), spec)
            fault = Fault(FaultCode(code), fault.reason, fault.mend)
    except Fault as found:
        fault = found
    return FaultRecord.of(fault, Address(spec.name, number), spec.annotation, "index", index.kind)
