"""All data sets of a run as one table of entries: what there is to see in an epoch, and how to load one of them."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from internvl_chat.data.address import Address, rng_for
from internvl_chat.data.faults import Cut, Fault, FaultCode, FaultRecord, TooManyFaults, check_fault_share
from internvl_chat.data.index import LineIndex, explain_faults, open_indexes, usable_lines
from internvl_chat.data.index_build import ALONE, Crew
from internvl_chat.data.manifest import DatasetSpec
from internvl_chat.data.sample import Sample, SampleMaker
from internvl_chat.data.share import Lines, Share
from internvl_chat.errors import ConfigError, DataError
from internvl_chat.log import get_logger

log = get_logger(__name__)

Split = Literal["train", "eval"]
# Number of the data set, line, visit: one sample to load.
Due = tuple[int, int, int]
_SIZES = ("tokens", "tiles", "supervised")
# Lines whose sizes are read at a time.
_PIECE = 2**20
# Numbers of unusable lines that a checkpoint keeps, per data set.
_MOST_LEFT_OUT = 10_000
# Faults of a data set that are shown in the log; the ledger has all.
_SHOWN = 3


class Places(NamedTuple):
    """Where entries are: number of the data set, line and visit (what ``Address.epoch`` counts), int64 (N,) each."""

    dataset: np.ndarray
    line: np.ndarray
    visit: np.ndarray


@dataclass(frozen=True)
class Reader:
    """Loads lines by number of the data set, line and visit. Small to send to a process: it holds paths, not data."""

    specs: tuple[DatasetSpec, ...]
    indexes: tuple[LineIndex, ...]
    maker: SampleMaker

    def address(self, dataset: int, line: int, visit: int) -> Address:
        return Address(self.specs[dataset].name, line, visit)

    def load(self, dataset: int, line: int, visit: int) -> Sample:
        """Read, cut and tokenize one line. Raises Fault; DataError if its annotation has changed."""
        index, address = self.indexes[dataset], self.address(dataset, line, visit)
        return self.maker.load(index.line(line), self.specs[dataset], address, expected=index.footprint(line))

    def record_of(self, fault: Fault, dataset: int, line: int, visit: int) -> FaultRecord:
        """Ledger entry of a fault that came up on loading."""
        annotation, kind = self.specs[dataset].annotation, self.indexes[dataset].kind
        return FaultRecord.of(fault, self.address(dataset, line, visit), annotation, "load", kind)


@dataclass(frozen=True)
class Corpus:
    """All data sets of a run as entries ``0 .. len - 1`` of an epoch, in manifest order.

    What an entry is follows by arithmetic from the usable lines, so that repeats and weights cost no memory.
    """

    specs: tuple[DatasetSpec, ...]
    indexes: tuple[LineIndex, ...]
    maker: SampleMaker
    shares: tuple[Share, ...]

    @cached_property
    def starts(self) -> np.ndarray:
        """First entry of each data set, and the number of all, int64 (D + 1,)."""
        return np.cumsum([0, *(share.count for share in self.shares)])

    @property
    def reader(self) -> Reader:
        return Reader(self.specs, self.indexes, self.maker)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def load(self, entry: int, epoch: int) -> Sample:
        """Read, cut and tokenize one entry; see ``Reader.load``."""
        return self.reader.load(*self._place(entry, epoch))

    def address(self, entry: int, epoch: int) -> Address:
        """Name of an entry in an epoch; repetitions within the epoch are visits of their own."""
        return self.reader.address(*self._place(entry, epoch))

    def record_of(self, fault: Fault, entry: int, epoch: int) -> FaultRecord:
        """Ledger entry of a fault that came up on loading."""
        return self.reader.record_of(fault, *self._place(entry, epoch))

    def _place(self, entry: int, epoch: int) -> tuple[int, int, int]:
        dataset, line, visit = (int(column[0]) for column in self.places(np.array([entry]), epoch))
        return dataset, line, visit

    def places(self, entries: np.ndarray | None = None, epoch: int = 0) -> Places:
        """Where some entries (N,), or all, are in an epoch."""
        entries = np.arange(len(self)) if entries is None else np.asarray(entries, np.int64)
        dataset = np.searchsorted(self.starts, entries, side="right") - 1
        line, visit = np.empty_like(entries), np.empty_like(entries)
        for number in np.unique(dataset).tolist():
            own = dataset == number
            line[own], visit[own] = self.shares[number].locate(entries[own] - self.starts[number], epoch)
        return Places(dataset, line, visit)

    def due(self, entries: np.ndarray, epoch: int) -> tuple[Due, ...]:
        """The same as plain numbers, for whoever loads them."""
        return tuple(zip(*(column.tolist() for column in self.places(entries, epoch)), strict=True))

    def column(self, name: str, entries: np.ndarray | None = None, epoch: int = 0) -> np.ndarray:
        """``tokens``, ``tiles`` or ``supervised`` of some entries (N,), or of all, int64 (N,)."""
        places = self.places(entries, epoch)
        values = np.empty(len(places.line), np.int64)
        for number in np.unique(places.dataset).tolist():
            own = places.dataset == number
            values[own] = self.indexes[number].table[name][places.line[own]]
        return values

    def take(self, entries: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and tiles of entries (N,): the sizes a plan is made from."""
        places = self.places(entries, epoch)
        sizes = np.empty((2, len(places.line)), np.int64)
        for number in np.unique(places.dataset).tolist():
            own = places.dataset == number
            rows = self.indexes[number].table[places.line[own]]
            sizes[:, own] = rows["tokens"], rows["tiles"]
        return sizes[0], sizes[1]

    @property
    def supervised_share(self) -> float:
        """Share of the tokens (0..1) that are trained on, over the usable lines."""
        sums = np.zeros(2, np.int64)
        for share, index in zip(self.shares, self.indexes, strict=True):
            for lines in _pieces(share.lines):
                rows = index.table[lines]
                sums += rows["supervised"].sum(dtype=np.int64), rows["tokens"].sum(dtype=np.int64)
        return float(sums[0] / max(1, sums[1]))

    @cached_property
    def identity(self) -> dict[str, dict[str, Any]]:
        """Per data set what a run that goes on must share: entries in an epoch, usable lines and their sizes, as JSON.

        ``left_out``: numbers of the lines that are not usable, if there are not too many to keep.
        """
        return {
            spec.name: {
                "samples": share.count,
                "lines": len(share.lines),
                "sizes": _crc_of_sizes(index, share.lines),
                "left_out": share.lines.left_out(_MOST_LEFT_OUT),
            }
            for spec, index, share in zip(self.specs, self.indexes, self.shares, strict=True)
        }

    def left_out(self) -> Iterator[FaultRecord]:
        """Every line that is no entry for a fault, and why. Each is measured again, so ask once, on one process."""
        for spec, index in zip(self.specs, self.indexes, strict=True):
            yield from explain_faults(index, spec, self.maker)


def open_corpus(
    specs: Sequence[DatasetSpec],
    maker: SampleMaker,
    index_dir: Path,
    *,
    split: Split = "train",
    workers: int = 1,
    rebuild: bool = False,
    look_again: bool = True,
    max_fault_share: float = 0.01,
    resample: bool = False,
    without: Mapping[str, Sequence[int]] | None = None,
    crew: Crew = ALONE,
) -> Corpus:
    """Index every data set and lay all usable lines of one split out as entries. See ``open_indexes``.

    ``resample``: weigh data sets by the square root of their size. ``without``: lines that stay out, per data set,
    because they did so when a run that is to go on began.

    Raises TooManyFaults when too large a share of a data set is faulty, or one sample too long where the limits say
    that this ends the run; DataError when nothing is left.
    """
    indexes = tuple(open_indexes(specs, maker, index_dir, workers, rebuild, look_again, crew))
    lines, refused = [], []
    for spec, index in zip(specs, indexes, strict=True):
        usable = usable_lines(index, maker.limits)
        try:
            _refuse_faulty(spec, index, maker, len(usable) - int(usable.sum()), max_fault_share)
        except TooManyFaults as error:
            refused.append(error)
            continue
        held_out = held_out_lines(spec, len(usable))
        chosen = usable & (held_out if split == "eval" else ~held_out)
        chosen[[number for number in (without or {}).get(spec.name, ()) if number < len(chosen)]] = False
        lines.append(Lines.of(chosen))
        _report(spec, index, maker, usable, chosen, split)
    if refused:  # all of them: whoever mends his data wants to know at once
        raise TooManyFaults("\n".join(map(str, refused)), chain.from_iterable(error.records for error in refused))
    shares = _shares(specs, indexes, lines, split, resample)
    if not any(share.count for share in shares):
        raise DataError(
            "no line of the manifest can be used: all are faulty, held out (eval_share), or of another split"
        )
    for share in shares:
        if share.drawn:
            log.info("data set %s: %d samples in an epoch, of %d lines", share.name, share.count, len(share.lines))
    return Corpus(tuple(specs), indexes, maker, shares)


def _refuse_faulty(spec: DatasetSpec, index: LineIndex, maker: SampleMaker, faults: int, limit: float) -> None:
    """Raise TooManyFaults for too many faults, or for one sample that is too long if that ends the run."""
    table, limits = index.table, maker.limits
    too_large = (table["tokens"] > limits.max_tokens) | (table["tiles"] > limits.max_tiles)
    if limits.too_long != "fail" or not too_large.any():
        check_fault_share(spec.name, faults, len(table), limit, explain_faults(index, spec, maker))
        return
    too_long = (FaultCode.TOO_LONG.name, FaultCode.TOO_MANY_TILES.name)
    records = (record for record in explain_faults(index, spec, maker) if record.code in too_long)
    message = f"data set {spec.name!r}: samples are too long, and --long_samples is fail; the first: {next(records)}"
    raise TooManyFaults(message, explain_faults(index, spec, maker))


def held_out_lines(spec: DatasetSpec, lines: int) -> np.ndarray:
    """bool (lines,): which are kept for evaluation. A line's lot does not change when the file grows."""
    if spec.split == "eval":
        return np.ones(lines, bool)
    held_out: np.ndarray = rng_for(0, Address(spec.name, 0)).random(lines) < spec.eval_share
    return held_out


def _shares(
    specs: Sequence[DatasetSpec],
    indexes: Sequence[LineIndex],
    lines: Sequence[Lines],
    split: Split,
    resample: bool,
) -> tuple[Share, ...]:
    """Repeats and weights are for training; for evaluation every line counts once."""
    if split == "eval":
        return tuple(Share(spec.name, good, len(good)) for spec, good in zip(specs, lines, strict=True))
    plain = [len(good) for good in lines]
    if not (weights := _weights(specs, lines)):
        plain = [_repeated(spec, good, len(index)) for spec, index, good in zip(specs, indexes, lines, strict=True)]
        if not resample:
            return tuple(Share(spec.name, good, n) for spec, good, n in zip(specs, lines, plain, strict=True))
        weights = [math.sqrt(count) for count in plain]
    elif resample:
        raise ConfigError("--use_data_resampling True: the manifest has weights already; leave one of the two out")
    total = sum(weights)
    return tuple(
        Share(spec.name, good, max(1, round(sum(plain) * weight / total)) if len(good) else 0, drawn=True)
        for spec, good, weight in zip(specs, lines, weights, strict=True)
    )


def _repeated(spec: DatasetSpec, good: Lines, lines: int) -> int:
    """Entries: whole repetitions take every line, the fraction that is left takes the first part of the file."""
    rounds, fraction = int(spec.repeat_time), spec.repeat_time - int(spec.repeat_time)
    rest = good.before(int(lines * fraction + 1e-6))  # 2.3 - 2 is less than 0.3
    if not rounds and len(good) and not rest:
        raise DataError(
            f"data set {spec.name!r}: repeat_time {spec.repeat_time:g} of {lines} lines takes no usable line; "
            "raise it in the manifest, or leave the data set out"
        )
    return rounds * len(good) + rest


def _weights(specs: Sequence[DatasetSpec], lines: Sequence[Lines]) -> list[float]:
    """The manifest's weights of the data sets, 0 for one without lines; none if it has none. Raises ConfigError."""
    used = [spec for spec, good in zip(specs, lines, strict=True) if len(good)]
    if all(spec.weight is None for spec in used):
        return []
    if bare := [spec.name for spec in used if spec.weight is None]:
        raise ConfigError(f"data set {bare[0]!r} has no weight, others have; give every data set one, or none")
    return [float(spec.weight or 0) if len(good) else 0.0 for spec, good in zip(specs, lines, strict=True)]


def _count(codes: np.ndarray, meaning: type[Cut] | type[FaultCode]) -> Counter[str]:
    """How often each code but 0 is there, by name."""
    found, counts = np.unique(codes[codes > 0], return_counts=True)
    return Counter({meaning(int(code)).name: int(count) for code, count in zip(found, counts, strict=True)})


def _report(
    spec: DatasetSpec, index: LineIndex, maker: SampleMaker, usable: np.ndarray, chosen: np.ndarray, split: Split
) -> None:
    tokens, tiles, supervised = (int(index.table[name].sum(dtype=np.int64, where=chosen)) for name in _SIZES)
    cut = _count(index.table["code"][chosen], Cut)
    held_out = int(usable.sum()) - int(chosen.sum())
    notes = [f"{held_out} lines {'held out' if split == 'train' else 'for training'}"] if held_out else []
    notes += [f"{count} lines cut to fit ({name})" for name, count in cut.items()]
    notes += [f"{len(usable) - int(usable.sum())} lines left out"] if not usable.all() else []
    often = f"weight {spec.weight:g}" if spec.weight is not None else f"x {spec.repeat_time:g}"
    log.info(
        "data set %s: %d lines %s, %d tokens, %d tiles, %.1f %% supervised%s",
        spec.name,
        len(usable),
        often if split == "train" else f"({int(chosen.sum())} for evaluation)",
        tokens,
        tiles,
        100 * supervised / max(1, tokens),
        "".join(f", {note}" for note in notes),
    )
    reasons = _count(index.table["code"][~usable], FaultCode)
    if len(reasons) > 1 or sum(reasons.values()) > _SHOWN:
        log.warning("data set %s: %s", spec.name, ", ".join(f"{n} {name}" for name, n in reasons.most_common()))
    for fault in islice(explain_faults(index, spec, maker), _SHOWN):
        log.warning("left out: %s", fault)


def _pieces(lines: Lines) -> Iterator[np.ndarray]:
    """All lines, some at a time."""
    starts = range(0, len(lines), _PIECE)
    return (lines.take(np.arange(start, min(start + _PIECE, len(lines)))) for start in starts)


def _crc_of_sizes(index: LineIndex, lines: Lines) -> int:
    crc = 0
    for piece in _pieces(lines):
        rows = index.table[piece]
        for column in (piece, rows["tokens"], rows["tiles"]):
            crc = zlib.crc32(np.ascontiguousarray(column).tobytes(), crc)
    return crc
