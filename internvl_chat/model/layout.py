"""What a model folder holds against what its config promises: names and shapes, before any weight is read.

``original`` is the published layout of InternVL; ``hf`` that of transformers' InternVLForConditionalGeneration.
"""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightTransform, revert_weight_conversion

from internvl_chat.errors import CheckpointError
from internvl_chat.model.chat import InternVLChatModel
from internvl_chat.model.config import InternVLChatConfig
from internvl_chat.model.hf_native import disk_name, to_hf_tensors
from internvl_chat.model.llm import hf_llm_config

ADAPTER_FILE = "adapter_config.json"
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLES = ("model.safetensors", "pytorch_model.bin")
# Buffers that old releases carry and that are computed here.
_IGNORED = "rotary_emb.inv_freq"
_SHOWN = 4

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk."""

    shape: tuple[int, ...]
    file: str


def llm_conversions(model: InternVLChatModel) -> list[WeightTransform]:
    """How the language model's module names become those on disk when reversed (fused matrices, experts one by one)."""
    transforms = get_model_conversion_mapping(model, add_legacy=False)
    return [transform for transform in transforms if transform.scope_prefix]


def original_tensors(model: InternVLChatModel, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The weights (``state``, default the model's own) under the names and in the shapes of the published layout.

    A tied output layer is left out. Nothing is copied but what has to be put together.
    """
    tensors = dict(model.state_dict() if state is None else state)
    for name in model.all_tied_weights_keys:
        tensors.pop(name, None)
    carrier = _Carrier(model.config, llm_conversions(model))
    return revert_weight_conversion(carrier, tensors)  # type: ignore[arg-type]


class _Carrier:
    """What the library's reverse conversion reads of a model."""

    def __init__(self, config: InternVLChatConfig, conversions: list[WeightTransform]) -> None:
        self.config = config
        self._weight_conversions = conversions


def expected_shapes(config: InternVLChatConfig, flavour: str = "original") -> Shapes:
    """Names and shapes of all tensors of a model with this config, on disk. Costs no memory for weights."""
    config = copy.deepcopy(config)
    if flavour == "hf":
        config.llm_config = hf_llm_config(config.llm_config)
    with torch.device("meta"):
        model = InternVLChatModel(config)
    tensors = original_tensors(model)
    if flavour == "hf":
        tensors = to_hf_tensors(tensors)
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def weight_files(folder: Path) -> dict[str, set[str]]:
    """Weight file -> names that the index promises in it (empty set: no index). Raises CheckpointError if none or gone.

    Safetensors are preferred to ``.bin`` where a folder has both.
    """
    for index, single in zip(INDEXES, SINGLES, strict=True):
        if (folder / single).is_file():
            return {single: set()}
        if not (folder / index).is_file():
            continue
        try:
            places = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder / index} cannot be read ({error}); download it again") from error
        if not isinstance(places, dict):
            raise CheckpointError(f"{folder / index}: weight_map must name a file for each tensor; download it again")
        files: dict[str, set[str]] = {}
        for name, file in places.items():
            files.setdefault(str(file), set()).add(str(name))
        gone = sorted(file for file in files if not (folder / file).is_file())
        if gone:
            raise CheckpointError(
                f"{folder}: {len(gone)} of {len(files)} weight files named in {index} are missing: "
                f"{', '.join(gone[:_SHOWN])}; the copy or download is incomplete, fetch them"
            )
        return files
    if (folder / ADAPTER_FILE).is_file():
        raise CheckpointError(
            f"{folder}: this is a LoRA adapter ({ADAPTER_FILE}), not a full model; merge it into its base first: "
            f"internvl merge-lora {folder} OUT"
        )
    raise CheckpointError(f"{folder}: no weights ({', '.join(SINGLES)}, or shards with their index); check the path")


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a folder with their shapes, read from file heads only.

    Raises CheckpointError for files that are missing, cut off, or hold anything but tensors.
    """
    found: dict[str, StoredTensor] = {}
    for file, promised in weight_files(folder).items():
        here = head_of(folder / file)
        lacking = sorted(promised - set(here))
        if lacking:
            raise CheckpointError(
                f"{folder / file} lacks {len(lacking)} tensors that the index promises in it "
                f"({', '.join(lacking[:_SHOWN])}): index and file are of different downloads; fetch both again"
            )
        found.update({name: StoredTensor(shape, file) for name, shape in here.items()})
    return found


def head_of(path: Path) -> Shapes:
    """Names and shapes of the tensors of one file, from its head. Raises CheckpointError."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path}: the weights cannot be loaded, the file is damaged or cut off ({error}); fetch it again"
            ) from error
    return {name: tuple(tensor.shape) for name, tensor in read_bin(path).items()}


def read_bin(path: Path) -> dict[str, Tensor]:
    """State dict of a ``.bin``/``.pt``/``.pth`` file, mapped from disk, tensors only: no code in it is ever run.

    Raises CheckpointError for anything else in it, and for a damaged file.
    """
    try:
        state = _torch_load(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors, which would run code on loading; it is refused. Convert it to "
            f"safetensors where you trust it ({str(error).strip().splitlines()[0]})"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{path}: the weights cannot be loaded, the file is damaged or cut off ({error}); fetch it again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} is not a state dict of tensors")
    return state


def _torch_load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # the old file format cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True)


def check_shapes(folder: Path, stored: Mapping[str, StoredTensor], config: InternVLChatConfig, flavour: str) -> None:
    """Raise CheckpointError unless the folder holds exactly the tensors that its config promises."""
    names = {disk_name(name) if flavour == "hf" else name: tensor for name, tensor in stored.items()}
    found = {name: tensor.shape for name, tensor in names.items() if not name.endswith(_IGNORED)}
    expected = expected_shapes(config, flavour)
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    differing = sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name])
    shapes = [f"{name} {found[name]} for {expected[name]}" for name in differing]
    faults = [
        f"{len(items)} {kind}: {', '.join(items[:_SHOWN])}{', ...' if len(items) > _SHOWN else ''}"
        for kind, items in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if items
    ]
    if faults:
        meaning = _meaning(folder, unexpected, {name: (found[name], expected[name]) for name in differing})
        raise CheckpointError(
            f"{folder}: weights and config do not fit ({_FLAVOURS[flavour]}); tensors {'; '.join(faults)}. "
            f"It means: {meaning}"
        )


_FLAVOURS = {"original": "original layout", "hf": "HF-native layout"}
_HF_STARTS = ("model.vision_tower.", "vision_tower.", "model.multi_modal", "multi_modal_projector.")


def _meaning(folder: Path, unexpected: list[str], differing: Mapping[str, tuple[Any, Any]]) -> str:
    if any("lora_" in name or "base_layer" in name for name in unexpected):
        return (
            "the folder holds LoRA wrappers inside the model, as the original training code saves them: merge them "
            f"first: internvl merge-lora {folder} OUT"
        )
    if any(name.startswith(_HF_STARTS) for name in unexpected):
        return "the weights are in the HF-native layout, config.json is not: take both from one release"
    if any(name.startswith("vision_model.") for name in unexpected):
        return "the weights are in the original layout, config.json is not: take both from one release"
    rows = {name: sizes for name, sizes in differing.items() if name.endswith(_VOCABULARY)}
    if rows and len(rows) == len(differing):
        found, wanted = next(iter(rows.values()))
        return (
            f"another vocabulary: the weights have {found[0]} tokens, config.json says {wanted[0]}; they are of "
            "different releases, or tokens were added without resizing"
        )
    if differing:
        return "config.json does not describe these weights"
    return "the folder is incomplete, or config.json is that of another model"


_VOCABULARY = ("embed_tokens.weight", "tok_embeddings.weight", "lm_head.weight", "output.weight")


def is_hf_native(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of transformers' own InternVL."""
    return raw.get("model_type") == "internvl" or "InternVLForConditionalGeneration" in (raw.get("architectures") or [])


def set_conversions(model: PreTrainedModel) -> None:
    """Have ``save_pretrained`` write the published layout, whatever layout the weights came from."""
    if isinstance(model, InternVLChatModel):
        model._weight_conversions = llm_conversions(model)  # type: ignore[assignment]
