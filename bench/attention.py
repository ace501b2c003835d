"""Packed attention against transformers' sdpa over one packed row: forward and backward of a small Llama, in one run.

python bench/attention.py       # half a minute on two cores; --save writes bench/results/attention_<device>.json
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from train_common import RESULTS, machine, table
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", action="store_true")
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
    rows = []
    for name in ("sdpa", "packed"):
        model = build(name, args.hidden, args.layers, dtype, device)
        times = [step(model, row, borders if name == "packed" else None) for _ in range(args.repeats)]
        seconds = min(seconds for seconds, _ in times)
        ratio = rows[0]["seconds"] / seconds if rows else 1.0
        rows.append({"attention": name, "seconds": seconds, "gradient_norm": times[-1][1], "ratio": ratio})
    print(table(list(rows[0]), [[name, *(f"{value:.4g}" for value in rest)] for name, *rest in map(dict.values, rows)]))
    if args.save:
        path = RESULTS / f"attention_{device}.json"
        found = {"machine": machine(), "arguments": vars(args), "dtype": str(dtype), "rows": rows}
        path.write_text(json.dumps(found, indent=2) + "\n")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
