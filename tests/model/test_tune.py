"""What trains and what does not: said, checked, and true after an optimizer step, for every combination of switches."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from torch import nn

from internvl_chat.errors import ConfigError
from internvl_chat.model.lora import LoraOptions, unwrap
from internvl_chat.model.tune import (
    Tuning,
    apply_tuning,
    assert_trainable,
    describe_layers,
    format_table,
    trainable_table,
)

BOOL = (False, True)
# Every switch with every other: freezing, thawing, LoRA in either tower, and where the tower is read.
MATRIX = [
    pytest.param(dict(zip(("llm", "mlp", "vit", "thaw", "head", "lora_llm", "lora_vit"), values, strict=True)), select)
    for values in itertools.product(BOOL, BOOL, BOOL, (0, -1, 1), BOOL, (0, 4), (0, 2))
    for select in (-1, -2)
    if not (values[3] and values[6])  # refused: see below
    and not (values[3] == -1 and select == -2)  # the last layer does not run: refused
    and not (values[3] == 1 and select == -2)
    # Nothing would train: refused.
    and not (all(values[:3]) and not any(values[3:]))
]


def tuning(switches: dict, **options) -> Tuning:
    return Tuning(
        freeze_llm=switches["llm"],
        freeze_mlp=switches["mlp"],
        freeze_backbone=switches["vit"],
        unfreeze_vit_layers=switches["thaw"],
        unfreeze_lm_head=switches["head"],
        lora=LoraOptions(llm_rank=switches["lora_llm"], vision_rank=switches["lora_vit"], **options),
    )


def should_train(name: str, switches: dict, select_layer: int) -> bool:
    """The promise of the flags' help texts, by the published names, said once more and independently."""
    name = name.removeprefix("base_model.model.")
    if ".lora_A." in name or ".lora_B." in name:
        return True
    layer = re.match(r"vision_model\.encoder\.layers\.(\d)\.", name)
    if layer and int(layer[1]) >= {-1: 2, -2: 1}[select_layer]:
        return False
    if name.startswith("vision_model."):
        if layer and switches["thaw"] and int(layer[1]) in (0, 1)[switches["thaw"] :]:
            return True
        return not switches["vit"] and not switches["lora_vit"]
    if name.startswith("mlp1."):
        return not switches["mlp"]
    if name.startswith("language_model.lm_head."):
        return switches["head"] or (not switches["llm"] and not switches["lora_llm"])
    assert name.startswith("language_model.model.")
    return not switches["llm"] and not switches["lora_llm"]


def step(model: nn.Module, sample: dict) -> dict[str, torch.Tensor]:
    """Weights before one optimizer step (twice the same batch, for LoRA's B starts at zero and holds A still)."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        batch = {"input_ids": sample["input_ids"][None], "labels": sample["labels"][None]}
        model(**batch, pixel_values=sample["pixel_values"]).loss.backward()
        optimizer.step()
    return before


def plain(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


@pytest.mark.parametrize(("switches", "select_layer"), MATRIX)
def test_exactly_the_promised_tensors_move(tiny_model, make_sample, switches, select_layer):
    inner = tiny_model(select_layer=select_layer).train()
    wanted = tuning(switches, dropout=0.0)
    model = apply_tuning(inner, wanted)
    assert_trainable(model, wanted)
    before = step(model, make_sample(inner, 25, 2, 1))
    for name, parameter in model.named_parameters():
        promised = should_train(plain(name), switches, select_layer)
        assert torch.equal(parameter, before[name]) != promised, name
    ranks = {plain(n): p.shape[0] for n, p in model.named_parameters() if ".lora_A." in n}
    assert {rank for name, rank in ranks.items() if name.startswith("vision_model")} == (
        {switches["lora_vit"]} - {0}
    ), "the vision tower has a rank of its own"
    assert {rank for name, rank in ranks.items() if name.startswith("language")} == {switches["lora_llm"]} - {0}


@pytest.mark.parametrize("llm", ["qwen2", "qwen3", "qwen3_moe", "llama", "phi3", "internlm2"])
def test_lora_finds_the_linear_layers_of_every_language_model(tiny_model, make_sample, llm):
    inner = tiny_model(llm)
    head = inner.get_output_embeddings()
    linears = {n for n, m in inner.language_model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    wanted = Tuning(freeze_llm=True, freeze_backbone=True, lora=LoraOptions(llm_rank=4, vision_rank=4))
    model = apply_tuning(inner.train(), wanted)
    assert_trainable(model, wanted)
    found = {n.removesuffix(".lora_A.default") for n, _ in inner.language_model.named_modules() if "lora_A.d" in n}
    assert found == linears
    vision = {
        n.split(".", 3)[3].removesuffix(".lora_A.default")
        for n, _ in inner.vision_model.named_modules()
        if "lora_A.d" in n
    }
    assert vision == {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}
    before = step(model, make_sample(inner, 25, 2, 1))
    for name, parameter in model.named_parameters():
        # An expert that no token is sent to stays where it is; there is no LoRA in experts.
        assert torch.equal(parameter, before[name]) != (".lora_" in name or "mlp1" in name), name


@pytest.mark.parametrize(
    "options", [{"dora": True}, {"rslora": True}, {"alpha": 3.0}, {"llm_targets": ("q_proj", "v_proj")}]
)
def test_lora_options_reach_peft(tiny_model, options):
    inner = tiny_model()
    model = apply_tuning(inner, Tuning(freeze_llm=True, lora=LoraOptions(llm_rank=4, **options)))
    layer = inner.language_model.model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == pytest.approx({"rslora": 8 / 2, "alpha": 3 / 4}.get(next(iter(options)), 8 / 4))
    assert bool(options.get("dora")) == any("magnitude" in name for name, _ in model.named_parameters())
    adapted = {n.rsplit(".", 1)[-1] for n, m in inner.language_model.named_modules() if hasattr(m, "lora_A")}
    assert adapted == set(options.get("llm_targets", adapted)) and len(adapted) in (2, 7)


def test_alpha_is_twice_the_rank_in_each_tower(tiny_model):
    inner = tiny_model()
    apply_tuning(inner, Tuning(lora=LoraOptions(llm_rank=4, vision_rank=2)))
    assert inner.language_model.model.layers[0].mlp.up_proj.scaling["default"] == 2
    assert inner.vision_model.encoder.layers[0].attn.qkv.scaling["default"] == 2


def test_unknown_target_gets_the_nearest(tiny_model):
    with pytest.raises(ConfigError, match=r"--lora_llm_targets q_prj: .*did you mean 'q_proj'"):
        apply_tuning(tiny_model(), Tuning(lora=LoraOptions(llm_rank=4, llm_targets=("q_prj",))))


@pytest.mark.parametrize("tied", BOOL)
def test_tied_output_layer_cannot_train_alone(tiny_model, tied):
    model = tiny_model()
    if tied:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
        with pytest.raises(ConfigError, match="tied to its embedding"):
            apply_tuning(model, Tuning(freeze_llm=True, unfreeze_lm_head=True))
    else:
        apply_tuning(model, Tuning(freeze_llm=True, unfreeze_lm_head=True))


def test_layers_are_thawed_as_by_the_original_and_named(tiny_model):
    model = tiny_model()
    for count, text in ((-1, "vision layers thawed: 1 (of 0..1)"), (1, "vision layers thawed: 1 (of 0..1)"), (0, "")):
        assert describe_layers(model, Tuning(unfreeze_vit_layers=count)) == text
    for count, options in ((-3, {}), (2, {}), (5, {}), (-1, {"select_layer": -2})):
        with pytest.raises(ConfigError, match="the vision tower has 2 layers"):
            apply_tuning(tiny_model(**options), Tuning(freeze_backbone=True, unfreeze_vit_layers=count))
    with pytest.raises(ConfigError, match="in full or through LoRA"):
        apply_tuning(model, Tuning(unfreeze_vit_layers=-1, lora=LoraOptions(vision_rank=2)))


def test_table(tiny_model):
    model = apply_tuning(tiny_model(), Tuning(freeze_backbone=True, lora=LoraOptions(llm_rank=2)))
    rows = {row.group: row for row in trainable_table(model)}
    assert list(rows) == ["vision_model", "mlp1", "language_model", "language LoRA", "lm_head"]
    assert rows["vision_model"].trainable == 0 < rows["vision_model"].parameters
    assert rows["mlp1"].trainable == rows["mlp1"].parameters
    assert rows["language LoRA"].trainable == rows["language LoRA"].parameters > 0 == rows["language_model"].trainable
    assert sum(row.parameters for row in rows.values()) == sum(p.numel() for p in model.parameters())
    assert rows["mlp1"].dtype == "float32"
    text = format_table(rows.values())
    assert text.splitlines()[0].split() == ["part", "tensors", "parameters", "trainable", "dtype"]
    assert text.splitlines()[-1].startswith("sum")


def test_assert_trainable_says_what_is_wrong(tiny_model):
    model = tiny_model()
    wanted = Tuning(freeze_llm=True)
    apply_tuning(model, wanted)
    model.mlp1[0].weight.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"mlp1\.0\.weight should train"):
        assert_trainable(model, wanted)
    nothing = Tuning(freeze_llm=True, freeze_mlp=True, freeze_backbone=True)
    apply_tuning(model, nothing)
    with pytest.raises(ConfigError, match="nothing trains"):
        assert_trainable(unwrap(model), nothing)
