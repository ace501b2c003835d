"""Model folders, written complete: weights, tokenizer, and the small files that other programs read."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor

from internvl_chat.constants import IMAGE_STATISTICS, IMG_CONTEXT, IMG_END, IMG_START
from internvl_chat.model.chat import InternVLChatModel
from internvl_chat.model.config import InternVLChatConfig, with_old_keys
from internvl_chat.model.hf_native import to_hf_config, to_hf_tensors
from internvl_chat.model.layout import original_tensors, set_conversions
from internvl_chat.model.llm import llm_spec
from internvl_chat.model.tokenizer import save_tokenizer

MAX_SHARD_SIZE = "5GB"


def save_model_folder(
    model: InternVLChatModel,
    tokenizer: Any,
    out_dir: str | Path,
    state_dict: dict[str, Tensor] | None = None,
    max_shard_size: str = MAX_SHARD_SIZE,
    stop_token_ids: Iterable[int] | None = None,
    source: str | Path | None = None,
) -> None:
    """Write a folder in the published layout that ``load_model`` (and ``from_pretrained``) reads back bit for bit.

    ``state_dict``: gathered weights, if the model itself does not hold them (ZeRO-3). ``stop_token_ids`` end an answer
    and go into generation_config.json, default the tokenizer's eos. ``source``: the folder the model came from, whose
    modelling code (*.py, for programs that run remote code) and SentencePiece file are copied along.
    """
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.use_cache = True  # the Trainer says False, for itself; a reader of the folder wants to generate
    set_conversions(model)
    model.save_pretrained(folder, state_dict=state_dict, max_shard_size=max_shard_size)
    _copy_code(Path(source) if source is not None else None, folder)
    save_tokenizer(tokenizer, folder, source)
    save_generation_config(model, tokenizer, folder, stop_token_ids)
    size = model.config.image_size
    _write_json(
        folder / "preprocessor_config.json",
        {
            "crop_size": size,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            **_statistics(model.config),
            "resample": 3,
            "size": size,
        },
    )
    open_to_others(folder)


def save_hf_folder(
    model: InternVLChatModel,
    tokenizer: Any,
    out_dir: str | Path,
    max_shard_size: str = MAX_SHARD_SIZE,
    stop_token_ids: Iterable[int] | None = None,
) -> None:
    """Write a folder that plain transformers loads (``AutoModelForImageTextToText``), tokenizer and processor included.

    Raises ConfigError, before anything is written, for what that layout cannot express.
    """
    config = to_hf_config(model.config)
    dtype = next(model.parameters()).dtype
    config.dtype = dtype
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if llm_spec(model.config.llm_config.model_type).hf_type is None:
        tensors = original_tensors(model)
    else:  # our module names are those of transformers' class
        tied = model.all_tied_weights_keys
        tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    _save_shards(to_hf_tensors(tensors), folder, max_shard_size)
    config.save_pretrained(folder)
    path = folder / "config.json"
    _write_json(path, with_old_keys(json.loads(path.read_text(encoding="utf-8")), "text_config"))
    names = {"start_image_token": IMG_START, "end_image_token": IMG_END, "context_image_token": IMG_CONTEXT}
    save_tokenizer(tokenizer, folder)
    _add_to_json(
        folder / "tokenizer_config.json",
        {"extra_special_tokens": {**names, "video_token": "<video>"}, "processor_class": "InternVLProcessor"},
    )
    save_generation_config(model, tokenizer, folder, stop_token_ids)
    _write_processor(model.config, folder)
    open_to_others(folder)


def _write_processor(config: InternVLChatConfig, folder: Path) -> None:
    """What transformers' processor needs to cut the very tiles of our training."""
    side = config.image_size
    # The processor cuts tiles unless told otherwise in every call, and not all callers pass our "no" on.
    fewest, most = (config.min_dynamic_patch, config.max_dynamic_patch) if config.dynamic_image_size else (1, 1)
    pictures = {
        "image_processor_type": "GotOcr2ImageProcessor",
        "processor_class": "InternVLProcessor",
        "crop_to_patches": config.dynamic_image_size,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        **_statistics(config),
        "min_patches": fewest,
        "max_patches": most,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": side, "width": side},
    }
    _write_json(folder / "preprocessor_config.json", pictures)
    _write_json(
        folder / "processor_config.json",
        {"image_seq_length": config.num_image_token, "processor_class": "InternVLProcessor"},
    )
    video = {name: pictures[name] for name in ("image_mean", "image_std", "resample", "size", "processor_class")}
    _write_json(folder / "video_preprocessor_config.json", {"video_processor_type": "InternVLVideoProcessor", **video})


def save_generation_config(
    model: InternVLChatModel, tokenizer: Any, folder: Path, stop_token_ids: Iterable[int] | None
) -> None:
    """generation_config.json with every id that ends an answer: the template's first, then those known before."""
    generation = copy.deepcopy(model.language_model.generation_config)
    known = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
    stops = [*(stop_token_ids if stop_token_ids is not None else [tokenizer.eos_token_id]), *known]
    generation.update(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=list(dict.fromkeys(i for i in stops if i is not None)) or None,
        pad_token_id=tokenizer.pad_token_id,
    )
    # Else older readers would make it anew from the model's config, which knows fewer stop ids.
    generation._from_model_config = False
    generation.save_pretrained(folder)


def _save_shards(tensors: dict[str, Tensor], folder: Path, max_shard_size: str) -> None:
    split = split_torch_state_dict_into_shards(
        tensors, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    for file, names in split.filename_to_tensors.items():
        save_file({name: tensors[name].contiguous() for name in names}, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        _write_json(
            folder / "model.safetensors.index.json",
            {"metadata": split.metadata, "weight_map": split.tensor_to_filename},
        )


def _copy_code(source: Path | None, folder: Path) -> None:
    """Copy the modelling code beside the weights; without it, config.json must not point at it."""
    if source is not None and source.resolve() != folder.resolve():
        for file in source.glob("*.py"):
            shutil.copy2(file, folder / file.name)
    if any(folder.glob("*.py")):
        return
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    for part in (values, values.get("llm_config"), values.get("vision_config")):
        if isinstance(part, dict):
            part.pop("auto_map", None)
    _write_json(path, values)


def _statistics(config: InternVLChatConfig) -> dict[str, list[float]]:
    mean, std = IMAGE_STATISTICS[config.normalize_type]
    return {"image_mean": list(mean), "image_std": list(std)}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _add_to_json(path: Path, values: dict[str, Any]) -> None:
    _write_json(path, {**json.loads(path.read_text(encoding="utf-8")), **values})


def open_to_others(folder: Path) -> None:
    """Shards are written through a private temporary file: give them the rights of the others, for colleagues."""
    mode = (folder / "config.json").stat().st_mode
    for shard in folder.glob("*.safetensors"):
        shard.chmod(mode)
