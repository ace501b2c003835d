"""ZeRO-3 with optimizer and weights in the host's memory: the losses of plain ZeRO-3, exact resume, LoRA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.train.runs import flags, losses, run_all, weights
from tests.train.test_zero import zero_config

SHARED = {"num_train_epochs": 2, "drop_path_rate": 0.1, "max_grad_norm": 1.0}
SAVING = {**SHARED, "save_strategy": "steps", "save_steps": 3}
LORA = {"use_llm_lora": 4, "lora_dropout": 0.0, "freeze_llm": True, "freeze_backbone": True, **SHARED}


@pytest.fixture(scope="module")
def runs(tiny: Path, mixed_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("offload")
    jobs = []
    for stage in ("zero3", "zero3_offload"):
        config = zero_config(stage, root)
        jobs += [
            flags(tiny, mixed_data, root / stage, deepspeed=config, **SAVING),
            flags(tiny, mixed_data, root / f"{stage}-lora", deepspeed=config, **LORA),
        ]
    jobs += [
        ["copy", str(root / "zero3_offload" / "checkpoint-3"), str(root / "resumed" / "checkpoint-3")],
        flags(tiny, mixed_data, root / "resumed", deepspeed=config, **SHARED),
    ]
    run_all(jobs, processes=2)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", "-lora"])
def test_losses_and_weights_are_those_of_zero3(runs: Path, kind: str) -> None:
    expected, found = losses(runs / f"zero3{kind}"), losses(runs / f"zero3_offload{kind}")
    assert len(expected) == 8 and expected[-1] < expected[0]
    assert found == pytest.approx(expected, rel=1e-5)
    ours, theirs = weights(runs / f"zero3_offload{kind}"), weights(runs / f"zero3{kind}")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=2e-4)


@pytest.mark.slow
def test_resumed_run_goes_on_bit_for_bit(runs: Path) -> None:
    assert losses(runs / "resumed") == losses(runs / "zero3_offload")[3:]
    for name, tensor in weights(runs / "zero3_offload").items():
        assert torch.equal(tensor, weights(runs / "resumed")[name]), name
