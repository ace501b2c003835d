"""Where each rank is, told to rank 0 every few seconds, so that one that is late or gone has a name in the log.

A thread per rank writes (beats, place) into the store of the run; that of rank 0 reads all of them. No clock is
compared with that of another machine: rank 0 counts from when it saw a change. A rank that fails by itself says so
there, too.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch.distributed import DistError, Store

from internvl_chat.launch import NAMED, host_name
from internvl_chat.log import get_logger

log = get_logger(__name__)

_INTERVAL_S = 5.0
_SILENT_S = 30.0


@dataclass(frozen=True, order=True)
class Where:
    """Where a rank is. ``count`` of places that it has been to: all ranks go the same way, so more is further on."""

    count: int = 0
    phase: str = field(default="data", compare=False)
    step: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return f"{self.phase!r} of step {self.step}" if self.step else repr(self.phase)


@dataclass(frozen=True)
class Beat:
    """What a rank says: its ``count``-th beat, where it is, and on which node."""

    count: int
    where: Where
    host: str


@dataclass(frozen=True)
class Sign:
    """What rank 0 knows of a rank: its last beat, and when (seconds, own clock) count and place changed."""

    beat: Beat
    beat_s: float
    where_s: float


class Progress:
    """Where this rank is; written by the thread that trains, read by the one that beats.

    A place where ranks wait for each other is one of its own: who is not there yet is behind.
    """

    def __init__(self) -> None:
        self.where = Where()

    def enter(self, phase: str, step: int = 0) -> None:
        self.where = Where(self.where.count + 1, phase, step)


def note(signs: Mapping[int, Sign], beats: Mapping[int, Beat], now: float) -> dict[int, Sign]:
    """The signs after these beats, by rank, were read at ``now``."""
    found = {}
    for rank, beat in beats.items():
        old = signs.get(rank)
        found[rank] = Sign(
            beat,
            old.beat_s if old and old.beat.count == beat.count else now,
            old.where_s if old and old.beat.where == beat.where else now,
        )
    return found


def gone(signs: Mapping[int, Sign], now: float, silent_s: float) -> list[int]:
    """Ranks without a beat for ``silent_s`` seconds."""
    return [rank for rank, sign in sorted(signs.items()) if now - sign.beat_s > silent_s]


def late(signs: Mapping[int, Sign], now: float, late_s: float) -> list[int]:
    """Ranks that stand still for ``late_s`` seconds while another one is further on."""
    first = max((sign.beat.where for sign in signs.values()), default=Where())
    return [rank for rank, sign in sorted(signs.items()) if sign.beat.where < first and now - sign.where_s > late_s]


@dataclass(frozen=True)
class Listener:
    """What a rank does with what it hears. ``lost`` gets a text when ranks give no sign of life (rank 0 sees all; the
    others see rank 0), and None when they are back. ``failures`` gets what ranks say about errors of their own: rank 0
    may be gone when it is wanted. ``give_up`` ends the process if it has not come out of its collective since."""

    lost: Callable[[str | None], None] = lambda text: None
    failures: list[str] = field(default_factory=list)
    give_up: Callable[[], None] = lambda: None


class Heartbeat:
    """Beats until ``stop``. ``connect`` opens a connection of its own to the store.

    ``late_s``: after so many seconds a rank that others wait for is named in the log; 0: never.
    """

    def __init__(
        self,
        connect: Callable[[], Store],
        rank: int,
        world_size: int,
        progress: Progress,
        late_s: float,
        listener: Listener,
    ) -> None:
        self._rank, self._world_size = rank, world_size
        self._connect, self._progress, self._listener = connect, progress, listener
        self._late_s, self._interval_s = late_s, interval_s(late_s)
        self._silent_s = min(_SILENT_S, 6 * self._interval_s)
        self._signs: dict[int, Sign] = {}
        self._due_again: dict[int, float] = {}  # when a late rank is named once more, in seconds of waiting
        self._lost = ""
        self._heard_s: float | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Beat no more. Returns when the thread has ended, or cannot for want of an answer."""
        self._done.set()
        self._thread.join(timeout=2 * self._interval_s)

    def _run(self) -> None:
        store: Store | None = None
        host, answered = host_name(), time.monotonic()
        for count in itertools.count(1):
            try:
                store = store or self._connect()
                where = self._progress.where
                store.set(f"beat/{self._rank}", json.dumps([count, where.count, where.phase, where.step, host]))
                hear_failures(store, self._rank, self._listener.failures)
                self._tell_loss(self._look(store) if self._rank == 0 else "")
                answered = time.monotonic()
            except (DistError, RuntimeError, OSError):
                store = None
                if time.monotonic() - answered > self._silent_s and not self._done.is_set():
                    self._tell_loss("no sign of life of rank 0")
            self._leave_after_failure()
            if self._done.wait(self._interval_s):
                return

    def _leave_after_failure(self) -> None:
        """NCCL, and a group that is being made, wait on when another rank has failed."""
        if self._listener.failures:
            self._heard_s = self._heard_s or time.monotonic()
            if time.monotonic() - self._heard_s > 3 * self._interval_s and not self._done.is_set():
                self._listener.give_up()

    def _tell_loss(self, lost: str) -> None:
        if lost == self._lost or self._listener.failures:  # who has said why it ends is not lost
            return
        self._lost = lost
        log.warning("%s", f"{lost}: killed, stopped, or its node is lost" if lost else "every rank gives signs of life")
        self._listener.lost(lost or None)

    def _look(self, store: Store) -> str:
        """Read all beats; name who is late, and again each time the wait has doubled. Returns who is gone."""
        now = time.monotonic()
        self._signs = note(self._signs, read_beats(store, self._world_size), now)
        behind = late(self._signs, now, self._late_s) if self._late_s else []
        for rank in [rank for rank in self._due_again if rank not in behind]:
            del self._due_again[rank]
            log.warning("%s goes on", name_ranks([rank], self._signs))
        waited = {rank: now - self._signs[rank].where_s for rank in behind}
        due = [rank for rank in behind if waited[rank] > self._due_again.get(rank, 0.0)]
        if due:
            self._due_again.update({rank: 2 * waited[rank] for rank in due})
            first = max(sign.beat.where for sign in self._signs.values())
            last = min(self._signs[rank].beat.where for rank in due)
            log.warning(
                "%s late: for %.0f s in %s, while others are in %s",
                name_ranks(due, self._signs), max(waited[rank] for rank in due), last, first,
            )  # fmt: skip
        lost = gone(self._signs, now, self._silent_s)
        return f"no sign of life of {name_ranks(lost, self._signs)}" if lost else ""


def interval_s(late_s: float) -> float:
    """Seconds between two beats of a rank."""
    return min(_INTERVAL_S, late_s / 8) if late_s else _INTERVAL_S


def read_beats(store: Store, world_size: int) -> dict[int, Beat]:
    """Last beat of each rank that has begun to beat."""
    keys = {f"beat/{rank}": rank for rank in range(world_size)}
    there = list(keys) if store.check(list(keys)) else [key for key in keys if store.check([key])]
    found = {}
    for key, value in zip(there, store.multi_get(there) if there else [], strict=True):
        count, places, phase, step, host = json.loads(value)
        found[keys[key]] = Beat(count, Where(places, phase, step), host)
    return found


def tell_failure(store: Store, rank: int, text: str) -> None:
    """This rank has failed by itself; ``text`` says which, and why."""
    store.set(f"failure/{store.add('failures', 1)}", text)
    _hear(store, rank)


def hear_failures(store: Store, rank: int, failures: list[str]) -> None:
    """Add what ranks have said about errors of their own, unless it is there already.

    That this rank knows it is noted last: the store may end with the rank that waits for that, see ``all_have_heard``.
    """
    if not failures:
        count = min(store.add("failures", 0), NAMED)
        failures[:] = [store.get(f"failure/{number}").decode() for number in range(1, count + 1)]
    if failures:
        _hear(store, rank)


def all_have_heard(store: Store, world_size: int) -> bool:
    """Whether every rank knows of a failure, or has failed."""
    return store.add("heard", 0) >= world_size


def _hear(store: Store, rank: int) -> None:
    if store.add(f"heard/{rank}", 1) == 1:
        store.add("heard", 1)


def name_ranks(ranks: Sequence[int], signs: Mapping[int, Sign]) -> str:
    """``rank 3 on node7``, or ``ranks 3 on node7, 4 on node7, ... (12 in all)``."""
    named = [f"{rank} on {signs[rank].beat.host}" for rank in ranks[:NAMED]]
    more = f", ... ({len(ranks)} in all)" if len(ranks) > NAMED else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(named)}{more}"
