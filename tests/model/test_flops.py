"""The formulas of MFU against torch's own counter of matrix products, tower by tower and for all that may train."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from internvl_chat.model.build import load_config
from internvl_chat.model.flops import (
    Trains,
    Work,
    llm_forward,
    pack_cost_terms,
    peak_flops,
    tower_flops,
    trains_by_flags,
    trains_of,
)
from internvl_chat.model.lora import LoraOptions, unwrap
from internvl_chat.model.tune import Tuning, apply_tuning

FROZEN = {"freeze_llm": True, "freeze_mlp": True, "freeze_backbone": True}
TUNINGS = {
    "all": Tuning(),
    "projector": Tuning(freeze_llm=True, freeze_backbone=True),
    "vision": Tuning(freeze_llm=True),
    "last vision layer": Tuning(freeze_llm=True, freeze_mlp=True, freeze_backbone=True, unfreeze_vit_layers=-1),
    "language": Tuning(freeze_mlp=True, freeze_backbone=True),
    "output layer": Tuning(**FROZEN, unfreeze_lm_head=True),
    "LoRA in the language model": Tuning(**FROZEN, lora=LoraOptions(llm_rank=4)),
    "LoRA in both": Tuning(**FROZEN, lora=LoraOptions(llm_rank=4, vision_rank=4)),
    "LoRA and projector": Tuning(freeze_backbone=True, lora=LoraOptions(llm_rank=4)),
}
LENGTHS, TILES = (40, 25, 33), 3


def counted(model, make_sample, pack, backward: bool) -> tuple[float, int]:
    """(FLOPs of a packed row as torch counts them, number of supervised tokens). Attention as plain products.

    torch's counter does not know ``addmm_``, with which the gradient of the output layer is added up: put in here.
    """
    inner = unwrap(model)
    row = pack([make_sample(inner, length, TILES // 3, seed) for seed, length in enumerate(LENGTHS)])
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        if backward:
            model(**row).loss.backward()
        else:
            with torch.no_grad():
                model(**row)
    targets = int((row["labels"] != -100).sum())
    head = inner.get_output_embeddings().weight
    unseen = 2 * head.numel() * targets if backward and head.requires_grad else 0
    return float(counter.get_total_flops() + unseen), targets


def expected(work: Work, targets: int) -> float:
    # torch counts every pair of tokens, the formula those that a causal mask leaves: half.
    return work.of(sum(LENGTHS), 2 * sum(n * n for n in LENGTHS), targets, TILES)


@pytest.mark.parametrize("llm", ["qwen2", "qwen3", "llama", "phi3", "internlm2"])
def test_forward_pass_is_what_torch_counts(tiny_model, make_sample, pack, llm: str) -> None:
    model = tiny_model(llm)
    found, targets = counted(model, make_sample, pack, backward=False)
    flops = tower_flops(model.config, Trains(False, frozenset(), False, False, False))
    assert found == pytest.approx(expected(flops.vit + flops.llm, targets), rel=1e-3)


@pytest.mark.parametrize("name", TUNINGS)
def test_training_step_is_what_torch_counts(tiny_model, make_sample, pack, name: str) -> None:
    model = apply_tuning(tiny_model(), TUNINGS[name]).train()
    found, targets = counted(model, make_sample, pack, backward=True)
    flops = tower_flops(unwrap(model).config, trains_of(model))
    # Of LoRA's own small products the first layer hands no gradients on; the formula counts them.
    assert found == pytest.approx(expected(flops.vit + flops.llm, targets), rel=0.02 if "LoRA" in name else 2e-3)


@pytest.mark.parametrize("name", ["all", "LoRA in the language model", "projector"])
def test_recomputed_activations_are_counted_for_the_hardware_alone(tiny_model, make_sample, pack, name: str) -> None:
    model = apply_tuning(tiny_model(), TUNINGS[name]).train()
    unwrap(model).set_activation_checkpointing(vision=True, llm=True)
    found, targets = counted(model, make_sample, pack, backward=True)
    flops = tower_flops(unwrap(model).config, trains_of(model, vision_recompute=True, llm_recompute=True))
    again = flops.vit_again + flops.llm_again
    assert expected(again, targets) > 0
    assert found == pytest.approx(expected(flops.vit + flops.llm + again, targets), rel=0.02)
    assert found > expected(flops.vit + flops.llm, targets) * 1.05


@pytest.mark.parametrize("name", TUNINGS)
def test_flags_promise_what_the_model_then_does(tiny_model, name: str) -> None:
    model = apply_tuning(tiny_model(), TUNINGS[name])
    config = unwrap(model).config
    promised, found = trains_by_flags(config, TUNINGS[name]), trains_of(model)
    if TUNINGS[name].lora:
        assert bool(promised.llm_adapter) == bool(found.llm_adapter)
        assert bool(promised.vision_adapter) == bool(found.vision_adapter)
        assert pack_cost_terms(config, promised) == pytest.approx(pack_cost_terms(config, found), rel=0.6)
    else:
        assert promised.head == found.head and promised.llm == found.llm
        assert pack_cost_terms(config, promised, supervised=0.3) == pack_cost_terms(config, found, supervised=0.3)


def test_mixture_of_experts_counts_the_chosen_ones(tiny_folder) -> None:
    config = load_config(tiny_folder("qwen3_moe")).llm_config
    dense = config.num_hidden_layers * 2 * config.hidden_size
    few = llm_forward(config).token
    config.num_experts_per_tok += 1
    assert llm_forward(config).token - few == dense * 3 * config.moe_intermediate_size


def test_cost_of_a_pack_is_the_numerator_of_mfu(tiny_folder) -> None:
    config = load_config(tiny_folder())
    flops = tower_flops(config)
    token, tile, square = pack_cost_terms(config)
    assert (token, tile, square) == (flops.llm.token, flops.vit.tile, flops.llm.square)
    assert token == 3 * llm_forward(config.llm_config).token
    busy = pack_cost_terms(config, Trains(vision_recompute=True), recompute=True)
    assert busy[0] == token and tile < busy[1] < 4 / 3 * tile + 1


def test_published_size_gives_the_known_number() -> None:
    """InternViT-300M at 448 pixels: 24 layers of 1024/4096 over 1025 places, about 0.63 + 0.10 TFLOP a tile."""
    from internvl_chat.model.config import InternVisionConfig, InternVLChatConfig

    vision = InternVisionConfig(
        hidden_size=1024, num_attention_heads=16, intermediate_size=4096, num_hidden_layers=24, image_size=448
    )
    llm = {"model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14}
    llm |= {"num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151674}
    config = InternVLChatConfig(vision_config=vision.to_dict(), llm_config=llm)
    forward = tower_flops(config, Trains(False, frozenset(), False, False, False))
    layers = 24 * (2 * 1025 * 12 * 1024**2 + 4 * 1025**2 * 1024)
    ends = 2 * 1024 * 3 * 14**2 * 1024 + 2 * 256 * (4096 * 896 + 896**2)
    assert forward.vit.tile == layers + ends
    # 0.358 billion weights outside embedding and output layer (Qwen2.5-0.5B).
    assert forward.llm.token == 2 * 24 * (896 * (896 * 2 + 128 * 2) + 3 * 896 * 4864)


def test_peak_by_name_and_by_flag() -> None:
    assert peak_flops("NVIDIA H200") == 989e12 and peak_flops("NVIDIA H20") == 148e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12 and peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("a card of tomorrow") is None and peak_flops("a card of tomorrow", 5.0) == 5e12
