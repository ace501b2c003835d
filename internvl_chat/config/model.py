"""What a user may set about the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class ModelArguments:
    """None means: what the checkpoint says."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder of a chat checkpoint (config, tokenizer, weights) to start from."}
    )
    freeze_llm: bool = field(default=False, metadata={"help": "No gradient for the language model."})
    freeze_backbone: bool = field(default=False, metadata={"help": "No gradient for the vision tower."})
    freeze_mlp: bool = field(default=False, metadata={"help": "No gradient for the projector."})
    vision_select_layer: int | None = field(
        default=None, metadata={"help": "Hidden state of the vision tower that feeds the projector; -1 is the last."}
    )
    drop_path_rate: float = field(default=0.0, metadata={"help": "Stochastic depth of the vision tower, 0..1."})
    ps_version: Literal["v1", "v2"] | None = field(
        default=None, metadata={"help": "Pixel shuffle: v1 leaves the grid transposed, v2 transposes it back."}
    )
    grad_checkpoint: bool = field(default=True, metadata={"help": "Activation checkpointing of the language model."})
    vision_grad_checkpoint: bool | None = field(
        default=None,
        metadata={"help": "Activation checkpointing of the vision tower. Default: on when it trains, off when frozen."},
    )
    attn_implementation: Literal["auto", "packed", "sdpa", "eager", "flash_attention_2"] = field(
        default="auto", metadata={"help": "Attention of the language model; auto takes the fastest that is installed."}
    )
