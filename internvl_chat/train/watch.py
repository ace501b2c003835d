"""Looks at every optimizer step: is it finite, where does its time go, what does each data set contribute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from internvl_chat.log import get_logger
from internvl_chat.train import dist
from internvl_chat.train.inputs import MicroBatch
from internvl_chat.train.nonfinite import StepGuard, Suspect

if TYPE_CHECKING:
    from internvl_chat.train.trainer import InternVLTrainer

log = get_logger(__name__)


class StepWatch(TrainerCallback):
    """Knows the step that is being made. ``meter`` of the trainer gets what is logged, ``guard`` what is refused."""

    def __init__(self, trainer: InternVLTrainer, guard: StepGuard) -> None:
        self._trainer = trainer
        self._guard = guard
        self._micro_batches: Sequence[MicroBatch] = ()
        self._losses: list[torch.Tensor] = []
        self.grad_norm: Any = None
        self._rate_held_back = False

    def begin(self, micro_batches: Sequence[MicroBatch]) -> None:
        """The step that comes next is made of these."""
        self._micro_batches, self._losses, self.grad_norm = micro_batches, [], None

    def add_loss(self, loss: torch.Tensor) -> None:
        """This micro-batch's part of the loss times the ranks (the library's way), a scalar on the device."""
        self._losses.append(loss.detach() / dist.world_size())

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Decide together whether the step is finite, and the last one; one device sync. Raises DataError by policy.

        Without DeepSpeed nothing has moved yet: without gradients no optimizer touches weights, moments or decay.
        With it, its own check has dropped the step already.
        """
        trainer = self._trainer
        losses = torch.stack(self._losses).tolist() if self._losses else []
        # fp16 overflows now and then; its loss scaler skips such a step and goes on.
        norm = 0.0 if self.grad_norm is None or args.fp16 else float(self.grad_norm)
        dropped = trainer.is_deepspeed_enabled and not args.fp16 and trainer.accelerator.optimizer_step_was_skipped
        finite = all(map(math.isfinite, losses)) and math.isfinite(norm) and not dropped
        request = trainer.oversight.request
        trainer.oversight.progress.enter("check", state.global_step + 1)
        if dist.rank() == 0:
            request.look_at_clock()
        refused, request.agreed = dist.any_rank(not finite, request.reason is not None)
        if not refused:
            self._guard.passed()
            trainer.meter.applied()
            return
        trainer.meter.refused()
        reason = "loss or gradient is not finite on another rank"
        if not finite:
            reason = f"loss is {sum(losses)}, gradient norm {norm}"
        suspects = [Suspect(m.batch.addresses, loss) for m, loss in zip(self._micro_batches, losses, strict=False)]
        self._rate_held_back = trainer.is_deepspeed_enabled and not args.fp16
        if not trainer.is_deepspeed_enabled:
            model: nn.Module = kwargs["model"]
            model.zero_grad(set_to_none=True)
        self._guard.refuse(state.global_step + 1, reason, suspects)
        log.warning("step %d left out (%s); see %s", state.global_step + 1, reason, self._guard.path)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trainer = self._trainer
        trainer.meter.clock.enter("other")
        if args.fp16 and not self._guard.in_a_row and trainer.accelerator.optimizer_step_was_skipped:
            trainer.meter.scaler_skips += 1

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """With DeepSpeed the schedule waits for a step that was left out; the rate is to follow from its number."""
        if self._rate_held_back:
            self._rate_held_back = False
            schedule: Any = self._trainer.lr_scheduler
            getattr(schedule, "scheduler", schedule).step()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        skipped = self._trainer.meter.steps_skipped
        if skipped and state.is_world_process_zero:
            log.warning("%d steps were not finite and were left out; their samples: nonfinite*.jsonl", skipped)
