"""LoRA on a language model in 4 or 8 bits: it trains, and the adapter goes back onto the full weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from internvl_chat.model.build import load_model
from tests.train.runs import flags, losses, run_all, weights

pytest.importorskip("bitsandbytes")
SHARED = {
    "freeze_llm": True,
    "freeze_backbone": True,
    "use_llm_lora": 4,
    "lora_dropout": 0.0,
    "max_steps": 3,
    "learning_rate": 0.001,
}


@pytest.fixture(scope="module")
def runs(tiny: Path, mixed_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("quantized")
    kinds = {"full": {}, "4bit": {"load_in_4bit": True}, "8bit": {"load_in_8bit": True}}
    run_all([flags(tiny, mixed_data, root / name, **SHARED, **options) for name, options in kinds.items()])
    return root


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_it_trains_near_the_full_model(runs: Path, kind: str) -> None:
    full, found = losses(runs / "full"), losses(runs / kind)
    assert len(found) == 3 and found != full, "nothing was quantised"
    assert found == pytest.approx(full, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_the_merged_model_is_the_full_base_plus_the_adapter(runs: Path, tiny: Path, kind: str) -> None:
    base = load_model(tiny, torch.float32).state_dict()
    merged = weights(runs / kind)
    assert {tensor.dtype for tensor in merged.values()} == {torch.float32}
    moved = {name for name, tensor in merged.items() if not torch.equal(tensor, base[name])}
    adapted = {name for name in base if "_proj.weight" in name and name.startswith("language_model.")}
    assert moved == adapted | {name for name in base if name.startswith("mlp1.")}
    for name in adapted:  # near: not the rounded weights of the quantised model
        torch.testing.assert_close(merged[name], base[name], atol=0.02, rtol=0)
