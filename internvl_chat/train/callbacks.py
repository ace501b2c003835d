"""Callbacks: the epoch as it is, a log that programs can read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from internvl_chat.data.plan.schedule import Schedule
from internvl_chat.log import get_logger

log = get_logger(__name__)


class TrueEpoch(TrainerCallback):
    """The library sees the run as one pass over one loader; here epochs are counted, logged and saved as they are."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        state.epoch = self.schedule.epoch_at(state.global_step)
        if self.schedule.ends_epoch(state.global_step):
            control.should_save |= args.save_strategy == SaveStrategy.EPOCH
            control.should_log |= args.logging_strategy == IntervalStrategy.EPOCH


class GivenSteps(TrainerCallback):
    """--logging_steps, --save_steps and --eval_steps as given now: the library goes on with those of the checkpoint."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        state.compute_steps(args, state.max_steps)


class NewSchedule(TrainerCallback):
    """A run that goes on with another number of steps: its first step has the learning rate of the new schedule.

    The library restores the old schedule's rate, which at the end of a finished run is 0.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        schedule = kwargs["lr_scheduler"]
        schedule = getattr(schedule, "scheduler", schedule)  # inside accelerate's
        if not isinstance(schedule, LambdaLR):
            return
        rates = [
            base * rule(schedule.last_epoch) for base, rule in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        ]
        for group, rate in zip(kwargs["optimizer"].param_groups, rates, strict=True):
            group["lr"] = rate
        schedule._last_lr = rates


class JsonLinesLog(TrainerCallback):
    """Every log record as a line of ``train_log.jsonl``; after a resume the records of the lost steps are cut off."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        kept = [line for line in lines if state.global_step and _step_of(line) <= state.global_step]
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        temporary.replace(self.path)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


class TrainableText(TrainerCallback):
    """The table of what trains, as text in TensorBoard. ``callbacks`` gives those of the Trainer."""

    def __init__(self, text: str, callbacks: Callable[[], Iterable[TrainerCallback]]) -> None:
        self._text, self._callbacks = text, callbacks

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for callback in self._callbacks():
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                # Four spaces make a code block: TensorBoard shows text as Markdown.
                callback.tb_writer.add_text("what trains", "    " + self._text.replace("\n", "\n    "))


class ShortBar(ProgressCallback):
    """The library's progress bar, with one readable line per log record above it instead of a dict."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.write(short_line(state, logs))


class ShortLines(TrainerCallback):
    """For logs that are files: the same lines without a bar, with the time that is left."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._started, self._first = time.monotonic(), state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero and logs and "loss" in logs:
            per_step = (time.monotonic() - self._started) / max(1, state.global_step - self._first)
            left = timedelta(seconds=round(per_step * (state.max_steps - state.global_step)))
            log.info("%s, %s left", short_line(state, logs), left)


def short_line(state: TrainerState, logs: dict[str, Any]) -> str:
    """What a person wants to see of a log record; all of it is in TensorBoard and ``train_log.jsonl``."""
    return (
        f"step {state.global_step}/{state.max_steps}, epoch {logs.get('epoch', 0.0):.2f}: loss {logs['loss']:.4f}, "
        f"grad norm {float(logs.get('grad_norm', 0.0)):.2f}, lr {logs.get('learning_rate', 0.0):.2e}, "
        f"{logs.get('tokens_per_second', 0.0):.0f} tokens/s, fill {logs.get('fill', 0.0):.2f}, "
        f"data wait {logs.get('data_wait', 0.0):.2f}" + (f", MFU {logs['mfu']:.2f}" if "mfu" in logs else "")
    )


def _step_of(line: str) -> float:
    """Step of a log record; infinite for one that goes when a run goes on: half a line, or the summary at the end."""
    try:
        record = json.loads(line)
        return float("inf") if "train_runtime" in record else float(record["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
