"""Rows of single tokens that train while the rest of embedding and output layer is frozen.

Each layer's weight becomes a torch parametrization: the frozen matrix with the trainable rows put in. So gradients and
optimizer state exist for these rows alone, and whoever reads ``weight`` sees the current ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from internvl_chat.model.chat import InternVLChatModel
from internvl_chat.model.zero3 import gathered

_ROWS = "parametrizations.weight.0.rows"
_ORIGINAL = "parametrizations.weight.original"


class TokenRows(nn.Module):
    """``weight (V, H)`` -> the same with ``rows (n, H)`` at ``ids (n,)``."""

    ids: Tensor

    def __init__(self, ids: Tensor, rows: Tensor) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows)
        self.register_buffer("ids", ids, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return weight.index_copy(0, self.ids, self.rows.to(weight.dtype))


def is_token_row(name: str) -> bool:
    """Whether a parameter holds such rows."""
    return name.endswith(_ROWS)


def add_token_rows(model: InternVLChatModel, ids: tuple[int, ...]) -> None:
    """Make the rows of ``ids`` trainable, in the embedding and in the output layer (one and the same if tied)."""
    embedding, head = _layers(model)
    tied = head.weight is embedding.weight
    shared = _register(embedding, ids, None)
    _register(head, ids, shared if tied else None)


def _layers(model: InternVLChatModel) -> list[Any]:
    return [model.get_input_embeddings(), model.get_output_embeddings()]


def _register(layer: Any, ids: tuple[int, ...], rows: TokenRows | None) -> TokenRows:
    weight = layer.weight
    place = torch.tensor(ids, device=weight.device)
    if rows is None:
        with gathered(weight):
            rows = TokenRows(place, weight.detach()[place].clone())
    # unsafe: no trial run, which a weight in ZeRO-3 pieces would fail.
    parametrize.register_parametrization(layer, "weight", rows, unsafe=True)
    return rows


def fold_token_rows(model: InternVLChatModel) -> None:
    """Put the rows into the weights for good."""
    for layer in _layers(model):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def folded_state(model: InternVLChatModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the model under plain names, the rows put in."""
    rows = {name.removesuffix(_ROWS): tensor for name, tensor in state.items() if is_token_row(name)}
    ids = next((module.ids for module in _row_modules(model)), None)
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(_ORIGINAL) and ids is not None:
            layer = name.removesuffix(_ORIGINAL)
            new = rows.get(layer, next(iter(rows.values())))  # tied: the rows are listed once
            place = ids.to(tensor.device)
            plain[f"{layer}weight"] = tensor.index_copy(0, place, new.to(tensor.device, tensor.dtype))
        elif not is_token_row(name):
            plain[name] = tensor
    return plain


def unfolded_state(model: InternVLChatModel, plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``folded_state``, for filling a model whose rows train."""
    state = dict(plain)
    for name, module in model.named_modules():
        if isinstance(module, TokenRows):
            layer = name.removesuffix("parametrizations.weight.0")
            weight = state.pop(f"{layer}weight")
            state[layer + _ORIGINAL] = weight
            state[layer + _ROWS] = weight[module.ids.to(weight.device)]
    return state


def _row_modules(model: nn.Module) -> Iterator[TokenRows]:
    return (module for module in model.modules() if isinstance(module, TokenRows))


def token_row_ids(model: nn.Module) -> tuple[int, ...]:
    """ids of the tokens whose rows train; empty if there are none."""
    return next((tuple(module.ids.tolist()) for module in _row_modules(model)), ())
