"""Predicted against measured peak of a training step: is ``internvl estimate`` right on this card?

One GPU, random weights of real shapes (a number of layers, or all), bfloat16, no optimizer: a packed row, forward and
backward. Measured is ``torch.cuda.max_memory_allocated``; where there is no GPU, with --dry-run, every tensor is
counted (``LiveTensors``), fake ones, so that any size goes.

python bench/memory.py                                  # InternVL2_5-1B and -2B, whole
python bench/memory.py --models InternVL2_5-8B --layers 12 --json $OUT/memory.jsonl
python bench/memory.py --dry-run --layers 2             # on the CPU, seconds
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from internvl_chat.model.activations import CPU, CUDA, Load, Numbers, Setting, activations
from internvl_chat.model.attention import resolve_attention
from internvl_chat.model.catalogue import config_of, release
from internvl_chat.model.chat import InternVLChatModel
from internvl_chat.model.config import InternVLChatConfig
from internvl_chat.model.flops import trains_of
from internvl_chat.model.lora import LoraOptions, unwrap
from internvl_chat.model.memory import Keeping, Parameter, Sharding, memory
from internvl_chat.model.tune import Tuning, apply_tuning
from internvl_chat.tools.estimate_run import adapters_of, part_of
from internvl_chat.tools.tensor_memory import LiveTensors

FROZEN = {"freeze_llm": True, "freeze_mlp": True, "freeze_backbone": True}
TUNINGS = {
    "full": Tuning(),
    "frozen vision": Tuning(freeze_backbone=True),
    "projector": Tuning(freeze_llm=True, freeze_backbone=True),
    "LoRA": Tuning(**FROZEN, lora=LoraOptions(llm_rank=16)),
}
MODELS = ("InternVL2_5-1B", "InternVL2_5-2B")


def config_for(name: str, layers: int | None) -> InternVLChatConfig:
    """A release's shapes with so many layers in both towers; plain rotary positions, which ask for no numbers."""
    config = config_of(release(name))
    raw = config.to_dict()
    for part in ("vision_config", "llm_config"):
        raw[part]["num_hidden_layers"] = min(raw[part]["num_hidden_layers"], layers or 10**6)
    llm = raw["llm_config"]
    for key in ("layer_types", "rope_scaling", "max_window_layers"):
        llm.pop(key, None)
    llm["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4}
    config = InternVLChatConfig.from_dict(raw)
    config.img_context_token_id = config.llm_config.vocab_size - 1
    return config


def build(
    config: InternVLChatConfig, tuning: Tuning, recompute: bool, device: torch.device, attention: str
) -> nn.Module:
    """A model in training mode, bfloat16; its tensors are made within the mode that is active, if one is."""
    with torch.device("meta"):
        base = InternVLChatModel._from_config(
            config, dtype=torch.bfloat16, attn_implementation=resolve_attention(attention, device)
        )
        whole = apply_tuning(base, tuning)
    made: dict[int, Any] = {}

    def real(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            kind = torch.bfloat16 if isinstance(tensor, nn.Parameter) else tensor.dtype
            new = torch.zeros(tensor.shape, dtype=kind, device=device)
            made[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
        return made[id(tensor)]

    for module in whole.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: real(tensor) for name, tensor in tensors.items() if tensor is not None})
    trains = trains_of(whole)
    vision = trains.vision_embedding or bool(trains.vision_layers)
    base.set_activation_checkpointing(vision=recompute and vision, llm=recompute)
    return whole.train()


def measured(model: nn.Module, load: Load, device: torch.device) -> float:
    """Bytes at the highest moment of a forward and a backward pass, weights counted."""
    config = unwrap(model).config
    row: dict[str, Any] = {"packed_lengths": (load.row, load.tokens - load.row)}
    if device.type == "cuda":
        borders = torch.tensor([0, load.row, load.tokens], dtype=torch.int32, device=device)
        row |= {"cu_seq_lens_q": borders, "cu_seq_lens_k": borders}
    side = config.image_size
    inputs = {
        "input_ids": torch.zeros(1, load.tokens, dtype=torch.long, device=device),
        "pixel_values": torch.zeros(load.tiles, 3, side, side, dtype=torch.uint8, device=device),
        "image_places": torch.arange(load.tiles * config.num_image_token, device=device),
        "num_items_in_batch": torch.tensor(1.0, device=device),
    }
    index = torch.arange(load.supervised, device=device)
    targets = (index, torch.zeros_like(index), torch.ones(load.supervised, device=device))
    live = LiveTensors()
    live.hold([*model.parameters(), *model.buffers(), *inputs.values(), *targets])
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.nullcontext() if device.type == "cuda" else live:
        model(**inputs, targets=targets, **row).loss.backward()
    return float(torch.cuda.max_memory_allocated(device) if device.type == "cuda" else live.peak)


def predicted(model: nn.Module, load: Load, tuning: Tuning, recompute: bool, cuda: bool) -> Any:
    """The same by arithmetic. Weights of two bytes and gradients of two, as under DeepSpeed; no optimizer."""
    vision = trains_of(model).vision_embedding or bool(trains_of(model).vision_layers)
    setting = Setting(
        trains_of(model, recompute and vision, recompute),
        Numbers(),
        CUDA if cuda else CPU,
        adapters_of(model, "vision_model."),
        adapters_of(model, "language_model."),
    )
    found = [Parameter(part_of(name), p.numel(), p.requires_grad) for name, p in model.named_parameters()]
    acts = activations(unwrap(model).config, setting, load)
    return memory(found, acts, Sharding(0), Keeping(accumulates=False, cuda=False))


def compare(name: str, kind: str, recompute: bool, load: Load, args: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    device = torch.device("cpu" if args.dry_run else "cuda")
    with FakeTensorMode(allow_non_fake_inputs=True) if args.dry_run else contextlib.nullcontext():
        model = build(config_for(name, args.layers), TUNINGS[kind], recompute, device, "packed")
        took = measured(model, load, device)
        guess = predicted(model, load, TUNINGS[kind], recompute, not args.dry_run)
    rows = {phase: sum(v for row, v in rows.items() if row != "optimizer") for phase, rows in guess.phases.items()}
    phase = max(rows, key=lambda one: rows[one])
    del model
    gc.collect()
    return {
        "model": name, "trains": kind, "recompute": recompute, "tokens": load.tokens, "tiles": load.tiles,
        "predicted": rows[phase], "measured": took, "ratio": rows[phase] / took, "phase": phase,
        "device": "counted on the CPU" if args.dry_run else torch.cuda.get_device_name(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--layers", type=int, help="layers of both towers; default: all")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--tiles", type=int, default=8)
    parser.add_argument("--dry-run", action="store_true", help="count fake tensors on the CPU")
    parser.add_argument("--json", help="append rows as JSON lines to this file")
    args = parser.parse_args()
    for name, kind, recompute, tokens in itertools.product(args.models, TUNINGS, (True, False), args.tokens):
        load = Load(tokens, tokens // 2, args.tiles, tokens // 2)
        try:
            row = compare(name, kind, recompute, load, args)
        except torch.OutOfMemoryError:
            print(f"{name:16} {kind:14} recompute={recompute!s:5} {tokens:6} tokens: out of memory")
            continue
        print(
            f"{name:16} {kind:14} recompute={recompute!s:5} {tokens:6} tokens {row['predicted'] / 2**30:7.2f} GiB "
            f"predicted, {row['measured'] / 2**30:7.2f} measured, ratio {row['ratio']:.3f} ({row['phase']})"
        )
        if args.json:
            with Path(args.json).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
