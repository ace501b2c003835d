"""The shipped DeepSpeed configurations: by every name that scripts use, and with keys that DeepSpeed knows today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.config.zero import FOLDER, resolve_zero
from internvl_chat.errors import ConfigError

SHIPPED = {"zero1": 1, "zero2": 2, "zero3": 3, "zero3_offload": 3}
# File name in the original -> stage, and whether the optimizer lies in the host's memory.
ORIGINAL = {
    "zero_stage1_config.json": (1, False),
    "zero_stage2_config.json": (2, False),
    "zero_stage3_config.json": (3, False),
    "zero_stage3_config_34b.json": (3, False),
    "zero_stage3_config_70b.json": (3, False),
    "zero_stage3_config_100b.json": (3, False),
    "zero_stage3_config_100b_1e8.json": (3, False),
    "zero_stage3_config_100b_1e7_offload.json": (3, True),
}
# Top-level keys that transformers or accelerate fill or read; the others are DeepSpeed's alone.
OFFLOADED = ("offload_optimizer", "offload_param")


def read(name: str) -> dict[str, Any]:
    path = resolve_zero(name)
    assert isinstance(path, str)
    values: dict[str, Any] = json.loads(Path(path).read_text())
    return values


def test_names_are_those_of_the_files() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(SHIPPED)
    for name, stage in SHIPPED.items():
        zero = read(name)["zero_optimization"]
        assert zero["stage"] == stage
        places = [zero.get(key) for key in OFFLOADED]
        wanted = {"device": "cpu", "pin_memory": True} if name.endswith("offload") else None
        assert places == [wanted, wanted]


@pytest.mark.parametrize("name", ORIGINAL)
def test_names_of_the_original(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, offload = ORIGINAL[name]
    for given in (name, f"internvl_chat/{name}", f"./{name}"):
        zero = read(given)["zero_optimization"]
        assert (zero["stage"], "offload_optimizer" in zero) == (stage, offload)
    monkeypatch.chdir(tmp_path)
    Path(name).write_text("{}")
    assert resolve_zero(name) == name, "a file that is there wins"


def test_another_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"one of zero1, zero2, zero3, zero3_offload; did you mean 'zero3_offload'"):
        resolve_zero("zero3-offload")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_key_is_one_that_deepspeed_knows_and_none_is_deprecated(name: str) -> None:
    from deepspeed.runtime import constants
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    config = read(name)
    models = {"zero_optimization": DeepSpeedZeroConfig, "bf16": DeepSpeedBF16Config, "fp16": DeepSpeedFP16Config}
    known = {value for key, value in vars(constants).items() if key.isupper() and isinstance(value, str)}
    assert len(known) > 50
    assert set(config) - set(models) <= known
    blocks = [(model, config[key]) for key, model in models.items()]
    zero = config["zero_optimization"]
    blocks += [(DeepSpeedZeroOffloadOptimizerConfig, zero.get("offload_optimizer", {}))]
    blocks += [(DeepSpeedZeroOffloadParamConfig, zero.get("offload_param", {}))]
    for model, block in blocks:
        fields = {field.alias or key: field for key, field in model.model_fields.items()}
        for key in block:
            assert key in fields, key
            assert not (fields[key].json_schema_extra or {}).get("deprecated"), key


def test_auto_is_written_only_where_it_is_filled() -> None:
    """By the library's own code, from the flags and the width of the model."""
    filled = {
        "reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "enabled",
        "gradient_accumulation_steps", "gradient_clipping", "train_batch_size", "train_micro_batch_size_per_gpu",
    }  # fmt: skip

    def autos(block: dict[str, Any]) -> set[str]:
        inner = [autos(value) for value in block.values() if isinstance(value, dict)]
        return {key for key, value in block.items() if value == "auto"}.union(*inner)

    for name in SHIPPED:
        assert autos(read(name)) <= filled
    assert "reduce_bucket_size" not in autos(read("zero1")) | autos(read("zero2"))
