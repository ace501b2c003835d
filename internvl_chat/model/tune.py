"""Which parts of the model train, said as a table and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from internvl_chat.errors import ConfigError
from internvl_chat.model.chat import InternVLChatModel

GROUPS = ("vision_model", "mlp1", "language_model", "lm_head")


@dataclass(frozen=True)
class TrainableRow:
    """One part of the model: how many tensors and parameters it has, and how many of them train."""

    group: str
    tensors: int
    parameters: int
    trainable: int
    dtype: str


def apply_freeze(
    model: InternVLChatModel, *, freeze_llm: bool = False, freeze_mlp: bool = False, freeze_backbone: bool = False
) -> None:
    """Set ``requires_grad`` of every parameter: the language model with its head, the MLP, the vision tower.

    Layers of the tower beyond ``select_layer`` never run, so they never train either.
    """
    model.language_model.requires_grad_(not freeze_llm)
    model.mlp1.requires_grad_(not freeze_mlp)
    model.vision_model.requires_grad_(not freeze_backbone)
    for layer in unused_layers(model):
        layer.requires_grad_(False)


def unused_layers(model: InternVLChatModel) -> list[nn.Module]:
    """Layers of the vision tower that ``select_layer`` leaves out."""
    layers = model.vision_model.encoder.layers
    return list(layers[model.vision_model.layers_for(model.config.select_layer) :])


def trainable_table(model: nn.Module) -> list[TrainableRow]:
    """One row per group of ``GROUPS`` that has parameters. A tied weight counts once, under ``language_model``."""
    rows: dict[str, list[nn.Parameter]] = {group: [] for group in GROUPS}
    for name, parameter in model.named_parameters():
        rows[_group(name)].append(parameter)
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


def assert_trainable(model: InternVLChatModel, expected: Mapping[str, bool]) -> None:
    """Check that each group of ``expected`` trains as a whole (True) or not at all (False). Raises ConfigError.

    Layers beyond ``select_layer`` are not counted: they must be frozen.
    """
    unused = {id(p) for layer in unused_layers(model) for p in layer.parameters()}
    found: dict[str, set[bool]] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) not in unused:
            found.setdefault(_group(name), set()).add(parameter.requires_grad)
    wrong = [
        f"{group} should {'train' if wanted else 'be frozen'}"
        for group, wanted in expected.items()
        if group in found and found[group] != {wanted}
    ]
    if not any(p.requires_grad for p in model.parameters()):
        wrong.append("nothing trains")
    if wrong:
        raise ConfigError(f"trainable parts: {'; '.join(wrong)}\n{format_table(trainable_table(model))}")


def _group(name: str) -> str:
    if ".lm_head." in f".{name}":
        return "lm_head"
    return next((group for group in GROUPS if f".{group}." in f".{name}"), "language_model")


def _size(parameter: nn.Parameter) -> int:
    # Under ZeRO-3 the tensor itself is empty.
    return int(getattr(parameter, "ds_numel", parameter.numel()))
