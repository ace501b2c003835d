"""What a user may set about training: transformers' TrainingArguments with the defaults and rules of this project."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import TrainingArguments

from internvl_chat.config.rule import names_of
from internvl_chat.constants import DDP_TIMEOUT_S, LATE_AFTER_S, START_TIMEOUT_S


def _default_workers() -> int:
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(4, len(os.sched_getaffinity(0)) // ranks))


@dataclass
class TrainArguments(TrainingArguments):
    """TrainingArguments of transformers 5; old flag names are translated before parsing (see renamed.py)."""

    output_dir: str | None = field(default=None, metadata={"help": "Folder of checkpoints, logs and the final model."})
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Start again in a folder that is in use: its checkpoints are deleted. False: resume."},
    )
    # The library's parser wants None first.
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="tensorboard", metadata={"help": "Where metrics go."}
    )
    per_device_train_batch_size: int = field(
        default=1, metadata={"help": "Packs (packed) or samples (padded) per device and micro-batch."}
    )
    # The library's default is 8, whatever fits.
    per_device_eval_batch_size: int = field(
        default=0, metadata={"help": "The same when evaluating; 0 = as for training."}
    )
    dataloader_num_workers: int = field(
        default=_default_workers(),
        metadata={"help": "Processes per rank that make batches. Default: up to 4, as the machine's cores allow."},
    )
    logging_steps: float = field(default=10, metadata={"help": "Optimizer steps between log lines."})
    logging_first_step: bool = field(default=True, metadata={"help": "Log the first step too."})
    nonfinite_step: Literal["stop", "skip"] = field(
        default="stop",
        metadata={"help": "A step whose loss or gradient is not finite is never applied: end the run there, or go on."},
    )
    start_timeout: float = field(
        default=START_TIMEOUT_S, metadata={"help": "Seconds that the ranks wait for each other at the start."}
    )
    ddp_timeout: int = field(
        default=int(DDP_TIMEOUT_S),
        metadata={"help": "Seconds that a rank waits for the others in a step before the run ends."},
    )
    late_after: float = field(
        default=LATE_AFTER_S,
        metadata={"help": "A rank that others have waited for so many seconds is named in the log; 0: never."},
    )
    stop_before_end: float | None = field(
        default=None,
        metadata={
            "help": "Seconds before a SLURM job's time is up at which a checkpoint is saved and the run stops, to be "
            "started again. Default: twice the longest step and save so far, and 30; 0: the clock is not looked at."
        },
    )
    peak_tflops: float | None = field(
        default=None,
        metadata={"help": "What a device can do at most, bf16 TFLOP/s, for MFU; default: by the name of the card."},
    )

    def __post_init__(self) -> None:
        if self.report_to is not None:
            self.report_to = names_of(self.report_to)
        # On a machine without an accelerator the library wants this said before it accepts bf16 or gloo.
        if not torch.accelerator.is_available():
            self.use_cpu = True
        # A NaN must be seen, not replaced by the running mean; columns are ours; the denominator is global.
        self.logging_nan_inf_filter = False
        self.remove_unused_columns = False
        self.average_tokens_across_devices = True
        # Every rank calls every module in every micro-batch, so no search for unused parameters is needed.
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False
        # There are no buffers that change; rank 0 would send the same constants in every forward pass.
        if self.ddp_broadcast_buffers is None:
            self.ddp_broadcast_buffers = False
        # The loader starts at the step to resume from; nothing is replayed.
        self.ignore_data_skip = True
        self.per_device_eval_batch_size = self.per_device_eval_batch_size or self.per_device_train_batch_size
        if self.metric_for_best_model is None and (self.load_best_model_at_end or self.save_strategy == "best"):
            self.metric_for_best_model = "eval_loss"
        if (self.metric_for_best_model or "").startswith("eval/"):  # as TensorBoard shows it
            self.metric_for_best_model = str(self.metric_for_best_model).replace("eval/", "eval_", 1)
        # The library looks at the end of the name, where ours have the data set: eval_loss/NAME.
        measure = (self.metric_for_best_model or "").removeprefix("eval_").split("/")[0]
        if self.greater_is_better is None and measure == "loss":
            self.greater_is_better = False
        super().__post_init__()

    @property
    def n_gpu(self) -> int:
        """One card per process. The library would split a packed row over all cards of a plain ``python`` run."""
        return min(super().n_gpu, 1)
