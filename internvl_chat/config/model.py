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
    vision_path: str | None = field(
        default=None,
        metadata={"help": "Build from parts instead: folder of an InternViT, or of a chat model whose tower is taken."},
    )
    llm_path: str | None = field(
        default=None, metadata={"help": "Build from parts: folder of a language model with its tokenizer."}
    )
    mlp_path: str | None = field(
        default=None, metadata={"help": "Build from parts: weights of the projector (file); default: fresh ones."}
    )
    new_tokens: str | None = field(
        default=None, metadata={"help": "Build from parts: file with tokens of your own, one per line, to be added."}
    )
    freeze_llm: bool = field(default=False, metadata={"help": "No gradient for the language model."})
    freeze_backbone: bool = field(default=False, metadata={"help": "No gradient for the vision tower."})
    freeze_mlp: bool = field(default=False, metadata={"help": "No gradient for the projector."})
    unfreeze_vit_layers: int = field(
        default=0,
        metadata={"help": "Of a frozen vision tower thaw layers[N:]: -8 the last eight, 8 all but the first eight."},
    )
    unfreeze_lm_head: bool = field(
        default=False, metadata={"help": "Train the output layer though the language model is frozen or has LoRA."}
    )
    use_llm_lora: int = field(default=0, metadata={"help": "Rank of LoRA in the language model; 0 = none."})
    use_backbone_lora: int = field(default=0, metadata={"help": "Rank of LoRA in the vision tower; 0 = none."})
    lora_alpha: float | None = field(default=None, metadata={"help": "Scale of LoRA. Default: twice the rank."})
    lora_dropout: float | None = field(default=None, metadata={"help": "Dropout in front of LoRA. Default: 0.05."})
    lora_llm_targets: str | None = field(
        default=None,
        metadata={"help": "Linear layers that get LoRA, separated by commas (q_proj,v_proj). Default: all."},
    )
    lora_vit_targets: str | None = field(
        default=None, metadata={"help": "The same for the vision tower (qkv,proj,fc1,fc2). Default: all."}
    )
    use_dora: bool = field(default=False, metadata={"help": "DoRA: LoRA with separate magnitudes."})
    use_rslora: bool = field(default=False, metadata={"help": "Scale by alpha/sqrt(rank) instead of alpha/rank."})
    merge_lora: bool = field(
        default=True,
        metadata={"help": "At the end also write the merged, plain model. False: only the adapter folder."},
    )
    train_new_tokens: bool = field(
        default=False,
        metadata={
            "help": "Train the rows of the tokens that building from parts has added, though the rest is frozen."
        },
    )
    load_in_4bit: bool = field(
        default=False, metadata={"help": "QLoRA: language model in 4 bits (nf4); needs LoRA and bitsandbytes."}
    )
    load_in_8bit: bool = field(
        default=False, metadata={"help": "Language model in 8 bits; needs LoRA and bitsandbytes."}
    )
    vit_lr: float | None = field(
        default=None, metadata={"help": "Learning rate of the vision tower. Default: --learning_rate."}
    )
    mlp_lr: float | None = field(
        default=None, metadata={"help": "Learning rate of the projector. Default: --learning_rate."}
    )
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
