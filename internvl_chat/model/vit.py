"""InternViT, both kinds: 300M (LayerNorm, qkv bias) and 6B (RMSNorm, normalised queries and keys).

Shapes: ``B`` tiles, ``N`` = 1 + patches, ``C`` hidden size, ``H`` heads, ``D`` = C / H.
Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from internvl_chat.model.config import InternVisionConfig


class VisionRMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def _norm(config: InternVisionConfig) -> nn.Module:
    kind = nn.LayerNorm if config.norm_type == "layer_norm" else VisionRMSNorm
    return kind(config.hidden_size, eps=config.layer_norm_eps)


class DropPath(nn.Module):
    """While training, leave out the whole branch of a sample with probability ``rate``; scaled to keep the mean."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        kept = torch.rand(x.shape[0], *[1] * (x.dim() - 1), device=x.device) < keep
        return x * (kept.to(x.dtype) / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Attention in plain steps: ``(B, H, N, D)`` each -> ``(B, N, H, D)`` and the weights ``(B, H, N, N)``."""
    scores = (query * scaling) @ key.transpose(2, 3)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class VisionAttention(nn.Module):
    """Self-attention with one fused qkv matrix; optional norm of queries and keys over all heads together."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.proj_drop = nn.Dropout(config.dropout)
        self.qk_normalization = config.qk_normalization
        if config.qk_normalization:
            self.q_norm = VisionRMSNorm(config.hidden_size, eps=config.layer_norm_eps)
            self.k_norm = VisionRMSNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length, width = hidden.shape
        query, key, value = self.qkv(hidden).chunk(3, dim=-1)
        if self.qk_normalization:
            query, key = self.q_norm(query), self.k_norm(key)
        heads = (batch, length, self.num_heads, self.head_dim)
        attention: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        out, _ = attention(
            self,
            query.reshape(heads).transpose(1, 2),
            key.reshape(heads).transpose(1, 2),
            value.reshape(heads).transpose(1, 2),
            None,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            is_causal=False,
        )
        return self.proj_drop(self.proj(out.reshape(batch, length, width)))


class VisionMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        self.act = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class VisionLayer(GradientCheckpointingLayer):
    """Pre-norm block with layer scale and drop path on both branches."""

    def __init__(self, config: InternVisionConfig, drop_path_rate: float) -> None:
        super().__init__()
        self.attn = VisionAttention(config)
        self.mlp = VisionMLP(config)
        self.norm1 = _norm(config)
        self.norm2 = _norm(config)
        self.ls1 = nn.Parameter(torch.full((config.hidden_size,), float(config.initializer_factor)))
        self.ls2 = nn.Parameter(torch.full((config.hidden_size,), float(config.initializer_factor)))
        self.drop_path1 = DropPath(drop_path_rate)
        self.drop_path2 = DropPath(drop_path_rate)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.drop_path1(self.attn(self.norm1(hidden).to(hidden.dtype)) * self.ls1)
        return hidden + self.drop_path2(self.mlp(self.norm2(hidden).to(hidden.dtype)) * self.ls2)


class VisionEmbeddings(nn.Module):
    """Tiles ``(B, 3, S, S)`` -> ``(B, 1 + (S/patch)**2, C)``: patches, a class token and positions."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        side = config.image_size // config.patch_size
        self.class_embedding = nn.Parameter(torch.randn(1, 1, config.hidden_size))
        self.patch_embedding = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.position_embedding = nn.Parameter(torch.randn(1, 1 + side * side, config.hidden_size))

    def positions(self, height: int, width: int) -> Tensor:
        """Position embedding for a grid of patches, ``(1, 1 + height*width, C)``, interpolated if it is another one."""
        table = self.position_embedding
        side = round((table.shape[1] - 1) ** 0.5)
        if (height, width) == (side, side):
            return table
        grid = table[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
        return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embedding(pixel_values)
        height, width = patches.shape[-2:]
        tokens = patches.flatten(2).transpose(1, 2)
        first = self.class_embedding.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        return torch.cat([first, tokens], dim=1) + self.positions(height, width).to(tokens.dtype)


class VisionEncoder(nn.Module):
    """The stack of layers; drop path grows linearly from 0 in the first to the full rate in the last."""

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__()
        depth = config.num_hidden_layers
        rates = [config.drop_path_rate * i / max(1, depth - 1) for i in range(depth)]
        self.layers = nn.ModuleList([VisionLayer(config, rate) for rate in rates])


def layers_for(depth: int, select_layer: int) -> int:
    """Number of layers to run for the hidden state ``select_layer`` of a tower of ``depth``. Raises ValueError."""
    count = select_layer if select_layer >= 0 else depth + 1 + select_layer
    if not 0 <= count <= depth:
        raise ValueError(f"select_layer {select_layer}: the tower has {depth} layers")
    return count


class InternVisionModel(PreTrainedModel):
    """The vision tower. No final norm: the output is the hidden state of the chosen layer."""

    config_class = InternVisionConfig
    config: InternVisionConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    _no_split_modules = ["VisionLayer"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: InternVisionConfig) -> None:
        super().__init__(config)
        self.embeddings = VisionEmbeddings(config)
        self.encoder = VisionEncoder(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise what is not in the checkpoint, our own parameters included (else they stay uninitialised)."""
        super()._init_weights(module)
        if isinstance(module, VisionEmbeddings):
            init.normal_(module.class_embedding, std=self.config.initializer_range)
            init.normal_(module.position_embedding, std=self.config.initializer_range)
        elif isinstance(module, VisionLayer):
            init.constant_(module.ls1, self.config.initializer_factor)
            init.constant_(module.ls2, self.config.initializer_factor)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def layers_for(self, select_layer: int) -> int:
        """Number of layers to run for the hidden state ``select_layer`` (0 = embeddings, -1 = after the last)."""
        return layers_for(len(self.encoder.layers), select_layer)

    def forward(
        self, pixel_values: Tensor, select_layer: int = -1, output_hidden_states: bool = False
    ) -> BaseModelOutput:
        """Normalised tiles ``(B, 3, S, S)`` -> ``last_hidden_state (B, N, C)`` of ``select_layer``.

        No layer beyond it is run, unless ``output_hidden_states`` asks for all ``depth + 1`` states.
        """
        hidden = self.embeddings(pixel_values)
        count = self.layers_for(select_layer)
        states = [hidden]
        for layer in self.encoder.layers[: None if output_hidden_states else count]:
            hidden = layer(hidden)
            if output_hidden_states:
                states.append(hidden)
        if output_hidden_states:
            return BaseModelOutput(last_hidden_state=states[count], hidden_states=tuple(states))
        return BaseModelOutput(last_hidden_state=hidden)

    @torch.no_grad()
    def resize_position_embeddings(self, image_size: int) -> None:
        """Interpolate the position embedding for good to tiles of ``image_size`` pixels, and say so in the config."""
        side = image_size // self.config.patch_size
        table = self.embeddings.position_embedding
        self.embeddings.position_embedding = nn.Parameter(
            self.embeddings.positions(side, side).clone(), requires_grad=table.requires_grad
        )
        self.config.image_size = image_size
