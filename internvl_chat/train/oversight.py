"""What watches over a run from outside of its arithmetic: signals, the clock of the job, the beats of the ranks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from internvl_chat.config.train import TrainArguments
from internvl_chat.train import dist, meeting
from internvl_chat.train.heartbeat import Heartbeat, Listener, Progress
from internvl_chat.train.preempt import Stopped, StopRequest, job_end
from internvl_chat.train.status import note_start_again

_STORE_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Oversight:
    """``request``: whether this rank wants to stop. ``progress``: where it is. ``failures``: heard of other ranks;
    ``give_up``: what ends this process when it hangs because of one."""

    request: StopRequest = field(default_factory=StopRequest)
    progress: Progress = field(default_factory=Progress)
    failures: list[str] = field(default_factory=list)
    give_up: Callable[[], None] = lambda: None

    def step_begins(self, step: int) -> None:
        """With the wait for its data."""
        self.request.step_begins()
        self.progress.enter("batch", step)


@contextmanager
def oversee(args: TrainArguments, oversight: Oversight) -> Iterator[None]:
    """While the block runs, the job's clock is looked at, and the ranks tell each other where they are."""
    output_dir = Path(str(args.output_dir))

    def tell(reason: str | None) -> None:
        note_start_again(output_dir, reason)

    oversight.request.watch(job_end(os.environ) if dist.rank() == 0 else None, args.stop_before_end, tell)
    heart = None
    if dist.world_size() > 1:
        listener = Listener(tell, oversight.failures, oversight.give_up)
        heart = Heartbeat(
            lambda: meeting.connect(_STORE_TIMEOUT_S),
            dist.rank(),
            dist.world_size(),
            oversight.progress,
            args.late_after,
            listener,
        )
    yield
    # After an error it beats on: the other ranks look who is still there.
    oversight.progress.enter("end")
    dist.barrier()
    if heart is not None:
        heart.stop()
    if dist.rank() == 0:
        tell(None)


class StopAtStepEnd(TrainerCallback):
    """Saves and stops once the ranks have agreed to; the last callback to be added, for it has the last word.

    An evaluation that is due is made first: a run that goes on would not know that it is missing.
    """

    def __init__(self, request: StopRequest, can_go_on: bool) -> None:
        self._request, self._can_go_on = request, can_go_on
        self._stopped_at: int | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not self._request.agreed:
            return
        control.should_save = self._can_go_on
        if state.global_step < state.max_steps:  # else it has ended by itself
            control.should_training_stop = True
            self._stopped_at = state.global_step

    def raise_if_stopped(self) -> None:
        """Raise Stopped if training did not come to its end."""
        if self._stopped_at is not None:
            reason = self._request.reason or "another rank was told to stop"
            raise Stopped(reason, self._stopped_at if self._can_go_on else None, self._can_go_on)
