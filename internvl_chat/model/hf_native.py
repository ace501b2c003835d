"""The layout of transformers' own InternVL (``InternVLForConditionalGeneration``, the ``-hf`` releases) <-> ours.

Names on disk are those that transformers writes: ``vision_tower.*``, ``multi_modal_projector.*``,
``language_model.model.*``, ``language_model.lm_head.*``; ``model.``-prefixed ones are read too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import InternVLConfig, InternVLVisionConfig
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, WeightConverter, WeightRenaming

from internvl_chat.constants import IMAGE_STATISTICS
from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.model.config import InternVLChatConfig
from internvl_chat.model.llm import hf_llm_config

# Key of config.json under which we keep what the HF-native config has no place for.
KEPT = "internvl_chat"
# Written into KEPT, all of them fields of InternVLChatConfig.
_KEPT_FIELDS = (
    "template",
    "system_message",
    "dynamic_image_size",
    "use_thumbnail",
    "min_dynamic_patch",
    "max_dynamic_patch",
    "normalize_type",
    "img_context_token_id",
)
# The newer names of transformers -> those on disk.
_TODAY = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^model\.vision_tower\.", "vision_tower."),
    (r"^model\.multi_modal_projector\.", "multi_modal_projector."),
    (r"^lm_head\.", "language_model.lm_head."),
)
# On disk, ours -> theirs. The order matters for neither direction: no pattern matches what another one makes.
_VISION = (
    ("embeddings.class_embedding", "embeddings.cls_token"),
    ("embeddings.position_embedding", "embeddings.position_embeddings"),
    ("embeddings.patch_embedding.", "embeddings.patch_embeddings.projection."),
    (".attn.proj.", ".attention.projection_layer."),
    (".attn.q_norm.", ".attention.q_norm."),
    (".attn.k_norm.", ".attention.k_norm."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".ls1", ".lambda_1"),
    (".ls2", ".lambda_2"),
    ("encoder.layers.", "encoder.layer."),
)
_PROJECTOR = (("0.", "layer_norm."), ("1.", "linear_1."), ("3.", "linear_2."))
_QKV = re.compile(r"\.attn\.qkv\.")


def disk_name(name: str) -> str:
    """A tensor name of either HF-native naming as it is on disk."""
    for today, disk in _TODAY:
        name = re.sub(today, disk, name)
    return name


def to_hf_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the original layout (LLM names as in transformers) under HF-native names; qkv is cut in three."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part == "mlp1":
            ours, theirs = next(pair for pair in _PROJECTOR if rest.startswith(pair[0]))
            found["multi_modal_projector." + theirs + rest.removeprefix(ours)] = tensor
        elif part != "vision_model":
            found[name] = tensor
        elif _QKV.search(name):
            for letter, piece in zip("qkv", tensor.chunk(3, dim=0), strict=True):
                found[_vision_name(_QKV.sub(f".attention.{letter}_proj.", name))] = piece
        else:
            found[_vision_name(name)] = tensor
    return found


def _vision_name(name: str) -> str:
    for ours, theirs in _VISION:
        name = name.replace(ours, theirs)
    return name.replace("vision_model.", "vision_tower.", 1)


def _transforms() -> list[WeightConverter | WeightRenaming]:
    """HF-native names -> ours, for transformers' weight conversion; none of them matches a name of ours."""
    names = [
        *_TODAY,
        *((rf"^multi_modal_projector\.{re.escape(theirs)}", f"mlp1.{ours}") for ours, theirs in _PROJECTOR),
        (r"^vision_tower\.encoder\.layer\.", "vision_model.encoder.layers."),
        (r"^vision_tower\.", "vision_model."),
        *((re.escape(theirs), ours) for ours, theirs in _VISION if ours != "encoder.layers."),
    ]
    renamed = [WeightRenaming(theirs, ours) for theirs, ours in names]
    parts = [f"attention.{letter}_proj" for letter in "qkv"]
    return [*renamed, WeightConverter(parts, "attn.qkv", [Concatenate(dim=0)])]


def register_hf_native() -> None:
    """Let ``InternVLChatModel.from_pretrained`` read HF-native weights; calling it again changes nothing."""
    register_checkpoint_conversion_mapping(InternVLChatConfig.model_type, _transforms(), overwrite=True)


def why_not_hf(config: InternVLChatConfig) -> list[str]:
    """What of this model the HF-native layout cannot express; empty if nothing."""
    reasons = []
    if config.img_context_token_id is None:
        reasons.append("img_context_token_id is not set: load the model with load_model")
    if config.ps_version != "v2":
        reasons.append(f"ps_version {config.ps_version}: its pixel shuffle is that of v2 only")
    if config.dynamic_image_size and not config.use_thumbnail:
        reasons.append("use_thumbnail false: its image processor always adds the thumbnail")
    if config.pad2square:
        reasons.append("pad2square: its image processor has no such step")
    if config.image_size != config.vision_config.image_size:
        reasons.append("force_image_size other than the tower's: run internvl resize-pos-embed first")
    return reasons


def to_hf_config(config: InternVLChatConfig) -> InternVLConfig:
    """The HF-native config of the same model. Raises ConfigError with all that it cannot express."""
    if reasons := why_not_hf(config):
        raise ConfigError(f"this model cannot be written in the HF-native layout: {'; '.join(reasons)}")
    vision = config.vision_config
    text = hf_llm_config(config.llm_config)
    kept = {name: getattr(config, name) for name in _KEPT_FIELDS}
    kept["llm_model_type"] = config.llm_config.model_type
    kept["vision_config"] = {name: getattr(vision, name) for name in ("drop_path_rate", "initializer_factor")}
    hf = InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=vision.hidden_size,
            num_hidden_layers=vision.num_hidden_layers,
            num_attention_heads=vision.num_attention_heads,
            intermediate_size=vision.intermediate_size,
            num_channels=vision.num_channels,
            image_size=[vision.image_size] * 2,
            patch_size=[vision.patch_size] * 2,
            hidden_act=vision.hidden_act,
            attention_bias=vision.qkv_bias,
            use_qk_norm=vision.qk_normalization,
            norm_type=vision.norm_type,
            layer_norm_eps=vision.layer_norm_eps,
            hidden_dropout_prob=vision.dropout,
            attention_dropout=vision.attention_dropout,
            initializer_range=vision.initializer_range,
            layer_scale_init_value=vision.initializer_factor,
        ),
        text_config=text,
        image_token_id=int(config.img_context_token_id or 0),
        image_seq_length=config.num_image_token,
        downsample_ratio=config.downsample_ratio,
        vision_feature_layer=config.select_layer,
        # The library's default is True and would throw the output layer away.
        tie_word_embeddings=bool(config.llm_config.tie_word_embeddings),
        architectures=["InternVLForConditionalGeneration"],
    )
    setattr(hf, KEPT, kept)
    return hf


def from_hf_config(raw: Mapping[str, Any], folder: Any = "") -> dict[str, Any]:
    """A chat config, as a dict for InternVLChatConfig, of an HF-native config.json. Raises CheckpointError."""
    hf = InternVLConfig.from_dict(dict(raw))
    vision: Any = hf.vision_config
    text: Any = hf.text_config
    layer = hf.vision_feature_layer
    if not isinstance(layer, int):
        raise CheckpointError(f"{folder}: vision_feature_layer {layer}: only one layer can feed the projector")
    if hf.vision_feature_select_strategy != "default":
        raise CheckpointError(
            f"{folder}: vision_feature_select_strategy {hf.vision_feature_select_strategy!r}: only 'default' is "
            "supported, for the class token has no place in the grid"
        )
    if len(set(vision.image_size)) > 1 or len(set(vision.patch_size)) > 1:
        raise CheckpointError(
            f"{folder}: tiles of {vision.image_size} and patches of {vision.patch_size} must be square"
        )
    kept = dict(raw.get(KEPT) or {})
    llm = text.to_dict()
    if (model_type := kept.pop("llm_model_type", None)) and model_type != llm["model_type"]:
        llm |= {"model_type": model_type, "bias": llm.get("attention_bias", False)}
        llm.pop("architectures", None)
    llm["tie_word_embeddings"] = hf.tie_word_embeddings
    tower = {
        "hidden_size": vision.hidden_size,
        "num_hidden_layers": vision.num_hidden_layers,
        "num_attention_heads": vision.num_attention_heads,
        "intermediate_size": vision.intermediate_size,
        "num_channels": vision.num_channels,
        "image_size": vision.image_size[0],
        "patch_size": vision.patch_size[0],
        "hidden_act": vision.hidden_act,
        "qkv_bias": vision.attention_bias,
        "qk_normalization": vision.use_qk_norm,
        "norm_type": vision.norm_type,
        "layer_norm_eps": vision.layer_norm_eps,
        "dropout": vision.hidden_dropout_prob,
        "attention_dropout": vision.attention_dropout,
        "initializer_range": vision.initializer_range,
        "initializer_factor": vision.layer_scale_init_value,
        **kept.pop("vision_config", {}),
    }
    values = {
        "vision_config": tower,
        "llm_config": llm,
        "select_layer": layer,
        "downsample_ratio": hf.downsample_ratio,
        "force_image_size": vision.image_size[0],
        "ps_version": "v2",
        # What transformers' processor does unless told otherwise.
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "tie_word_embeddings": hf.tie_word_embeddings,
        "dtype": raw.get("dtype", raw.get("torch_dtype")),
        "architectures": ["InternVLChatModel"],
    }
    return {**values, **{name: value for name, value in kept.items() if name in _KEPT_FIELDS}}


def statistics_name(mean: Any, std: Any) -> str | None:
    """The normalize_type with these statistics, None if there is none."""
    for name, (known_mean, known_std) in IMAGE_STATISTICS.items():
        pairs = zip((*known_mean, *known_std), (*mean, *std), strict=False)
        if all(abs(known - given) < 1e-3 for known, given in pairs):
            return name
    return None
