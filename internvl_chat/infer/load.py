"""A checkpoint folder -> all that answering needs: model, tokenizer, encoder, tile settings, stop ids."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from internvl_chat.constants import GROUNDING_TOKENS, SPECIAL_TOKENS
from internvl_chat.data.template import Framing
from internvl_chat.data.tiles import ImageBackend, TileSettings
from internvl_chat.data.tokens import Encoder
from internvl_chat.errors import ConfigError, nearest
from internvl_chat.infer.chat_model import ChatModel
from internvl_chat.infer.checkpoint import find_checkpoint
from internvl_chat.infer.device_map import Place, Rule, resolve_device_map
from internvl_chat.infer.loaded import Loaded
from internvl_chat.log import get_logger
from internvl_chat.model.adapter import Origin, read_origin
from internvl_chat.model.bits import bits_config
from internvl_chat.model.build import load_config, load_model
from internvl_chat.model.chat import InternVLChatModel
from internvl_chat.model.config import InternVLChatConfig
from internvl_chat.model.tokenizer import load_tokenizer

__all__ = ["DTYPES", "Loaded", "assemble", "load", "quantization_of"]

logger = get_logger(__name__)

DTYPES: dict[str, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "float32": torch.float32,
    "fp32": torch.float32,
}
# The vision tower of the 6B kind has activations that four and eight bits do not hold (InternVL2 model cards).
_WIDE_TOWER = 3200


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    device_map: Rule | Mapping[str, Place] | None = None,
    load_in_8bit: bool = False,
    load_in_4bit: bool = False,
    attn_implementation: str = "auto",
    conv_style: str | None = None,
    system_message: str | None = None,
    image_backend: ImageBackend = "torch",
    base: str | Path | None = None,
) -> ChatModel:
    """A model folder in either layout, or a LoRA adapter folder, merged into its base in memory, ready to answer.

    ``device``: None = the accelerator if there is one, else the CPU. ``device_map``: spread over all visible GPUs,
    "auto" evenly, "card" by the rule of the model cards, or a map of module names. ``dtype``: a torch dtype, its name,
    "auto" (the folder's own); None = bfloat16 on an accelerator, float32 on the CPU. ``load_in_8bit``,
    ``load_in_4bit``: weights of linear layers through bitsandbytes. ``conv_style``: template, ``system_message``: its
    system message, None = the config's. ``base``: where the base of an adapter is, None = where it was trained.
    Raises CheckpointError for a folder that is no usable model, ConfigError for settings that cannot be used.
    """
    if device is not None and device_map is not None:
        raise ConfigError("give device, or device_map, not both")
    folder, adapter = find_checkpoint(path)
    if base is not None and not adapter:
        raise ConfigError(f"--base goes with an adapter folder; {path} is a whole model, leave it out")
    place = resolve_device(device)
    number_type = resolve_dtype(dtype, place)
    overrides = {"template": conv_style, "system_message": system_message}
    origin = read_origin(folder, base) if adapter else Origin(folder)
    # What takes no time is checked before the weights are read.
    tokenizer = load_tokenizer(origin.base)
    given = {name: value for name, value in overrides.items() if value is not None}
    config = load_config(origin.base, {**origin.overrides, **given})
    Encoder.from_config(tokenizer, config)
    options: dict[str, Any] = {"attn_implementation": attn_implementation, "config_overrides": given}
    if load_in_8bit or load_in_4bit:
        if adapter:
            raise ConfigError(
                f"{path} is an adapter, and a base in few bits cannot take it up; merge it first: internvl merge-lora "
                f"{folder} OUT"
            )
        options["quantization"] = quantization_of(config, load_in_8bit, load_in_4bit, number_type)
    if device_map is not None:
        options["device_map"] = resolve_device_map(config, device_map)
    elif "quantization" in options:
        options["device_map"] = {"": place}  # weights are packed where they will lie
    else:
        options["device"] = place
    if adapter:
        from internvl_chat.model.merge import load_merged  # peft is not needed otherwise

        model, _ = load_merged(folder, origin.base, number_type, **options)
    else:
        model = load_model(folder, number_type, **options)
    return assemble(model, tokenizer, image_backend)


def quantization_of(
    config: InternVLChatConfig, load_in_8bit: bool, load_in_4bit: bool, dtype: torch.dtype | str
) -> BitsAndBytesConfig:
    """How weights are packed: 8 bits (LLM.int8), or 4 (nf4, double); not the projector, not the output layer.

    A vision tower of the 6B kind stays in 16 bits, and it is said. Raises ConfigError (both asked for, bitsandbytes
    missing).
    """
    if load_in_8bit and load_in_4bit:
        raise ConfigError("load_in_8bit and load_in_4bit: choose one")
    kept = ["mlp1", "lm_head"]
    if config.vision_config.hidden_size >= _WIDE_TOWER:
        kept.append("vision_model")
        logger.info("the vision tower stays in 16 bits: in fewer, one of this width no longer makes out pictures")
    compute = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
    return bits_config(load_in_8bit, load_in_4bit, compute, kept)


def assemble(model: InternVLChatModel, tokenizer: Any, image_backend: ImageBackend = "torch") -> ChatModel:
    """A model that is in memory already, put into eval mode. Raises ConfigError without a template."""
    encoder = Encoder.from_config(tokenizer, model.config)
    known = model.language_model.generation_config.eos_token_id
    ends = [encoder.stop_id, tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])]
    stop_ids = tuple(dict.fromkeys(int(end) for end in ends if end is not None))
    pad = tokenizer.pad_token_id
    if pad is None or pad == encoder.image_token_id:
        pad = encoder.stop_id
    return ChatModel(
        model=model.eval(),
        tokenizer=tokenizer,
        encoder=encoder,
        tiles=TileSettings.from_config(model.config, image_backend),
        stop_ids=stop_ids,
        hidden_ids=_special_ids(tokenizer, encoder.template) | {*stop_ids, pad},
        pad_id=pad,
    )


def _special_ids(tokenizer: Any, template: Framing) -> frozenset[int]:
    """ids of all special tokens but those of grounding, which are part of an answer (and special in the releases)."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = set(tokenizer.convert_tokens_to_ids([*template.markers, *SPECIAL_TOKENS]))
    shown = set(tokenizer.convert_tokens_to_ids([*GROUNDING_TOKENS]))
    return frozenset((special | named | set(tokenizer.all_special_ids)) - shown)


def resolve_device(device: torch.device | str | None) -> torch.device:
    """The device of ``--device``; None = the accelerator if there is one, else the CPU. Raises ConfigError."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device is None:
        return accelerator or torch.device("cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"--device {device!r} is not a device; legal: cpu, cuda, cuda:1, mps, ...") from error
    here = torch.accelerator.device_count() if accelerator and accelerator.type == wanted.type else 0
    if wanted.type != "cpu" and (wanted.index or 0) >= here:
        found = f"{torch.accelerator.device_count()} x {accelerator.type}" if accelerator else "no accelerator"
        raise ConfigError(f"--device {str(wanted)!r} is not on this machine ({found}); leave it out or use cpu")
    return wanted


def resolve_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype | str:
    """The dtype of ``--dtype``; None = bfloat16, on a CPU float32. Raises ConfigError."""
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    if dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype!r} is not usable{nearest(dtype, DTYPES)}; legal: auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]
