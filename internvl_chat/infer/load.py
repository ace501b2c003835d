"""A checkpoint folder -> all that answering needs: model, tokenizer, encoder, tile settings, stop ids."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from internvl_chat.constants import GROUNDING_TOKENS, SPECIAL_TOKENS
from internvl_chat.data.template import Framing
from internvl_chat.data.tiles import ImageBackend, TileSettings
from internvl_chat.data.tokens import Encoder
from internvl_chat.errors import CheckpointError, ConfigError, nearest
from internvl_chat.model.adapter import Origin, read_origin
from internvl_chat.model.build import load_config, load_model
from internvl_chat.model.chat import InternVLChatModel
from internvl_chat.model.hub import find_folder
from internvl_chat.model.layout import ADAPTER_FILE
from internvl_chat.model.tokenizer import load_tokenizer

DTYPES: dict[str, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "float32": torch.float32,
    "fp32": torch.float32,
}


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in eval mode with the very encoder and tile settings of its training.

    ``stop_ids`` end an answer, ``hidden_ids`` are never shown in one, ``pad_id`` fills the short rows of a batch.
    """

    model: InternVLChatModel = field(repr=False)
    tokenizer: Any = field(repr=False)
    encoder: Encoder = field(repr=False)
    tiles: TileSettings
    stop_ids: tuple[int, ...]
    hidden_ids: frozenset[int]
    pad_id: int


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    attn_implementation: str = "auto",
    conv_style: str | None = None,
    image_backend: ImageBackend = "torch",
    base: str | Path | None = None,
) -> Loaded:
    """Loaded of a model folder in either layout, or of a LoRA adapter folder, merged into its base in memory.

    ``device``: None = the accelerator if there is one, else the CPU. ``dtype``: a torch dtype, its name, "auto" (the
    folder's own); None = bfloat16 on an accelerator, float32 on the CPU. ``conv_style``: template, None = the config's.
    ``base``: where the base of an adapter is, None = where it was trained.
    Raises CheckpointError for a folder that is no usable model, ConfigError for settings that cannot be used.
    """
    folder = find_folder(path)
    adapter = (folder / ADAPTER_FILE).is_file() and not (folder / "config.json").is_file()
    if not adapter and not (folder / "config.json").is_file():
        inside = sorted(str(found.parent) for found in folder.glob("*/config.json"))
        hint = f"did you mean {inside[-1]}?" if inside else "it needs config.json, tokenizer.json, *.safetensors"
        raise CheckpointError(f"{path}: not a model folder, there is no config.json in it; {hint}")
    place = _resolve_device(device)
    number_type = _resolve_dtype(dtype, place)
    overrides = {"template": conv_style}
    origin = read_origin(folder, base) if adapter else Origin(folder)
    # What takes no time is checked before the weights are read.
    tokenizer = load_tokenizer(origin.base)
    given = {name: value for name, value in overrides.items() if value is not None}
    Encoder.from_config(tokenizer, load_config(origin.base, {**origin.overrides, **given}))
    options: dict[str, Any] = {"attn_implementation": attn_implementation, "device": place, "config_overrides": given}
    if adapter:
        from internvl_chat.model.merge import load_merged  # peft is not needed otherwise

        model, _ = load_merged(folder, origin.base, number_type, **options)
    else:
        model = load_model(folder, number_type, **options)
    return assemble(model, tokenizer, image_backend)


def assemble(model: InternVLChatModel, tokenizer: Any, image_backend: ImageBackend = "torch") -> Loaded:
    """Loaded of a model that is in memory already, put into eval mode. Raises ConfigError without a template."""
    encoder = Encoder.from_config(tokenizer, model.config)
    known = model.language_model.generation_config.eos_token_id
    ends = [encoder.stop_id, tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])]
    stop_ids = tuple(dict.fromkeys(int(end) for end in ends if end is not None))
    pad = tokenizer.pad_token_id
    if pad is None or pad == encoder.image_token_id:
        pad = encoder.stop_id
    return Loaded(
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


def _resolve_device(device: torch.device | str | None) -> torch.device:
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


def _resolve_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype | str:
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    if dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype!r} is not usable{nearest(dtype, DTYPES)}; legal: auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]
