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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from torch.distributed import DistError, Store

from internvl_chat.constants import LATE_AFTER_S
from internvl_chat.errors import ConfigError, InternVLError, LaunchError, first_line
from internvl_chat.log import get_logger, setup_logging
from internvl_chat.train import dist, meeting
from internvl_chat.train.heartbeat import (
    all_have_heard,
    interval_s,
    name_ranks,
    note,
    read_beats,
    read_failures,
    tell_failure,
)
from internvl_chat.train.launch import Launch, host_name
from internvl_chat.train.oversight import Oversight
from internvl_chat.train.preempt import Stopped, heed_signals
from internvl_chat.train.state import complete_checkpoints, note_start_again

T = TypeVar("T")
log = get_logger(__name__)

USER_ERROR = 2
AGAIN = os.EX_TEMPFAIL  # 75
INTERRUPTED = 130
# What gloo, NCCL and the store say when the other side is gone or does not answer.
_LOST = re.compile(r"closed by peer|reset by peer|refused|broken pipe|timed? ?out|NCCL|gloo|socket", re.IGNORECASE)
_SHOWN = 4
_PATIENCE_S = 5.0  # for a store whose rank may be gone


def run(argv: Sequence[str]) -> int:
    """``internvl train`` with these flags, from the environment to the exit status."""
    launch, oversight = Launch(), Oversight()
    with heed_signals(oversight.request):
        try:
            launch = dist.prepare_environment(argv)
            setup_logging()
            dist.join(launch, argv)
            from internvl_chat.train.main import train

            train(argv, oversight)
            dist.leave()
            return 0
        except BaseException as error:
            oversight.request.ignore()
            status = _end(launch, argv, error, oversight.failures)
            if status is None:
                raise
            return status


def _end(launch: Launch, argv: Sequence[str], error: BaseException, failures: list[str]) -> int | None:
    """Say what ended the run; the exit status, None for what Python itself shall show."""
    if isinstance(error, Stopped):
        return _stopped(launch, argv, error, failures)
    if isinstance(error, KeyboardInterrupt):
        if launch.rank == 0:
            log.warning("stopped by Ctrl-C; %s", _where_to_go_on(argv))
        return INTERRUPTED
    if launch.world_size > 1 and is_loss(error):
        return _lost(launch, argv, error, failures)
    if isinstance(error, InternVLError):
        _say(launch, error)
    _announce(launch, error, argv)
    return USER_ERROR if isinstance(error, InternVLError) else None


def is_loss(error: BaseException) -> bool:
    """Whether a collective failed because of another rank, by its class and words."""
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and bool(_LOST.search(first_line(error))))


def output_folder(argv: Sequence[str]) -> Path | None:
    """``--output_dir``, as far as it can be told before the flags are checked."""
    value = dist.flag_of(argv, "output_dir")
    return Path(value) if value else None


# -- what is said -----------------------------------------------------------------------------------------------------


def _say(launch: Launch, error: InternVLError) -> None:
    """Print an error: what several ranks have to say in the same words is said once."""
    text = str(error)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    first = _with_store(launch, lambda store: store.add(f"said/{key}", 1) == 1)
    if first is None:  # nobody to ask: one rank of each node speaks
        first = launch.local_rank == 0 or not isinstance(error, ConfigError)
    if first:
        label = f"[rank {launch.rank} on {host_name()}] error" if launch.rank else "error"
        sys.stderr.write("".join(f"{label}: {line}\n" for line in text.splitlines()))


def _announce(launch: Launch, error: BaseException, argv: Sequence[str]) -> None:
    """Tell the other ranks that this one has failed by itself."""
    text = f"{type(error).__name__} on {host_name()}: {first_line(error)}"
    _with_store(launch, lambda store: tell_failure(store, launch.rank, text))
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
    folder = output_folder(argv)
    complete = complete_checkpoints(folder) if folder is not None and folder.is_dir() else []
    if not complete:
        return "no checkpoint was complete yet: the same command starts from the beginning"
    overwrites = (dist.flag_of(argv, "overwrite_output_dir") or "false").lower() not in ("false", "0", "no")
    return f"the same command{' without --overwrite_output_dir' * overwrites} goes on from {complete[-1]}"


# -- why it ended -----------------------------------------------------------------------------------------------------


def _stopped(launch: Launch, argv: Sequence[str], stop: Stopped, failures: list[str]) -> int:
    """A signal or the clock ended the run: it is to go on later, unless the signal only came because a rank failed."""
    if failures or _with_store(launch, lambda store: read_failures(store, launch.rank, launch.world_size)):
        return 1
    folder = output_folder(argv)
    if folder is not None and stop.can_go_on:
        note_start_again(folder, stop.reason, stop.step)
    if stop.together:
        dist.leave()
    if launch.rank == 0:
        what = _where_to_go_on(argv) if stop.can_go_on else "--save_only_model has left nothing to go on from"
        log.warning("stopped: %s; %s", stop.reason, what)
    return AGAIN


def _lost(launch: Launch, argv: Sequence[str], error: BaseException, failures: list[str]) -> int:
    """A collective broke off. Says which rank has done it; where that was no error of its own: start again."""
    failures = failures or _with_store(launch, lambda store: read_failures(store, launch.rank, launch.world_size)) or []
    reason = "" if failures else _with_store(launch, lambda store: _who_is_gone(store, launch, argv))
    failures = failures or _with_store(launch, lambda store: read_failures(store, launch.rank, launch.world_size)) or []
    if failures:
        _say(launch, LaunchError(f"the run has ended because {'; '.join(failures[:_SHOWN])}"))
        return 1
    reason = reason or "rank 0 is gone, or its node"
    folder = output_folder(argv)
    if folder is not None:
        note_start_again(folder, reason)
    _say(launch, LaunchError(f"{reason} ({first_line(error)}); {_where_to_go_on(argv)}"))
    return AGAIN


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


def _interval_s(argv: Sequence[str]) -> float:
    """Seconds between two beats, by the flags."""
    return interval_s(dist.seconds_of(argv, "late_after", LATE_AFTER_S))
