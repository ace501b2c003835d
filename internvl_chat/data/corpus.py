"""All data sets of a run as one table of entries: what there is to see in an epoch, and how to load one of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from internvl_chat.data.address import Address
from internvl_chat.data.faults import FaultRecord, check_fault_share
from internvl_chat.data.jsonl import LineIndex, explain_faults, open_index, usable_lines
from internvl_chat.data.manifest import DatasetSpec
from internvl_chat.data.sample import Sample, SampleMaker
from internvl_chat.errors import DataError
from internvl_chat.log import get_logger

log = get_logger(__name__)

# Faults of a data set that are shown in the log; the ledger has all.
_SHOWN = 3


@dataclass(frozen=True)
class Corpus:
    """Entries (E,) of one epoch, in manifest order: data set, line, visit (repetition) and footprint of each."""

    specs: tuple[DatasetSpec, ...]
    indexes: tuple[LineIndex, ...]
    maker: SampleMaker
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
        copies = int(np.ceil(self.specs[number].repeat_time))
        return Address(self.specs[number].name, int(self.line[entry]), epoch * copies + int(self.visit[entry]))

    def load(self, entry: int, epoch: int) -> Sample:
        """Read, cut and tokenize one entry. Raises Fault."""
        number, line = int(self.dataset[entry]), int(self.line[entry])
        index = self.indexes[number]
        return self.maker.load(
            index.line(line), self.specs[number], self.address(entry, epoch), expected=index.footprint(line)
        )

    def left_out(self) -> Iterator[FaultRecord]:
        """Every line that is no entry, and why. Each is measured again, so ask once, on one process."""
        for spec, index in zip(self.specs, self.indexes, strict=True):
            yield from explain_faults(index, spec, self.maker)

    def annotation_of(self, address: Address) -> Path:
        """File in which the address's line stands."""
        return next(spec.annotation for spec in self.specs if spec.name == address.dataset)


def open_corpus(
    specs: Sequence[DatasetSpec],
    maker: SampleMaker,
    index_dir: Path,
    *,
    workers: int = 1,
    rebuild: bool = False,
    look_again: bool = True,
    max_fault_share: float = 0.01,
) -> Corpus:
    """Index every data set and lay all usable lines out as entries. ``look_again``: see ``open_index``.

    Raises TooManyFaults when too large a share of a data set is faulty, DataError when nothing is left.
    """
    indexes = tuple(open_index(spec, maker, index_dir, workers, rebuild, look_again) for spec in specs)
    columns = []
    for number, (spec, index) in enumerate(zip(specs, indexes, strict=True)):
        usable = usable_lines(index, maker.limits)
        faults = len(usable) - int(usable.sum())
        check_fault_share(spec.name, faults, len(usable), max_fault_share, explain_faults(index, spec, maker))
        _report(spec, index, usable, islice(explain_faults(index, spec, maker), _SHOWN))
        columns.append(_entries(number, spec, index, usable))
    merged = [np.concatenate(column) for column in zip(*columns, strict=True)]
    if not len(merged[0]):
        raise DataError("no line of the manifest can be used; nothing to train on (see the messages above)")
    dataset, line, visit, tokens, tiles, supervised = merged
    return Corpus(tuple(specs), indexes, maker, dataset, line, visit, tokens, tiles, supervised)


def _entries(number: int, spec: DatasetSpec, index: LineIndex, usable: np.ndarray) -> list[np.ndarray]:
    """Whole repetitions take every usable line, the fraction that is left takes the first part of the file."""
    whole, fraction = int(spec.repeat_time), spec.repeat_time - int(spec.repeat_time)
    good = np.flatnonzero(usable)
    part = good[good < int(len(usable) * fraction + 1e-6)]  # 2.3 - 2 is less than 0.3
    if not whole and len(good) and not len(part):
        raise DataError(
            f"data set {spec.name!r}: repeat_time {spec.repeat_time:g} of {len(usable)} lines takes no usable line; "
            "raise it in the manifest, or leave the data set out"
        )
    lines = np.concatenate([*[good] * whole, part]).astype(np.int64)
    visit = np.concatenate([*[np.full(len(good), v) for v in range(whole)], np.full(len(part), whole)]).astype(np.int32)
    dataset = np.full(len(lines), number, np.int32)
    return [dataset, lines, visit, *(index.table[column][lines] for column in ("tokens", "tiles", "supervised"))]


def _report(spec: DatasetSpec, index: LineIndex, usable: np.ndarray, first_faults: Iterable[FaultRecord]) -> None:
    good = index.table[usable]
    log.info(
        "data set %s: %d lines x %g, %d tokens, %d tiles, %.1f %% supervised%s",
        spec.name,
        len(usable),
        spec.repeat_time,
        good["tokens"].sum(),
        good["tiles"].sum(),
        100 * good["supervised"].sum() / max(1, good["tokens"].sum()),
        f", {len(usable) - len(good)} lines left out" if len(good) < len(usable) else "",
    )
    for fault in first_faults:
        log.warning("left out: %s", fault)
