"""Model folders of either layout, read with a clear word on what does not fit."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import GenerationConfig

from internvl_chat.constants import IMG_CONTEXT
from internvl_chat.errors import CheckpointError, ConfigError, first_line, nearest
from internvl_chat.log import get_logger
from internvl_chat.model.attention import register_packed_attention, resolve_attention
from internvl_chat.model.chat import InternVLChatModel
from internvl_chat.model.config import InternVLChatConfig
from internvl_chat.model.hf_native import from_hf_config, register_hf_native, statistics_name
from internvl_chat.model.layout import (
    ADAPTER_FILE,
    check_shapes,
    is_hf_native,
    set_conversions,
    stored_tensors,
)
from internvl_chat.model.loading import ONE_AT_A_TIME
from internvl_chat.model.token_rows import unfolded_state
from internvl_chat.model.tokenizer import image_token_id, load_tokenizer
from internvl_chat.model.zero3 import gathered

logger = get_logger(__name__)

# Overrides that belong to the vision tower; all other legal ones are fields of the chat config.
VISION_OVERRIDES = ("drop_path_rate", "attention_dropout", "dropout")
CHAT_OVERRIDES = (
    "select_layer",
    "force_image_size",
    "template",
    "system_message",
    "ps_version",
    "downsample_ratio",
    "dynamic_image_size",
    "use_thumbnail",
    "min_dynamic_patch",
    "max_dynamic_patch",
    "pad2square",
    "normalize_type",
)


def read_config_file(folder: Path) -> dict[str, Any]:
    """config.json of a model folder, as it is. Raises CheckpointError."""
    path = folder / "config.json"
    if not path.is_file():
        if (folder / ADAPTER_FILE).is_file():
            raise CheckpointError(
                f"{folder}: this is a LoRA adapter, not a full model; merge it into its base first: "
                f"internvl merge-lora {folder} OUT"
            )
        raise CheckpointError(f"{folder}: no model folder (config.json, tokenizer.json, *.safetensors); check the path")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({first_line(error)})") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} must hold one object")
    return raw


def flavour_of(folder: Path, raw: Mapping[str, Any]) -> Literal["original", "hf"]:
    """Which layout a config.json announces. Raises CheckpointError for other models."""
    if is_hf_native(raw):
        return "hf"
    if raw.get("model_type") == InternVLChatConfig.model_type:
        return "original"
    code = "; its code is remote (auto_map), which is never run here" if raw.get("auto_map") else ""
    raise CheckpointError(
        f"{folder}: config.json says model_type {raw.get('model_type')!r}, an InternVL chat model has "
        f"{InternVLChatConfig.model_type!r} (or 'internvl', the HF-native layout){code}"
    )


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> InternVLChatConfig:
    """Chat config of a model folder, either layout, with ``overrides`` applied. Raises CheckpointError, ConfigError."""
    folder = Path(path)
    raw = read_config_file(folder)
    try:
        if flavour_of(folder, raw) == "hf":
            raw = _complete_hf(folder, from_hf_config(raw, folder))
        return config_of(raw, overrides or {})
    except ConfigError as error:
        raise ConfigError(f"{folder / 'config.json'}: {error}") from error
    except (StrictDataclassError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} is not a usable config: {first_line(error)}") from error


def config_of(raw: dict[str, Any], overrides: Mapping[str, Any]) -> InternVLChatConfig:
    """Chat config of the values of a config.json, with ``overrides`` applied. Raises ConfigError."""
    vision: dict[str, Any] = {}
    chat: dict[str, Any] = {}
    for key, value in overrides.items():
        if value is None:
            continue
        if key in VISION_OVERRIDES:
            vision[key] = value
        elif key in CHAT_OVERRIDES:
            chat[key] = value
        else:
            legal = (*VISION_OVERRIDES, *CHAT_OVERRIDES)
            raise ConfigError(f"config override {key!r}: use one of {', '.join(legal)}" + nearest(key, legal))
    raw["vision_config"] = {**(raw.get("vision_config") or {}), **vision}
    return InternVLChatConfig.from_dict({**raw, **chat})


def _complete_hf(folder: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """What an HF-native folder says about pictures elsewhere, and a template where it names none."""
    try:
        pictures = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        pictures = {}
    if raw.get("normalize_type") is None and {"image_mean", "image_std"} <= pictures.keys():
        name = statistics_name(pictures["image_mean"], pictures["image_std"])
        if name is None:
            raise CheckpointError(f"{folder / 'preprocessor_config.json'}: image_mean and image_std of an unknown kind")
        raw["normalize_type"] = name
    if raw.get("template") is None:
        # That of the series since 2.5, the first to be published in this layout.
        raw["template"] = "internvl2_5"
        for ours, theirs in (("min_dynamic_patch", "min_patches"), ("max_dynamic_patch", "max_patches")):
            raw[ours] = pictures.get(theirs, raw[ours])
        logger.info("%s names no template: taking internvl2_5 (another one: --conv_style)", folder)
    return raw


def load_model(
    path: str | Path,
    dtype: torch.dtype | str = torch.bfloat16,
    attn_implementation: str = "auto",
    device: str | torch.device | None = None,
    config_overrides: Mapping[str, Any] | None = None,
    quantization: Any = None,
    device_map: Mapping[str, Any] | None = None,
) -> InternVLChatModel:
    """Model of a folder in either layout, in eval mode, every weight accounted for.

    ``dtype`` a torch dtype, its name, or "auto" (the folder's own). ``quantization``: a BitsAndBytesConfig.
    ``device_map``: module names -> devices, instead of one ``device``. Raises
    CheckpointError naming missing, unexpected or ill-fitting keys before anything is read; ConfigError for overrides
    and attention that cannot be used.
    """
    folder = Path(path)
    config = load_config(folder, config_overrides)
    generation = check_folder(folder, config)
    register_packed_attention()
    register_hf_native()
    attention = resolve_attention(attn_implementation, device)
    try:
        with ONE_AT_A_TIME:
            model: InternVLChatModel = InternVLChatModel.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                local_files_only=True,
                weights_only=True,
                quantization_config=quantization,
                device_map=device_map,
            )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: the weights cannot be loaded: {error}") from error
    set_conversions(model)
    model.language_model.generation_config = generation or model.language_model.generation_config
    _fit_image_size(model)
    if device is not None:
        nn.Module.to(model, device)
    return model


def check_folder(folder: Path, config: InternVLChatConfig) -> GenerationConfig | None:
    """All that can be wrong with a folder, from file heads; settles what the weights decide of its config, in place.

    Returns the folder's own generation config, if it has one. Raises CheckpointError.
    """
    stored = stored_tensors(folder)
    settle_tying(config, stored)
    check_shapes(folder, stored, config, flavour_of(folder, read_config_file(folder)))
    tokenizer = load_tokenizer(folder)
    config.img_context_token_id = image_token_id(tokenizer)
    _check_vocabulary(folder, config, tokenizer)
    return _read_generation_config(folder)


def load_weights(model: InternVLChatModel, folder: Path) -> None:
    """Fill a model that is in memory with the weights of a folder. Raises CheckpointError unless all fit."""
    stored = stored_tensors(folder)
    try:
        check_shapes(folder, stored, model.config, "original")
    except CheckpointError as error:
        raise CheckpointError(f"{error}. Resume with the model that the checkpoint was made with") from error
    config = copy.deepcopy(model.config)
    with ONE_AT_A_TIME:
        found = InternVLChatModel.from_pretrained(folder, config=config, dtype="auto", local_files_only=True)
    model.load_state_dict(unfolded_state(model, found.state_dict()))


def _read_generation_config(folder: Path) -> GenerationConfig | None:
    path = folder / "generation_config.json"
    if not path.is_file():
        return None
    try:
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}); mend it or delete it") from error


def settle_tying(config: InternVLChatConfig, stored: Mapping[str, Any]) -> None:
    """Believe the weights: some releases say tied in llm_config and carry an output layer of their own."""
    heads = ("language_model.lm_head.weight", "language_model.output.weight", "lm_head.weight")
    if any(name in stored for name in heads):
        config.llm_config.tie_word_embeddings = False
    config.tie_word_embeddings = bool(config.llm_config.tie_word_embeddings)


def _check_vocabulary(folder: Path, config: InternVLChatConfig, tokenizer: Any) -> None:
    """Raise CheckpointError if a token has no row in the embedding: tokenizer and weights are not a pair."""
    rows = config.llm_config.vocab_size
    beyond = [name for name, number in tokenizer.get_vocab().items() if number >= rows]
    if beyond:
        shown = IMG_CONTEXT if IMG_CONTEXT in beyond else beyond[0]
        raise CheckpointError(
            f"{folder}: the model has only {rows} tokens, the tokenizer gives {len(beyond)} ids beyond them ({shown}): "
            "tokenizer and weights are of different models, or tokens were added without resizing the vocabulary"
        )


def _fit_image_size(model: InternVLChatModel) -> None:
    """Resize the position embedding for good if ``force_image_size`` differs from what the tower was trained with."""
    wanted, have = model.config.image_size, model.config.vision_config.image_size
    if wanted == have:
        return
    with gathered(model.vision_model.embeddings.position_embedding):
        model.vision_model.resize_position_embeddings(wanted)
