"""Who is late, who is gone: from beats alone, and with threads that beat."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from itertools import pairwise

import pytest
from torch.distributed import HashStore

from internvl_chat.train.heartbeat import (
    PHASES,
    Beat,
    Heartbeat,
    Progress,
    Where,
    all_have_heard,
    gone,
    late,
    name_ranks,
    note,
    read_beats,
    tell_failure,
)


def at(step: int, phase: str) -> Where:
    return Where(step, PHASES.index(phase))


def test_order_of_places() -> None:
    order = [at(0, "data"), at(0, "model"), at(1, "batch"), at(1, "step"), at(1, "evaluate"), at(1, "save")]
    order += [at(2, "batch"), at(2, "step")]
    assert all(before < after for before, after in pairwise(order))
    assert str(at(7, "save")) == "'save' of step 7"
    assert str(at(0, "model")) == "'model'"


def test_late_is_who_stands_still_while_others_are_further_on() -> None:
    before = {0: Beat(1, at(3, "step"), "a"), 1: Beat(1, at(3, "batch"), "b"), 2: Beat(1, at(3, "step"), "b")}
    signs = note({}, before, 0.0)
    # Only rank 1 is behind; the others wait for it, which is not their fault.
    later = {rank: Beat(2, beat.where, beat.host) for rank, beat in before.items()}
    signs = note(signs, later, 50.0)
    assert late(signs, 50.0, 60.0) == []
    assert late(signs, 61.0, 60.0) == [1]
    assert gone(signs, 61.0, 30.0) == []
    assert name_ranks([1], signs) == "rank 1 on b"
    # It moves on.
    signs = note(signs, {**later, 1: Beat(3, at(3, "step"), "b")}, 62.0)
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
    progress[0].enter("step", 5)
    progress[1].enter("batch", 5)
    first = Heartbeat(lambda: store, 0, 2, progress[0], 0.4, losses.append, [])
    second = Heartbeat(lambda: store, 1, 2, progress[1], 0.4, losses.append, [])
    wait_until(lambda: "rank 1 on node7 late" in caplog.text)
    assert "in 'batch' of step 5, while others are in 'step' of step 5" in caplog.text
    progress[1].enter("step", 5)
    wait_until(lambda: "rank 1 on node7 goes on" in caplog.text)
    assert losses == []
    second.stop()
    wait_until(lambda: len(losses) == 1)
    assert "no sign of life of rank 1 on node7" in str(losses[0])
    third = Heartbeat(lambda: store, 1, 2, progress[1], 0.4, losses.append, [])
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

    heart = Heartbeat(connect, 1, 2, Progress(), 0.2, losses.append, [])
    wait_until(lambda: bool(losses))
    heart.stop()
    assert losses == ["no sign of life of rank 0"]


def test_a_failure_is_heard_with_the_next_beat() -> None:
    store, heard = HashStore(), list[str]()
    heart = Heartbeat(lambda: store, 1, 2, Progress(), 0.4, lambda lost: None, heard)
    tell_failure(store, 0, "ValueError on node7: no")
    wait_until(lambda: bool(heard))
    heart.stop()
    assert heard == ["rank 0 failed: ValueError on node7: no"]
    assert all_have_heard(store, 2)
    assert not all_have_heard(store, 3)
