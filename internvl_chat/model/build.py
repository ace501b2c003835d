"""Model folders: reading them with a clear word on what does not fit, and writing them complete."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast
from transformers.integrations import is_deepspeed_zero3_enabled

from internvl_chat.constants import IMAGE_STATISTICS, IMG_CONTEXT
from internvl_chat.errors import CheckpointError, ConfigError, nearest
from internvl_chat.log import get_logger
from internvl_chat.model.attention import register_packed_attention, resolve_attention
from internvl_chat.model.chat import InternVLChatModel
from internvl_chat.model.config import InternVLChatConfig

logger = get_logger(__name__)

# Overrides that belong to the vision tower; all other legal ones are fields of the chat config.
VISION_OVERRIDES = ("drop_path_rate", "attention_dropout", "dropout")
CHAT_OVERRIDES = (
    "select_layer",
    "force_image_size",
    "template",
    "system_message",
    "ps_version",
    "downsample_ratio",
    "dynamic_image_size",
    "use_thumbnail",
    "min_dynamic_patch",
    "max_dynamic_patch",
    "pad2square",
    "normalize_type",
)


def load_tokenizer(path: str | Path) -> Any:
    """Tokenizer of a model folder, ids exactly as its files say. Raises CheckpointError if it cannot be read.

    ``tokenizer.json`` is taken as it is: the classes that ``tokenizer_config.json`` names may rebuild it with other
    ids. Remote code is never run.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    try:
        if (folder / "tokenizer.json").is_file():
            return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise CheckpointError(
            f"{folder}: no usable tokenizer ({_first_line(error)}). The folder needs tokenizer.json with "
            "tokenizer_config.json; a tokenizer with code of its own must be converted to tokenizer.json first"
        ) from error


def image_token_id(tokenizer: Any) -> int:
    """Id of ``<IMG_CONTEXT>``. Raises CheckpointError if the tokenizer does not have it as one token."""
    token = tokenizer.get_vocab().get(IMG_CONTEXT)
    if token is None:
        raise CheckpointError(
            f"the tokenizer has no token {IMG_CONTEXT}: this is not the tokenizer of an InternVL chat model. Add the "
            "special tokens of internvl_chat.constants.SPECIAL_TOKENS in order and resize the vocabulary"
        )
    return int(token)


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> InternVLChatConfig:
    """Chat config of a model folder with ``overrides`` applied. Raises CheckpointError or ConfigError."""
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no model folder (config.json, tokenizer.json, *.safetensors); check the path")
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: config.json cannot be read ({_first_line(error)})") from error
    _check_flavour(folder, raw)
    vision: dict[str, Any] = {}
    chat: dict[str, Any] = {}
    for key, value in (overrides or {}).items():
        if value is None:
            continue
        if key in VISION_OVERRIDES:
            vision[key] = value
        elif key in CHAT_OVERRIDES:
            chat[key] = value
        else:
            legal = (*VISION_OVERRIDES, *CHAT_OVERRIDES)
            raise ConfigError(f"config override {key!r}: use one of {', '.join(legal)}" + nearest(key, legal))
    raw["vision_config"] = {**(raw.get("vision_config") or {}), **vision}
    return InternVLChatConfig.from_dict({**raw, **chat})


def load_model(
    path: str | Path,
    dtype: torch.dtype | str = torch.bfloat16,
    attn_implementation: str = "auto",
    device: str | torch.device | None = None,
    config_overrides: Mapping[str, Any] | None = None,
) -> InternVLChatModel:
    """Model of a folder in the published layout, in eval mode, every weight accounted for.

    ``dtype`` a torch dtype, its name, or "auto" (the folder's own). Raises CheckpointError naming missing, unexpected
    or ill-fitting keys; ConfigError for overrides and attention that cannot be used.
    """
    folder = Path(path)
    config = load_config(folder, config_overrides)
    config.img_context_token_id = image_token_id(load_tokenizer(folder))
    register_packed_attention()
    attention = resolve_attention(attn_implementation, device)
    try:
        _settle_tying(folder, config)
        loaded: Any = InternVLChatModel.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            local_files_only=True,
            weights_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported by _check_keys, with names
        )
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: the weights cannot be loaded: {error}") from error
    model: InternVLChatModel = loaded[0]
    info: dict[str, Any] = loaded[1]
    # ZeRO-3 keeps conversions that never applied; saving would then reverse them.
    conversions = [c for c in getattr(model, "_weight_conversions", None) or [] if c.was_used()]
    model._weight_conversions = conversions  # type: ignore[assignment]
    if is_deepspeed_zero3_enabled() and not conversions:
        # The partitioned load does not look at names that have no place in the model.
        surplus = checkpoint_keys(folder) - set(model.state_dict())
        info["unexpected_keys"] = {name for name in surplus if not name.endswith("rotary_emb.inv_freq")}
    _check_keys(folder, info)
    if (folder / "generation_config.json").is_file():
        model.language_model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    _fit_image_size(model)
    if device is not None:
        nn.Module.to(model, device)
    return model


def save_model_folder(
    model: InternVLChatModel,
    tokenizer: Any,
    out_dir: str | Path,
    state_dict: dict[str, Tensor] | None = None,
    max_shard_size: str = "5GB",
    stop_token_ids: Iterable[int] | None = None,
) -> None:
    """Write a folder that ``load_model`` (and ``from_pretrained``) reads back bit for bit.

    ``state_dict``: gathered weights, if the model itself does not hold them (ZeRO-3). ``stop_token_ids`` end an answer
    and go into generation_config.json, default the tokenizer's eos.
    """
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.use_cache = True  # the Trainer says False, for itself; a reader of the folder wants to generate
    model.save_pretrained(folder, state_dict=state_dict, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    _name_tokenizer_class(folder / "tokenizer_config.json")
    generation = copy.deepcopy(model.language_model.generation_config)
    known = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
    stops = [*(stop_token_ids if stop_token_ids is not None else [tokenizer.eos_token_id]), *known]
    generation.update(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=list(dict.fromkeys(i for i in stops if i is not None)) or None,
        pad_token_id=tokenizer.pad_token_id,
    )
    generation.save_pretrained(folder)
    mean, std = IMAGE_STATISTICS[model.config.normalize_type]
    preprocessor = {
        "crop_size": model.config.image_size,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": list(mean),
        "image_std": list(std),
        "resample": 3,
        "size": model.config.image_size,
    }
    written = folder / "preprocessor_config.json"
    written.write_text(json.dumps(preprocessor, indent=2) + "\n", encoding="utf-8")
    for shard in folder.glob("*.safetensors"):
        # Written through a private temporary file: give it the rights of the others, for colleagues to read.
        shard.chmod(written.stat().st_mode)


def load_weights(model: InternVLChatModel, folder: Path) -> None:
    """Fill a model that is in memory with the safetensors of a folder. Raises CheckpointError unless all fit."""
    state: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        state.update(load_file(file))
    result = model.load_state_dict(state, strict=False)
    missing = [name for name in result.missing_keys if name not in model.all_tied_weights_keys]
    if missing or result.unexpected_keys:
        raise CheckpointError(
            f"{folder}: its weights are not those of this model (missing: {', '.join(missing[:4]) or 'none'}; "
            f"unexpected: {', '.join(result.unexpected_keys[:4]) or 'none'}); resume with the model it was made with"
        )


def _name_tokenizer_class(path: Path) -> None:
    """Readers before transformers 5 know the class of a tokenizer.json by its old name only."""
    values = json.loads(path.read_text(encoding="utf-8"))
    if values.get("tokenizer_class") == "TokenizersBackend":
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
        path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def checkpoint_keys(folder: Path) -> set[str]:
    """Names of all tensors in a model folder, read from the index or the file head, never the weights themselves.

    Empty for a single ``pytorch_model.bin``, whose names cannot be had so cheaply.
    """
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).is_file():
            return set(json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"])
    if (folder / "model.safetensors").is_file():
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            return set(file.keys())
    return set()


def _check_flavour(folder: Path, raw: dict[str, Any]) -> None:
    """Raise CheckpointError if config.json is not that of an InternVL chat model in the published layout."""
    kind = raw.get("model_type")
    if kind == "internvl" or "InternVLForConditionalGeneration" in (raw.get("architectures") or []):
        raise CheckpointError(
            f"{folder}: this is the HF-native layout (InternVLForConditionalGeneration, the '-HF' releases). Use the "
            "release without -HF in its name, or convert the folder to the original layout"
        )
    if kind != InternVLChatConfig.model_type:
        raise CheckpointError(
            f"{folder}: config.json says model_type {kind!r}, an InternVL chat model has "
            f"{InternVLChatConfig.model_type!r}"
        )


def _settle_tying(folder: Path, config: InternVLChatConfig) -> None:
    """Believe the weights: some releases say tied in llm_config and carry an output layer of their own."""
    if "language_model.lm_head.weight" in checkpoint_keys(folder):
        config.llm_config.tie_word_embeddings = False
    config.tie_word_embeddings = bool(config.llm_config.tie_word_embeddings)


def _check_keys(folder: Path, info: Mapping[str, Any]) -> None:
    """Raise CheckpointError if a load left parameters without weights or weights without a place."""
    missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    mismatched = [f"{name} {tuple(found)} for {tuple(ours)}" for name, found, ours in sorted(info["mismatched_keys"])]
    faults = [
        f"{len(keys)} {kind}: {', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched))
        if keys
    ]
    if not faults:
        return
    if any("lora_" in key or "base_layer" in key for key in unexpected):
        meaning = "the folder holds LoRA wrappers inside the model: merge them first"
    elif any(key.startswith(("model.vision_tower.", "vision_tower.", "model.multi_modal")) for key in unexpected):
        meaning = "the weights are in the HF-native layout: convert them to the original layout"
    elif mismatched:
        meaning = "config.json does not describe these weights"
    else:
        meaning = "the folder is incomplete, or config.json is that of another model"
    raise CheckpointError(f"{folder}: weights and config do not fit; tensors {'; '.join(faults)}. It means: {meaning}")


def _fit_image_size(model: InternVLChatModel) -> None:
    """Resize the position embedding for good if ``force_image_size`` differs from what the tower was trained with."""
    wanted, have = model.config.image_size, model.config.vision_config.image_size
    if wanted == have:
        return
    if is_deepspeed_zero3_enabled():
        # The table is partitioned. The tower interpolates at every call instead, with the same numbers.
        logger.warning("tiles of %d pixels: the position embedding of %d is interpolated on the fly", wanted, have)
        return
    model.vision_model.resize_position_embeddings(wanted)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
