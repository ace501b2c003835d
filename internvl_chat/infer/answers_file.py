"""Answers to many items in one file, written by one process or by many, which a kill does not damage.

While they come, ``OUTPUT.parts/`` has a file for each process, to which whole lines are added. OUTPUT itself is there
only once every item has its line: the process that ends last puts it together, in the order of the items. A line is
``{KEY_NAME: key, ..., "digest": what the item was, "sum": hash of the line}``, with "error" where there is no answer.
``OUTPUT.settings.json`` says with which settings all were made. Processes share nothing but these files, so any number
may go on another time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

from internvl_chat.errors import ConfigError, first_line
from internvl_chat.log import get_logger

logger = get_logger(__name__)

Key = TypeVar("Key", bound=int | str)


@dataclass(frozen=True)
class Words:
    """What a user is told: ``flag`` before the file's name, ``mend`` where it is not of these items or settings."""

    flag: str = "--output "
    mend: str = "--overwrite begins anew, another --output keeps both"
    room: str = ", or give another --output"


@dataclass(frozen=True)
class _Place:
    """A line of a file, in bytes. ``error``: it holds no answer, and ``run`` is the run that found so."""

    file: Path
    start: int
    length: int
    error: bool
    run: str | None


@dataclass(frozen=True)
class Outcome:
    """How it ended. ``whole``: OUTPUT is there; ``there``: items with a line; ``errors``: the lines without answer.

    ``last``: it falls to this process, and to no other of the run, to do what is due when all is there: it put OUTPUT
    together, or nothing was left for anybody and it is rank 0.
    """

    whole: bool
    there: int
    errors: tuple[dict[str, Any], ...] = ()
    last: bool = field(default=False, compare=False)


class AnswersFile(Generic[Key]):
    """One process's share of the answers. ``todo``: the keys that are still to be answered, in the items' order."""

    def __init__(
        self,
        path: Path,
        items: Mapping[Key, str],
        settings: Mapping[str, Any],
        *,
        key_name: str = "id",
        rank: int = 0,
        world_size: int = 1,
        run: str | None = None,
        overwrite: bool = False,
        words: Words | None = None,
    ) -> None:
        """Every ``world_size``-th item from ``rank`` on is this process's; what has an answer already is not asked.

        ``items``: key (number or text) -> digest of what its answer depends on, but for ``settings`` (JSON), which are
        those of all. ``run``: the same in all processes of a run, another one in the next (``launch.name_of_run``);
        None: there is one process. ``overwrite``: forget what is there. Raises ConfigError where OUTPUT is of other
        items or settings, is damaged, is being written by somebody else, or cannot be written.
        """
        self.path, self.items = path, dict(items)
        self._words = words or Words()
        self._mend = self._words.mend
        self._parts = path.with_name(f"{path.name}.parts")
        self._head = path.with_name(f"{path.name}.settings.json")
        self._key_name, self._run = key_name, uuid.uuid4().hex if run is None else run
        self._rank, self._world_size = rank, world_size
        self._own = self._parts / f"{rank}.jsonl"
        self._fd: int | None = None
        share = list(self.items)[rank::world_size]
        with self._told():
            if path.is_dir():
                raise ConfigError(f"{path} is a folder; give the name of a file")
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._told(), self._alone():
            self._check_head(json.loads(json.dumps(dict(settings))), overwrite)
            self.todo = self._unanswered(share)
            if self.todo:
                self._fd = self._lock_part(self._own)
                self._drop_half_line()
                self.todo = self._unanswered(share)  # whoever held the part may have added to it

    def __enter__(self) -> AnswersFile[Key]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, key: Key, record: Mapping[str, Any]) -> None:
        """Write the line of an item, whole, at once. A record with "error" says why it has no answer.

        Raises ConfigError if that is not possible (no room on the disk).
        """
        if self._fd is None:
            raise ValueError(f"{self._own} is closed: all of its items have answers, or finish() was called")
        mark = {"run": self._run} if "error" in record else {}
        line = _to_line({self._key_name: key, **record, **mark, "digest": self.items[key]})
        with self._told():
            while line:  # more than once only where the disk is all but full
                line = line[os.write(self._fd, line) :]

    def close(self) -> None:
        """Let go of this process's part."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def finish(self) -> Outcome:
        """End this process's share; if it was the last one, put OUTPUT together. Raises ConfigError as ``add`` does."""
        self.close()  # before the lock is taken, so that whoever has it last finds all parts complete
        with self._told(), self._alone():
            found = self._scan()
            there = sum(key in found and not self._is_stale(found[key]) for key in self.items)
            if there == len(self.items) and (self._parts.is_dir() or not self.path.exists()):
                return Outcome(True, there, tuple(self._merge(found)), last=True)
            if self.path.exists() and not self._parts.is_dir() and len(found) == len(self.items):
                # Put together by another process, which has told the errors; or before this run.
                return Outcome(True, len(found), last=self._is_last(found))
            return Outcome(False, there)

    # -- what is there ------------------------------------------------------------------------------------------------

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What the disk refuses, as the user's error."""
        try:
            yield
        except OSError as error:
            raise ConfigError(
                f"{self._words.flag}{self.path} cannot be written ({first_line(error)}); make room or see to the "
                f"folder, and run the same command again{self._words.room}"
            ) from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time looks at the settings, or puts OUTPUT together."""
        while True:
            with self._head.open("a") as file:
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(file, fcntl.LOCK_EX)
                if self._head.exists() and os.path.samestat(os.fstat(file.fileno()), self._head.stat()):
                    yield
                    return  # else it was replaced while this process waited

    def _write_head(self, head: Mapping[str, Any]) -> None:
        part = self._head.with_name(f"{self._head.name}.part")
        part.write_text(json.dumps(head, indent=2) + "\n", encoding="utf-8")
        part.replace(self._head)

    def _read_head(self) -> dict[str, Any]:
        return _parse(self._head.read_bytes()) or {}

    def _is_last(self, found: Mapping[Key, _Place]) -> bool:
        """Whether it is for this process to say how it ended, though it has put nothing together now."""
        run, world_size, rank = self._read_head().get("last") or (None, 0, 0)
        this_run = (run, world_size) == (self._run, self._world_size)
        # An error is yet to be tried again by its process, which is the last one then.
        return self._rank == (rank if this_run else 0) and not any(place.error for place in found.values())

    def _check_head(self, settings: dict[str, Any], overwrite: bool) -> None:
        head = self._read_head()
        if overwrite and head.get("run") != self._run:
            for part in self._parts.glob("*.jsonl"):
                os.close(self._lock_part(part))
            shutil.rmtree(self._parts, ignore_errors=True)
            self.path.unlink(missing_ok=True)
        elif isinstance(head.get("settings"), dict):
            self._compare(head["settings"], settings)
            return
        elif self.path.exists() or self._parts.is_dir():
            if self._head.stat().st_size:
                raise ConfigError(f"{self._head} is damaged, which says how {self.path.name} was made; {self._mend}")
            self._head.unlink()
            raise ConfigError(
                f"{self.path} is there, but not {self._head.name}, which says how it was made; {self._mend}"
            )
        self._write_head({"run": self._run, "settings": settings})

    def _compare(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        for name in sorted({*before, *now}):
            if before.get(name) != now.get(name):
                raise ConfigError(
                    f"{self.path} was begun with {name} = {json.dumps(before.get(name))}, now it is "
                    f"{json.dumps(now.get(name))}; {self._mend}"
                )

    def _unanswered(self, share: Iterable[Key]) -> list[Key]:
        found = self._scan()
        return [key for key in share if key not in found or found[key].error]

    def _is_stale(self, place: _Place) -> bool:
        """An error of an earlier run, whose item another process is yet to try again."""
        return place.error and place.run != self._run

    def _scan(self) -> dict[Key, _Place]:
        """The best line of each item that has one: an answer, else an error of this run, else of another."""
        found: dict[Key, _Place] = {}
        parts = sorted(self._parts.glob("*.jsonl")) if self._parts.is_dir() else []
        for file in [self.path, *parts]:
            for place, key in self._lines_of(file):
                known = found.get(key)
                if known is None or (known.error and not (place.error and self._is_stale(place))):
                    found[key] = place
        return found

    def _lines_of(self, file: Path) -> Iterator[tuple[_Place, Key]]:
        """Whole lines of a file; raises ConfigError for one that answers something else than was asked now."""
        start = 0
        try:
            lines = file.open("rb")
        except FileNotFoundError:  # OUTPUT not yet, or a part just now put into it
            return
        with lines:
            for number, line in enumerate(lines, 1):
                if line.endswith(b"\n"):  # else a kill has cut it short
                    record = _parse(line)
                    if record is None or self._key_name not in record or not _is_as_written(record):
                        self._tell_damaged(file, number)
                    elif self._is_of_item(file, record):
                        error = "error" in record
                        yield _Place(file, start, len(line), error, record.get("run")), record[self._key_name]
                start += len(line)

    def _tell_damaged(self, file: Path, number: int) -> None:
        if file == self.path:
            raise ConfigError(
                f"{file}:{number}: not as it was written here (damaged, or changed by hand); take the line out, then "
                f"its item is asked again; {self._mend}"
            )
        logger.warning("%s:%d is damaged; its item is asked again", file, number)

    def _is_of_item(self, file: Path, record: Mapping[str, Any]) -> bool:
        """Whether a line is of an item as it is now; raises ConfigError for an answer that is not."""
        key = record[self._key_name]
        if not isinstance(key, (int, str)) or key not in self.items:
            raise ConfigError(
                f"{file} has an answer to {self._key_name} {key!r}, which is no longer asked; {self._mend}"
            )
        same: bool = record.get("digest") == self.items[key]
        if not same and "error" not in record:  # an error is tried again; that it is mended now is what one hopes for
            what = f"{self._key_name} {key!r}"
            raise ConfigError(
                f"{file} has an answer to {what}, but {what}, or a file that it names, has changed since; {self._mend}"
            )
        return same

    # -- writing ------------------------------------------------------------------------------------------------------

    def _lock_part(self, part: Path) -> int:
        self._parts.mkdir(exist_ok=True)
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise ConfigError(f"{part} is being written by another process; wait for it, or end it") from error
        except OSError:
            logger.warning("%s: files cannot be locked here; see to it that nobody else writes this one", part)
        return fd

    def _drop_half_line(self) -> None:
        """A process that was killed may have left one."""
        assert self._fd is not None
        os.ftruncate(self._fd, self._own.read_bytes().rfind(b"\n") + 1)

    def _merge(self, found: Mapping[Key, _Place]) -> list[dict[str, Any]]:
        """OUTPUT of the best lines; what it replaces is there until it is. Returns the records of errors."""
        errors = []
        self._parts.mkdir(exist_ok=True)
        merged = self._parts / "merged"
        with merged.open("wb") as out:
            for key in self.items:
                place = found[key]
                line = _read(place)
                if place.error:
                    record = {name: value for name, value in json.loads(line).items() if name not in ("run", "sum")}
                    line = _to_line(record)
                    errors.append(record)
                out.write(line)
            out.flush()
            os.fsync(out.fileno())
        merged.replace(self.path)
        shutil.rmtree(self._parts, ignore_errors=True)
        # Last of all: with the file that is replaced goes the lock on it.
        self._write_head({**self._read_head(), "last": [self._run, self._world_size, self._rank]})
        return errors


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _read(place: _Place) -> bytes:
    with place.file.open("rb") as file:
        file.seek(place.start)
        return file.read(place.length)


def _to_line(record: Mapping[str, Any]) -> bytes:
    """The record with its sum. Half an emoji, which UTF-8 has no bytes for, stays as JSON escapes it."""
    record = json.loads(json.dumps(record))  # as it is read again: its keys are texts
    text = json.dumps({**record, "sum": _sum_of(record)}, ensure_ascii=False)
    return f"{text}\n".encode(errors="backslashreplace")


def _sum_of(record: Mapping[str, Any]) -> str:
    """Hash of what a record says, however its line is laid out."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def _is_as_written(record: Mapping[str, Any]) -> bool:
    """Whether a line is what its sum says; older ones have none."""
    rest = {name: value for name, value in record.items() if name != "sum"}
    return "sum" not in record or record["sum"] == _sum_of(rest)
