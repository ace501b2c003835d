"""All data sets of a run as one table of entries: what there is to see in an epoch, and how to load one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from internvl_chat.data.address import Address
from internvl_chat.data.faults import FaultRecord, check_fault_share
from internvl_chat.data.jsonl import LineIndex, explain_faults, open_index
from internvl_chat.data.manifest import DatasetSpec
from internvl_chat.data.sample import Sample, SampleMaker
from internvl_chat.errors import DataError
from internvl_chat.log import get_logger

log = get_logger(__name__)


@dataclass(frozen=True)
class Corpus:
    """Entries (E,) of one epoch, in manifest order: data set, line, visit (repetition) and footprint of each.

    ``left_out``: the lines that are no entries, and why.
    """

    specs: tuple[DatasetSpec, ...]
    indexes: tuple[LineIndex, ...]
    maker: SampleMaker
    dataset: np.ndarray
    line: np.ndarray
    visit: np.ndarray
    tokens: np.ndarray
    tiles: np.ndarray
    supervised: np.ndarray
    left_out: tuple[FaultRecord, ...] = ()

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
    max_fault_share: float = 0.01,
) -> Corpus:
    """Index every data set and lay all good lines out as entries.

    Raises TooManyFaults when too large a share of a data set is faulty, DataError when nothing is left.
    """
    indexes = tuple(open_index(spec, maker, index_dir, workers, rebuild) for spec in specs)
    left_out: list[FaultRecord] = []
    for spec, index in zip(specs, indexes, strict=True):
        faults = list(explain_faults(index, spec, maker))
        left_out += faults
        check_fault_share(spec.name, faults, len(index), max_fault_share)
        _report(spec, index, faults)
    columns = [_entries(number, spec, index) for number, (spec, index) in enumerate(zip(specs, indexes, strict=True))]
    merged = [np.concatenate(column) for column in zip(*columns, strict=True)]
    if not len(merged[0]):
        raise DataError("no line of the manifest can be used; nothing to train on (see the messages above)")
    dataset, line, visit, tokens, tiles, supervised = merged
    return Corpus(
        tuple(specs), indexes, maker, dataset, line, visit, tokens, tiles, supervised, left_out=tuple(left_out)
    )


def _entries(number: int, spec: DatasetSpec, index: LineIndex) -> list[np.ndarray]:
    """Whole repetitions take every good line, the fraction that is left takes the first part of the file."""
    table = index.table
    whole, fraction = int(spec.repeat_time), spec.repeat_time - int(spec.repeat_time)
    good = np.flatnonzero(table["fault"] == 0)
    part = good[good < int(len(table) * fraction + 1e-6)]  # 2.3 - 2 is less than 0.3
    if not whole and len(good) and not len(part):
        raise DataError(
            f"data set {spec.name!r}: repeat_time {spec.repeat_time:g} of {len(table)} lines takes no usable line; "
            "raise it in the manifest, or leave the data set out"
        )
    lines = np.concatenate([*[good] * whole, part]).astype(np.int64)
    visit = np.concatenate([*[np.full(len(good), v) for v in range(whole)], np.full(len(part), whole)]).astype(np.int32)
    dataset = np.full(len(lines), number, np.int32)
    return [dataset, lines, visit, *(table[column][lines] for column in ("tokens", "tiles", "supervised"))]


def _report(spec: DatasetSpec, index: LineIndex, faults: list[FaultRecord]) -> None:
    table = index.table
    good = table[table["fault"] == 0]
    log.info(
        "data set %s: %d lines x %g, %d tokens, %d tiles, %.1f %% supervised%s",
        spec.name,
        len(table),
        spec.repeat_time,
        good["tokens"].sum(),
        good["tiles"].sum(),
        100 * good["supervised"].sum() / max(1, good["tokens"].sum()),
        f", {len(faults)} lines left out" if faults else "",
    )
    for fault in faults[:3]:
        log.warning("left out: %s", fault)
