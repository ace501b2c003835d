"""How much arithmetic a model takes: FLOPs of each tower, forward and in training, as pure functions of the config.

A multiplication with an addition counts 2, so a linear layer costs 2 per weight and row. Counted are matrix products
and attention; norms, activations, softmax, rotary positions and biases are left out, as is usual for MFU. Causal
attention over n tokens counts n**2 / 2 pairs; the vision tower looks at all pairs. Sliding windows are not considered.

Training: of a matrix product's backward pass, the gradient of the weights costs as much as the forward pass and is
there if they train; that of the inputs too, if something before them trains. Attention has no weights; its backward
pass costs twice the forward pass (four products for two). Where activations are recomputed, a layer runs again up to
its last product, whose result nothing needs unless LoRA sits on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from internvl_chat.model.cards import card
from internvl_chat.model.config import InternVLChatConfig
from internvl_chat.model.lora import is_adapter_weight, unwrap
from internvl_chat.model.projector import merge_factor
from internvl_chat.model.tune import Tuning


@dataclass(frozen=True)
class Work:
    """FLOPs per token, per squared token of a sample, per supervised token and per tile."""

    token: float = 0.0
    square: float = 0.0
    target: float = 0.0
    tile: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.token + other.token, self.square + other.square, self.target + other.target, self.tile + other.tile
        )

    def times(self, factor: float) -> Work:
        return Work(self.token * factor, self.square * factor, self.target * factor, self.tile * factor)

    def of(self, tokens: float, squares: float, targets: float, tiles: float) -> float:
        """FLOPs of so much data; ``squares``: sum over samples of their tokens squared."""
        return self.token * tokens + self.square * squares + self.target * targets + self.tile * tiles


@dataclass(frozen=True)
class Trains:
    """What trains, as far as it decides about the cost. ``vision_layers``: by number, those that train in full.

    ``*_adapter``: weights of LoRA in a tower. ``*_recompute``: activations are computed again in the backward pass.
    """

    vision_embedding: bool = True
    vision_layers: frozenset[int] | None = None  # None: all
    mlp: bool = True
    llm: bool = True
    head: bool = True
    new_rows: bool = False
    vision_adapter: int = 0
    llm_adapter: int = 0
    vision_recompute: bool = False
    llm_recompute: bool = False


@dataclass(frozen=True)
class TowerFlops:
    """Training FLOPs: ``vit`` (tower and projector) and ``llm``; ``*_again``: what recomputation adds to them."""

    vit: Work
    llm: Work
    vit_again: Work
    llm_again: Work


def llm_forward(config: Any) -> Work:
    """Forward pass of a language model (``llm_config``); the output layer counts for supervised tokens only."""
    hidden, layers = config.hidden_size, config.num_hidden_layers
    query, *key_value = _qkv_widths(config)
    weights = layers * hidden * (2 * query + sum(key_value))
    weights += sum(_mlp_weights(config, number) for number in range(layers))
    # Scores and weighted sum: two products of 2 * n * n * heads * head_dim, and half of the pairs.
    return Work(token=2.0 * weights, square=layers * 2.0 * query, target=2.0 * hidden * config.vocab_size)


def _qkv_widths(config: Any) -> tuple[int, int, int]:
    """Widths of queries, keys and values over all heads (grouped queries share keys and values)."""
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    return heads * head_dim, groups * head_dim, groups * head_dim


def _mlp_weights(config: Any, number: int) -> int:
    """Weights of a layer's gated MLP that a token meets: all, or those of its experts and of the router."""
    experts = getattr(config, "num_experts", 0) or 0
    every = getattr(config, "decoder_sparse_step", 1) or 1
    dense = number in (getattr(config, "mlp_only_layers", None) or ()) or (number + 1) % every
    if not experts or dense:
        return 3 * config.hidden_size * config.intermediate_size
    chosen = config.num_experts_per_tok * 3 * config.hidden_size * config.moe_intermediate_size
    return int(chosen + config.hidden_size * experts)


def vision_layer(config: InternVLChatConfig) -> tuple[float, float]:
    """FLOPs per tile of one layer's forward pass: (linear layers, attention over all pairs)."""
    vision, length = config.vision_config, _patches(config) + 1
    linear = 2.0 * length * (4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size)
    return linear, 4.0 * length**2 * vision.hidden_size


def vision_ends(config: InternVLChatConfig) -> tuple[float, float]:
    """FLOPs per tile, forward: (patch embedding, projector)."""
    vision, hidden = config.vision_config, config.llm_config.hidden_size
    pixels = vision.num_channels * vision.patch_size**2
    merged = vision.hidden_size * merge_factor(config.downsample_ratio) ** 2
    return (
        2.0 * _patches(config) * pixels * vision.hidden_size,
        2.0 * config.num_image_token * (merged * hidden + hidden**2),
    )


def _patches(config: InternVLChatConfig) -> int:
    return int((config.image_size // config.vision_config.patch_size) ** 2)


def used_vision_layers(config: InternVLChatConfig) -> int:
    """Layers of the vision tower that ``select_layer`` lets run."""
    depth, chosen = config.vision_config.num_hidden_layers, config.select_layer
    return int(chosen if chosen >= 0 else depth + 1 + chosen)


def tower_flops(config: InternVLChatConfig, trains: Trains | None = None) -> TowerFlops:
    """FLOPs of a training step's forward and backward pass per unit of data. ``trains`` None: everything does."""
    trains = trains or Trains()
    vit, vit_again, before = _vision_flops(config, trains)
    llm, llm_again = _llm_flops(config, trains, before)
    return TowerFlops(vit, llm, vit_again, llm_again)


def _vision_flops(config: InternVLChatConfig, trains: Trains) -> tuple[Work, Work, bool]:
    """Work of tower and projector, what recomputation adds, and whether gradients reach the projector's output."""
    used = used_vision_layers(config)
    full = frozenset(range(used)) if trains.vision_layers is None else trains.vision_layers
    linear, attention = vision_layer(config)
    embedding, projector = vision_ends(config)
    last = 2.0 * (_patches(config) + 1) * config.vision_config.hidden_size * config.vision_config.intermediate_size
    # Pixels want no gradient.
    total = embedding * (2 if trains.vision_embedding else 1)
    again, before = 0.0, trains.vision_embedding
    adapter = 2.0 * (_patches(config) + 1) * trains.vision_adapter / max(1, used)
    for number in range(used):
        own = number in full
        through = before or own or adapter > 0
        # A layer that trains begins with a norm that does, so all its products hand gradients on.
        total += linear * (1 + own + through) + attention * (3 if through else 1) + adapter * 3
        if through and not before and not own:
            total -= _linear_of_qkv(config)
        again += (linear + attention + (adapter or -last)) if through and trains.vision_recompute else 0.0
        before = through
    total += projector * (1 + trains.mlp + (before or trains.mlp))
    return Work(tile=total), Work(tile=again), before or trains.mlp


def _linear_of_qkv(config: InternVLChatConfig) -> float:
    """FLOPs per tile of a vision layer's first product; the first layer with LoRA hands no gradients on through it."""
    return 6.0 * (_patches(config) + 1) * float(config.vision_config.hidden_size) ** 2


def _llm_flops(config: InternVLChatConfig, trains: Trains, before: bool) -> tuple[Work, Work]:
    """Work of the language model, and what recomputation adds. ``before``: the tiles' embeddings want gradients."""
    llm = config.llm_config
    forward = llm_forward(llm)
    before = before or trains.llm or trains.new_rows  # the token embedding trains with the model
    through = before or trains.llm_adapter > 0
    adapter = 2.0 * trains.llm_adapter
    first = 0.0 if before or not through else 2.0 * llm.hidden_size * sum(_qkv_widths(llm))
    work = Work(
        token=forward.token * (1 + trains.llm + through) + adapter * 3 - first,
        square=forward.square * (3 if through else 1),
        target=forward.target * (1 + trains.head + through),
    )
    if not through or not trains.llm_recompute:
        return work, Work()
    last = 2.0 * sum(_mlp_weights(llm, number) for number in range(llm.num_hidden_layers)) / 3
    return work, Work(token=forward.token + (adapter or -last), square=forward.square)


def trains_of(model: nn.Module, vision_recompute: bool = False, llm_recompute: bool = False) -> Trains:
    """What trains in this model, by its parameters."""
    config = unwrap(model).config
    used = used_vision_layers(config)
    names = [(name, _size(p)) for name, p in model.named_parameters() if p.requires_grad]
    plain = [name for name, _ in names if not is_adapter_weight(name)]
    layers = {number for number in range(used) if any(f"vision_model.encoder.layers.{number}." in n for n in plain)}
    embedding = any("embed_tokens." in name for name in plain)
    tied = bool(getattr(config.llm_config, "tie_word_embeddings", False))
    llm = any("language_model.model." in name and ".layers." in name for name in plain)
    return Trains(
        vision_embedding=any("vision_model.embeddings." in name for name in plain),
        vision_layers=frozenset(layers),
        mlp=any("mlp1." in name for name in plain),
        llm=llm,
        head=any("lm_head." in name for name in plain) or (tied and embedding),
        new_rows=embedding,
        vision_adapter=sum(size for name, size in names if is_adapter_weight(name) and "vision_model." in name),
        llm_adapter=sum(size for name, size in names if is_adapter_weight(name) and "language_model." in name),
        vision_recompute=vision_recompute,
        llm_recompute=llm_recompute,
    )


def trains_by_flags(
    config: InternVLChatConfig, tuning: Tuning, vision_recompute: bool = False, llm_recompute: bool = False
) -> Trains:
    """What will train, by the switches alone, before there is a model. LoRA's own weights are taken as one each."""
    used, lora = used_vision_layers(config), tuning.lora
    depth = config.vision_config.num_hidden_layers
    vision = not tuning.freeze_backbone and not lora.vision_rank
    thawed = range(depth)[tuning.unfreeze_vit_layers :] if tuning.unfreeze_vit_layers else range(0)
    llm = not tuning.freeze_llm and not lora.llm_rank
    return Trains(
        vision_embedding=vision,
        vision_layers=frozenset(range(used)) if vision else frozenset(n for n in thawed if n < used),
        mlp=not tuning.freeze_mlp,
        llm=llm,
        head=llm or tuning.unfreeze_lm_head or bool(tuning.new_token_ids),
        new_rows=bool(tuning.new_token_ids),
        vision_adapter=int(bool(lora.vision_rank)),
        llm_adapter=int(bool(lora.llm_rank)),
        vision_recompute=vision_recompute,
        llm_recompute=llm_recompute,
    )


def pack_cost_terms(
    config: InternVLChatConfig, trains: Trains | None = None, *, supervised: float = 0.0, recompute: bool = False
) -> tuple[float, float, float]:
    """Training FLOPs (per token, per tile, per squared token): what MFU counts, so that a plan balances the same work.

    ``supervised``: share of the tokens that the output layer sees, 0..1. ``recompute``: what the hardware does, with
    the activations that are computed again.
    """
    flops = tower_flops(config, trains)
    work = flops.vit + flops.llm
    if recompute:
        work = work + flops.vit_again + flops.llm_again
    return work.token + supervised * work.target, work.tile, work.square


def peak_flops(device_name: str, given_tflops: float | None = None) -> float | None:
    """FLOP/s that a device could do at most: as given, else by its name; None if it is not known."""
    if given_tflops:
        return given_tflops * 1e12
    found = card(device_name)
    return None if found is None else found.tflops * 1e12


def _size(parameter: nn.Parameter) -> int:
    # Under ZeRO-3 the tensor itself is empty.
    return int(getattr(parameter, "ds_numel", parameter.numel()))
