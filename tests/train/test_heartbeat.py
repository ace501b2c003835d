"""Who is late, who is gone: from beats alone, and with threads that beat."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from torch.distributed import HashStore

from internvl_chat.train.heartbeat import (
    Beat,
    Heartbeat,
    Listener,
    Progress,
    Where,
    all_have_heard,
    gone,
    hear_failures,
    late,
    name_ranks,
    note,
    read_beats,
    tell_failure,
)


def at(count: int, phase: str = "step") -> Where:
    return Where(count, phase, 3)


def test_more_places_are_further_on() -> None:
    progress = Progress()
    seen = [progress.where]
    for phase, step in (("model", 0), ("batch", 1), ("forward", 1), ("backward", 1), ("batch", 2)):
        progress.enter(phase, step)
        seen.append(progress.where)
    assert all(before < after for before, after in pairwise(seen))
    assert str(seen[-1]) == "'batch' of step 2"
    assert str(seen[1]) == "'model'"


def test_late_is_who_stands_still_while_others_are_further_on() -> None:
    before = {0: Beat(1, at(8, "exchange"), "a"), 1: Beat(1, at(7, "batch"), "b"), 2: Beat(1, at(8, "exchange"), "b")}
    signs = note({}, before, 0.0)
    # Only rank 1 is behind; the others wait for it, which is not their fault.
    later = {rank: Beat(2, beat.where, beat.host) for rank, beat in before.items()}
    signs = note(signs, later, 50.0)
    assert late(signs, 50.0, 60.0) == []
    assert late(signs, 61.0, 60.0) == [1]
    assert gone(signs, 61.0, 30.0) == []
    assert name_ranks([1], signs) == "rank 1 on b"
    # It moves on.
    signs = note(signs, {**later, 1: Beat(3, at(8, "exchange"), "b")}, 62.0)
    assert late(signs, 200.0, 60.0) == []


def test_gone_is_who_does_not_beat() -> None:
    signs = note({}, {0: Beat(1, Where(), "a"), 1: Beat(1, Where(), "b")}, 0.0)
    signs = note(signs, {0: Beat(9, Where(), "a"), 1: Beat(1, Where(), "b")}, 40.0)
    assert gone(signs, 40.0, 30.0) == [1]


def test_a_crowd_is_not_listed_in_full() -> None:
    signs = note({}, {rank: Beat(1, Where(), "n") for rank in range(40)}, 0.0)
    assert name_ranks(list(range(40)), signs).endswith("7 on n, ... (40 in all)")


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, "did not happen within 20 s"
        time.sleep(0.01)


def test_two_ranks_beat(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """One stands still, then its process is gone (its thread beats no more), then it is back."""
    monkeypatch.setenv("SLURMD_NODENAME", "node7")
    monkeypatch.setattr(logging.getLogger("internvl_chat"), "propagate", True)
    store, losses = HashStore(), list[str | None]()
    progress = [Progress(), Progress()]
    for here in progress:
        here.enter("batch", 5)
    progress[0].enter("exchange", 5)
    first = Heartbeat(lambda: store, 0, 2, progress[0], 0.4, Listener(losses.append))
    second = Heartbeat(lambda: store, 1, 2, progress[1], 0.4, Listener(losses.append))
    wait_until(lambda: "rank 1 on node7 late" in caplog.text)
    assert "in 'batch' of step 5, while others are in 'exchange' of step 5" in caplog.text
    progress[1].enter("exchange", 5)
    wait_until(lambda: "rank 1 on node7 goes on" in caplog.text)
    assert losses == []
    second.stop()
    wait_until(lambda: len(losses) == 1)
    assert "no sign of life of rank 1 on node7" in str(losses[0])
    third = Heartbeat(lambda: store, 1, 2, progress[1], 0.4, Listener(losses.append))
    wait_until(lambda: len(losses) == 2)
    assert losses[1] is None
    for heart in (first, third):
        heart.stop()
    count = read_beats(store, 2)[0].count
    time.sleep(0.2)
    assert read_beats(store, 2)[0].count == count, "it beats on after it was stopped"


def test_a_rank_whose_store_is_gone() -> None:
    losses = list[str | None]()

    def connect() -> HashStore:
        raise RuntimeError("refused")

    heart = Heartbeat(connect, 1, 2, Progress(), 0.2, Listener(losses.append))
    wait_until(lambda: bool(losses))
    heart.stop()
    assert losses == ["no sign of life of rank 0"]


def test_a_failure_is_heard_with_the_next_beat() -> None:
    store, heard = HashStore(), list[str]()
    heart = Heartbeat(lambda: store, 1, 2, Progress(), 0.4, Listener(failures=heard))
    tell_failure(store, 0, "rank 0 failed: ValueError on node7: no")
    wait_until(lambda: bool(heard))
    heart.stop()
    assert heard == ["rank 0 failed: ValueError on node7: no"]
    assert all_have_heard(store, 2)
    assert not all_have_heard(store, 3)


def test_a_process_that_hangs_after_a_failure_is_ended() -> None:
    store, ended = HashStore(), list[str]()
    listener = Listener(give_up=lambda: ended.append("now"))
    heart = Heartbeat(lambda: store, 1, 2, Progress(), 0.4, listener)
    time.sleep(0.3)
    assert not ended
    tell_failure(store, 0, "rank 0 failed: ValueError on node7: no")
    wait_until(lambda: bool(ended))
    heart.stop()


def test_a_failure_counts_once_per_rank() -> None:
    store = HashStore()
    tell_failure(store, 0, "a")
    assert not all_have_heard(store, 2)
    for _ in range(2):
        heard = list[str]()
        hear_failures(store, 1, heard)
        assert heard == ["a"]
    assert all_have_heard(store, 2)
    assert not all_have_heard(store, 3)


class _EndsOnceHeard:
    """A store whose process leaves as soon as every rank has heard, as ``all_have_heard`` lets it."""

    def __init__(self, world_size: int) -> None:
        self._store, self._world_size = HashStore(), world_size

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if all_have_heard(self._store, self._world_size):
            raise RuntimeError("connection closed by peer")
        method: Callable[..., Any] = getattr(self._store, name)
        return method


def test_a_failure_is_read_before_it_is_noted_as_heard() -> None:
    store: Any = _EndsOnceHeard(2)
    heard = list[str]()
    tell_failure(store, 0, "a")
    hear_failures(store, 1, heard)
    assert heard == ["a"]
