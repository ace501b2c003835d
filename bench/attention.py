"""Packed attention against transformers' sdpa over one packed row: forward and backward of a small Llama, in one run.

python bench/attention.py --samples 16 --length 1024
"""

from __future__ import annotations

import argparse
import json
import platform
import time

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from internvl_chat.model.attention import pack_kwargs, register_packed_attention


def build(attention: str, hidden: int, layers: int, dtype: torch.dtype, device: str) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(4, hidden // 128),
        num_key_value_heads=max(2, hidden // 256),
        vocab_size=256,
        max_position_embeddings=1 << 20,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM._from_config(config, attn_implementation=attention).to(device, dtype)


def step(model: LlamaForCausalLM, row: dict[str, torch.Tensor], lengths: torch.Tensor | None) -> tuple[float, float]:
    """(seconds, gradient norm) of one forward and backward pass."""
    model.zero_grad()
    extra = {} if lengths is None else pack_kwargs(lengths, row["inputs_embeds"].device)
    started = time.perf_counter()
    hidden = model.model(**row, use_cache=False, **extra).last_hidden_state
    hidden.float().square().mean().backward()
    if hidden.is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    norm = torch.stack([p.grad.float().norm() for p in model.parameters() if p.grad is not None]).norm()
    return seconds, float(norm)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--implementations", nargs="+", default=["packed", "sdpa"])
    args = parser.parse_args()
    register_packed_attention()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    tokens = args.samples * args.length
    torch.manual_seed(1)
    row = {
        "inputs_embeds": torch.randn(1, tokens, args.hidden, device=device, dtype=dtype),
        "position_ids": torch.arange(args.length, device=device).repeat(args.samples)[None],
    }
    borders = torch.arange(0, tokens + 1, args.length, dtype=torch.int32)
    result = {}
    for name in args.implementations:
        model = build(name, args.hidden, args.layers, dtype, device)
        lengths = borders if name == "packed" else None
        times = [step(model, row, lengths) for _ in range(args.repeats)]
        result[name] = {"seconds": min(t for t, _ in times), "gradient_norm": times[-1][1]}
    report = {
        "what": f"{args.samples} samples x {args.length} tokens, hidden {args.hidden}, {args.layers} layers, {dtype}",
        "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "results": result,
        "sdpa / packed": round(result["sdpa"]["seconds"] / result["packed"]["seconds"], 2)
        if "sdpa" in result
        else None,
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
