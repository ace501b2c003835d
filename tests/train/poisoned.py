"""Training runs with steps that are made non-finite on purpose; jobs of ``runs.run_all`` for test_nonfinite.py.

What is bad comes as ``{step: [kind, rank, micro_batch]}`` in JSON. Kinds: ``loss`` makes a micro-batch's loss
infinite, ``gradient`` only its gradient. The report of a rank holds digests of all that a step may
move (weights, master weights, moments) before and after every step, and how the run ended.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import TrainerCallback


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


def poison(bad_steps: str, out: str, argv: Sequence[str]) -> None:
    """Be one rank of a run, and write its report to ``out.RANK.json``."""
    from internvl_chat.errors import DataError
    from internvl_chat.train import dist
    from internvl_chat.train import main as train_main

    bad = json.loads(bad_steps)
    original = train_main.InternVLTrainer
    report: dict[str, Any] = {"before": [], "after": [], "error": None}

    class Poisoned(original):  # type: ignore[misc, valid-type]
        micro = 0

        def train(self, *args: Any, **kwargs: Any) -> Any:
            self.add_callback(Digests(self, report))
            return super().train(*args, **kwargs)

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            number = self.micro % self.args.gradient_accumulation_steps
            self.micro += 1
            kind, rank, micro = bad.get(str(self.state.global_step), (None, 0, 0))
            here = kind is not None and (dist.rank(), number) == (rank, micro)
            if here and kind == "loss":
                place, target, weight = inputs["targets"]
                inputs["targets"] = (place, target, weight * float("inf"))
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            return InfiniteGradient.apply(loss) if here and kind == "gradient" else loss

    with mock.patch.object(train_main, "InternVLTrainer", Poisoned):
        try:
            train_main.train(list(argv))
        except DataError as error:
            report["error"] = str(error)
    Path(f"{out}.{dist.rank()}.json").write_text(json.dumps(report))
