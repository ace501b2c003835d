"""What the snippets of the InternVL2 model cards need, under the names that they use.

They run unchanged where their imports, and the functions that they define for pictures, are replaced by::

    from internvl_chat.infer.card import AutoModel, AutoTokenizer, load_image, load_video, split_model

``Chat`` (``infer/chat.py``) asks the same with less to write.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from internvl_chat.data.tiles import TileSettings
from internvl_chat.errors import ConfigError, nearest
from internvl_chat.infer.chat_model import ChatModel
from internvl_chat.infer.device_map import plan_device_map
from internvl_chat.infer.load import load
from internvl_chat.infer.pictures import NUM_SEGMENTS, Picture, Shown, Video, cut_shown
from internvl_chat.model.build import load_config
from internvl_chat.model.catalogue import config_of, release, releases
from internvl_chat.model.chat import normalize_tiles
from internvl_chat.model.hub import find_folder
from internvl_chat.model.tokenizer import load_tokenizer

__all__ = ["AutoModel", "AutoTokenizer", "load_image", "load_video", "split_model"]

# What the cards say, and what is so here whatever they say: weights are never held twice, no remote code is run, every
# tokenizer is a fast one.
_ALWAYS_SO = ("low_cpu_mem_usage", "trust_remote_code", "use_fast")


class AutoModel:
    """In the place of transformers' class of this name."""

    @staticmethod
    def from_pretrained(
        path: str | Path,
        *,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        load_in_8bit: bool = False,
        load_in_4bit: bool = False,
        device_map: Any = None,
        use_flash_attn: bool | None = None,
        conv_style: str | None = None,
        system_message: str | None = None,
        **said: Any,
    ) -> ChatModel:
        """``load``, under the names of the cards; on the accelerator from the start, if there is one.

        ``use_flash_attn``: False = without; else where it can be had. ``low_cpu_mem_usage`` and ``trust_remote_code``
        are taken and change nothing: weights are never held twice, and no code of a checkpoint is run.
        Raises ConfigError for other arguments, and as ``load`` does.
        """
        _check_said(said)
        return load(
            path,
            dtype=dtype if torch_dtype is None else torch_dtype,
            load_in_8bit=load_in_8bit,
            load_in_4bit=load_in_4bit,
            device_map=device_map,
            attn_implementation="sdpa" if use_flash_attn is False else "auto",
            conv_style=conv_style,
            system_message=system_message,
        )


class AutoTokenizer:
    """In the place of transformers' class of this name."""

    @staticmethod
    def from_pretrained(path: str | Path, **said: Any) -> Any:
        """The tokenizer of a model folder, without running its code. Raises CheckpointError, ConfigError."""
        _check_said(said)
        return load_tokenizer(find_folder(path, weights=False))


def _check_said(said: Mapping[str, Any]) -> None:
    if said.get("quantization_config") is not None:
        raise ConfigError("quantization_config: write load_in_8bit=True or load_in_4bit=True instead")
    for name in said:
        if name not in _ALWAYS_SO:
            raise ConfigError(f"from_pretrained has no argument {name!r} here{nearest(name, _ALWAYS_SO)}")


def load_image(image_file: Picture, input_size: int = 448, max_num: int = 12) -> Tensor:
    """Tiles of a picture as the cards make them: float32 (N, 3, S, S), normalised, thumbnail last. Raises DataError."""
    settings = TileSettings(size=input_size, max_tiles=max_num)
    return normalize_tiles(cut_shown([Shown(image_file, max_num)], settings).pixels, "imagenet")


def load_video(
    video_path: Path | str,
    bound: tuple[float, float] | None = None,
    input_size: int = 448,
    max_num: int = 1,
    num_segments: int = NUM_SEGMENTS,
) -> tuple[Tensor, list[int]]:
    """Tiles of ``num_segments`` frames of a video, float32 (N, 3, S, S), and the number of tiles of each frame.

    ``bound``: of (start, end) in seconds only. Raises DataError.
    """
    settings = TileSettings(size=input_size, max_tiles=max_num)
    tiles = cut_shown([Shown(Video(video_path, num_segments, bound), max_num)], settings)
    return normalize_tiles(tiles.pixels, "imagenet"), list(tiles.counts)


def split_model(model_name: str | Path, world_size: int | None = None) -> dict[str, int]:
    """The cards' ``device_map`` of a release (``"InternVL2-8B"``) or a model folder; ``world_size`` GPUs, None = all.

    Raises ConfigError, CheckpointError.
    """
    known = {found.name for found in releases()}
    config = (
        config_of(release(str(model_name)))
        if str(model_name) in known
        else load_config(find_folder(model_name, weights=False))
    )
    cards = torch.cuda.device_count() if world_size is None else world_size
    if world_size is None and not cards:
        raise ConfigError("split_model finds no GPU here; say for how many: world_size=N")
    return plan_device_map(config, cards, "card")
