"""Faults: why a line cannot be used. Raised by the steps, recorded in the index and the ledger, never swallowed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import IntEnum
from itertools import chain, islice
from pathlib import Path

from internvl_chat.data.address import Address
from internvl_chat.data.containers import Kind, where
from internvl_chat.errors import DataError


class FaultCode(IntEnum):
    """Stored as one byte per line of the index; 0 is a good line. Numbers are part of the index format, below 128."""

    NONE = 0
    NOT_JSON = 1
    CONVERSATIONS = 2
    TURN = 3
    TURN_ORDER = 4
    EMPTY_ANSWER = 5
    PLACEHOLDERS = 6
    MISSING_IMAGE = 7
    BROKEN_IMAGE = 8
    IMAGE_SIZE = 9
    TOO_LONG = 10
    TOO_MANY_TILES = 11
    UNSUPPORTED = 12
    STALE = 13
    FORMAT = 14
    OBJECTS = 15
    NOTHING_SUPERVISED = 16
    MISSING_VIDEO = 17
    BROKEN_VIDEO = 18
    CLIP = 19
    UNREADABLE = 20
    REMOTE = 21
    UNEXPECTED = 22


class Cut(IntEnum):
    """What was done to a usable line that was too long; shares the index's column with FaultCode."""

    FEWER_TILES = 128
    FEWER_TURNS = 129


# What may have changed on disk since the index was built although the annotation is the same.
MEDIA_FAULTS = (
    FaultCode.MISSING_IMAGE,
    FaultCode.BROKEN_IMAGE,
    FaultCode.IMAGE_SIZE,
    FaultCode.MISSING_VIDEO,
    FaultCode.BROKEN_VIDEO,
    FaultCode.UNREADABLE,
    FaultCode.OBJECTS,
    FaultCode.CLIP,
)


class Fault(Exception):
    """A line that cannot become a sample: ``reason`` says what is wrong, ``mend`` what to do about it."""

    def __init__(self, code: FaultCode, reason: str, mend: str) -> None:
        super().__init__(f"{reason}; {mend}")
        self.code = code
        self.reason = reason
        self.mend = mend

    def __reduce__(self) -> tuple[type[Fault], tuple[FaultCode, str, str]]:
        return type(self), (self.code, self.reason, self.mend)


def check_text(where: str, text: str) -> None:
    """Raise Fault for half a surrogate pair (an emoji cut in two), which no tokenizer and no file system takes."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            what = f"{where} holds half a character ({text[error.start]!a})"
            raise Fault(FaultCode.TURN, what, "write it whole or remove it") from error


def show(value: object) -> str:
    """A value for a message: its start, if it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


@dataclass(frozen=True, slots=True)
class FaultRecord:
    """One entry of the ledger. ``line`` counts lines, items or rows from 1; ``stage``: index, load or convert."""

    dataset: str
    file: str
    line: int
    epoch: int
    stage: str
    code: str
    reason: str
    mend: str
    kind: Kind = "jsonl"

    @classmethod
    def of(cls, fault: Fault, address: Address, file: Path, stage: str, kind: Kind = "jsonl") -> FaultRecord:
        where = (address.dataset, str(file), address.line + 1, address.epoch)
        return cls(*where, stage, fault.code.name, fault.reason, fault.mend, kind)

    def __str__(self) -> str:
        return f"{self.file}{where(self.kind, self.line)}: {self.reason}; {self.mend}"


class Ledger:
    """JSON-lines file of every sample that was left out. ``path`` None: nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def rewrite(self, records: Iterable[FaultRecord]) -> None:
        """Start the file anew with these records."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
        self.write(records)

    def write(self, records: Iterable[FaultRecord]) -> None:
        """Append the records as they come."""
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records)


class TooManyFaults(DataError):
    """A data set is too faulty to train on. ``records``: its faults, found one by one when iterated over, once."""

    def __init__(self, message: str, records: Iterable[FaultRecord]) -> None:
        super().__init__(message)
        self.records = records


def check_fault_share(
    dataset: str, faults: int, lines: int, limit: float, records: Iterator[FaultRecord], shown: int = 10
) -> None:
    """Raise TooManyFaults when more than ``limit`` (0..1) of a data set's lines are faulty; name the first ones."""
    if faults <= limit * lines:
        return
    first = list(islice(records, shown))
    message = [
        f"data set {dataset!r}: {faults} of {lines} lines cannot be used, more than --max_fault_share {limit:g}:",
        *map(str, first),
        *([f"... and {faults - shown} more"] if faults > shown else []),
        "mend these lines (all are listed in faults.jsonl of the output folder; `internvl check` explains them, "
        "`internvl repair` takes them out), or leave them out with a higher --max_fault_share",
    ]
    raise TooManyFaults("\n".join(message), chain(first, records))
