"""LoRA -> plain models: our adapters onto their base, and the wrapped checkpoints of the original training code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from internvl_chat.errors import CheckpointError
from internvl_chat.model.adapter import read_origin
from internvl_chat.model.attention import resolve_attention
from internvl_chat.model.build import load_config, load_model, settle_tying
from internvl_chat.model.chat import InternVLChatModel
from internvl_chat.model.layout import StoredTensor, check_shapes, set_conversions, stored_tensors
from internvl_chat.model.loading import ONE_AT_A_TIME
from internvl_chat.model.lora import apply_adapter
from internvl_chat.model.parts import read_tensors
from internvl_chat.model.tokenizer import image_token_id, load_tokenizer

_LORA = re.compile(r"(?P<layer>.+)\.lora_(?P<part>[AB])\.[^.]+\.weight")


def load_merged(
    adapter: Path, base: str | Path | None = None, dtype: torch.dtype | str = "auto", **options: Any
) -> tuple[InternVLChatModel, Any]:
    """Base model with the adapter merged in, and the tokenizer. ``options``: further ones of ``load_model``.

    Merged in the dtype in which the base is stored, then cast to ``dtype``: the result does not depend on who merges.
    Raises CheckpointError for an adapter that does not fit, or a base that is not there.
    """
    origin = read_origin(adapter, base)
    overrides = {**origin.overrides, **options.pop("config_overrides", {})}
    device = options.pop("device", None)
    model = load_model(origin.base, "auto", config_overrides=overrides, **options)
    try:
        model = apply_adapter(model, adapter, origin.new_token_ids)
    except ValueError as error:  # peft's word on a merge that breaks down
        raise CheckpointError(f"{adapter}: merging failed: {error}") from error
    if dtype != "auto":
        torch.nn.Module.to(model, getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    if device is not None:
        torch.nn.Module.to(model, device)
    return model.eval(), load_tokenizer(origin.base)


def load_unwrapped(folder: Path, dtype: torch.dtype | str = "auto") -> tuple[InternVLChatModel, Any]:
    """Model and tokenizer of a full checkpoint with LoRA inside, as the original training code saves it, merged.

    ``W + (alpha / r) B A`` for every wrapped matrix, in float32, alpha = 2r as that code fixes it (Hu et al. 2021,
    arXiv 2106.09685). Raises CheckpointError if there is no LoRA in the folder, or if it is incomplete.
    """
    config = load_config(folder)
    stored = stored_tensors(folder)
    if not any(".lora_A." in name for name in stored):
        raise CheckpointError(
            f"{folder}: neither an adapter folder nor a checkpoint with LoRA inside; nothing to merge"
        )
    state = merge_wrapped(folder, read_tensors(folder, ""))
    config.use_llm_lora = config.use_backbone_lora = 0
    settle_tying(config, state)
    shapes = {name: StoredTensor(tuple(tensor.shape), "") for name, tensor in state.items()}
    check_shapes(folder, shapes, config, "original")
    tokenizer = load_tokenizer(folder)
    config.img_context_token_id = image_token_id(tokenizer)
    with ONE_AT_A_TIME:
        model = InternVLChatModel.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, attn_implementation=resolve_attention("auto")
        )
    set_conversions(model)
    return model.eval(), tokenizer


def merge_wrapped(folder: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a wrapped model under plain names, adapters added to their matrices."""
    plain: dict[str, Tensor] = {}
    adapters: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        clean = name.replace(".base_model.model.", ".", 1)
        if found := _LORA.fullmatch(clean):
            adapters.setdefault(found["layer"], {})[found["part"]] = tensor
        else:
            plain[clean.replace(".base_layer.", ".")] = tensor
    for layer, parts in adapters.items():
        weight = plain.get(f"{layer}.weight")
        if weight is None or parts.keys() != {"A", "B"}:
            raise CheckpointError(f"{folder}: LoRA of {layer} is incomplete (its matrix, A and B are all needed)")
        delta = 2.0 * (parts["B"].float() @ parts["A"].float())
        plain[f"{layer}.weight"] = (weight.float() + delta).to(weight.dtype)
    return plain
