"""``--deepspeed zero2`` -> path of a DeepSpeed configuration shipped with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from internvl_chat.errors import ConfigError, nearest

FOLDER = Path(__file__).parent / "zero"
# File names of the original's scripts.
ORIGINAL_NAMES = {
    "zero_stage1_config.json": "zero1",
    "zero_stage2_config.json": "zero2",
    "zero_stage3_config.json": "zero3",
    "zero_stage3_config_34b.json": "zero3",
    "zero_stage3_config_70b.json": "zero3",
    "zero_stage3_config_100b.json": "zero3",
    "zero_stage3_config_100b_1e8.json": "zero3",
    "zero_stage3_config_100b_1e7_offload.json": "zero3_offload",
}


def resolve_zero(value: str | dict[str, Any]) -> str | dict[str, Any]:
    """Path of the configuration: an existing file as it is, else a shipped or an original name. Raises ConfigError.

    A configuration itself (an object in a JSON argument file, or its text) is passed on.
    """
    if isinstance(value, dict) or str(value).lstrip().startswith("{"):
        return value
    value = str(value)
    if Path(value).is_file():
        return value
    name = ORIGINAL_NAMES.get(Path(value).name, value)  # the original's scripts name it in their own folder
    path = FOLDER / f"{name}.json"
    if path.is_file():
        return str(path)
    legal = sorted(file.stem for file in FOLDER.glob("*.json"))
    raise ConfigError(f"--deepspeed {value!r} is neither a file nor one of {', '.join(legal)}{nearest(value, legal)}")
