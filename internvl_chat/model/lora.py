"""LoRA through peft: where it goes, what an adapter folder holds, and merging it back into a plain model.

An adapter folder is peft's own (``adapter_config.json``, ``adapter_model.safetensors``); what trained in full beside it
(the MLP, the output layer, some vision layers) is in there as peft's ``modules_to_save``. ``internvl_adapter.json``
names the base folder and the settings of config.json that the run had changed.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from internvl_chat.errors import CheckpointError, ConfigError, nearest
from internvl_chat.model.adapter import ORIGIN, WEIGHTS, Origin
from internvl_chat.model.chat import InternVLChatModel
from internvl_chat.model.layout import ADAPTER_FILE
from internvl_chat.model.token_rows import add_token_rows, fold_token_rows, is_token_row, token_row_ids

_PREFIX = "base_model.model."
_ADAPTER = ".default"
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class LoraOptions:
    """Rank 0 = no LoRA in that tower. ``alpha`` None = twice the rank, as the original. Targets None = all linears."""

    llm_rank: int = 0
    vision_rank: int = 0
    alpha: float | None = None
    dropout: float = 0.05
    llm_targets: tuple[str, ...] | None = None
    vision_targets: tuple[str, ...] | None = None
    dora: bool = False
    rslora: bool = False

    def __bool__(self) -> bool:
        return bool(self.llm_rank or self.vision_rank)


def unwrap(model: nn.Module) -> InternVLChatModel:
    """The chat model inside peft's wrapper, or itself."""
    inner = model.base_model.model if isinstance(model, PeftModel) else model
    assert isinstance(inner, InternVLChatModel)
    return inner


def is_adapter_weight(name: str) -> bool:
    """Whether a parameter belongs to LoRA or DoRA."""
    return ".lora_" in name


def add_lora(model: InternVLChatModel, options: LoraOptions, vision_layers: int) -> PeftModel:
    """The model with fresh adapters, everything else frozen; of the vision tower only the first ``vision_layers``.

    Adapters have the dtype of the weights beside them: DeepSpeed wants one dtype among all that trains. Raises
    ConfigError for targets that are not there.
    """
    llm = [f"language_model.{name}" for name in _linears(model.language_model, skip=model.get_output_embeddings())]
    vision = [
        f"vision_model.{name}"
        for name in _linears(model.vision_model)
        if (number := _LAYER.search(name)) and int(number[1]) < vision_layers
    ]
    chosen = {
        "language_model": _choose(llm, options.llm_targets, "lora_llm_targets") if options.llm_rank else [],
        "vision_model": _choose(vision, options.vision_targets, "lora_vit_targets") if options.vision_rank else [],
    }
    rank = options.llm_rank or options.vision_rank
    ranks, alphas = {}, {}
    if options.llm_rank and options.vision_rank != options.llm_rank and options.vision_rank:
        ranks = {_as_pattern(chosen["vision_model"]): options.vision_rank}
        alphas = dict.fromkeys(ranks, options.alpha or 2 * options.vision_rank)
    config = LoraConfig(
        r=rank,
        lora_alpha=options.alpha or 2 * rank,  # type: ignore[arg-type]
        lora_dropout=options.dropout,
        target_modules=_as_pattern([*chosen["language_model"], *chosen["vision_model"]]),
        rank_pattern=ranks,
        alpha_pattern=alphas,
        use_dora=options.dora,
        use_rslora=options.rslora,
    )
    return _wrap(model, config)


def _wrap(model: InternVLChatModel, config: LoraConfig) -> PeftModel:
    config.base_model_name_or_path = model.name_or_path  # else peft warns that it changes
    with warnings.catch_warnings():
        # peft asks transformers in the old way whether activations are recomputed.
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*is_gradient_checkpointing")
        wrapped = get_peft_model(model, config, autocast_adapter_dtype=False)
    assert isinstance(wrapped, PeftModel)
    return wrapped


def _linears(tower: nn.Module, skip: nn.Module | None = None) -> list[str]:
    return [name for name, module in tower.named_modules() if isinstance(module, nn.Linear) and module is not skip]


def _choose(names: list[str], wanted: Sequence[str] | None, flag: str) -> list[str]:
    """Those of ``names`` that end with one of ``wanted`` (all, if None). Raises ConfigError for one that finds none."""
    if wanted is None:
        return names
    endings = sorted({_LAYER.split(name, maxsplit=1)[-1] for name in names})
    for word in wanted:
        if not any(name.endswith(f".{word}") for name in names):
            legal = sorted({*endings, *(ending.rsplit(".", 1)[-1] for ending in endings)})
            raise ConfigError(
                f"--{flag} {word}: no such linear layer{nearest(word, legal)}; legal: {', '.join(endings)}"
            )
    return [name for name in names if name.endswith(tuple(f".{word}" for word in wanted))]


def _as_pattern(names: list[str]) -> str:
    """One regular expression for all names, layer numbers drawn together."""
    layers: dict[str, list[str]] = {}
    for name in names:
        number = _LAYER.search(name)
        key = name if number is None else f"{name[: number.start()]}.#.{name[number.end() :]}"
        layers.setdefault(key, []).append("" if number is None else number[1])
    grouped: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for key, numbers in layers.items():
        start, _, end = key.partition("#")
        grouped.setdefault((start, tuple(numbers)), []).append(end)
    parts = [
        f"{re.escape(start)}({'|'.join(numbers)})({'|'.join(map(re.escape, ends))})"
        if any(numbers)
        else re.escape(start)
        for (start, numbers), ends in grouped.items()
    ]
    return "|".join(parts)


# -- adapter folders --------------------------------------------------------------------------------------------------


def trained_state(model: PeftModel, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """All that trains, under peft's names on disk. ``state``: gathered weights, if the model does not hold them."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    source: Mapping[str, Tensor] = trained if state is None else state
    found = {name.replace(f"{_ADAPTER}.", "."): source[name].detach().cpu().contiguous() for name in trained}
    for tied, name in unwrap(model).all_tied_weights_keys.items():
        if _PREFIX + name in found:  # peft knows nothing of tying and would take one of the two for the old one
            found[_PREFIX + tied] = found[_PREFIX + name].clone()
    return found


def save_adapter(model: PeftModel, folder: Path, origin: Origin, state: Mapping[str, Tensor] | None = None) -> None:
    """Write an adapter folder; ``PeftModel.from_pretrained(base, folder)`` and ``merge_adapter`` read it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = trained_state(model, state)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config = model.peft_config["default"].to_dict()
    config |= {
        "base_model_name_or_path": str(origin.base.resolve()),
        "inference_mode": True,
        "modules_to_save": full_modules(tensors) or None,
        "peft_type": "LORA",
        "task_type": None,
    }
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    _write_json(folder / ADAPTER_FILE, plain)
    own = {"base": str(origin.base.resolve()), "fingerprint": origin.fingerprint, "overrides": origin.overrides}
    _write_json(folder / ORIGIN, {**own, "new_token_ids": token_row_ids(model)})
    (folder / WEIGHTS).chmod((folder / ORIGIN).stat().st_mode)


def full_modules(names: Mapping[str, Any]) -> list[str]:
    """The modules that trained in full, by their weights' names: as large as can be told from the names alone."""
    found = set()
    for name in (name.removeprefix(_PREFIX) for name in names if not is_adapter_weight(name)):
        if is_token_row(name):
            continue  # peft has no place for these; ``apply_adapter`` has
        layer = re.match(r"vision_model\.(encoder\.layers\.\d+|embeddings)", name)
        if name.startswith("mlp1."):
            found.add("mlp1")
        elif layer is not None:
            found.add(layer[0])
        else:
            found.add(name.rpartition(".")[0])
    return sorted(found)


def load_trained(model: PeftModel, folder: Path) -> None:
    """Fill what trains with the weights of an adapter folder. Raises CheckpointError unless all of them fit."""
    targets = _on_disk_names(model)
    with torch.no_grad():
        for name, tensor in read_trained(model, folder).items():
            targets[name].copy_(tensor)


def _on_disk_names(model: PeftModel) -> dict[str, nn.Parameter]:
    return {name.replace(f"{_ADAPTER}.", "."): parameter for name, parameter in model.named_parameters()}


def read_trained(model: PeftModel, folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter folder. Raises CheckpointError unless they are just those that train in ``model``."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{folder}: no {WEIGHTS}; this is no adapter folder, or its copy is incomplete")
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or cut off ({error}); copy it again") from error
    targets = _on_disk_names(model)
    wanted = {name for name, parameter in targets.items() if parameter.requires_grad}
    tied = {_PREFIX + name for name in unwrap(model).all_tied_weights_keys}
    found = {name: tensor for name, tensor in found.items() if name in targets or name not in tied}
    missing, unexpected = sorted(wanted - found.keys()), sorted(found.keys() - targets.keys())
    shapes = [n for n in found.keys() & targets.keys() if tuple(found[n].shape) != _shape(targets[n])]
    if missing or unexpected or shapes:
        raise CheckpointError(
            f"{path} does not fit the model (missing: {', '.join(missing[:4]) or 'none'}; unexpected: "
            f"{', '.join(unexpected[:4]) or 'none'}; of another shape: {', '.join(shapes[:4]) or 'none'}): it was "
            "trained on another base, or with other LoRA and freeze flags"
        )
    return found


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    # Under ZeRO-3 the tensor itself is empty.
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def apply_adapter(model: InternVLChatModel, folder: Path, new_token_ids: tuple[int, ...] = ()) -> InternVLChatModel:
    """The base model with the adapter merged into its weights, in the dtype that they have. Raises CheckpointError."""
    values = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))
    if values.get("peft_type") != "LORA":
        raise CheckpointError(f"{folder}: an adapter of type {values.get('peft_type')!r}; only LORA can be merged here")
    config = LoraConfig.from_pretrained(str(folder))
    config.modules_to_save = None  # put in place below, without a second copy
    config.inference_mode = False
    wrapped = _wrap(model, config)
    if new_token_ids:
        add_token_rows(model, new_token_ids)
    load_trained(wrapped, folder)
    for module in list(wrapped.modules()):
        if isinstance(module, LoraLayer):
            # In float32, one matrix at a time: DoRA's norms would otherwise carry the rounding of the base.
            layer: Any = module
            dtype = layer.get_base_layer().weight.dtype
            layer.float()
            layer.merge(safe_merge=True)
            layer.to(dtype)
    merged = unwrap(wrapped.unload())
    fold_token_rows(merged)
    return merged


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
