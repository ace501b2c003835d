"""Which part of a model lies on which card, from its config alone: cut between layers only.

The vision tower, the projector, the embeddings, the last norm and the output layer share the first card: pictures, text
and logits then meet without a copy, and activations cross from card to card once per cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch

from internvl_chat.errors import ConfigError, nearest
from internvl_chat.log import get_logger
from internvl_chat.model.chat import InternVLChatModel
from internvl_chat.model.config import InternVLChatConfig

logger = get_logger(__name__)

Rule = Literal["auto", "card"]
Place = int | str | torch.device
LAYERS = "language_model.model.layers"
_EMBEDDING = "language_model.model.embed_tokens"
# Names in the maps of the model cards whose modules are called otherwise here.
_CARD_NAMES = {
    "language_model.model.tok_embeddings": _EMBEDDING,
    "language_model.output": "language_model.lm_head",
}


def plan_device_map(config: InternVLChatConfig, cards: int, rule: Rule = "auto") -> dict[str, int]:
    """Module -> number of its card, of ``cards`` equal ones.

    "auto": weights are spread evenly, what comes before and behind the layers counted in. "card": the rule of the
    InternVL2 cards: the first card takes half as many layers as the others, and the last layer besides. Raises
    ConfigError for less than one card.
    """
    if cards < 1:
        raise ConfigError(f"device_map {rule!r} on {cards} cards: at least one is needed")
    names, sizes = _modules(_outline(config))
    layers = config.llm_config.num_hidden_layers
    if rule == "card":
        counts = _card_counts(layers, cards)
    else:
        layer = sum(sizes.get(f"{LAYERS}.{number}", 0) for number in range(layers)) / layers
        rest = sum(size for name, size in sizes.items() if not name.startswith(f"{LAYERS}."))
        counts = _even_counts(layers, cards, rest / layer)
    found = dict.fromkeys(names, 0)
    cuts = [card for card, count in enumerate(counts) for _ in range(count)]
    found |= {f"{LAYERS}.{number}": card for number, card in enumerate(cuts)}
    if rule == "card":
        found[f"{LAYERS}.{layers - 1}"] = 0
    return found


def _card_counts(layers: int, cards: int) -> list[int]:
    each = math.ceil(layers / (cards - 0.5))
    counts, left = [], layers
    for number in range(cards):
        counts.append(min(left, math.ceil(each * 0.5) if number == 0 else each))
        left -= counts[-1]
    counts[-1] += left  # one card: its half is not all
    return counts


def _even_counts(layers: int, cards: int, rest: float) -> list[int]:
    """Layers of each card where the first one also carries ``rest``, in layers."""
    first = max(0, round((layers + rest) / cards - rest)) if cards > 1 else layers
    others = layers - first
    return [first, *(others * (n + 1) // (cards - 1) - others * n // (cards - 1) for n in range(cards - 1))]


def _modules(model: InternVLChatModel) -> tuple[list[str], dict[str, int]]:
    """The modules that are placed as a whole, in order, and how many weights they have."""
    decoder = model.language_model.model
    names = ["vision_model", "mlp1", "language_model.lm_head"]
    for name, _ in decoder.named_children():
        whole = f"language_model.model.{name}"
        names += [f"{whole}.{number}" for number in range(len(decoder.layers))] if name == "layers" else [whole]
    sizes = {name: sum(p.numel() for p in model.get_submodule(name).parameters()) for name in names}
    return names, sizes


def _outline(config: InternVLChatConfig) -> InternVLChatModel:
    with torch.device("meta"):
        return InternVLChatModel(config)


def check_device_map(config: InternVLChatConfig, given: Mapping[str, Place]) -> dict[str, Place]:
    """A map of the user's under the names of our modules; maps written for the model cards fit.

    Raises ConfigError for names of no module, and for modules without a place.
    """
    model = _outline(config)
    names, _ = _modules(model)
    found = {_CARD_NAMES.get(name, name): place for name, place in given.items()}
    for name in found:
        if name and not any(_holds(name, whole) or _holds(whole, name) for whole in names):
            raise ConfigError(f"device_map: the model has no module {name!r}{nearest(name, names)}")
    if _EMBEDDING in found:  # older cards do not name it, and it has no weights
        found.setdefault("language_model.model.rotary_emb", found[_EMBEDDING])
    tensors = [name for name, _ in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())]
    lost = [name for name in tensors if not any(_holds(key, name) for key in found)]
    if lost:
        whole = [name for name in names if any(_holds(name, tensor) for tensor in lost)]
        more = " ..." if len(whole) > 4 else ""
        raise ConfigError(f"device_map gives no place to {', '.join(whole[:4])}{more}, or not to all of it")
    return found


def _holds(outer: str, inner: str) -> bool:
    return not outer or f"{inner}.".startswith(f"{outer}.")


def resolve_device_map(config: InternVLChatConfig, wanted: Any) -> dict[str, Place]:
    """The map that ``device_map=`` asks for on this machine. Raises ConfigError."""
    here = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if isinstance(wanted, Mapping):
        for name, place in wanted.items():
            if place != "disk":
                _check_place(name, place, here)
        return check_device_map(config, wanted)
    if wanted not in ("auto", "card"):
        raise ConfigError(f"device_map {wanted!r}: use 'auto', 'card' or a map of module names to cards")
    if not here:
        logger.info("device_map %r: there is no GPU here, the CPU is taken", wanted)
        return {"": "cpu"}
    return dict(plan_device_map(config, here, wanted))


def _check_place(name: str, place: Place, here: int) -> None:
    try:
        device = torch.device(place)
    except RuntimeError as error:
        raise ConfigError(f"device_map: {name!r} on {place!r}, which is no device") from error
    if device.type != "cpu" and (device.index or 0) >= here:
        raise ConfigError(f"device_map: {name!r} on {place!r}, but {here} GPUs are here")
