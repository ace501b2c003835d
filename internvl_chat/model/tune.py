"""Which parts of the model train: freezing, thawing and LoRA; said as a table and checked against what was promised."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from internvl_chat.errors import ConfigError
from internvl_chat.model.chat import InternVLChatModel
from internvl_chat.model.lora import LoraOptions, add_lora, is_adapter_weight, unwrap
from internvl_chat.model.token_rows import add_token_rows, is_token_row

GROUPS = ("vision_model", "vision LoRA", "mlp1", "language_model", "language LoRA", "lm_head", "new tokens")
_VISION_LAYER = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Tuning:
    """What trains. LoRA in a tower freezes its own weights; ``unfreeze_*`` thaw some of a frozen tower again.

    ``new_token_ids``: tokens whose rows train, in embedding and output layer, though those are frozen.
    """

    freeze_llm: bool = False
    freeze_mlp: bool = False
    freeze_backbone: bool = False
    unfreeze_vit_layers: int = 0
    unfreeze_lm_head: bool = False
    new_token_ids: tuple[int, ...] = ()
    lora: LoraOptions = field(default_factory=LoraOptions)


@dataclass(frozen=True)
class TrainableRow:
    """One part of the model: how many tensors and parameters it has, and how many of them train."""

    group: str
    tensors: int
    parameters: int
    trainable: int
    dtype: str


def apply_tuning(model: InternVLChatModel, tuning: Tuning) -> nn.Module:
    """Set what trains. Returns the model itself, or with LoRA peft's wrapper around it.

    Layers of the vision tower beyond ``select_layer`` never run, so they never train. Raises ConfigError for switches
    that contradict the model or each other.
    """
    thawed = thawed_layers(model, tuning.unfreeze_vit_layers)
    _check(model, tuning)
    whole: nn.Module = model
    if tuning.lora:
        whole = add_lora(model, tuning.lora, used_layers(model))  # freezes all but the adapters
    else:
        model.requires_grad_(False)
    lora = tuning.lora
    if not tuning.freeze_backbone and not lora.vision_rank:
        model.vision_model.requires_grad_(True)
        for layer in model.vision_model.encoder.layers[used_layers(model) :]:
            layer.requires_grad_(False)
    if not tuning.freeze_mlp:
        model.mlp1.requires_grad_(True)
    if not tuning.freeze_llm and not lora.llm_rank:
        model.language_model.requires_grad_(True)
    if tuning.unfreeze_lm_head:
        model.get_output_embeddings().requires_grad_(True)
    if tuning.new_token_ids:
        add_token_rows(model, tuning.new_token_ids)
    for number in thawed:
        model.vision_model.encoder.layers[number].requires_grad_(True)
    return whole


def used_layers(model: InternVLChatModel) -> int:
    """Layers of the vision tower that ``select_layer`` lets run."""
    return model.vision_model.layers_for(model.config.select_layer)


def thawed_layers(model: InternVLChatModel, count: int) -> list[int]:
    """Numbers of the layers that ``unfreeze_vit_layers`` names: of ``layers[count:]`` those that run; 0 names none.

    -8 is the last eight, 8 all but the first eight: the original's meaning. Raises ConfigError if none is left.
    """
    if count == 0:
        return []
    depth = len(model.vision_model.encoder.layers)
    numbers = [number for number in range(depth)[count:] if number < used_layers(model)]
    if not numbers or abs(count) > depth:
        raise ConfigError(
            f"--unfreeze_vit_layers {count}: the vision tower has {depth} layers, of which {used_layers(model)} run; "
            "-N thaws the last N of the tower, N all but the first N"
        )
    return numbers


def _check(model: InternVLChatModel, tuning: Tuning) -> None:
    """Raise ConfigError for switches that cannot both be meant."""
    lora = tuning.lora
    if tuning.unfreeze_vit_layers and lora.vision_rank:
        raise ConfigError("--unfreeze_vit_layers and --use_backbone_lora: a layer trains in full or through LoRA")
    embedding = model.get_input_embeddings().weight
    if tuning.unfreeze_lm_head and model.get_output_embeddings().weight is embedding:
        raise ConfigError(
            "--unfreeze_lm_head True: the output layer of this language model is tied to its embedding, so it cannot "
            "train alone; leave the flag out"
        )


def promised(model: nn.Module, tuning: Tuning) -> set[str]:
    """Names of the parameters that must train, from the switches and the names alone."""
    inner = unwrap(model)
    used, thawed = used_layers(inner), set(thawed_layers(inner, tuning.unfreeze_vit_layers))
    trains = {
        "vision_model": not tuning.freeze_backbone and not tuning.lora.vision_rank,
        "mlp1": not tuning.freeze_mlp,
        "language_model": not tuning.freeze_llm and not tuning.lora.llm_rank,
        "vision LoRA": True,
        "language LoRA": True,
        "new tokens": True,
    }
    trains["lm_head"] = trains["language_model"] or tuning.unfreeze_lm_head
    names = set()
    for name, _ in model.named_parameters():
        group, layer = group_of(name), _VISION_LAYER.search(name)
        number = int(layer[1]) if layer and not is_adapter_weight(name) else None
        if number in thawed or (trains[group] and (number is None or number < used)):
            names.add(name)
    return names


def assert_trainable(model: nn.Module, tuning: Tuning) -> None:
    """Check every parameter against what the switches promise. Raises ConfigError with the table."""
    wanted = promised(model, tuning)
    found = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    wrong = [f"{name} should {'train' if name in wanted else 'be frozen'}" for name in sorted(wanted ^ found)]
    if not found:
        wrong.append("nothing trains: leave out one of the freeze flags")
    if wrong:
        shown = "; ".join(wrong[:5]) + ("; ..." if len(wrong) > 5 else "")
        raise ConfigError(f"trainable parts: {shown}\n{format_table(trainable_table(model))}")


def trainable_table(model: nn.Module) -> list[TrainableRow]:
    """One row per group of ``GROUPS`` that has parameters. A tied weight counts once, under ``language_model``."""
    rows: dict[str, list[nn.Parameter]] = {group: [] for group in GROUPS}
    for name, parameter in model.named_parameters():
        rows[group_of(name)].append(parameter)
    return [
        TrainableRow(
            group=group,
            tensors=len(parameters),
            parameters=sum(_size(p) for p in parameters),
            trainable=sum(_size(p) for p in parameters if p.requires_grad),
            dtype="/".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters})),
        )
        for group, parameters in rows.items()
        if parameters
    ]


def format_table(rows: Iterable[TrainableRow]) -> str:
    """The table as aligned text with a sum line."""
    rows = list(rows)
    rows.append(
        TrainableRow(
            "sum", sum(r.tensors for r in rows), sum(r.parameters for r in rows), sum(r.trainable for r in rows), ""
        )
    )
    lines = [f"{'part':<16}{'tensors':>8}{'parameters':>18}{'trainable':>18}  dtype"]
    lines += [f"{r.group:<16}{r.tensors:>8}{r.parameters:>18,}{r.trainable:>18,}  {r.dtype}".rstrip() for r in rows]
    return "\n".join(lines)


def describe_layers(model: nn.Module, tuning: Tuning) -> str:
    """A line that names the vision layers thawed by ``unfreeze_vit_layers``; empty if none are."""
    inner = unwrap(model)
    numbers, last = thawed_layers(inner, tuning.unfreeze_vit_layers), len(inner.vision_model.encoder.layers) - 1
    return f"vision layers thawed: {', '.join(map(str, numbers))} (of 0..{last})" if numbers else ""


def group_of(name: str) -> str:
    """The group of ``GROUPS`` that a parameter belongs to, by its name."""
    tower = "vision_model" if ".vision_model." in f".{name}" else "language_model"
    if is_token_row(name):
        return "new tokens"
    if is_adapter_weight(name):
        return "vision LoRA" if tower == "vision_model" else "language LoRA"
    if ".lm_head." in f".{name}":
        return "lm_head"
    return "mlp1" if ".mlp1." in f".{name}" else tower


def _size(parameter: nn.Parameter) -> int:
    # Under ZeRO-3 the tensor itself is empty; of four-bit weights it is packed.
    packed = getattr(parameter, "quant_state", None)
    return int(packed.shape.numel() if packed is not None else getattr(parameter, "ds_numel", parameter.numel()))
