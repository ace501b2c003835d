"""Loss and gradient do not depend on how the optimizer step was cut into processes, micro-batches and packs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.train.runs import flags, log_of, losses, run_all, weights
from tests.train.test_zero import STAGES, zero_config

CUTS = {
    "one process x 8": (1, {"gradient_accumulation_steps": 8}),
    "one process, all padded at once": (1, {"per_device_train_batch_size": 8}),
    "one process, packed": (1, {"use_packed_ds": True, "max_packed_tokens": 700, "gradient_accumulation_steps": 4}),
    "2 processes x 2 x 2": (2, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
    "2 processes, packed": (2, {"use_packed_ds": True, "max_packed_tokens": 700, "gradient_accumulation_steps": 2}),
    **{
        f"2 processes, {stage}": (
            2,
            {"deepspeed": stage, "use_packed_ds": True, "max_packed_tokens": 700, "gradient_accumulation_steps": 2},
        )
        for stage in STAGES
    },
}
REDUCTIONS = ("token", "sample", "square")


@pytest.fixture(scope="module")
def runs(tiny: Path, mixed_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cuts x all reductions: three steps of SGD over the same 8 samples."""
    root = tmp_path_factory.mktemp("cuts")
    zero = {stage: zero_config(stage, root) for stage in STAGES}
    for processes in (1, 2):
        jobs = [
            flags(
                tiny, mixed_data, root / reduction / cut, loss_reduction=reduction, optim="sgd", num_train_epochs=3,
                lr_scheduler_type="constant", max_grad_norm=1000,
                **{**changes, **({"deepspeed": zero[changes["deepspeed"]]} if "deepspeed" in changes else {})},
            )
            for reduction in REDUCTIONS
            for cut, (count, changes) in CUTS.items()
            if count == processes
        ]  # fmt: skip
        run_all(jobs, processes)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("cut", list(CUTS)[1:])
def test_cut_changes_neither_loss_nor_weights(runs: Path, reduction: str, cut: str) -> None:
    reference, other = runs / reduction / next(iter(CUTS)), runs / reduction / cut
    assert len(losses(reference)) == 3
    assert losses(other) == pytest.approx(losses(reference), rel=1e-6)
    assert [r["grad_norm"] for r in log_of(other) if "loss" in r] == pytest.approx(
        [r["grad_norm"] for r in log_of(reference) if "loss" in r], rel=2e-5
    )
    expected, found = weights(reference), weights(other)
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_reductions_differ(runs: Path) -> None:
    first = [losses(runs / reduction / next(iter(CUTS)))[0] for reduction in REDUCTIONS]
    assert len({round(loss, 4) for loss in first}) == 3
