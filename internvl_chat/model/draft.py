"""What a chat model built from parts will be: config and tokenizer, decided from configs and file heads alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig

from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.model.build import read_config_file
from internvl_chat.model.config import InternVisionConfig, InternVLChatConfig
from internvl_chat.model.fingerprint import fingerprint
from internvl_chat.model.layout import (
    Shapes,
    expected_shapes,
    head_of,
    is_hf_native,
    read_bin,
    stored_tensors,
    weight_files,
)
from internvl_chat.model.llm import llm_spec, register_language_models
from internvl_chat.model.projector import build_projector, merge_factor
from internvl_chat.model.tokenizer import add_special_tokens, image_token_id, load_tokenizer
from internvl_chat.model.vit import InternVisionModel, layers_for

_CHAT = "language_model."
# Decided by the parts themselves, not copied from the settings.
_DECIDED = ("select_layer", "force_image_size")


@dataclass(frozen=True)
class Parts:
    """What to build from. ``settings``: fields of InternVLChatConfig (template, select_layer, ...)."""

    vision: Path
    llm: Path
    mlp: Path | None = None
    new_tokens: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def record(self) -> dict[str, Any]:
        """All that the result depends on, as JSON values; weights by their fingerprint, wherever they lie."""
        paths = {"vision": self.vision, "llm": self.llm, "mlp": self.mlp}
        values = {**asdict(self), **{name: path and fingerprint(path) for name, path in paths.items()}}
        return dict(json.loads(json.dumps(values)))


@dataclass(frozen=True, eq=False)
class Drafted:
    """The model to be: its config, with its tower cut and its vocabulary grown; its tokenizer; how many ids are new."""

    config: InternVLChatConfig
    tokenizer: Any
    added: int

    @property
    def new_token_ids(self) -> tuple[int, ...]:
        """The last ids of the tokenizer."""
        return tuple(range(len(self.tokenizer) - self.added, len(self.tokenizer)))


def draft(parts: Parts, weights: bool = True) -> Drafted:
    """Decide what the parts make. Raises CheckpointError for parts that do not fit together, ConfigError for settings.

    Without ``weights`` the files of the two towers need not be there, and are not looked at.
    """
    llm = llm_config(parts.llm)
    tokenizer = load_tokenizer(parts.llm)
    added = add_special_tokens(tokenizer, parts.new_tokens)
    vision = vision_config(parts.vision)
    if weights:
        check_tower(parts.vision, vision, tower_heads(parts.vision))
        _check_llm_weights(parts.llm, llm, InternVLChatConfig(vision_config=vision.to_dict(), llm_config=llm.to_dict()))
    vision.num_hidden_layers = layers_left(vision.num_hidden_layers, int(parts.settings.get("select_layer", -1)))
    ratio = parts.settings.get("downsample_ratio", 0.5)
    vision.image_size = parts.settings.get("force_image_size") or vision.image_size
    check_image_size(vision.image_size, vision.patch_size, ratio)
    if parts.mlp is not None:
        check_projector(parts.mlp, projector_shapes(vision, llm, ratio), _projector_heads(parts.mlp))
    llm.dtype = llm.dtype or (_stored_dtype(parts.llm) if weights else None)
    llm.tie_word_embeddings = False  # see parts.untie
    if added:
        llm.vocab_size = len(tokenizer)
    values = {key: value for key, value in parts.settings.items() if value is not None and key not in _DECIDED}
    config = InternVLChatConfig(
        vision_config=vision.to_dict(),
        llm_config={name: value for name, value in llm.to_dict().items() if name != "_name_or_path"},
        tie_word_embeddings=False,
        dtype=llm.dtype,
        force_image_size=vision.image_size,
        img_context_token_id=image_token_id(tokenizer),
        **values,
    )
    return Drafted(config, tokenizer, added)


def check_image_size(size: int, patch_size: int, downsample_ratio: float, flag: str = "--force_image_size") -> None:
    """Raise ConfigError unless the patches of a tile can be merged into whole image tokens."""
    side = merge_factor(downsample_ratio)
    if size < 1 or size % (patch_size * side):
        raise ConfigError(
            f"{flag} {size}: must be a multiple of {patch_size * side} ({side} x {side} patches of "
            f"{patch_size} pixels make an image token)"
        )


# -- the vision tower -------------------------------------------------------------------------------------------------


def is_whole_chat(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a chat model in the original layout."""
    return raw.get("model_type") == InternVLChatConfig.model_type


def vision_config(path: Path) -> InternVisionConfig:
    """Config of a tower's own folder, or of the tower in a chat folder. Raises CheckpointError."""
    raw = read_config_file(path)
    if is_hf_native(raw):
        raise CheckpointError(f"{path}: HF-native layout; take the tower out first: internvl extract-vit {path} OUT")
    whole = is_whole_chat(raw)
    if not whole and raw.get("model_type") != InternVisionConfig.model_type:
        raise CheckpointError(f"{path}: config.json says model_type {raw.get('model_type')!r}: this is no InternViT")
    return InternVisionConfig.from_dict(raw["vision_config"] if whole else raw)


def tower_prefix(path: Path) -> str:
    """What the names of the tower's tensors begin with in this folder."""
    return "vision_model." if is_whole_chat(read_config_file(path)) else ""


def tower_heads(path: Path) -> Shapes:
    """Names and shapes of the tower's tensors in a folder, from file heads. Raises CheckpointError."""
    return _under(tower_prefix(path), path)


def check_tower(path: Path, config: InternVisionConfig, found: Shapes) -> None:
    """Raise CheckpointError unless these are the tensors of a tower of that config."""
    with torch.device("meta"):
        own = {name: tuple(tensor.shape) for name, tensor in InternVisionModel(config).state_dict().items()}
    wrong = sorted(name for name in own.keys() | found.keys() if own.get(name) != found.get(name))
    if wrong:
        shown = ", ".join(f"{n} {found.get(n, 'missing')} for {own.get(n, 'nothing')}" for n in wrong[:4])
        raise CheckpointError(f"{path}: the vision tower's weights do not fit its config: {shown}")


def layers_left(depth: int, select_layer: int) -> int:
    """Layers of a tower that ``select_layer`` lets run (6B: 48 layers, -4 -> 45). Raises ConfigError."""
    try:
        count = layers_for(depth, select_layer)
    except ValueError as error:
        raise ConfigError(f"--vision_select_layer: {error}") from error
    if count == 0:
        raise ConfigError(f"--vision_select_layer {select_layer}: no layer of the vision tower would be left")
    return count


# -- the language model -----------------------------------------------------------------------------------------------


def llm_config(path: Path) -> PreTrainedConfig:
    """Config of a language model's folder. Raises CheckpointError or ConfigError unless it is of a supported kind."""
    raw = read_config_file(path)
    if raw.get("model_type") in (InternVLChatConfig.model_type, "internvl"):
        raise CheckpointError(f"{path}: this is a whole chat model; as --llm_path give a language model alone")
    llm_spec(str(raw.get("model_type")))
    register_language_models()
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: the language model cannot be loaded: {error}") from error
    return config


def _check_llm_weights(path: Path, llm: PreTrainedConfig, chat: InternVLChatConfig) -> None:
    """Raise CheckpointError for files that are missing or cut off, and for tensors of another shape or lacking.

    Names of an older kind are left to the library, which knows them.
    """
    found = {name: one.shape for name, one in stored_tensors(path).items()}
    chat.llm_config.tie_word_embeddings = llm.tie_word_embeddings
    names = {n.removeprefix(_CHAT): shape for n, shape in expected_shapes(chat).items() if n.startswith(_CHAT)}
    wrong = sorted(name for name in names.keys() & found.keys() if names[name] != found[name])
    if found.keys() <= names.keys():
        lacking = names.keys() - found.keys()
        wrong += sorted(name for name in lacking if not (llm.tie_word_embeddings and name.endswith(_HEADS)))
    if wrong:
        raise CheckpointError(f"{path}: weights and config of the language model do not fit ({', '.join(wrong[:4])})")


_HEADS = ("lm_head.weight", "output.weight")


def _stored_dtype(path: Path) -> torch.dtype:
    """dtype of the first floating tensor of a folder, as the library takes it where a config names none."""
    file = path / next(iter(weight_files(path)))
    if file.suffix != ".safetensors":
        return next((t.dtype for t in read_bin(file).values() if t.is_floating_point()), torch.float32)
    kinds = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    try:
        with safe_open(file, framework="pt") as stream:
            found = (stream.get_slice(name).get_dtype() for name in stream.keys())  # noqa: SIM118
            return next((kinds[name] for name in found if name in kinds), torch.float32)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged or cut off ({error}); fetch it again") from error


# -- the projector ----------------------------------------------------------------------------------------------------


def projector_shapes(vision: InternVisionConfig, llm: PreTrainedConfig, downsample_ratio: float) -> Shapes:
    """Names and shapes of the projector between two towers."""
    with torch.device("meta"):
        module = build_projector(vision.hidden_size, llm.hidden_size, downsample_ratio)
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def check_projector(path: Path, shapes: Shapes, found: Shapes) -> None:
    """Raise CheckpointError unless a file holds just the projector that is needed."""
    if shapes != found:
        raise CheckpointError(
            f"{path}: not the projector of this tower and language model: it holds {found or 'nothing'}, needed are "
            f"{shapes}; leave --mlp_path out to start with a fresh one"
        )


def _projector_heads(path: Path) -> Shapes:
    if path.is_dir():
        return _under("mlp1.", path)
    return {name.removeprefix("mlp1."): shape for name, shape in head_of(path).items()}


def _under(prefix: str, folder: Path) -> Shapes:
    """Shapes of the tensors of a folder whose names begin with ``prefix``, without it."""
    stored = stored_tensors(folder)
    return {name.removeprefix(prefix): one.shape for name, one in stored.items() if name.startswith(prefix)}
