"""Loading: defaults, choices, and one clear line for what cannot be used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.infer.load import Loaded, assemble, load


@pytest.fixture()
def copy(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A model folder to spoil."""
    return Path(shutil.copytree(tiny_folder("qwen2"), tmp_path / "model"))


def edit(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def test_defaults_on_a_cpu(loaded: Loaded) -> None:
    assert loaded.model.dtype == torch.float32
    assert loaded.model.device.type == "cpu"
    assert not loaded.model.training
    assert loaded.encoder.stop_id == loaded.stop_ids[0]
    assert loaded.tokenizer.eos_token_id in loaded.stop_ids
    assert loaded.tiles.size == 56
    assert loaded.tiles.thumbnail


def test_stop_ids_of_the_generation_config_are_taken(copy: Path) -> None:
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert load(copy, device="cpu").stop_ids[-1] == 7


@pytest.mark.parametrize(
    ("name", "expected"), [("bf16", torch.bfloat16), ("float16", torch.float16), ("auto", torch.float32)]
)
def test_dtype(copy: Path, name: str, expected: torch.dtype) -> None:
    assert load(copy, device="cpu", dtype=name).model.dtype == expected


def test_settings_of_the_config_are_used(copy: Path) -> None:
    edit(copy, max_dynamic_patch=3, use_thumbnail=False, pad2square=None, normalize_type="clip")
    tiles = load(copy, device="cpu", image_backend="pillow").tiles
    assert (tiles.max_tiles, tiles.thumbnail, tiles.pad2square, tiles.backend) == (3, False, False, "pillow")
    assert tiles.mean[0] == pytest.approx(0.4814546)


def test_conv_style_replaces_the_template(copy: Path) -> None:
    assert load(copy, device="cpu", conv_style="Hermes-2").encoder.template.name == "Hermes-2"


def test_a_model_in_memory(qwen: Loaded) -> None:
    qwen.model.train()
    assert not assemble(qwen.model, qwen.tokenizer).model.training


def test_folders_that_are_no_model(copy: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    outer = tmp_path
    for folder, message in (
        (tmp_path / "nowhere", "no such folder"),
        (empty, "no config.json in it; it needs config.json"),
        (outer, f"did you mean {copy}"),
    ):
        with pytest.raises(CheckpointError, match=message) as caught:
            load(folder)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_no_template(copy: Path) -> None:
    edit(copy, template=None)
    with pytest.raises(ConfigError, match=r"names no template.*--conv_style"):
        load(copy)
    assert load(copy, device="cpu", conv_style="internvl2_5").encoder.template.name == "internvl2_5"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conv_style": "phi3-chat"}, "needs the tokens"),
        ({"conv_style": "internvl2.5"}, "did you mean 'internvl2_5'"),
        ({"dtype": "bf17"}, "--dtype 'bf17' is not usable; did you mean 'bf16'"),
        ({"device": "gpu"}, "--device 'gpu' is not a device"),
        ({"device": "cuda:99"}, "'cuda:99' is not on this machine"),
        ({"attn_implementation": "spda"}, "did you mean 'sdpa'"),
    ],
)
def test_bad_settings(tiny_folder: Callable[[str], Path], settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tiny_folder("qwen2"), **settings)  # type: ignore[arg-type]


def test_what_is_wrong_is_said_before_the_weights_are_read(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="needs the tokens"):
        load(copy, conv_style="phi3-chat")
    with pytest.raises(CheckpointError, match="no weights"):
        load(copy)
