"""DeepSpeed ZeRO-1/2/3 on two processes: the losses of one process, no hang on text-only ranks, exact resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from internvl_chat.config.zero import FOLDER
from internvl_chat.tools.tiny import make_tiny
from tests.train.runs import flags, losses, run_all, weights

STAGES = ("zero1", "zero2", "zero3")
SHARED = {"num_train_epochs": 2, "drop_path_rate": 0.1, "max_grad_norm": 1.0}
SAVING = {**SHARED, "save_strategy": "steps", "save_steps": 3}


def zero_config(stage: str, folder: Path) -> Path:
    """The shipped configuration, except that ZeRO-3 cuts up even the small tensors of a tiny model."""
    config = json.loads((FOLDER / f"{stage}.json").read_text())
    if stage.startswith("zero3"):
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    path = folder / f"{stage}.json"
    path.write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def runs(tiny: Path, mixed_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("zero")
    exact = {**SHARED, "drop_path_rate": 0.0}
    run_all([flags(tiny, mixed_data, root / "one", gradient_accumulation_steps=2, **exact)])
    jobs = []
    for stage in STAGES:
        config = zero_config(stage, root)
        jobs += [
            flags(tiny, mixed_data, root / stage, deepspeed=config, **exact),
            flags(tiny, mixed_data, root / f"{stage}-whole", deepspeed=config, **SAVING),
            ["copy", str(root / f"{stage}-whole" / "checkpoint-3"), str(root / f"{stage}-resumed" / "checkpoint-3")],
            flags(tiny, mixed_data, root / f"{stage}-resumed", deepspeed=config, **SHARED),
        ]  # fmt: skip
    # Experts that only one rank uses must not stop the others.
    experts = make_tiny(root / "experts", "qwen3_moe", image_size=28, vision_hidden=32, llm_hidden=32)
    run_all([flags(experts, mixed_data, root / "one-moe", gradient_accumulation_steps=2, **exact)])
    jobs.append(flags(experts, mixed_data, root / "zero3-moe", deepspeed=root / "zero3.json", **exact))
    # A position table of another size, beside LoRA: ZeRO-3 must train the table that the merged model has.
    size = {"force_image_size": 56, "use_llm_lora": 4, "lora_dropout": 0.0, **exact}
    run_all([flags(tiny, mixed_data, root / "one-size", gradient_accumulation_steps=2, **size)])
    jobs.append(flags(tiny, mixed_data, root / "zero3-size", deepspeed=root / "zero3.json", **size))
    run_all(jobs, processes=2)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_have_the_losses_of_one(runs: Path, stage: str) -> None:
    assert len(losses(runs / "one")) == 8
    assert losses(runs / stage) == pytest.approx(losses(runs / "one"), rel=1e-5)


@pytest.mark.slow
def test_tiles_of_another_size_in_zero3_are_those_of_one_process(runs: Path) -> None:
    assert losses(runs / "zero3-size") == pytest.approx(losses(runs / "one-size"), rel=1e-5)
    expected, found = weights(runs / "one-size"), weights(runs / "zero3-size")
    assert found["vision_model.embeddings.position_embedding"].shape == (1, 17, 32)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_mixture_of_experts_in_zero3_has_the_losses_of_one_process(runs: Path) -> None:
    assert losses(runs / "zero3-moe") == pytest.approx(losses(runs / "one-moe"), rel=1e-5)
    assert weights(runs / "zero3-moe").keys() == weights(runs / "experts").keys(), "experts are stored one by one"


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_final_folder_holds_the_trained_weights_under_published_names(tiny: Path, runs: Path, stage: str) -> None:
    """Adam makes much of a gradient near 0, so single values may differ; together they went the same way."""
    start, expected, found = weights(tiny), weights(runs / "one"), weights(runs / stage)
    assert expected.keys() == found.keys()
    for name in expected:
        assert (found[name] - expected[name]).norm() <= 0.02 * (expected[name] - start[name]).norm(), name


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_resumed_run_goes_on_bit_for_bit(runs: Path, stage: str) -> None:
    whole, resumed = losses(runs / f"{stage}-whole"), losses(runs / f"{stage}-resumed")
    assert resumed == whole[3:]
    for name, tensor in weights(runs / f"{stage}-whole").items():
        assert torch.equal(tensor, weights(runs / f"{stage}-resumed")[name]), name
