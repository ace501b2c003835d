"""All data sets of a run as one table of entries: what there is to see in an epoch, and how to load one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import numpy as np

from internvl_chat.data.address import Address, rng_for
from internvl_chat.data.faults import Cut, Fault, FaultCode, FaultRecord, TooManyFaults, check_fault_share
from internvl_chat.data.index import LineIndex, explain_faults, open_indexes, usable_lines
from internvl_chat.data.index_build import ALONE, Crew
from internvl_chat.data.manifest import DatasetSpec
from internvl_chat.data.sample import Sample, SampleMaker
from internvl_chat.errors import ConfigError, DataError
from internvl_chat.log import get_logger

log = get_logger(__name__)

Split = Literal["train", "eval"]
_FOOTPRINT = ("tokens", "tiles", "supervised")
# Faults of a data set that are shown in the log; the ledger has all.
_SHOWN = 3


@dataclass(frozen=True)
class Corpus:
    """Entries (E,) of one epoch, in manifest order: data set, line, visit (repetition) and footprint of each.

    ``visits``: how often an epoch goes over each data set at most.
    """

    specs: tuple[DatasetSpec, ...]
    indexes: tuple[LineIndex, ...]
    maker: SampleMaker
    visits: tuple[int, ...]
    dataset: np.ndarray
    line: np.ndarray
    visit: np.ndarray
    tokens: np.ndarray
    tiles: np.ndarray
    supervised: np.ndarray

    def __len__(self) -> int:
        return len(self.line)

    def address(self, entry: int, epoch: int) -> Address:
        """Name of an entry in an epoch; repetitions within the epoch are epochs of their own."""
        number = int(self.dataset[entry])
        name, visit = self.specs[number].name, int(self.visit[entry])
        return Address(name, int(self.line[entry]), epoch * self.visits[number] + visit)

    def load(self, entry: int, epoch: int) -> Sample:
        """Read, cut and tokenize one entry. Raises Fault; DataError if its annotation has changed."""
        number, line = int(self.dataset[entry]), int(self.line[entry])
        index = self.indexes[number]
        return self.maker.load(
            index.line(line), self.specs[number], self.address(entry, epoch), expected=index.footprint(line)
        )

    def left_out(self) -> Iterator[FaultRecord]:
        """Every line that is no entry for a fault, and why. Each is measured again, so ask once, on one process."""
        for spec, index in zip(self.specs, self.indexes, strict=True):
            yield from explain_faults(index, spec, self.maker)

    def record_of(self, fault: Fault, entry: int, epoch: int) -> FaultRecord:
        """Ledger entry of a fault that came up on loading."""
        number = int(self.dataset[entry])
        annotation, kind = self.specs[number].annotation, self.indexes[number].kind
        return FaultRecord.of(fault, self.address(entry, epoch), annotation, "load", kind)


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
    crew: Crew = ALONE,
) -> Corpus:
    """Index every data set and lay all usable lines of one split out as entries. See ``open_indexes``.

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
        lines.append(np.flatnonzero(usable & (held_out if split == "eval" else ~held_out)))
        _report(spec, index, maker, usable, lines[-1], split)
    if refused:  # all of them: whoever mends his data wants to know at once
        raise TooManyFaults("\n".join(map(str, refused)), chain.from_iterable(error.records for error in refused))
    columns = _entries(specs, indexes, lines, split)
    if not len(columns["line"]):
        raise DataError(
            "no line of the manifest can be used: all are faulty, held out (eval_share), or of another split"
        )
    for number, (spec, good) in enumerate(zip(specs, lines, strict=True)):
        used = columns["line"][columns["dataset"] == number]
        if spec.weight is not None and len(used) and split == "train":
            log.info("data set %s: %d samples in an epoch, of %d lines", spec.name, len(used), len(good))
    visits = tuple(
        int(columns["visit"][columns["dataset"] == number].max(initial=0)) + 1 for number in range(len(specs))
    )
    return Corpus(tuple(specs), indexes, maker, visits, **columns)


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


def _entries(
    specs: Sequence[DatasetSpec], indexes: Sequence[LineIndex], lines: Sequence[np.ndarray], split: Split
) -> dict[str, np.ndarray]:
    """Columns of the corpus. Repeats and weights are for training; for evaluation every line counts once."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("dataset", "line", "visit", *_FOOTPRINT)}
    counts = [len(good) for good in lines] if split == "eval" else _weighted_counts(specs, lines)
    for number, (spec, index, good) in enumerate(zip(specs, indexes, lines, strict=True)):
        if counts is None:
            rounds, rest = _repeat(spec, good, len(index))
        else:
            rounds, missing = divmod(counts[number], len(good)) if len(good) else (0, 0)
            rest = np.sort(rng_for(0, Address(spec.name, 0)).permutation(good)[:missing])
        chosen = np.concatenate([*[good] * rounds, rest]).astype(np.int64)
        columns["dataset"].append(np.full(len(chosen), number, np.int32))
        columns["line"].append(chosen)
        visits = [np.full(len(good), v) for v in range(rounds)]
        columns["visit"].append(np.concatenate([*visits, np.full(len(rest), rounds)]).astype(np.int32))
        for name in _FOOTPRINT:
            columns[name].append(index.table[name][chosen].astype(np.int32))
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def _repeat(spec: DatasetSpec, good: np.ndarray, lines: int) -> tuple[int, np.ndarray]:
    """Whole repetitions take every line, the fraction that is left takes the first part of the file."""
    rounds, fraction = int(spec.repeat_time), spec.repeat_time - int(spec.repeat_time)
    rest = good[good < int(lines * fraction + 1e-6)]  # 2.3 - 2 is less than 0.3
    if not rounds and len(good) and not len(rest):
        raise DataError(
            f"data set {spec.name!r}: repeat_time {spec.repeat_time:g} of {lines} lines takes no usable line; "
            "raise it in the manifest, or leave the data set out"
        )
    return rounds, rest


def _weighted_counts(specs: Sequence[DatasetSpec], lines: Sequence[np.ndarray]) -> list[int] | None:
    """Samples of each data set in an epoch of as many as there are lines, by the manifest's weights, if it has any."""
    used = [spec for spec, good in zip(specs, lines, strict=True) if len(good)]
    if all(spec.weight is None for spec in used):
        return None
    if bare := [spec.name for spec in used if spec.weight is None]:
        raise ConfigError(f"data set {bare[0]!r} has no weight, others have; give every data set one, or none")
    total, weights = sum(map(len, lines)), sum(float(spec.weight or 0) for spec in used)
    return [
        max(1, round(total * float(spec.weight or 0) / weights)) if len(good) else 0
        for spec, good in zip(specs, lines, strict=True)
    ]


def _count(codes: np.ndarray, meaning: type[Cut] | type[FaultCode]) -> Counter[str]:
    """How often each code but 0 is there, by name."""
    found, counts = np.unique(codes[codes > 0], return_counts=True)
    return Counter({meaning(int(code)).name: int(count) for code, count in zip(found, counts, strict=True)})


def _report(
    spec: DatasetSpec, index: LineIndex, maker: SampleMaker, usable: np.ndarray, lines: np.ndarray, split: Split
) -> None:
    rows = index.table[lines]
    cut = _count(rows["code"], Cut)
    notes = [f"{int(usable.sum()) - len(lines)} lines held out"] if usable.sum() > len(lines) else []
    notes += [f"{count} lines cut to fit ({name})" for name, count in cut.items()]
    notes += [f"{len(usable) - int(usable.sum())} lines left out"] if not usable.all() else []
    often = f"weight {spec.weight:g}" if spec.weight is not None else f"x {spec.repeat_time:g}"
    log.info(
        "data set %s: %d lines %s, %d tokens, %d tiles, %.1f %% supervised%s",
        spec.name,
        len(usable),
        often if split == "train" else f"({len(lines)} for evaluation)",
        rows["tokens"].sum(dtype=np.int64),
        rows["tiles"].sum(dtype=np.int64),
        100 * rows["supervised"].sum(dtype=np.int64) / max(1, rows["tokens"].sum(dtype=np.int64)),
        "".join(f", {note}" for note in notes),
    )
    reasons = _count(index.table["code"][~usable], FaultCode)
    if len(reasons) > 1 or sum(reasons.values()) > _SHOWN:
        log.warning("data set %s: %s", spec.name, ", ".join(f"{n} {name}" for name, n in reasons.most_common()))
    for fault in islice(explain_faults(index, spec, maker), _SHOWN):
        log.warning("left out: %s", fault)
