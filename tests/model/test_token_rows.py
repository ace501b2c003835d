"""Rows of new tokens train alone, beside frozen matrices, and end up in the weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils import parametrize

from internvl_chat.model.adapter import Origin
from internvl_chat.model.build import load_model, load_weights
from internvl_chat.model.lora import LoraOptions, apply_adapter, save_adapter
from internvl_chat.model.save import save_model_folder
from internvl_chat.model.token_rows import fold_token_rows, folded_state
from internvl_chat.model.tokenizer import load_tokenizer
from internvl_chat.model.tune import Tuning, apply_tuning, assert_trainable, trainable_table

IDS = (5, 17, 40)


def train(model, inner, ids=IDS, steps=2):
    """A few steps on text that holds the tokens; returns the weights of both layers before and after."""
    text = torch.tensor([[1, 5, 2, 17, 3, 40, 9, 17, 8]])
    layers = (inner.get_input_embeddings(), inner.get_output_embeddings())
    before = [layer.weight.detach().clone() for layer in layers]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=text, labels=text).loss.backward()
        optimizer.step()
    return before, [layer.weight.detach().clone() for layer in layers]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("lora", [0, 4])
def test_only_these_rows_move(tiny_model, lora, tied):
    inner = tiny_model()
    if tied:
        inner.get_output_embeddings().weight = inner.get_input_embeddings().weight
    tuning = Tuning(freeze_llm=True, freeze_mlp=True, new_token_ids=IDS, lora=LoraOptions(llm_rank=lora))
    model = apply_tuning(inner.train(), tuning)
    assert_trainable(model, tuning)
    rows = {row.group: row for row in trainable_table(model)}
    assert rows["new tokens"].trainable == (1 if tied else 2) * 3 * 32
    assert rows["language_model"].trainable == 0
    before, after = train(model, inner)
    others = [i for i in range(before[0].shape[0]) if i not in IDS]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[others], new[others])
        assert all(not torch.equal(old[i], new[i]) for i in IDS)
    if tied:
        assert torch.equal(*after)


def test_gradient_is_that_of_the_whole_matrix(tiny_model):
    """The reference: everything trains, and we look at these rows."""
    text = torch.tensor([[1, 5, 2, 17, 3, 40, 9, 17, 8]])
    whole, inner = tiny_model().train(), tiny_model().train()
    whole(input_ids=text, labels=text).loss.backward()
    apply_tuning(inner, Tuning(freeze_llm=True, new_token_ids=IDS))
    inner(input_ids=text, labels=text).loss.backward()
    for name in ("get_input_embeddings", "get_output_embeddings"):
        expected = getattr(whole, name)().weight.grad[list(IDS)]
        found = getattr(inner, name)().parametrizations.weight[0].rows.grad
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("llm", ["qwen2", "internlm2"])
def test_saved_in_full_and_filled_again(tiny_folder, tiny_model, tmp_path, llm):
    inner = tiny_model(llm).train()
    tuning = Tuning(freeze_llm=True, new_token_ids=IDS)
    model = apply_tuning(inner, tuning)
    train(model, inner)
    tokenizer = load_tokenizer(tiny_folder(llm))
    save_model_folder(inner, tokenizer, tmp_path / "out", state_dict=folded_state(inner, inner.state_dict()))
    again = load_model(tmp_path / "out", torch.float32)
    ids = torch.tensor([[5, 17, 40, 3]])
    with torch.no_grad():
        expected = inner.eval()(input_ids=ids).logits
        assert torch.equal(again(input_ids=ids).logits, expected)
        resumed = tiny_model(llm)
        apply_tuning(resumed, tuning)
        load_weights(resumed, tmp_path / "out")
        assert torch.equal(resumed(input_ids=ids).logits, expected)
    fold_token_rows(inner)
    assert not any(parametrize.is_parametrized(module) for module in inner.modules())
    with torch.no_grad():
        assert torch.equal(inner(input_ids=ids).logits, expected)


def test_adapter_carries_them(tiny_folder, tiny_model, tmp_path):
    inner = tiny_model().train()
    model = apply_tuning(inner, Tuning(freeze_llm=True, new_token_ids=IDS, lora=LoraOptions(llm_rank=2)))
    train(model, inner)
    save_adapter(model, tmp_path, Origin(tiny_folder("qwen2")))
    merged = apply_adapter(tiny_model(), tmp_path, IDS)
    ids = torch.tensor([[5, 17, 40, 3]])
    with torch.no_grad():
        torch.testing.assert_close(
            merged(input_ids=ids).logits, inner.eval()(input_ids=ids).logits, atol=1e-5, rtol=1e-5
        )
