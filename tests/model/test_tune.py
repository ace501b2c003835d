"""What trains and what does not: said, checked, and true after one step."""

from __future__ import annotations

import pytest
import torch

from internvl_chat.errors import ConfigError
from internvl_chat.model.tune import apply_freeze, assert_trainable, format_table, trainable_table


@pytest.mark.parametrize(
    "freeze", [(False, False, False), (True, False, True), (False, True, False), (True, True, False)]
)
def test_frozen_parts_do_not_move(tiny_model, make_sample, freeze):
    model = tiny_model().train()
    llm, mlp, backbone = freeze
    apply_freeze(model, freeze_llm=llm, freeze_mlp=mlp, freeze_backbone=backbone)
    trains = {"language_model": not llm, "lm_head": not llm, "mlp1": not mlp, "vision_model": not backbone}
    assert_trainable(model, trains)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    sample = make_sample(model, 25, 2, 1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    labels = sample["labels"][None]
    model(input_ids=sample["input_ids"][None], labels=labels, pixel_values=sample["pixel_values"]).loss.backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        group = "lm_head" if "lm_head" in name else name.split(".")[0]
        assert torch.equal(parameter, before[name]) != trains[group], name


def test_layers_beyond_select_layer_are_frozen(tiny_model):
    model = tiny_model(select_layer=-2)
    apply_freeze(model)
    assert not any(p.requires_grad for p in model.vision_model.encoder.layers[1].parameters())
    assert all(p.requires_grad for p in model.vision_model.encoder.layers[0].parameters())
    assert_trainable(model, {"vision_model": True, "mlp1": True, "language_model": True})


def test_table(tiny_model):
    model = tiny_model()
    apply_freeze(model, freeze_backbone=True)
    rows = {row.group: row for row in trainable_table(model)}
    assert list(rows) == ["vision_model", "mlp1", "language_model", "lm_head"]
    assert rows["vision_model"].trainable == 0 < rows["vision_model"].parameters
    assert rows["mlp1"].trainable == rows["mlp1"].parameters
    assert sum(row.parameters for row in rows.values()) == sum(p.numel() for p in model.parameters())
    assert rows["mlp1"].dtype == "float32"
    text = format_table(rows.values())
    assert text.splitlines()[0].split() == ["part", "tensors", "parameters", "trainable", "dtype"]
    assert text.splitlines()[-1].startswith("sum")


def test_assert_trainable_says_what_is_wrong(tiny_model):
    model = tiny_model()
    apply_freeze(model, freeze_llm=True)
    with pytest.raises(ConfigError, match="language_model should train"):
        assert_trainable(model, {"language_model": True, "mlp1": True})
    apply_freeze(model, freeze_llm=True, freeze_mlp=True, freeze_backbone=True)
    with pytest.raises(ConfigError, match="nothing trains"):
        assert_trainable(model, {})
