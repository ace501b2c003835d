"""Training runs with steps that are made non-finite on purpose, in processes of their own; for test_nonfinite.py.

Each job is ``{"argv": [...], "bad": {step: [kind, rank, micro_batch]}, "report": path}``. Kinds: ``loss`` makes a
micro-batch's loss infinite, ``gradient`` only its gradient. The report of a rank holds digests of all that a step may
move (weights, master weights, moments) before and after every step, and how the run ended.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from tests.train.runs import environment

ROOT = Path(__file__).parents[2]


def run_poisoned(jobs: list[dict[str, Any]], processes: int) -> None:
    """Run the jobs one after the other in the same processes."""
    command = [sys.executable, "-m", "tests.train.poisoned", json.dumps(jobs)]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *launcher, "-m", "tests.train.poisoned", json.dumps(jobs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment(), cwd=ROOT)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * float("inf")


def all_that_moves(trainer: Any) -> Iterator[torch.Tensor]:
    for parameter in trainer.model.parameters():
        yield getattr(parameter, "ds_tensor", parameter)
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):
        yield from getattr(optimizer, name, [])
    base = getattr(optimizer, "optimizer", optimizer)
    for state in base.state.values():
        yield from (value for _, value in sorted(state.items()) if isinstance(value, torch.Tensor))


def digest(trainer: Any) -> str:
    found = hashlib.sha256()
    for tensor in all_that_moves(trainer):
        found.update(tensor.detach().float().numpy().tobytes())
    return found.hexdigest()


class Digests(TrainerCallback):
    def __init__(self, trainer: Any, report: dict[str, Any]) -> None:
        self.trainer, self.report = trainer, report

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.report["before"].append(digest(self.trainer))

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.report["after"].append(digest(self.trainer))


def main() -> None:
    from accelerate.state import AcceleratorState

    from internvl_chat.errors import DataError
    from internvl_chat.train import dist
    from internvl_chat.train import main as train_main

    original = train_main.InternVLTrainer
    for job in json.loads(sys.argv[1]):
        report: dict[str, Any] = {"before": [], "after": [], "error": None}

        class Poisoned(original):  # type: ignore[misc, valid-type]
            micro, bad, found = 0, job["bad"], report

            def train(self, *args: Any, **kwargs: Any) -> Any:
                self.add_callback(Digests(self, self.found))
                return super().train(*args, **kwargs)

            def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
                number = self.micro % self.args.gradient_accumulation_steps
                self.micro += 1
                kind, rank, micro = self.bad.get(str(self.state.global_step), (None, 0, 0))
                here = kind is not None and (dist.rank(), number) == (rank, micro)
                if here and kind == "loss":
                    place, target, weight = inputs["targets"]
                    inputs["targets"] = (place, target, weight * float("inf"))
                loss = super().compute_loss(model, inputs, *args, **kwargs)
                return InfiniteGradient.apply(loss) if here and kind == "gradient" else loss

        train_main.InternVLTrainer = Poisoned  # type: ignore[misc]
        try:
            train_main.train(job["argv"])
        except DataError as error:
            report["error"] = str(error)
        report["at_the_end"] = report["after"][-1] if report["after"] else None
        Path(f"{job['report']}.{dist.rank()}.json").write_text(json.dumps(report))
        AcceleratorState._reset_state()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        dist.leave()


if __name__ == "__main__":
    main()
