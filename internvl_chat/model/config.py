"""Configurations of the vision tower and of the chat model, in the layout of the published checkpoints."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from internvl_chat.constants import IMAGE_STATISTICS
from internvl_chat.errors import ConfigError, nearest
from internvl_chat.model.llm import LLMS, model_type_of, register_language_models

PS_VERSIONS = ("v1", "v2")
NORM_TYPES = ("layer_norm", "rms_norm")


class InternVisionConfig(PreTrainedConfig):
    """InternViT. Defaults are those of the original class (6B values); a whole chat config gives its vision part."""

    model_type = "intern_vit_6b"
    base_config_key = "vision_config"

    num_channels: int = 3
    patch_size: int = 14
    image_size: int = 224
    qkv_bias: bool = False
    hidden_size: int = 3200
    num_attention_heads: int = 25
    intermediate_size: int = 12800
    qk_normalization: bool = True
    num_hidden_layers: int = 48
    use_flash_attn: bool = True
    hidden_act: str = "gelu"
    norm_type: str = "rms_norm"
    layer_norm_eps: float | int = 1e-6
    dropout: float | int = 0.0
    drop_path_rate: float | int = 0.0
    attention_dropout: float | int = 0.0
    initializer_range: float | int = 0.02
    initializer_factor: float | int = 0.1

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.norm_type not in NORM_TYPES:
            raise ConfigError(f"vision_config.norm_type {self.norm_type!r}: use one of {', '.join(NORM_TYPES)}")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"vision_config.hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )


class InternVLChatConfig(PreTrainedConfig):
    """InternViT + MLP + LLM. Keys and defaults of the published config.json, plus the last two below."""

    model_type = "internvl_chat"
    sub_configs_defaults = {  # noqa: RUF012
        "vision_config": SubConfigSpec(config_class=InternVisionConfig),
        "llm_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen2"),
    }

    # Given as a dict, kept as a config object.
    vision_config: Any = None
    llm_config: Any = None
    use_backbone_lora: int = 0
    use_llm_lora: int = 0
    select_layer: int = -1
    force_image_size: int | None = None
    downsample_ratio: float | int = 0.5
    template: str | None = None
    system_message: str | None = None
    dynamic_image_size: bool = False
    use_thumbnail: bool = False
    ps_version: str = "v1"
    min_dynamic_patch: int = 1
    max_dynamic_patch: int = 6
    pad2square: bool | None = False
    tie_word_embeddings: bool = False
    # A plain field: published files carry the key, and DeepSpeed's "auto" sizes read it.
    hidden_size: int | None = None
    normalize_type: str = "imagenet"
    img_context_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        register_language_models()
        if isinstance(self.llm_config, dict):
            model_type = model_type_of(self.llm_config)
            self.llm_config = {**_with_rope_of_today(self.llm_config, model_type), "model_type": model_type}
        # Derived values that some tools write into config.json; ours are properties.
        kwargs.pop("image_size", None)
        kwargs.pop("num_image_token", None)
        super().__post_init__(**kwargs)
        self.hidden_size = self.llm_config.hidden_size
        self._check()

    def _check(self) -> None:
        """Raise ConfigError for values that would fail later, or worse, not fail."""
        if self.ps_version not in PS_VERSIONS:
            raise ConfigError(f"ps_version {self.ps_version!r}: use one of {', '.join(PS_VERSIONS)}")
        if self.normalize_type not in IMAGE_STATISTICS:
            raise ConfigError(
                f"normalize_type {self.normalize_type!r}: use one of {', '.join(IMAGE_STATISTICS)}"
                + nearest(self.normalize_type, IMAGE_STATISTICS)
            )
        layers = self.vision_config.num_hidden_layers
        if not -layers - 1 <= self.select_layer <= layers:
            raise ConfigError(f"select_layer {self.select_layer}: the vision tower has {layers} layers")

    @property
    def image_size(self) -> int:
        """Side of a tile in pixels."""
        return self.force_image_size or self.vision_config.image_size

    @property
    def num_image_token(self) -> int:
        """Placeholders, and features, per tile."""
        return int((self.image_size // self.vision_config.patch_size) ** 2 * self.downsample_ratio**2)

    def get_text_config(self, decoder: Any = None, encoder: Any = None) -> PreTrainedConfig:
        """The language model's config (generation, weight conversion and DeepSpeed ask for it)."""
        return self.llm_config

    def to_diff_dict(self) -> dict[str, Any]:
        """What ``save_pretrained`` writes: ``to_dict`` less the library's defaults, plus what older readers need."""
        return with_old_keys(super().to_diff_dict(), "llm_config")


def with_old_keys(values: dict[str, Any], llm_key: str) -> dict[str, Any]:
    """Add ``torch_dtype`` and the language model's ``rope_theta`` / ``rope_scaling`` / ``architectures`` to a config.

    Readers before transformers 5 know only these; without them they assume theta 10000 and compute wrong logits, or
    cannot tell which language model it is.
    """
    for part in (values, values.get("vision_config"), values.get(llm_key)):
        if isinstance(part, dict) and part.get("dtype") is not None:
            part["torch_dtype"] = part["dtype"]
    llm = values.get(llm_key)
    if not isinstance(llm, dict):
        return values
    if not llm.get("architectures") and llm.get("model_type") in LLMS:
        llm["architectures"] = [LLMS[llm["model_type"]].architecture]
    if "num_local_experts" in llm:  # transformers' new name; without the old one others count 128
        llm.setdefault("num_experts", llm["num_local_experts"])
    rope = llm.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        llm["rope_theta"] = rope["rope_theta"]
        # The names of the modelling code that travels with the original layout, or of transformers itself.
        renamed = llm.get("model_type", "") if llm_key == "llm_config" else ""
        llm["rope_scaling"] = _old_rope_scaling(renamed, rope)
    return values


def _with_rope_of_today(llm_config: dict[str, Any], model_type: str) -> dict[str, Any]:
    """Rename ``rope_scaling.type`` of old files: transformers looks for the companion keys under today's name only."""
    scaling = llm_config.get("rope_scaling")
    today = {old: new for new, old in LLMS[model_type].rope_type_on_disk}
    if not isinstance(scaling, dict) or (name := scaling.get("rope_type", scaling.get("type"))) not in today:
        return llm_config
    return {**llm_config, "rope_scaling": {**scaling, "type": today[name], "rope_type": today[name]}}


def _old_rope_scaling(model_type: str, rope: dict[str, Any]) -> dict[str, Any] | None:
    """``rope_parameters`` of today as the ``rope_scaling`` of the published files; None for plain rotary positions."""
    rope_type = rope.get("rope_type", "default")
    if rope_type == "default":
        return None
    spec = LLMS.get(model_type)
    on_disk = dict(spec.rope_type_on_disk).get(rope_type, rope_type) if spec else rope_type
    dropped = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}
    if rope_type == "longrope":
        # Kept beside it, in the config itself; the original class accepts exactly three keys here.
        dropped |= {"original_max_position_embeddings"}
    return {"type": on_disk, **{key: value for key, value in rope.items() if key not in dropped}}
