"""A model on several cards: what is planned, and that nothing of two cards meets without being moved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, attach_execution_device_hook
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from internvl_chat.errors import ConfigError
from internvl_chat.infer import device_map
from internvl_chat.infer.card import split_model
from internvl_chat.infer.chat import Chat
from internvl_chat.infer.device_map import LAYERS, check_device_map, plan_device_map, resolve_device_map
from internvl_chat.infer.load import load
from internvl_chat.infer.loaded import Loaded
from internvl_chat.model.build import load_config, load_model
from internvl_chat.model.catalogue import config_of, release
from internvl_chat.tools.tiny import make_tiny

COPIES = {"aten::copy_", "aten::_to_copy"}


class Cards(TorchDispatchMode):
    """Gives CPU tensors the card that they would lie on, and refuses operations on tensors of two cards.

    Weights lie where ``places`` says; ``.to("cpu:1")`` is a move to card 1; what an operation makes lies where its
    inputs do. A tensor that was made of nothing (``arange``) may meet any other, as do scalars.
    """

    def __init__(self, model: torch.nn.Module, places: dict[str, str]) -> None:
        super().__init__()
        self._cards: dict[int, str] = {}
        self._alive: list[torch.Tensor] = []
        self.moves = 0
        self.used: set[str] = set()
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            whole = max((p for p in places if f"{name}.".startswith(f"{p}.")), key=len)
            self._put(tensor, places[whole])

    def _put(self, tensor: torch.Tensor, card: str) -> None:
        self._cards[id(tensor)] = card
        self._alive.append(tensor)  # an id must not come back as another tensor's

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.dim()]
        cards = {self._cards[id(tensor)] for tensor in inputs if id(tensor) in self._cards}
        name = func._schema.name
        moved = kwargs.get("device") if name == "aten::_to_copy" else None
        if name not in COPIES:
            assert len(cards) < 2, f"{name} on tensors of {sorted(cards)}"
        card = str(moved) if moved is not None and moved.index is not None else next(iter(cards), None)
        if moved is not None and cards and card not in cards:
            self.moves += 1
        result = func(*args, **kwargs)
        if card is not None:
            self.used.add(card)
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor):
                    self._put(leaf, card)
        return result


def spread(folder: Path, places: dict[str, str]) -> Loaded:
    """The model with the hooks of accelerate that move inputs to the weights, as ``load(device_map=...)`` sets them.

    Not by ``load`` itself: a parameter that is moved twice to a card that does not exist is no parameter any more.
    """
    loaded = load(folder, device="cpu")
    for name, place in places.items():
        module = loaded.model.get_submodule(name)
        if module.state_dict():
            attach_execution_device_hook(module, place)
        else:
            add_hook_to_module(module, AlignDevicesHook(place))
    add_hook_to_module(loaded.model, AlignDevicesHook(io_same_device=True))
    return loaded


@pytest.mark.parametrize(
    ("llm", "rule"),
    [*((llm, "auto") for llm in ("qwen2", "qwen3", "qwen3_moe", "llama", "phi3", "internlm2")), ("qwen2", "card")],
)
def test_no_operation_sees_tensors_of_two_cards(
    tmp_path: Path, pictures: list[Path], llm: str, rule: device_map.Rule
) -> None:
    """Two fake cards, real weights: the answers of one device, and every tensor where it is needed."""
    folder = make_tiny(tmp_path / llm, llm, llm_layers=4)
    expected = Chat(load(folder, device="cpu")).ask("What?", pictures[:2], max_new_tokens=5)
    places = {name: f"cpu:{card}" for name, card in plan_device_map(load_config(folder), 2, rule).items()}
    loaded = spread(folder, places)
    with Cards(loaded.model, places) as cards:
        assert Chat(loaded).ask("What?", pictures[:2], max_new_tokens=5) == expected
    assert cards.used == {"cpu:0", "cpu:1"}
    assert cards.moves
    # A cut in the middle of a layer, as accelerate makes it without knowing better, is seen by this test.
    torn = {**places, f"{LAYERS}.0.mlp": "cpu:1", f"{LAYERS}.0.self_attn": "cpu:0"}
    loaded = spread(folder, torn)
    with pytest.raises(AssertionError, match="on tensors of"), Cards(loaded.model, torn):
        Chat(loaded).ask("What?", max_new_tokens=2)


def test_the_first_card_carries_fewer_layers() -> None:
    config = config_of(release("InternVL2-Llama3-76B"))
    found = plan_device_map(config, 4)
    layers = [found[f"{LAYERS}.{number}"] for number in range(80)]
    assert layers == sorted(layers)
    counts = [layers.count(card) for card in range(4)]
    # 76.3 B weights: 6 B of tower, 2.1 B of embeddings and output; a layer has 0.856 B.
    assert counts[0] < min(counts[1:])
    assert max(counts[1:]) - min(counts[1:]) <= 1
    assert {found[name] for name in found if not name.startswith(f"{LAYERS}.")} == {0}


# Layers on each card by the rule of the InternVL2 cards, worked out by hand: ceil(layers / (cards - 0.5)) each, half of
# it on card 0, and the last layer back on card 0.
@pytest.mark.parametrize(
    ("name", "cards", "counts"),
    [
        ("InternVL2-8B", 2, [12, 20]),  # 32 layers: 22 each, so 11 + 21, the last one back
        ("InternVL2-26B", 4, [8, 14, 14, 12]),  # 48: 14 each, 7 + 14 + 14 + 13
        ("InternVL2-Llama3-76B", 8, [7, 11, 11, 11, 11, 11, 11, 7]),  # 80: 11 each, 6 + 6 x 11 + 8
        ("InternVL2-8B", 1, [32]),
    ],
)
def test_the_rule_of_the_model_cards(name: str, cards: int, counts: list[int]) -> None:
    found = split_model(name, cards)
    layers = [card for module, card in found.items() if module.startswith(f"{LAYERS}.")]
    assert [layers.count(card) for card in range(cards)] == counts
    assert found[f"{LAYERS}.{len(layers) - 1}"] == 0


@given(st.integers(1, 100), st.integers(1, 16), st.floats(0, 60))
def test_every_layer_has_one_card(layers: int, cards: int, rest: float) -> None:
    for counts in (device_map._even_counts(layers, cards, rest), device_map._card_counts(layers, cards)):
        assert sum(counts) == layers
        assert len(counts) == cards
        assert min(counts) >= 0
    even = device_map._even_counts(layers, cards, rest)
    assert max(even[1:], default=0) - min(even[1:], default=0) <= 1
    assert even[0] <= max(even[1:], default=layers) + 1


def test_maps_of_the_cards_and_of_users(tiny_folder: Callable[[str], Path]) -> None:
    config = load_config(tiny_folder("qwen2"))
    names = dict.fromkeys(plan_device_map(config, 1), 0)
    # As the InternVL2 card writes it, for every language model at once.
    card = {
        **{name: 0 for name in names if LAYERS in name},
        "vision_model": 0,
        "mlp1": 0,
        "language_model.model.tok_embeddings": 0,
        "language_model.model.embed_tokens": 0,
        "language_model.output": 0,
        "language_model.model.norm": 0,
        "language_model.lm_head": 0,
    }
    assert set(names) <= set(check_device_map(config, card))
    assert resolve_device_map(config, {"": "cpu"}) == {"": "cpu"}
    whole = {"vision_model": 0, "mlp1": 0, "language_model": 1}
    assert check_device_map(config, whole) == whole
    with pytest.raises(ConfigError, match=r"no module 'vision_modell'; did you mean 'vision_model'"):
        check_device_map(config, {**whole, "vision_modell": 0})
    with pytest.raises(ConfigError, match="gives no place to mlp1"):
        check_device_map(config, {"vision_model": 0, "language_model": 1})
    with pytest.raises(ConfigError, match=r"language_model.model.layers.1"):
        check_device_map(config, {name: 0 for name in card if name != f"{LAYERS}.1"})
    with pytest.raises(ConfigError, match=r"no place to language_model.model.layers.0, or not to all of it"):
        check_device_map(config, {**{k: v for k, v in card.items() if k != f"{LAYERS}.0"}, f"{LAYERS}.0.mlp": 0})
    with pytest.raises(ConfigError, match=r"'' on 'hello', which is no device"):
        resolve_device_map(config, {"": "hello"})
    with pytest.raises(ConfigError, match=r"'' on 'cuda:99', but \d+ GPUs are here"):
        resolve_device_map(config, {"": "cuda:99"})
    with pytest.raises(ConfigError, match="use 'auto', 'card' or a map"):
        resolve_device_map(config, "balanced")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="says what happens without a GPU")
def test_without_gpus(tiny_folder: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="internvl_chat"):
        loaded = load(tiny_folder("qwen2"), device_map="auto")
    assert "there is no GPU here, the CPU is taken" in caplog.text
    assert (loaded.device.type, loaded.dtype) == ("cpu", torch.float32)
    with pytest.raises(ConfigError, match="split_model finds no GPU here; say for how many"):
        split_model("InternVL2-8B")
    with pytest.raises(ConfigError, match="not both"):
        load(tiny_folder("qwen2"), device_map="auto", device="cpu")


def test_a_model_of_several_places_is_the_same_model(tiny_folder: Callable[[str], Path]) -> None:
    folder = tiny_folder("qwen2")
    whole = load_model(folder, torch.float32)
    spread = load_model(folder, torch.float32, device_map={"": "cpu"})
    for (name, ours), (_, theirs) in zip(whole.state_dict().items(), spread.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), name
