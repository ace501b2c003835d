"""One pass over the lines of a data set, by forked processes in spans, put together in order."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace

import numpy as np
import torch

from internvl_chat.data.address import Address
from internvl_chat.data.faults import FaultRecord
from internvl_chat.data.index import LineIndex
from internvl_chat.data.lint import Depth, LineFacts, look_at_line
from internvl_chat.data.manifest import DatasetSpec
from internvl_chat.data.sample import SampleMaker
from internvl_chat.errors import DataError

# Lines that one process looks at before it reports; fewer where each is loaded.
_SPAN, _SPAN_LOADED = 256, 16
# Lines, spread over the file, whose pictures' heads are read.
SAMPLED = 500
# Examples that are kept of each reason and each warning.
SHOWN = 3

# Name of the data set, lines done, lines in all.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Example:
    """A line, counted from 1, and what is the matter with it."""

    line: int
    text: str


@dataclass(frozen=True)
class Tally:
    """How many lines, and the first of them."""

    count: int
    first: tuple[Example, ...]


@dataclass(frozen=True)
class FaultTally:
    """How many lines have a fault, and the first of them."""

    count: int
    first: tuple[FaultRecord, ...]


@dataclass(frozen=True)
class Seen:
    """What one or several spans have shown.

    ``hashes`` uint64 (lines, 3): content, loose content, id; ``unloadable``: lines that failed to load, from 0;
    ``reach``: the largest number in any box in pixels.
    """

    hashes: np.ndarray
    answers: int
    repetitive: int
    warnings: dict[str, Tally]
    load_faults: dict[str, FaultTally]
    unloadable: np.ndarray
    reach: float


def look_at_lines(
    spec: DatasetSpec,
    index: LineIndex,
    maker: SampleMaker,
    usable: np.ndarray,
    workers: int,
    decode: bool,
    progress: Progress | None,
) -> Seen:
    """Look at each line, pictures' heads at SAMPLED of them; with ``decode`` load all that are usable."""
    lines = len(usable)
    sampled = np.zeros(lines, bool)
    sampled[np.linspace(0, max(lines - 1, 0), min(SAMPLED, lines)).astype(int)] = True
    size = _SPAN_LOADED if decode else _SPAN
    spans = [range(start, min(start + size, lines)) for start in range(0, lines, size)]
    job = (spec, index, maker, usable, sampled, decode)
    parts = []
    for part in _run(spans, job, workers):
        parts.append(part)
        if progress is not None:
            progress(spec.name, min(spans[len(parts) - 1].stop, lines), lines)
    return _merge(parts)


_Job = tuple[DatasetSpec, LineIndex, SampleMaker, np.ndarray, np.ndarray, bool]
_job: list[_Job] = []  # what a process of the pool works on


def _run(spans: Sequence[range], job: _Job, workers: int) -> Iterator[Seen]:
    if workers <= 1 or len(spans) <= 1:
        yield from (_look_at_span(span, *job) for span in spans)
        return
    # Forked processes have the tokenizer already; sent along with each span, it would take longer than the span.
    context = multiprocessing.get_context("fork")
    try:
        with ProcessPoolExecutor(min(workers, len(spans)), context, _set_job, job) as pool:
            yield from pool.map(_run_job, spans)
    except BrokenProcessPool as error:
        name = job[0].name
        what = f"data set {name!r}: a process was killed, most likely for want of memory; lower --index_workers"
        raise DataError(what) from error


def _set_job(*job: object) -> None:
    torch.set_num_threads(1)  # torch's threads do not outlive a fork
    _job[:] = [job]  # type: ignore[list-item]


def _run_job(span: range) -> Seen:
    return _look_at_span(span, *_job[0])


def _look_at_span(
    span: range,
    spec: DatasetSpec,
    index: LineIndex,
    maker: SampleMaker,
    usable: np.ndarray,
    sampled: np.ndarray,
    decode: bool,
) -> Seen:
    facts: list[LineFacts] = []
    for number in span:
        depth: Depth = "all" if decode else "heads" if sampled[number] else "text"
        expected = index.footprint(number) if usable[number] else None
        address = Address(spec.name, number)
        facts.append(look_at_line(index.line(number), spec, maker, address, expected, depth))
    warned = [(kind, Example(n + 1, text)) for n, one in zip(span, facts, strict=True) for kind, text in one.warnings]
    failed = [(n, one.fault) for n, one in zip(span, facts, strict=True) if one.fault is not None]
    records = [
        (fault.code.name, FaultRecord.of(fault, Address(spec.name, n), spec.annotation, "load", index.kind))
        for n, fault in failed
    ]
    return Seen(
        np.array([(one.content, one.loose, one.id) for one in facts], np.uint64).reshape(-1, 3),
        sum(one.answers for one in facts),
        sum(one.repetitive for one in facts),
        {kind: Tally(len(found), tuple(found[:SHOWN])) for kind, found in _grouped(warned).items()},
        {code: FaultTally(len(found), tuple(found[:SHOWN])) for code, found in _grouped(records).items()},
        np.array([n for n, _ in failed], np.int64),
        max((one.reach for one in facts), default=0.0),
    )


def _grouped(pairs: Iterable[tuple[str, object]]) -> dict[str, list]:
    groups: dict[str, list[object]] = {}
    for name, value in pairs:
        groups.setdefault(name, []).append(value)
    return groups


def _merge(parts: Sequence[Seen]) -> Seen:
    return Seen(
        np.concatenate([np.zeros((0, 3), np.uint64), *(part.hashes for part in parts)]),
        sum(part.answers for part in parts),
        sum(part.repetitive for part in parts),
        _sum_up(parts, lambda part: part.warnings),
        _sum_up(parts, lambda part: part.load_faults),
        np.concatenate([np.zeros(0, np.int64), *(part.unloadable for part in parts)]),
        max((part.reach for part in parts), default=0.0),
    )


def _sum_up(parts: Sequence[Seen], get: Callable[[Seen], dict]) -> dict:
    """Tallies by name, added up in order."""
    total: dict = {}
    for part in parts:
        for name, tally in get(part).items():
            old = total.get(name)
            first = (*(old.first if old else ()), *tally.first)[:SHOWN]
            total[name] = replace(tally, count=(old.count if old else 0) + tally.count, first=first)
    return total
