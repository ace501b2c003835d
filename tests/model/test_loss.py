"""Weights, the chunked head and the denominator; loss.json holds what the original made of the same batches.

Where ours differs on purpose: placeholders and features that do not match raise (the original sets the loss of the
whole batch to 0 or dies inside a handler, see test_chat), and a batch in which nothing is supervised gives 0, not NaN.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from internvl_chat.errors import ConfigError
from internvl_chat.model.loss import (
    ChunkedLMHead,
    chunked_cross_entropy,
    divide_loss,
    next_token_targets,
    token_weights,
)

GOLDEN = json.loads((Path(__file__).parent.parent / "goldens" / "loss.json").read_text())
# The forward of the original replaces or refuses these batches; ours is held in test_chat.
MISMATCHED = {"image_token_mismatch", "image_token_surplus"}


@pytest.mark.parametrize("reduction", ["token", "sample", "square"])
def test_weight_of_a_sample_with_n_tokens(reduction):
    for n, weight in GOLDEN["len2weight"][reduction]:
        labels = torch.tensor([[-100] + [5] * n])
        assert token_weights(labels, None, reduction).tolist() == [[0.0] + [pytest.approx(weight)] * n]


@pytest.mark.parametrize("reduction", ["token", "sample", "square"])
@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_loss_of_collated_packs(case, reduction):
    out = case["out"][reduction]
    labels = torch.tensor(case["collated"]["labels"])
    cu_seqlens = torch.tensor(out["cu_seqlens"][0], dtype=torch.int32)
    weights = token_weights(labels, cu_seqlens, reduction)
    torch.testing.assert_close(weights[0], torch.tensor(out["loss_weight"], dtype=torch.float32).flatten())
    logits = torch.tensor(case["logits"])[None]
    place, target, weight = next_token_targets(labels, weights, cu_seqlens)
    total = (F.cross_entropy(logits[0, place], target, reduction="none") * weight).sum()
    loss = divide_loss(total, weight.sum())
    if case["name"] == "no_labels_at_all":
        assert out["loss"] == "nan" and loss.item() == 0.0
    elif case["name"] not in MISMATCHED:
        assert loss.item() == pytest.approx(out["loss"], abs=1e-5)


def test_unknown_reduction_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'square'"):
        token_weights(torch.tensor([[1]]), None, "sqare")


def test_first_token_of_a_sample_never_counts():
    labels = torch.tensor([[4, 4, 4, 4, 4]])
    assert token_weights(labels, torch.tensor([0, 3, 3, 5])).tolist() == [[0, 1, 1, 0, 1]]
    place, target, weight = next_token_targets(labels, None, torch.tensor([0, 3, 5]))
    assert place.tolist() == [0, 1, 3] and target.tolist() == [4, 4, 4] and weight.tolist() == [1, 1, 1]
    assert token_weights(labels).tolist() == [[0, 1, 1, 1, 1]]


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), seed=st.integers(0, 10_000))
def test_weights_do_not_depend_on_the_cut(lengths, seed):
    """Packed, padded and one by one: the same weight for the same token."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.where(torch.rand(n, generator=generator) < 0.5, -100, 3) for n in lengths]
    borders = torch.tensor([0, *lengths]).cumsum(0)
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
    for reduction in ("token", "sample", "square"):
        alone = torch.cat([token_weights(row[None], None, reduction)[0] for row in rows])
        packed = token_weights(torch.cat(rows)[None], borders, reduction)[0]
        batch = token_weights(padded, None, reduction)
        assert torch.equal(packed, alone)
        assert torch.equal(torch.cat([batch[i, :n] for i, n in enumerate(lengths)]), alone)


# -- the chunked head -------------------------------------------------------------------------------------------------


def plain(hidden, weight, bias, targets, weights):
    return (F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="none") * weights).sum()


def example(m: int, bias: bool, dtype=torch.float64):
    generator = torch.Generator().manual_seed(m)
    tensors = [torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((m, 6), (11, 6), (11,))]
    hidden, weight, offset = (t.requires_grad_() for t in tensors)
    targets = torch.randint(0, 11, (m,), generator=generator)
    return hidden, weight, offset if bias else None, targets, torch.rand(m, generator=generator, dtype=dtype)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 7, 100, None])
@pytest.mark.parametrize("m", [0, 1, 7])
def test_chunked_equals_plain_cross_entropy(m, chunk, bias):
    inputs = example(m, bias)
    leaves = [t for t in inputs[:3] if t is not None]
    value = chunked_cross_entropy(*inputs, chunk)
    expected = plain(*inputs)
    torch.testing.assert_close(value, expected)
    for ours, theirs in zip(
        torch.autograd.grad(value * 0.37, leaves), torch.autograd.grad(expected * 0.37, leaves), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_gradcheck(chunk):
    hidden, weight, bias, *rest = example(5, bias=True)
    with_bias = (hidden, weight, bias)
    assert torch.autograd.gradcheck(lambda h, w, b: chunked_cross_entropy(h, w, b, *rest, chunk), with_bias)
    assert torch.autograd.gradcheck(lambda h, w: chunked_cross_entropy(h, w, None, *rest, chunk), with_bias[:2])


@pytest.mark.parametrize(
    ("hidden_dtype", "weight_dtype", "autocast"),
    [
        (torch.bfloat16, torch.bfloat16, False),
        (torch.float32, torch.float32, True),
        (torch.bfloat16, torch.float32, True),
        (torch.bfloat16, torch.float32, False),
    ],
)
def test_mixed_precision(hidden_dtype, weight_dtype, autocast):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 16, generator=generator)
    weight = torch.randn(50, 16, generator=generator) / 4
    targets, weights = torch.randint(0, 50, (40,), generator=generator), torch.rand(40, generator=generator)
    h, w = (t.clone().requires_grad_() for t in (hidden, weight))
    plain(h, w, None, targets, weights).backward()
    low_h, low_w = hidden.to(hidden_dtype).requires_grad_(), weight.to(weight_dtype).requires_grad_()
    head = ChunkedLMHead(16, 50, bias=False)
    head.weight = nn.Parameter(low_w.detach().clone())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        value = head(low_h, targets=targets, weights=weights, chunk=16)
    assert value.dtype == torch.float32
    value.backward()
    assert low_h.grad.dtype == hidden_dtype and head.weight.grad.dtype == weight_dtype
    for ours, theirs in ((low_h.grad, h.grad), (head.weight.grad, w.grad)):
        assert F.cosine_similarity(ours.float().flatten(), theirs.flatten(), 0) > 0.999


def test_frozen_head_and_no_grad():
    hidden, weight, _, targets, weights = example(4, False)
    value = chunked_cross_entropy(hidden, weight.detach(), None, targets, weights)
    assert torch.autograd.grad(value, hidden)[0].abs().sum() > 0
    with torch.no_grad():
        assert not chunked_cross_entropy(hidden, weight, None, targets, weights).requires_grad


def test_nothing_supervised_gives_zero_gradients_not_none():
    head = ChunkedLMHead(6, 11, bias=False)
    hidden = torch.zeros(0, 6, requires_grad=True)
    value = head(hidden, targets=torch.zeros(0, dtype=torch.long))
    assert value.item() == 0.0
    value.backward()
    assert hidden.grad.shape == (0, 6) and head.weight.grad.abs().sum() == 0


def test_adopt_shares_the_parameter():
    linear = nn.Linear(6, 11)
    head = ChunkedLMHead.adopt(linear)
    assert head.weight is linear.weight and head.bias is linear.bias and list(head.state_dict()) == ["weight", "bias"]
    x = torch.randn(3, 6)
    assert torch.equal(head(x), linear(x))


def test_divide_loss():
    assert divide_loss(torch.tensor(3.0), 2).item() == 1.5
    assert divide_loss(torch.tensor(0.0), torch.tensor(0.0)).item() == 0.0
