"""A packed row gives the loss and the gradients of its samples one by one, and cannot leak unnoticed."""

from __future__ import annotations

import pytest
import torch
from transformers import AttentionInterface

from internvl_chat.errors import ConfigError
from internvl_chat.model import attention
from internvl_chat.model.attention import PACKED, pack_kwargs, packed_attention, packed_mask, resolve_attention
from internvl_chat.model.loss import token_weights
from tests.tolerance import GRADIENT

LLMS = ("qwen2", "qwen3", "llama", "phi3")


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def assert_same_gradients(ours, theirs):
    for name, expected in theirs.items():
        scale = max(1.0, float(expected.abs().max()))
        assert float((ours[name] - expected).abs().max()) <= GRADIENT * scale, name


@pytest.mark.parametrize("attn", ["packed", "sdpa", "eager"])
@pytest.mark.parametrize("llm", LLMS)
def test_loss_and_gradients(tiny_model, make_sample, pack, llm, attn):
    model = tiny_model(llm, attn).train()
    samples = [make_sample(model, n, tiles, seed) for n, tiles, seed in ((21, 2, 1), (13, 0, 2), (34, 3, 3), (1, 0, 4))]
    row = pack(samples)
    weights = token_weights(row["labels"], row["cu_seqlens"], "square")
    total = float(weights.sum())
    packed = model(**row, loss_weight=weights, num_items_in_batch=total)
    packed.loss.backward()
    packed_grads = gradients(model)

    alone = 0.0
    for sample in samples:
        pixels = sample["pixel_values"] if len(sample["pixel_values"]) else None
        labels = sample["labels"][None]
        out = model(
            input_ids=sample["input_ids"][None],
            labels=labels,
            pixel_values=pixels,
            loss_weight=token_weights(labels, None, "square"),
            num_items_in_batch=total,
        )
        out.loss.backward()
        alone += out.loss.item()
    assert abs(packed.loss.item() - alone) < 1e-6 * max(1.0, alone)
    assert_same_gradients(packed_grads, gradients(model))


@pytest.mark.parametrize("checkpointing", [(True, False), (False, True), (True, True)])
def test_activation_checkpointing_changes_nothing(tiny_model, make_sample, pack, checkpointing):
    model = tiny_model("qwen2").train()
    row = pack([make_sample(model, 21, 2, 1), make_sample(model, 13, 0, 2)])
    model(**row).loss.backward()
    expected = gradients(model)
    model.set_activation_checkpointing(*checkpointing)
    vision_on, llm_on = (
        any(getattr(m, "gradient_checkpointing", False) for m in tower.modules())
        for tower in (model.vision_model, model.language_model)
    )
    assert (vision_on, llm_on) == checkpointing
    model(**row).loss.backward()
    assert_same_gradients(gradients(model), expected)


@pytest.mark.parametrize("attn", ["packed", "sdpa", "eager"])
def test_attention_implementations_agree_on_a_padded_batch(tiny_model, make_sample, attn):
    reference, model = tiny_model("qwen2", "eager"), tiny_model("qwen2", attn)
    samples = [make_sample(model, 20, 2, 1), make_sample(model, 14, 0, 2)]
    ids = torch.nn.utils.rnn.pad_sequence([s["input_ids"] for s in samples], batch_first=True)
    mask = torch.tensor([[1] * 20, [1] * 14 + [0] * 6])
    pixels = samples[0]["pixel_values"]
    with torch.no_grad():
        ours = model(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits
        theirs = reference(input_ids=ids, attention_mask=mask, pixel_values=pixels).logits
        alone = model(input_ids=ids[1:, :14]).logits
    torch.testing.assert_close(ours[mask == 1], theirs[mask == 1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours[1, :14], alone[0], atol=1e-5, rtol=1e-5)


def test_sliding_window_inside_samples(tiny_model, make_sample, pack):
    """Windows are kept per sample, also when the mask that would hold them is never built."""
    models = {attn: tiny_model("phi3", attn) for attn in ("packed", "sdpa")}
    for model in models.values():
        model.config.llm_config.sliding_window = 8
    row = pack([make_sample(models["sdpa"], 21, 1, 1), make_sample(models["sdpa"], 6, 0, 2)])
    row.pop("labels")
    with torch.no_grad():
        logits = {attn: model(**row).logits for attn, model in models.items()}
        models["sdpa"].config.llm_config.sliding_window = None
        unbounded = models["sdpa"](**row).logits
    torch.testing.assert_close(logits["packed"], logits["sdpa"], atol=1e-5, rtol=1e-5)
    assert (logits["packed"] - unbounded).abs().max() > 1e-3


# -- the ways in which packing leaks without a warning ----------------------------------------------------------------


@pytest.mark.parametrize("attn", ["packed", "sdpa", "eager"])
def test_cache_default_does_not_leak(tiny_model, make_sample, pack, attn):
    """With use_cache at its default (True) transformers builds a cache and stops looking for packed samples."""
    model = tiny_model("qwen2", attn)
    model.config.llm_config.use_cache = True
    samples = [make_sample(model, 12, 0, 1), make_sample(model, 15, 0, 2)]
    row = pack(samples)
    inputs = {"input_ids": row["input_ids"], "position_ids": row["position_ids"]}
    with torch.no_grad():
        alone = torch.cat([model(input_ids=s["input_ids"][None]).logits for s in samples], 1)
        for use_cache in (None, True):
            for borders in (row["cu_seqlens"], None):
                packed = model(**inputs, cu_seqlens=borders, use_cache=use_cache)
                torch.testing.assert_close(packed.logits, alone, atol=1e-5, rtol=1e-5)
                assert packed.past_key_values is None
        if attn == "sdpa":  # the trap itself, so that we learn when the library closes it
            leaking = model.language_model(**inputs).logits
            assert (leaking - alone).abs().max() > 1e-2


@pytest.mark.parametrize("attn", ["packed", "sdpa", "eager"])
def test_all_ones_mask_with_packed_positions_is_refused(tiny_model, make_sample, pack, attn):
    model = tiny_model("qwen2", attn)
    row = pack([make_sample(model, 12, 0, 1), make_sample(model, 15, 0, 2)])
    row.pop("pixel_values")
    mask = torch.ones_like(row["input_ids"])
    with pytest.raises(ValueError, match="attention_mask"):
        model(**row, attention_mask=mask)
    row.pop("cu_seqlens")
    with pytest.raises(ValueError, match="attention_mask"):
        model(**row, attention_mask=mask)


def test_attention_function_refuses_restarting_positions_without_lengths(tiny_model, make_sample, pack):
    model = tiny_model("llama", "packed")
    row = pack([make_sample(model, 12, 0, 1), make_sample(model, 15, 0, 2)])
    for extra in ({}, {"attention_mask": torch.ones_like(row["input_ids"])}):
        with pytest.raises(ValueError, match="position_ids restart"), torch.no_grad():
            model.language_model(input_ids=row["input_ids"], position_ids=row["position_ids"], use_cache=False, **extra)


@pytest.mark.parametrize("attn", ["packed", "sdpa"])
def test_borders_that_do_not_fit_are_refused(tiny_model, make_sample, pack, attn):
    model = tiny_model("qwen2", attn)
    row = pack([make_sample(model, 12, 0, 1), make_sample(model, 15, 0, 2)])
    row.pop("pixel_values")
    with pytest.raises(ValueError, match="cu_seqlens ends at 20"):
        model(**{**row, "cu_seqlens": torch.tensor([0, 12, 20])})
    with pytest.raises(ValueError, match="never fall"):
        model(**{**row, "cu_seqlens": torch.tensor([0, 20, 12, 27])})
    with pytest.raises(ValueError, match="single row"):
        model(input_ids=row["input_ids"].repeat(2, 1), cu_seqlens=row["cu_seqlens"])
    if attn == "sdpa":
        with pytest.raises(ValueError, match="restart"):
            model(**{**row, "position_ids": torch.arange(27)[None]})


def test_positions_follow_from_borders(tiny_model, make_sample, pack):
    model = tiny_model("qwen2", "sdpa")
    row = pack([make_sample(model, 12, 0, 1), make_sample(model, 15, 0, 2)])
    row.pop("pixel_values")
    with torch.no_grad():
        expected = model(**row).loss
        row.pop("position_ids")
        torch.testing.assert_close(model(**row).loss, expected)


def reference_varlen(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa):
    """The contract of torch's varlen_attn, spelt out: (T, heads, D), window (left, right), -1 = unbounded."""
    assert q.shape[1] == k.shape[1] or enable_gqa
    assert cu_q.dtype == torch.int32 and isinstance(max_q, int) and max_q == int(cu_q.diff().max())
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    place = torch.arange(q.shape[0])
    sample = (place[:, None] >= cu_q[1:].long()).sum(1)
    distance = place[:, None] - place[None, :]
    allowed = sample[:, None] == sample[None, :]
    left, right = window_size
    allowed &= (distance <= left) | (left < 0)
    allowed &= (-distance <= right) | (right < 0)
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~allowed, -torch.inf).softmax(-1), v)


def reference_flash(q, k, v, cu_q, cu_k, max_q, max_k, *, softmax_scale, causal, window_size):
    """flash-attn's variable-length function: causal is a flag of its own."""
    left, right = window_size
    window = (left, 0 if causal else right)
    return reference_varlen(q, k, v, cu_q, cu_k, max_q, max_k, scale=softmax_scale, window_size=window, enable_gqa=True)


@pytest.mark.parametrize("package", ["torch", "flash_attn"])
@pytest.mark.parametrize(("causal", "window"), [(True, None), (False, None), (True, 4)])
def test_gpu_kernels_are_called_by_their_contract(monkeypatch, causal, window, package):
    """The branch that needs a GPU, with the kernel replaced by its documented meaning."""
    monkeypatch.setattr(attention, "_has_varlen_kernel", lambda query: True)
    monkeypatch.setattr(attention, "_flash_attn", lambda: reference_flash if package == "flash_attn" else None)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", reference_varlen)
    row = pack_kwargs(torch.tensor([0, 7, 8, 19]), torch.device("cpu"))
    q, k, v = (torch.randn(1, heads, 19, 8) for heads in (4, 2, 2))
    shared = {"scaling": 0.3, "is_causal": causal, "sliding_window": window}
    out, _ = packed_attention(torch.nn.Module(), q, k, v, None, **shared, **row)
    plain, _ = packed_attention(torch.nn.Module(), q, k, v, None, **shared, packed_lengths=row["packed_lengths"])
    assert out.shape == (1, 19, 4, 8)
    torch.testing.assert_close(out, plain)


def test_pack_kwargs_stay_on_the_host_as_numbers():
    row = pack_kwargs(torch.tensor([0, 3, 3, 8], dtype=torch.int32), torch.device("cpu"))
    assert row["packed_lengths"] == (3, 5)
    assert row["cu_seq_lens_q"].tolist() == [0, 3, 8] and row["cu_seq_lens_q"].dtype == torch.int32
    assert (row["max_length_q"], row["max_length_k"]) == (5, 5)


def test_packed_attention_needs_fitting_lengths():
    q = torch.randn(1, 2, 5, 4)
    with pytest.raises(ValueError, match="sum to 4"):
        packed_attention(torch.nn.Module(), q, q, q, None, packed_lengths=(2, 2))


def test_packed_mask_is_never_square_for_a_packed_row():
    shared = {"batch_size": 1, "q_length": 6, "kv_length": 6}
    assert packed_mask(**shared, allow_is_causal_skip=False) is None
    padded = packed_mask(**shared, attention_mask=torch.tensor([[True] * 4 + [False] * 2]))
    assert padded is not None and padded.shape == (1, 1, 6, 6)


def test_registration_is_idempotent(tiny_model):
    tiny_model("qwen2")
    tiny_model("qwen2")
    assert AttentionInterface().get(PACKED) is packed_attention


def test_resolve_attention():
    assert resolve_attention("auto", "cpu") == {"": "sdpa", "vision_config": "sdpa", "llm_config": "packed"}
    assert resolve_attention("eager", "cpu")["llm_config"] == "eager"
    with pytest.raises(ConfigError, match="did you mean 'packed'"):
        resolve_attention("paked")
    with pytest.raises(ConfigError, match="Use --attn_implementation auto"):
        resolve_attention("flash_attention_2", "cpu")
