"""A run goes on only as what it was: model settings, trained parts, LoRA options, base. Each said in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from internvl_chat import cli
from internvl_chat.errors import CheckpointError
from internvl_chat.model.adapter import read_origin
from internvl_chat.model.build import load_model
from internvl_chat.model.save import save_model_folder
from internvl_chat.model.tokenizer import load_tokenizer
from tests.train.runs import flags, run_all

LORA = {"freeze_llm": True, "use_llm_lora": 4}
SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
Fail = Callable[..., str]


@pytest.fixture(scope="module")
def runs(tiny: Path, mixed_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs on a copy of the tiny model, one with LoRA and one in full."""
    root = tmp_path_factory.mktemp("identity")
    shutil.copytree(tiny, root / "base")
    jobs = [flags(root / "base", mixed_data, root / name, **SAVING, **what) for name, what in KINDS.items()]
    run_all(jobs)
    return root


KINDS: dict[str, dict[str, Any]] = {"lora": LORA, "full": {}}


@pytest.fixture
def fail(runs: Path, mixed_data: Path, capsys: pytest.CaptureFixture[str]) -> Fail:
    """Start a run again with other flags; returns its error line."""

    def run(kind: str, **changes: Any) -> str:
        words = {**SAVING, **KINDS[kind], "max_steps": 4, **changes}
        model = words.pop("model", runs / "base")
        assert cli.main(["train", *flags(model, mixed_data, words.pop("out", runs / kind), **words)]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        return line

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("lora", {"lora_alpha": 64}, "trains.lora.alpha: None then, 64.0 now"),
        ("lora", {"use_rslora": True}, "trains.lora.rslora: False then, True now"),
        ("lora", {"use_llm_lora": 8}, "trains.lora.llm_rank: 4 then, 8 now"),
        ("lora", {"freeze_mlp": True}, "trains.freeze_mlp: False then, True now"),
        ("lora", {"mlp_lr": 0.1}, "learning_rates.mlp1: None then, 0.1 now"),
        ("lora", {"ps_version": "v1"}, "config.ps_version: None then, v1 now"),
        ("full", {"ps_version": "v1"}, "config.ps_version: None then, v1 now"),
        ("full", {"freeze_llm": True}, "trains.freeze_llm: False then, True now"),
        ("full", {"use_llm_lora": 4}, "trains.lora.llm_rank: 0 then, 4 now"),
        ("full", {"vision_select_layer": -2}, "config.select_layer: None then, -2 now"),
        ("full", {"learning_rate": 0.5}, "optimizer.learning_rate: 0.01 then, 0.5 now"),
        ("full", {"weight_decay": 0.5, "max_steps": 2}, "optimizer.weight_decay: 0.0 then, 0.5 now"),
        ("full", {"loss_reduction": "square"}, "data.loss_reduction: token then, square now"),
        ("full", {"image_backend": "pillow"}, "data.image_backend: torch then, pillow now"),
    ],
)
def test_resumed_with_other_flags(fail: Fail, kind: str, changes: dict[str, Any], says: str) -> None:
    line = fail(kind, **changes)
    assert says in line and "Resume with the flags and the base it was made with" in line


@pytest.mark.slow
def test_an_adapter_knows_its_base(runs: Path, fail: Fail, tmp_path: Path) -> None:
    other = shutil.copytree(runs / "base", tmp_path / "other")
    model = load_model(other, torch.float32)
    with torch.no_grad():
        model.mlp1[1].weight.add_(1.0)
    save_model_folder(model, load_tokenizer(other), other)
    assert "base: " in fail("lora", model=other)
    adapter = shutil.copytree(runs / "lora" / "adapter", tmp_path / "adapter")
    assert read_origin(adapter).base == runs / "base"
    assert read_origin(adapter, other).base == other, "who names a base may have another form of it"
    own = json.loads((adapter / "internvl_adapter.json").read_text())
    (adapter / "internvl_adapter.json").write_text(json.dumps({**own, "base": str(other)}))
    with pytest.raises(CheckpointError, match="they have changed since"):
        read_origin(adapter)


@pytest.mark.slow
def test_the_model_to_start_from_is_not_written_over(runs: Path, fail: Fail) -> None:
    for kind in KINDS:
        line = fail(kind, out=runs / "base", overwrite_output_dir=True)
        assert "is the folder of the model to start from" in line


@pytest.mark.slow
def test_a_fresh_start_leaves_nothing_of_the_old_run(runs: Path, mixed_data: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(runs / "lora", tmp_path / "out"))
    again = {**SAVING, **LORA, "merge_lora": False, "save_strategy": "no", "overwrite_output_dir": True}
    run_all([flags(runs / "base", mixed_data, out, **again)])
    assert (out / "adapter").is_dir()
    assert not any((out / name).exists() for name in ("config.json", "model.safetensors", "checkpoint-2"))
