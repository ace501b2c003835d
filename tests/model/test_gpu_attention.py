"""The kernels that only a GPU has: variable-length attention in half precision against sdpa sample by sample."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from internvl_chat.model.attention import _has_varlen_kernel, pack_kwargs, packed_attention
from internvl_chat.model.loss import ChunkedLMHead, token_weights

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


class Layer(nn.Module):
    is_causal = True


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(8, 2, 128), (4, 4, 64), (4, 4, 96), (14, 2, 64)])
def test_varlen_kernel_equals_sdpa_per_sample(heads, kv_heads, head_dim, causal, window):
    generator = torch.Generator("cuda").manual_seed(0)
    lengths = [100, 1, 257, 64]
    row = pack_kwargs(torch.tensor([0, *lengths]).cumsum(0), torch.device("cuda"))
    # Laid out (1, T, heads, D) in memory, as the projections leave them.
    q, k, v = (
        torch.randn(1, sum(lengths), n, head_dim, device="cuda", dtype=torch.bfloat16, generator=generator)
        .transpose(1, 2)
        .requires_grad_()
        for n in (heads, kv_heads, kv_heads)
    )
    assert _has_varlen_kernel(q)
    upstream = torch.randn(1, sum(lengths), heads, head_dim, device="cuda", dtype=torch.bfloat16, generator=generator)
    results = []
    for kwargs in (row, {"packed_lengths": row["packed_lengths"]}):  # without cu_seq_lens_q: sample by sample
        out, _ = packed_attention(
            Layer(), q, k, v, None, scaling=head_dim**-0.5, is_causal=causal, sliding_window=window, **kwargs
        )
        results.append((out, *torch.autograd.grad(out, (q, k, v), upstream)))
    for ours, reference in zip(*results, strict=True):
        assert ours.shape == reference.shape
        assert (ours - reference).abs().max() < 0.06
        assert F.cosine_similarity(ours.float().flatten(), reference.float().flatten(), 0) > 0.9995


@pytest.mark.parametrize("llm", ["qwen2", "qwen3", "llama", "phi3"])
def test_packed_row_on_the_gpu(tiny_model, make_sample, pack, llm):
    """Half precision with the kernel: loss and gradients near those of float32 on the same device."""
    model = tiny_model(llm).cuda().train()
    row = pack([make_sample(model, n, tiles, i) for i, (n, tiles) in enumerate(((60, 2), (33, 0), (90, 3)))])
    row = {key: value if key == "cu_seqlens" else value.cuda() for key, value in row.items()}
    row["loss_weight"] = token_weights(row["labels"], row["cu_seqlens"], "square")
    exact = model(**row).loss
    exact.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    half = tiny_model(llm).to("cuda", torch.bfloat16).train()
    loss = half(**row).loss
    loss.backward()
    assert loss.item() == pytest.approx(exact.item(), abs=0.05)
    for name, parameter in half.named_parameters():
        if expected[name].norm() > 1e-3:
            assert F.cosine_similarity(parameter.grad.float().flatten(), expected[name].flatten(), 0) > 0.97, name
    sdpa = tiny_model(llm, "sdpa").to("cuda", torch.bfloat16).train()
    assert sdpa(**row).loss.item() == pytest.approx(loss.item(), abs=0.02)


def test_forward_asks_the_device_a_fixed_number_of_times(tiny_model, make_sample, pack):
    """Sample borders travel as numbers on the host: more layers must not mean more waiting for the device."""
    counts = []
    for layers in (1, 2):
        model = tiny_model("qwen2").to("cuda", torch.bfloat16).train()
        del model.language_model.model.layers[layers:]
        model.config.llm_config.num_hidden_layers = layers
        row = pack([make_sample(model, 60, 2, 1), make_sample(model, 33, 0, 2)])
        row = {key: value if key == "cu_seqlens" else value.cuda() for key, value in row.items()}
        model(**row).loss.backward()
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            model(**row).loss.backward()
        counts.append(sum(e.count for e in profile.key_averages() if e.key in ("aten::item", "aten::nonzero")))
    assert counts[0] == counts[1]


def test_chunked_head_holds_no_full_logits():
    tokens, hidden_size, vocabulary = 8192, 512, 65536
    head = ChunkedLMHead(hidden_size, vocabulary, bias=False).to("cuda", torch.bfloat16)
    hidden = torch.randn(tokens, hidden_size, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(0, vocabulary, (tokens,), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    head(hidden, targets=targets).backward()
    peak = torch.cuda.max_memory_allocated() - before
    expected = F.cross_entropy(F.linear(hidden, head.weight).float(), targets, reduction="sum")
    torch.testing.assert_close(head(hidden, targets=targets), expected, rtol=1e-3, atol=0)
    assert peak < tokens * vocabulary * 4  # one full float32 copy of the logits would be 2 GiB
