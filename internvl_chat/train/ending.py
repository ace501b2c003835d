"""How ``internvl train`` ends: what it says, once for all ranks, with which exit status, and what is left to do.

A rank that fails says so in the store of the run. Another one whose collective breaks off looks there: was it an error
of the run, which would come again, or was a rank killed or a node lost, so that the run is to be started again?
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from torch.distributed import DistError, Store

from internvl_chat.config.early import flag_of, seconds_of
from internvl_chat.constants import LATE_AFTER_S
from internvl_chat.errors import ConfigError, InternVLError, LaunchError, first_line
from internvl_chat.launch import Launch, host_name
from internvl_chat.log import get_logger, setup_logging
from internvl_chat.train import dist, meeting
from internvl_chat.train.heartbeat import (
    all_have_heard,
    hear_failures,
    interval_s,
    name_ranks,
    note,
    read_beats,
    tell_failure,
)
from internvl_chat.train.oversight import Oversight
from internvl_chat.train.preempt import Stopped, heed_signals, release_signals
from internvl_chat.train.state import complete_checkpoints
from internvl_chat.train.status import AGAIN, FAILED, INTERRUPTED, USER_ERROR, note_start_again, output_folder

T = TypeVar("T")
log = get_logger(__name__)

# What gloo, NCCL and the store say when the other side is gone or does not answer.
_PLAIN = re.compile(r"connection (closed|reset) by peer|connection refused|broken pipe|timed? ?out", re.IGNORECASE)
_LOST = re.compile(f"{_PLAIN.pattern}|NCCL|gloo|socket", re.IGNORECASE)
_SHOWN = 4
_PATIENCE_S = 5.0  # for a store whose rank may be gone


def run(argv: Sequence[str]) -> int:
    """``internvl train`` with these flags, from the environment to the exit status."""
    launch, oversight = Launch(), Oversight()
    with heed_signals(oversight.request):
        try:
            release_signals()
            launch = dist.prepare_environment(argv)
            setup_logging()
            if launch.rank == 0:
                _note(argv, None)
            dist.join(launch, argv)
            oversight = Oversight(oversight.request, give_up=lambda: _give_up(launch, argv, oversight.failures))
            from internvl_chat.train.main import train

            train(argv, oversight)
            dist.leave()
            return 0
        except BaseException as error:
            oversight.request.ignore()
            status = _end(launch, argv, error, oversight.failures)
            if launch.world_size > 1:
                if status is None:
                    traceback.print_exception(error)
                # Threads that beat, and what others have left of the connections, must not decide about the status.
                _exit_now(FAILED if status is None else status)
            if status is None:
                raise
            return status


def is_loss(error: BaseException) -> bool:
    """Whether a collective failed because of another rank, by its class and words."""
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and bool(_LOST.search(first_line(error))))


def _end(launch: Launch, argv: Sequence[str], error: BaseException, failures: list[str]) -> int | None:
    """Say what ended the run; the exit status, None for what Python itself shows."""
    if isinstance(error, Stopped):
        return _stopped(launch, argv, error, failures)
    if isinstance(error, KeyboardInterrupt):
        if launch.rank == 0:
            log.warning("stopped by Ctrl-C; %s", _where_to_go_on(argv))
        return INTERRUPTED
    if isinstance(error, meeting.RankMissing):
        _say(launch, error)
        _note(argv, str(error))
        return AGAIN
    if launch.world_size > 1 and is_loss(error):
        return _lost(launch, argv, error, failures)
    if isinstance(error, InternVLError):
        _say(launch, error)
    if not isinstance(error, LaunchError):
        _announce(launch, error, argv)
    _note(argv, None)
    return USER_ERROR if isinstance(error, InternVLError) else None


def _note(argv: Sequence[str], reason: str | None, step: int | None = None) -> None:
    """Leave word that the run is to be started again, or take it back."""
    folder = output_folder(argv)
    if folder is not None:
        note_start_again(folder, reason, step)


def _exit_now(status: int) -> None:
    """Leave without the interpreter's own end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


# -- what is said -----------------------------------------------------------------------------------------------------


def _say(launch: Launch, error: InternVLError) -> None:
    """Print an error: what several ranks have to say in the same words is said once."""
    text = str(error)
    first = _with_store(launch, lambda store: store.add(f"said/{_key(text)}", 1) == 1)
    if first is None:  # nobody to ask: one rank of each node speaks
        first = launch.local_rank == 0 or not isinstance(error, ConfigError)
    if first:
        label = f"[rank {launch.rank} on {host_name()}] error" if launch.rank else "error"
        sys.stderr.write("".join(f"{label}: {line}\n" for line in text.splitlines()))


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _because(failures: Sequence[str]) -> str:
    return f"the run has ended because {'; '.join(failures[:_SHOWN])}"


def _announce(launch: Launch, error: BaseException, argv: Sequence[str]) -> None:
    """Tell the other ranks that this one has failed by itself."""
    text = f"rank {launch.rank} failed: {type(error).__name__} on {host_name()}: {first_line(error)}"

    def tell(store: Store) -> None:
        if isinstance(error, InternVLError):  # it has been said
            store.add(f"said/{_key(_because([text]))}", 1)
        tell_failure(store, launch.rank, text)

    _with_store(launch, tell)
    if not meeting.serves_store(launch):
        return
    # The store ends with this process; the others look into it with each beat.
    deadline = time.monotonic() + 1 + 2 * _interval_s(argv)
    while time.monotonic() < deadline:
        if _with_store(launch, lambda store: all_have_heard(store, launch.world_size)) is not False:
            return
        time.sleep(0.1)


def _with_store(launch: Launch, question: Callable[[Store], T]) -> T | None:
    """Ask the store of the run; None where there is none, or none any more."""
    if launch.world_size == 1:
        return None
    try:
        return question(meeting.connect(_PATIENCE_S))
    except (DistError, RuntimeError, OSError):
        return None


def _where_to_go_on(argv: Sequence[str]) -> str:
    newest = _newest_checkpoint(argv)
    if newest is None:
        return "no checkpoint was complete yet (--save_steps): the same command starts from the beginning"
    overwrites = (flag_of(argv, "overwrite_output_dir") or "false").lower() not in ("false", "0", "no")
    return f"the same command{' without --overwrite_output_dir' * overwrites} goes on from {newest}"


def _newest_checkpoint(argv: Sequence[str]) -> Path | None:
    folder = output_folder(argv)
    complete = complete_checkpoints(folder) if folder is not None and folder.is_dir() else []
    return complete[-1] if complete else None


# -- why it ended -----------------------------------------------------------------------------------------------------


def _stopped(launch: Launch, argv: Sequence[str], stop: Stopped, failures: list[str]) -> int:
    """A signal or the clock ended the run: it is to go on later, unless the signal only came because a rank failed."""
    if _heard(launch, failures):
        return _failed(launch, argv, failures)
    if stop.can_go_on:
        _note(argv, stop.reason, stop.step)
    if launch.rank == 0:
        what = _where_to_go_on(argv) if stop.can_go_on else "--save_only_model has left nothing to go on from"
        log.warning("stopped: %s; %s", stop.reason, what)
    return AGAIN


def _lost(launch: Launch, argv: Sequence[str], error: BaseException, failures: list[str]) -> int:
    """A collective broke off. Says which rank has done it; where that was no error of its own: start again."""
    known = _heard(launch, failures)
    reason = "" if known else _with_store(launch, lambda store: _verdict(store, launch, argv))
    if known or _heard(launch, failures):
        return _failed(launch, argv, failures)
    reason = reason or "rank 0 is gone, or its node"
    newest = _newest_checkpoint(argv)
    _note(argv, reason, None if newest is None else int(newest.name.rpartition("-")[2]))
    _say(launch, LaunchError(f"{reason} ({_plainly(error)}); {_where_to_go_on(argv)}"))
    return AGAIN


def _failed(launch: Launch, argv: Sequence[str], failures: Sequence[str]) -> int:
    """Other ranks have failed by themselves: started again they would fail again."""
    _say(launch, LaunchError(_because(failures)))
    _note(argv, None)
    return FAILED


def _give_up(launch: Launch, argv: Sequence[str], failures: Sequence[str]) -> None:
    """Called beside a main thread that waits for a rank that has failed, and would wait for ever."""
    _exit_now(_failed(launch, argv, failures))


def _heard(launch: Launch, failures: list[str]) -> bool:
    """Whether other ranks have failed by themselves; ``failures``, which the heartbeat fills too, says how."""
    _with_store(launch, lambda store: hear_failures(store, launch.rank, failures))
    return bool(failures)


def _verdict(store: Store, launch: Launch, argv: Sequence[str]) -> str:
    """Who is gone, as one rank finds out for all of them."""
    if store.add("judges", 1) == 1:
        store.set("verdict", _who_is_gone(store, launch, argv))
    deadline = time.monotonic() + 4 * _interval_s(argv)
    while not store.check(["verdict"]):
        if time.monotonic() > deadline:  # the judge is gone, too
            return _who_is_gone(store, launch, argv)
        time.sleep(0.2)
    return str(store.get("verdict").decode())


def _who_is_gone(store: Store, launch: Launch, argv: Sequence[str]) -> str:
    """Look at the beats of all ranks for a while: whose do not go on?"""
    before = note({}, read_beats(store, launch.world_size), 0.0)
    time.sleep(2.5 * _interval_s(argv))
    after = note(before, read_beats(store, launch.world_size), 1.0)
    still = [rank for rank, sign in sorted(after.items()) if sign.beat_s == 0.0]
    if still:
        return f"{name_ranks(still, after)} gone without a word: killed, or the node is lost"
    if not after:
        return "a collective broke off"
    last = min(after, key=lambda rank: after[rank].beat.where)
    where = after[last].beat.where
    return f"a collective broke off though no rank is gone; {name_ranks([last], after)} was last, in {where}"


def _plainly(error: BaseException) -> str:
    """What a collective's error says, without places in the library's source."""
    found = _PLAIN.search(first_line(error))
    return found[0].lower() if found else type(error).__name__


def _interval_s(argv: Sequence[str]) -> float:
    """Seconds between two beats, by the flags."""
    late_s = 0.0 if flag_of(argv, "late_after") in ("0", "0.0") else seconds_of(argv, "late_after", LATE_AFTER_S)
    return interval_s(late_s)
