"""InternLM2 as Llama: same mathematics, other names, and one fused matrix for queries, keys and values.

The published weights are read and written by transformers' own weight conversion, bit for bit, also under ZeRO-3.
InternLM3 is published in the same class (InternVL3-9B).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming

MODEL_TYPE = "internlm2"


class InternLM2Config(LlamaConfig):
    """Llama's configuration with the defaults of the published class; ``bias`` is that of the attention."""

    model_type = MODEL_TYPE

    vocab_size: int = 103168
    bias: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.attention_bias = self.bias


class InternLM2ForCausalLM(LlamaForCausalLM):
    """Llama under the published name."""

    config_class = InternLM2Config
    config: InternLM2Config


class UngroupQKV(ConversionOps):
    """``wqkv`` <-> query, key and value matrices.

    Rows of ``wqkv``: for each key head its query heads, then the key head, then the value head, ``head_dim`` rows each
    (published modelling code). Weights ``(rows, hidden)`` and biases ``(rows,)`` alike. Looks at the config only: under
    ZeRO-3 the parameters are empty.
    """

    def __init__(self, inverse: bool = False) -> None:
        self.inverse = inverse

    @property
    def reverse_op(self) -> ConversionOps:
        return UngroupQKV(not self.inverse)

    @torch.no_grad()
    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, list[Tensor]]:
        llm = kwargs["config"].get_text_config()
        groups = llm.num_key_value_heads
        queries = llm.num_attention_heads // groups
        width = getattr(llm, "head_dim", None) or llm.hidden_size // llm.num_attention_heads
        found = {name: value[0] if isinstance(value, list) else value for name, value in input_dict.items()}
        if self.inverse:
            parts = [found[name] for name in source_patterns]
            rest = parts[0].shape[1:]
            sizes = (queries, 1, 1)
            grouped = [p.reshape(groups, n, width, *rest) for p, n in zip(parts, sizes, strict=True)]
            return {target_patterns[0]: [torch.cat(grouped, dim=1).reshape(-1, *rest).contiguous()]}
        fused = next(iter(found.values()))
        rest = fused.shape[1:]
        blocks = fused.reshape(groups, queries + 2, width, *rest).split((queries, 1, 1), dim=1)
        return {name: [b.reshape(-1, *rest).contiguous()] for name, b in zip(target_patterns, blocks, strict=True)}


def _transforms() -> list[WeightConverter | WeightRenaming]:
    """Published name -> Llama's name, in the order in which transformers applies them."""
    renamed = {
        r"attention\.wo": "self_attn.o_proj",
        r"feed_forward\.w1": "mlp.gate_proj",
        r"feed_forward\.w3": "mlp.up_proj",
        r"feed_forward\.w2": "mlp.down_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "tok_embeddings": "embed_tokens",
        r"^output\.": "lm_head.",
    }
    names = [WeightRenaming(old, new) for old, new in renamed.items()]
    fused = WeightConverter(
        "attention.wqkv", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], [UngroupQKV()]
    )
    return [*names, fused]


def register_internlm2() -> None:
    """Make InternLM2 known to transformers' auto classes and weight conversion; calling it again changes nothing."""
    AutoConfig.register(MODEL_TYPE, InternLM2Config, exist_ok=True)
    AutoModelForCausalLM.register(InternLM2Config, InternLM2ForCausalLM, exist_ok=True)
    register_checkpoint_conversion_mapping(MODEL_TYPE, _transforms(), overwrite=True)
