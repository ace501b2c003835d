"""What a forward pass keeps for its backward pass: bytes of activations, as pure functions of config and sizes.

Counted from the modules as they are (``vit.py``, transformers' Qwen2, Qwen3, Llama and Phi-3 layers, ``loss.py``); c is
the size of a number in matrix products, s that of the residual stream (both 2 in bfloat16; under autocast, with float32
weights, c = 2 and s = 4). A layer that trains keeps per token, with H hidden, I intermediate, Q and K widths of queries
and of keys:

    language model   norms 2 (4H + sH + 4): in float32, and normalised; what is multiplied with weights 2 cH (under
                     autocast a copy per matrix: 5 cH); attention c (2Q + 2K) and 4 per head, the logsumexp;
                     gated MLP 4 cI: gate, its activation, up, their product
    vision tower     norms 2 sC; what is multiplied with weights 2 cC; queries, keys, values 3 cC, normalised ones 2 cC
                     more; attention's result cC and 4 per head; layer scale 2 cC; MLP 2 cI

What does not train keeps no input of its matrices (under ZeRO-3 it does), and nothing at all where nothing before it
trains. LoRA keeps for each of its matrices the input after dropout (c) and dropout's mask, and rank numbers. Attention
over a mask (padded rows; packs with sdpa) keeps keys and values for every query head and the mask, c per pair; eager
attention 4 + c per pair and head. With checkpointing a layer keeps its input alone, and one layer at a time has all of
the above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from internvl_chat.model.config import InternVLChatConfig
from internvl_chat.model.flops import Trains, used_vision_layers
from internvl_chat.model.loss import MAX_LOGITS
from internvl_chat.model.projector import merge_factor


@dataclass(frozen=True)
class Kernels:
    """What depends on the device. ``dropout_mask``: bytes per number, 0 = those of the numbers themselves.

    ``fused_norm``: the vision tower's RMS norm keeps its input alone. ``whole_rows``: attention of a pack is one call,
    whose result is that which the next matrix keeps. ``inside``: what kernels take inside of themselves counts.
    """

    dropout_mask: int = 1
    fused_norm: bool = True
    whole_rows: bool = True
    inside: bool = True


CUDA = Kernels()
CPU = Kernels(dropout_mask=0, fused_norm=False, whole_rows=False, inside=False)


@dataclass(frozen=True)
class Adapters:
    """LoRA in a tower, sums over its matrices: ``inputs``, widths of their inputs; ``distinct``, each input once.

    ``ranks``: sum of the ranks.
    """

    inputs: int = 0
    distinct: int = 0
    ranks: int = 0


@dataclass(frozen=True)
class Numbers:
    """Bytes of a number: in matrix products, and in the residual streams of the vision tower and of the LLM."""

    compute: int = 2
    vision: int = 2
    llm: int = 2

    @property
    def autocast(self) -> bool:
        """Whether inputs are cast for each product."""
        return self.llm > self.compute


@dataclass(frozen=True)
class Load:
    """The micro-batch: ``tokens`` in all, with padding; ``row``: of the longest sequence that attention sees.

    ``tiles``; ``supervised`` positions; ``mask``: attention gets a mask.
    """

    tokens: int
    row: int
    tiles: int
    supervised: int
    mask: bool = False


@dataclass(frozen=True)
class Tower:
    """``kept``: from the forward to the backward pass. ``layer``: more, while the backward pass is in a layer.

    ``forward``: more, while the forward pass is in a layer and keeps nothing of it.
    """

    kept: float = 0.0
    layer: float = 0.0
    forward: float = 0.0


@dataclass(frozen=True)
class Activations:
    """``loss``: while the loss is computed; ``loss_kept``: of it until its backward pass. ``inputs``: the batch."""

    vision: Tower
    projector: float
    llm: Tower
    loss: float
    loss_kept: float
    inputs: float


@dataclass(frozen=True)
class Setting:
    """All that the activations depend on beside config and batch. ``dropout``: LoRA has one.

    ``keeps_inputs``: matrices keep their inputs though they are frozen, as DeepSpeed's do under ZeRO-3.
    """

    trains: Trains
    numbers: Numbers = Numbers()
    kernels: Kernels = CUDA
    vision_adapters: Adapters = Adapters()
    llm_adapters: Adapters = Adapters()
    dropout: bool = True
    eager: bool = False
    keeps_inputs: bool = False


def activations(config: InternVLChatConfig, setting: Setting, load: Load) -> Activations:
    """Bytes of one micro-batch on one device."""
    tiles = max(1, load.tiles)  # without pictures a blank tile goes through the tower
    tower, through = _vision(config, setting, tiles)
    projector = _projector(config, setting, through) * tiles
    trains = setting.trains
    through = through or trains.mlp or trains.llm or trains.new_rows
    llm = _llm(config, setting, load, through)
    loss, kept = _loss(config, setting, load, through or trains.llm_adapter > 0)
    side = config.image_size
    inputs = load.tiles * config.vision_config.num_channels * side**2 + load.tokens * 24.0
    return Activations(tower, projector, llm, loss, kept, inputs)


# -- vision tower -----------------------------------------------------------------------------------------------------


def _vision(config: InternVLChatConfig, setting: Setting, tiles: int) -> tuple[Tower, bool]:
    """The tower, and whether gradients reach its output."""
    vision, trains, c, s = config.vision_config, setting.trains, setting.numbers.compute, setting.numbers.vision
    tokens = (config.image_size // vision.patch_size) ** 2 + 1
    width, inner, depth = vision.hidden_size, vision.intermediate_size, used_vision_layers(config)
    full = frozenset(range(depth)) if trains.vision_layers is None else trains.vision_layers
    pixels = vision.num_channels * config.image_size**2
    kept = float(c * pixels) if trains.vision_embedding else 0.0
    through, layer, most = trains.vision_embedding, 0.0, 0.0
    for number in range(depth):
        through = through or number in full or trains.vision_adapter > 0
        if through:
            layer = _vision_layer(config, setting, number in full, tokens) * tokens
            kept += s * width * tokens if trains.vision_recompute else layer
            most = max(most, layer)
    backward = (most if trains.vision_recompute else 0.0) + (c * (inner - width) * tokens if through else 0.0)
    # Input, what is added to it, and the MLP's two; with float tiles and their copy, which wait for the tower's end.
    forward = (2 * s * width + c * (width + 2 * inner)) * tokens + (4 + c) * pixels
    if setting.eager:
        forward += 8 * vision.num_attention_heads * tokens**2
        backward += 4 * vision.num_attention_heads * tokens**2 if through else 0.0
    return Tower(kept * tiles, backward * tiles, forward * tiles), through


def _vision_layer(config: InternVLChatConfig, setting: Setting, full: bool, tokens: int) -> float:
    """Bytes per token that a layer keeps."""
    vision, c, s = config.vision_config, setting.numbers.compute, setting.numbers.vision
    width, inner, heads = vision.hidden_size, vision.intermediate_size, vision.num_attention_heads
    plain = vision.norm_type == "layer_norm" or setting.kernels.fused_norm
    norm = s * width + 8 if plain else 8 * width + 4
    bytes_ = 2 * norm + 3 * c * width + c * width + 4 * heads + c * inner
    if vision.qk_normalization:
        bytes_ += 2 * (c * width + (8 if plain else 8 * width + 4))
    if full:
        bytes_ += 2 * c * width  # layer scale
    if full or setting.keeps_inputs:
        bytes_ += 2 * c * width + c * inner
    if setting.eager:
        bytes_ += c * width + heads * tokens * (4 + (c if c < 4 else 0))
    if setting.trains.vision_adapter:
        bytes_ += _adapters(setting.vision_adapters, setting, c) / used_vision_layers(config)
    return bytes_


def _adapters(adapters: Adapters, setting: Setting, compute: int) -> float:
    """Bytes per token that LoRA keeps in all layers together."""
    if not setting.dropout:
        return float(compute * (adapters.distinct + adapters.ranks))
    mask = setting.kernels.dropout_mask or compute
    return float((compute + mask) * adapters.inputs + compute * adapters.ranks)


def _projector(config: InternVLChatConfig, setting: Setting, through: bool) -> float:
    """Bytes per tile."""
    trains, c, s = setting.trains, setting.numbers.compute, setting.numbers.vision
    if not (through or trains.mlp):
        return 0.0
    merged = config.vision_config.hidden_size * merge_factor(config.downsample_ratio) ** 2
    hidden = config.llm_config.hidden_size
    bytes_ = s * merged + 8 + c * hidden  # of the norm; of the activation
    if trains.mlp or setting.keeps_inputs:
        bytes_ += c * merged + c * hidden
    return float(bytes_ * config.num_image_token)


# -- language model ---------------------------------------------------------------------------------------------------


def _llm(config: InternVLChatConfig, setting: Setting, load: Load, through: bool) -> Tower:
    """``through``: the first layer's input wants a gradient."""
    llm, trains, c, s = config.llm_config, setting.trains, setting.numbers.compute, setting.numbers.llm
    hidden, inner = llm.hidden_size, _inner(llm)
    passing = (2 * s * hidden + c * (hidden + 3 * inner)) * load.tokens  # of a layer that keeps nothing
    if setting.eager:
        passing += 8.0 * llm.num_attention_heads * load.row * load.tokens
    if not through and not trains.llm_adapter:
        return Tower(forward=passing)
    layer = _llm_layer(config, setting, load)
    each = s * hidden if trains.llm_recompute else layer
    ends = _norm(hidden, setting) + 2 * c * _widths(llm)[3] + 8  # the last norm, rotary positions
    if not (trains.llm or trains.new_rows):
        ends += c * hidden * min(1.0, load.tiles * config.num_image_token / load.tokens)  # features, put in place
    # Gradients of the MLP's product and of its two factors, in the place of the product where that was kept.
    backward = (layer if trains.llm_recompute else 0.0) + (2 if trains.llm or trains.llm_adapter else 3) * c * inner
    if setting.eager:
        backward += 2 * 4 * llm.num_attention_heads * load.row
    kept = llm.num_hidden_layers * each + ends
    return Tower(kept * load.tokens, backward * load.tokens, passing if trains.llm_recompute else 0.0)


def _llm_layer(config: InternVLChatConfig, setting: Setting, load: Load) -> float:
    """Bytes per token that a layer keeps, on average over the layers."""
    llm, full, c = config.llm_config, setting.trains.llm, setting.numbers.compute
    hidden, heads = llm.hidden_size, llm.num_attention_heads
    queries, keys, groups, _ = _widths(llm)
    fused = llm.model_type == "phi3"
    inputs = full or setting.keeps_inputs
    bytes_ = 2 * _norm(hidden, setting)
    if inputs:
        copies = (2 if fused else 5) if setting.numbers.autocast else 2
        bytes_ += copies * c * hidden
    if llm.model_type.startswith("qwen3"):
        bytes_ += (4 + (c if full else 0)) * (queries + keys) + 4 * (heads + groups)
    if fused:
        bytes_ += c * (queries + keys)  # values are a part of one matrix's result, which stays whole
    if setting.eager or load.mask:
        bytes_ += 4 * c * queries
        pairs = heads * (4 + (c if c < 4 else 0)) if setting.eager else c
        bytes_ += pairs * load.row + (0 if setting.eager else 4 * heads)
    else:
        bytes_ += c * (2 * queries + 2 * keys) + 4 * heads
        bytes_ += 0 if setting.kernels.whole_rows or not inputs else c * queries
    bytes_ += (4 if inputs else 3) * c * _inner(llm)
    if getattr(llm, "num_experts", 0):
        bytes_ += 2 * c * hidden * llm.num_experts_per_tok
    if setting.trains.llm_adapter:
        bytes_ += _adapters(setting.llm_adapters, setting, c) / llm.num_hidden_layers
    return float(bytes_)


def _norm(hidden: int, setting: Setting) -> float:
    """Bytes per token that transformers' RMS norm keeps."""
    return 4.0 * hidden + (setting.numbers.llm * hidden if setting.trains.llm else 0) + 4


def _inner(llm: Any) -> int:
    """Width of the MLP, or of the experts that a token meets."""
    if getattr(llm, "num_experts", 0):
        return int(llm.num_experts_per_tok * llm.moe_intermediate_size)
    return int(llm.intermediate_size)


def _widths(llm: Any) -> tuple[int, int, int, int]:
    """(Queries, keys, number of key heads, width of a head)."""
    heads = llm.num_attention_heads
    width = getattr(llm, "head_dim", None) or llm.hidden_size // heads
    groups = getattr(llm, "num_key_value_heads", None) or heads
    return heads * width, groups * width, groups, width


# -- loss -------------------------------------------------------------------------------------------------------------


def _loss(config: InternVLChatConfig, setting: Setting, load: Load, through: bool) -> tuple[float, float]:
    """(While it is computed, what of it stays): logits in chunks, and the gradients that are made on the way."""
    llm, c = config.llm_config, setting.numbers.compute
    stored = setting.numbers.llm  # of the weight
    count, matrix = load.supervised, float(llm.vocab_size * llm.hidden_size)
    rows = max(1, min(MAX_LOGITS // llm.vocab_size, max(1, count)))
    hidden = float(count * llm.hidden_size * stored)
    half = c if c < 4 else 0
    full = float(rows * llm.vocab_size)
    head = setting.trains.head
    chunks = max(
        8 * full if setting.kernels.inside else 0.0,  # logsumexp makes an array as large
        (4 + half) * full + (half * matrix if head else 0),
    )
    cast = c * matrix if stored > c else 0.0
    kept = (hidden if through else 0.0) + (stored * matrix if head else 0.0)
    # The language model's result, and without checkpointing its input, are held by the model's forward.
    held = load.tokens * llm.hidden_size * stored * (1 if setting.trains.llm_recompute else 2)
    making = held + hidden + (hidden if through else 0.0) + cast + (4 * matrix if head else 0.0) + chunks
    return making, kept
