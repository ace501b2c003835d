"""LoRA -> plain models: our adapters onto their base, and the wrapped checkpoints of the original training code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from internvl_chat.errors import CheckpointError
from internvl_chat.model.build import load_model
from internvl_chat.model.chat import InternVLChatModel
from internvl_chat.model.lora import apply_adapter, read_origin
from internvl_chat.model.tokenizer import load_tokenizer


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
        model = apply_adapter(model, adapter)
    except ValueError as error:  # peft's word on a merge that breaks down
        raise CheckpointError(f"{adapter}: merging failed: {error}") from error
    if dtype != "auto":
        torch.nn.Module.to(model, getattr(torch, dtype) if isinstance(dtype, str) else dtype)
    if device is not None:
        torch.nn.Module.to(model, device)
    return model.eval(), load_tokenizer(origin.base)
