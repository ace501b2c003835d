"""Steps whose loss or gradient is not a number: never applied, written down, and by policy the end of the run.

Without DeepSpeed the trainer looks at loss and gradient norm before it lets the optimizer step. DeepSpeed steps inside
the last backward pass; its ZeRO optimizers look at the gradients of all ranks themselves and drop such a step whole
(weights, moments, weight decay), so ``poison`` makes sure that a bad loss is a bad gradient, and ``check_deepspeed``
that they do look.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from internvl_chat.data.address import Address
from internvl_chat.errors import ConfigError, DataError

# Steps in a row after which a run that skips them ends all the same: it is not the samples then.
MAX_IN_A_ROW = 20


def poison(loss: torch.Tensor) -> torch.Tensor:
    """The same loss to the last bit, except that one that is not finite becomes NaN, and so does its gradient."""
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, math.nan).to(loss.dtype)


def check_deepspeed(config: dict[str, Any]) -> None:
    """Raise ConfigError for a DeepSpeed configuration that would apply a step without looking at it."""
    zero = config.get("zero_optimization") or {}
    stage = int(zero.get("stage", 0))
    bf16 = config.get("bf16") or config.get("bfloat16") or {}
    half = [bool(part.get("enabled")) is True for part in (bf16, config.get("fp16") or {})]
    why = None
    if stage in (1, 2) and half[0] and bf16.get("check_grad_overflow") is False:
        why = '"check_grad_overflow": false in its bf16 block'
    elif stage in (1, 2) and not any(half) and zero.get("compute_grad_norm") is False:
        why = '"compute_grad_norm": false in its zero_optimization block'
    elif stage == 0 and not any(half):
        raise ConfigError(
            "--deepspeed: in float32 without ZeRO (stage 0) DeepSpeed applies steps that are not finite; leave "
            "--deepspeed out, or choose zero1"
        )
    if why:
        raise ConfigError(f"--deepspeed: with {why} a step that is not finite would be applied; take that out")


@dataclass(frozen=True)
class Suspect:
    """Samples of one micro-batch, and its part of the loss."""

    addresses: Sequence[Address]
    loss: float


class StepGuard:
    """Counts and writes down the steps that were not finite. ``path``: this rank's file."""

    def __init__(self, policy: str, path: Path, rank: int) -> None:
        self.policy = policy
        self.path = path
        self.rank = rank
        self.in_a_row = 0

    def passed(self) -> None:
        self.in_a_row = 0

    def refuse(self, step: int, reason: str, micro_batches: Sequence[Suspect]) -> None:
        """Write the samples of a step (counted from 1) to the file. Raises DataError unless the run may go on."""
        self.in_a_row += 1
        self._write(step, reason, micro_batches)
        samples = [f"{a.dataset}:{a.line + 1}" for part in micro_batches for a in part.addresses]
        # A micro-batch whose own loss is bad comes first: most likely it is one of these.
        bad = [
            f"{a.dataset}:{a.line + 1}"
            for part in micro_batches
            if not math.isfinite(part.loss)
            for a in part.addresses
        ]
        shown = ", ".join((bad or samples)[:10]) + (", ..." if len(bad or samples) > 10 else "")
        where = f"step {step} on rank {self.rank}"
        mend = "look at them, lower --learning_rate, or use bf16 instead of fp16"
        if self.policy == "stop":
            raise DataError(
                f"{reason}, in {where}; the step was not applied; samples: {shown} (all in {self.path}); {mend}; "
                "--nonfinite_step skip leaves such steps out and goes on"
            )
        if self.in_a_row >= MAX_IN_A_ROW:
            raise DataError(
                f"{self.in_a_row} steps in a row were not finite, the last: {reason}, in {where}; their samples are in "
                f"{self.path}; the model itself is broken, or the learning rate far too high: go on from an earlier "
                "checkpoint with a lower --learning_rate"
            )

    def _write(self, step: int, reason: str, micro_batches: Sequence[Suspect]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            for number, part in enumerate(micro_batches):
                for address in part.addresses:
                    record = {
                        "step": step,
                        "rank": self.rank,
                        "micro_batch": number,
                        "dataset": address.dataset,
                        "line": address.line + 1,
                        "epoch": address.epoch,
                        # NaN is no JSON.
                        "loss": part.loss if math.isfinite(part.loss) else str(part.loss),
                        "reason": reason,
                        "applied": False,
                    }
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")


def ledger_path(output_dir: Path, rank: int) -> Path:
    """``nonfinite.jsonl``, of the other ranks ``nonfinite.rankN.jsonl``."""
    return output_dir / (f"nonfinite.rank{rank}.jsonl" if rank else "nonfinite.jsonl")


def forget_after(output_dir: Path, step: int) -> None:
    """Take steps after ``step`` out of the files of all ranks: a run that goes on from there makes them again."""
    for path in output_dir.glob("nonfinite*.jsonl"):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        temporary.replace(path)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # half a line
