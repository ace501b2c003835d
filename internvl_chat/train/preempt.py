"""A run that is told to stop: saves a checkpoint at the end of the step, and ends so that it can be started again.

Told by a signal (SIGTERM, SIGUSR1: SLURM's warning before it takes the nodes away) or by the clock of the SLURM job.
One rank may know before the others; they agree within the step (``train/watch.py``).
"""

from __future__ import annotations

import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from types import FrameType

from internvl_chat.log import get_logger

log = get_logger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# What a signal does.
_AT_ONCE, _AT_STEP_END, _AFTER, _NEVER = range(4)


class Stopped(BaseException):
    """The run stops before its end. ``step``: of the checkpoint that was saved for it, if one was.


    No Exception: nothing that handles errors on the way may swallow it.
    """

    def __init__(self, reason: str, step: int | None = None, can_go_on: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.step, self.can_go_on = reason, step, can_go_on


class StopRequest:
    """Whether, and why, this rank wants the run to stop. ``agreed`` is set when any rank has a reason.

    Before training a signal raises ``Stopped`` at once, for there is nothing to save; in a step it is noted. After the
    last step what is left is quicker to end than to do again: word is left to start again, should there be no time.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.agreed = False
        self._now = _AT_ONCE
        self._end_s: float | None = None
        self._margin_s: float | None = None
        self._tell: Callable[[str | None], None] = lambda reason: None
        self._longest = {"step": 0.0, "save": 0.0, "evaluation": 0.0}
        self._step_began: float | None = None

    def watch(self, end_s: float | None, margin_s: float | None, tell: Callable[[str | None], None]) -> None:
        """``end_s``: when the job ends (seconds since 1970), ``margin_s``: how long before that to stop; None: by what
        steps, saves and evaluations have taken; 0: the clock is not looked at. ``tell`` leaves word to start again."""
        self._end_s, self._margin_s, self._tell = end_s, margin_s, tell

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        reason = f"signal {signal.Signals(number).name}"
        if self._now == _AT_ONCE:
            self._now = _NEVER
            raise Stopped(reason)
        if self._now == _NEVER or self.reason is not None:
            return
        self.reason = reason
        if self._now == _AT_STEP_END:
            log.warning("%s: a checkpoint is saved at the end of this step, then the run stops", reason)
        else:
            log.warning("%s: training is done, what is left is finished", reason)
            self._tell(f"{reason} while the final model was written")

    @contextmanager
    def training(self) -> Iterator[None]:
        """Within the block a signal does not stop the run at once, nor does it after."""
        self._now = _AT_STEP_END
        yield
        self._now = _AFTER

    def ignore(self) -> None:
        """The run is ending: signals have nothing to say any more."""
        self._now = _NEVER

    def step_begins(self) -> None:
        """The time of a step is counted from here to ``look_at_clock``."""
        self._step_began = time.monotonic()

    def took(self, what: str, seconds: float) -> None:
        """A "save" or an "evaluation" took so long."""
        self._longest[what] = max(self._longest[what], seconds)

    def look_at_clock(self, now_s: float | None = None) -> None:
        """At the end of a step: is there time for another one, and to save it?"""
        if self._step_began is not None:
            self.took("step", time.monotonic() - self._step_began)
        if self._end_s is None or self._margin_s == 0 or self.reason is not None:
            return
        left = self._end_s - (time.time() if now_s is None else now_s)
        if left < self.margin_s():
            self.reason = f"the job's time ends in {left:.0f} s"
            log.warning("%s: a checkpoint is saved at the end of this step, then the run stops", self.reason)

    def margin_s(self) -> float:
        """Seconds before the job's end at which the run stops."""
        if self._margin_s is not None:
            return self._margin_s
        return 2 * self._longest["step"] + 2 * self._longest["save"] + self._longest["evaluation"] + 30


def hold_signals() -> None:
    """Signals wait until they are released: while Python starts or ends they would end the process without a word."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def release_signals() -> None:
    """Those that were held arrive now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextmanager
def heed_signals(request: StopRequest) -> Iterator[None]:
    """Within the block signals go to ``request``. Only a main thread gets signals; in another one nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, request.handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def job_end(env: Mapping[str, str]) -> float | None:
    """When the SLURM job that this process belongs to will be ended, in seconds since 1970; None if never, or unknown.

    SLURM 23.02 and later say it in SLURM_JOB_END_TIME; before that its controller is asked.
    """
    told = env.get("SLURM_JOB_END_TIME", "")
    if told.isdigit():
        return float(told)
    job = env.get("SLURM_JOB_ID", "")
    if not job.isdigit():
        return None
    try:
        words = ["scontrol", "show", "job", job, "--oneliner"]
        shown = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None  # not every site lets jobs ask; the warning signal remains
    match = re.search(r"\bEndTime=(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)", shown)
    return datetime.fromisoformat(match[1]).timestamp() if match else None
