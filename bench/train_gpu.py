"""Training steps on one GPU, one switch at a time, against transformers' own InternVL: tokens/s, MFU, peak memory.

Random weights of real shapes, bfloat16, fused AdamW; packs of 16,384 tokens and 48 tiles planned from lengths of the
wide mix of plan.py, random pixels: neither files nor network are needed. Each variant starts from the same weights and
first gives loss and gradient norm of the first pack, which must be those of the first variant within the tolerance of
bfloat16. What cannot run (memory, a missing package) is a row that says why.

Baseline: ``InternVLForConditionalGeneration`` as transformers' Trainer calls it: the same samples in random order,
padded micro-batches of 4 (--batch), accumulated to the same samples per step, logits of all positions, the library's
loss, sdpa, gradient checkpointing. Tokens are real ones, never padding, and FLOPs those that the data need
(model/flops.py): neither padding nor recomputation counts as useful. The peak is that of the maker's data sheet.

One command per model, each about 5 minutes on an H200 (an estimate: it has not been run on one yet):

python bench/train_gpu.py --models 1b --json $OUT/1b.jsonl
python bench/train_gpu.py --models 2b --json $OUT/2b.jsonl
python bench/train_gpu.py --models 8b-lora --json $OUT/8b.jsonl
python bench/train_gpu.py --quick          # 1b, 3 steps, four variants: about 1 minute
python bench/train_gpu.py --dry-run        # tiny, on the CPU: does every variant that can run there, in 20 seconds
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo.utils
from peft import LoraConfig, get_peft_model
from plan import MAX_TILES, MAX_TOKENS
from torch import Tensor, nn
from train_common import (
    Lengths,
    Ours,
    Step,
    Theirs,
    forget,
    gradient_norm,
    hf_names,
    hf_twin,
    machine,
    status_mib,
    table,
    wide_lengths,
)
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface
from transformers.utils import logging as library_logging

from internvl_chat.data.address import Address
from internvl_chat.data.batch import pack_batch, pad_batch
from internvl_chat.data.plan.cost import Cost
from internvl_chat.data.plan.epoch import PlanSettings, plan_epoch
from internvl_chat.data.plan.sizes import ArraySizes
from internvl_chat.data.sample import Sample
from internvl_chat.errors import InternVLError, first_line
from internvl_chat.model import attention
from internvl_chat.model.catalogue import config_of, release
from internvl_chat.model.chat import InternVLChatModel
from internvl_chat.model.config import InternVLChatConfig
from internvl_chat.model.flops import TowerFlops, pack_cost_terms, peak_flops, tower_flops, trains_of
from internvl_chat.model.lora import LoraOptions, unwrap
from internvl_chat.model.tune import Tuning, apply_tuning

TORCH_VARLEN, PER_SAMPLE, FLEX = "packed_torch_varlen", "packed_per_sample", "flex_attention"
# Relative, of loss and gradient norm: bfloat16 has 8 bits; of float32 in a dry run.
TOLERANCE = {torch.bfloat16: (1e-2, 5e-2), torch.float32: (1e-4, 1e-3)}
RANK = 16


class NotHere(Exception):
    """This variant cannot run, for the reason given."""


@dataclass(frozen=True)
class Model:
    """``lora``: the recipes' LoRA: language model alone, the rest frozen."""

    release: str
    lora: bool = False


MODELS = {
    "1b": Model("InternVL2-1B"),
    "2b": Model("InternVL2-2B"),
    "8b-lora": Model("InternVL2-8B", lora=True),
}


@dataclass(frozen=True)
class Variant:
    """One way to make a step. ``vision`` and ``llm``: recompute activations. ``compiled``: towers whose layers are.

    ``batch``: rows of a padded micro-batch, 0 = packed, -1 = as many as a pack has samples.
    """

    attention: str = "auto"
    full_logits: bool = False
    vision: bool = True
    llm: bool = True
    compiled: tuple[str, ...] = ()
    theirs: bool = False
    batch: int = 0


DEFAULT, BASELINE = "default", "transformers, padded"


def variants(batch: int) -> dict[str, Variant]:
    """The first is what the others are compared with; each of ours differs from it in one switch."""
    first = Variant()
    theirs = replace(first, attention="sdpa", full_logits=True, theirs=True, batch=batch)
    return {
        DEFAULT: first,
        "attention: sdpa, mask": replace(first, attention="sdpa"),
        "attention: sample by sample": replace(first, attention=PER_SAMPLE),
        "attention: torch varlen": replace(first, attention=TORCH_VARLEN),
        "attention: flex": replace(first, attention=FLEX),
        "attention: flash_attention_2": replace(first, attention="flash_attention_2"),
        "full logits": replace(first, full_logits=True),
        "no ViT checkpointing": replace(first, vision=False),
        "no LLM checkpointing": replace(first, llm=False),
        "no checkpointing": replace(first, vision=False, llm=False),
        "compiled ViT layers": replace(first, compiled=("vision",)),
        "compiled LLM layers": replace(first, compiled=("llm",)),
        "padded": replace(first, batch=batch),
        BASELINE: theirs,
        "transformers, padded, no checkpointing": replace(theirs, vision=False, llm=False),
        "transformers, padded, one batch a step": replace(theirs, batch=-1),
    }


QUICK = (DEFAULT, "full logits", "no ViT checkpointing", BASELINE)


# -- attention that no flag chooses -----------------------------------------------------------------------------------


def register_backends() -> None:
    """The two kernels that ``packed`` falls back on, by names of their own, so that they can be compared."""
    for name, function in ((TORCH_VARLEN, torch_varlen), (PER_SAMPLE, per_sample)):
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, attention.packed_mask)


def torch_varlen(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    **row: Any,
) -> tuple[Tensor, None]:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    borders, longest = row["cu_seq_lens_q"], row["max_length_q"]
    grouped = query.shape[1] != key.shape[1]
    out: Any = varlen_attn(
        q, k, v, borders, borders, longest, longest, scale=scaling, window_size=(-1, 0), enable_gqa=grouped
    )
    return out.unsqueeze(0), None


def per_sample(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    **row: Any,
) -> tuple[Tensor, None]:
    return attention._per_sample(query, key, value, row["packed_lengths"], scaling, 0.0, True, None), None


def resolved(name: str, device: torch.device) -> dict[str, str]:
    """Implementation per part. Raises NotHere, or the package's own error."""
    cuda = device.type == "cuda"
    if name == TORCH_VARLEN and not (cuda and attention._torch_varlen()):
        raise NotHere("torch's variable-length kernel needs CUDA and torch.nn.attention.varlen")
    if name == FLEX and not cuda:
        raise NotHere("flex_attention has no backward pass on a CPU")
    if name in (TORCH_VARLEN, PER_SAMPLE, FLEX):
        return {"": "sdpa", "vision_config": "sdpa", "llm_config": name}
    return attention.resolve_attention(name, device)


def kernel(variant: Variant, device: torch.device) -> str:
    """What attention of the language model comes down to."""
    if variant.theirs or variant.batch:
        return "sdpa"
    if variant.attention != "auto":
        return variant.attention
    if device.type != "cuda":
        return PER_SAMPLE
    return "flash-attn varlen" if attention._flash_attn() else TORCH_VARLEN


# -- models -----------------------------------------------------------------------------------------------------------


def config_for(model: Model, tiny: bool) -> InternVLChatConfig:
    """Real shapes, or those of a toy of the same family."""
    config = config_of(release(model.release))
    if tiny:
        raw = config.to_dict()
        small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        raw["vision_config"] |= {**small, "image_size": 56}
        raw["llm_config"] |= {**small, "num_key_value_heads": 2, "vocab_size": 512, "max_window_layers": 2}
        raw["llm_config"].pop("layer_types", None)
        raw["force_image_size"] = 56
        config = InternVLChatConfig.from_dict(raw)
    # Both would make losses of two variants differ.
    assert config.vision_config.drop_path_rate == 0.0 and config.vision_config.dropout == 0.0
    config.img_context_token_id = config.llm_config.vocab_size - 1
    return config


def build(
    model: Model, variant: Variant, config: InternVLChatConfig, device: torch.device, dtype: torch.dtype
) -> tuple[nn.Module, Any, TowerFlops]:
    """(model in training mode, what makes its steps, FLOPs of a step). The same weights for every variant."""
    parts = resolved("sdpa" if variant.theirs else variant.attention, device)
    torch.manual_seed(0)
    with torch.device(device):
        base: Any = InternVLChatModel._from_config(config, dtype=dtype, attn_implementation=parts)
    base.train()
    twin = hf_twin(base) if variant.theirs else None
    torch.manual_seed(1)  # adapters start alike, also where a twin was drawn in between
    whole = apply_tuning(base, tuning_of(model))
    trains = trains_of(whole)
    vision_trains = trains.vision_embedding or bool(trains.vision_layers)
    if not variant.vision and not variant.theirs and not vision_trains and variant.llm:
        raise NotHere("the vision tower is frozen, so nothing of it is recomputed anyway")
    again = (variant.vision and vision_trains, variant.llm)
    flops = tower_flops(config, replace(trains, vision_recompute=again[0], llm_recompute=again[1]))
    if twin is not None:
        return *their_side(twin, whole, model, variant, config), flops
    base.set_activation_checkpointing(vision=again[0], llm=again[1])
    return whole, Ours(whole, variant.full_logits), flops


def tuning_of(model: Model) -> Tuning:
    """All trains, or what the recipes of LoRA train; without its dropout, which would make losses differ."""
    if not model.lora:
        return Tuning()
    lora = LoraOptions(llm_rank=RANK, dropout=0.0)
    return Tuning(freeze_llm=True, freeze_mlp=True, freeze_backbone=True, lora=lora)


def their_side(
    twin: Any, ours: nn.Module, model: Model, variant: Variant, config: InternVLChatConfig
) -> tuple[nn.Module, Theirs]:
    """transformers' model, with the same adapters if there are any."""
    if variant.llm:
        twin.activation_checkpointing_enable({"use_reentrant": False})
    whole = twin.train()
    if model.lora:
        tower = twin.model.language_model
        linears = [f"model.language_model.{name}" for name, m in tower.named_modules() if isinstance(m, nn.Linear)]
        whole = get_peft_model(twin, LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules=linears),
                               autocast_adapter_dtype=False)  # fmt: skip
        prefix = "base_model.model."
        own = {name.removeprefix(prefix): p for name, p in ours.named_parameters() if ".lora_" in name}
        _, unexpected = whole.load_state_dict(
            {prefix + name: tensor for name, tensor in hf_names(own).items()}, strict=False
        )
        assert own and not unexpected, unexpected
    return whole, Theirs(whole, config.normalize_type)


def compile_layers(model: nn.Module, towers: Sequence[str], backend: str) -> None:
    """Every layer of the towers, each by itself; lengths of rows change, so their sizes are not fixed."""
    if not towers:
        return
    inner = unwrap(model)
    layers = {"vision": inner.vision_model.encoder.layers, "llm": inner.language_model.model.layers}
    for tower in towers:
        for layer in layers[tower]:
            layer.compile(dynamic=True, backend=backend)


# -- data -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Packs of samples, by number; samples are made of them when they are asked for."""

    config: InternVLChatConfig
    lengths: Lengths
    packs: tuple[np.ndarray, ...]

    def sample(self, number: int) -> Sample:
        """Pictures first, then random text whose second half is the answer."""
        rng, config = np.random.default_rng(number), self.config
        tiles, text = int(self.lengths.tiles[number]), int(self.lengths.text[number])
        ids = rng.integers(0, config.llm_config.vocab_size - 1, text)
        ids = np.concatenate([np.full(tiles * config.num_image_token, config.img_context_token_id), ids])
        labels = ids.copy()
        labels[: len(ids) - text // 2] = -100
        side = config.image_size
        pixels = torch.from_numpy(rng.integers(0, 256, (tiles, 3, side, side), dtype=np.uint8))
        return Sample(Address("bench", number), ids, labels, pixels, (tiles,) if tiles else ())

    def steps(self, batch: int) -> list[Step]:
        """Step i of packed rows is pack i; padded ones deal all the packs' samples out at random."""
        if not batch:
            return [self.packed(pack) for pack in self.packs]
        everyone = np.random.default_rng(1).permutation(np.concatenate(self.packs))
        return [self.padded(numbers, batch) for numbers in np.array_split(everyone, len(self.packs))]

    def first(self, batch: int) -> Step:
        """The samples of the first pack, in whatever form."""
        return self.padded(self.packs[0], batch) if batch else self.packed(self.packs[0])

    def packed(self, numbers: np.ndarray) -> Step:
        return Step((pack_batch([self.sample(n) for n in numbers.tolist()]),))

    def padded(self, numbers: np.ndarray, batch: int) -> Step:
        """Micro-batches of so many samples, as even as may be; -1: one of all."""
        pieces = 1 if batch < 0 else -(-len(numbers) // batch)
        return Step(
            tuple(pad_batch([self.sample(n) for n in own.tolist()], 0) for own in np.array_split(numbers, pieces))
        )

    def squares(self) -> float:
        tokens = self.lengths.tokens[np.concatenate(self.packs)]
        return float((tokens.astype(float) ** 2).sum())


def make_data(config: InternVLChatConfig, steps: int, tiny: bool, flops: TowerFlops) -> Data:
    """The first packs of a plan over some thousand samples."""
    scale = 64 if tiny else 1
    lengths = wide_lengths(400 if tiny else 4096, 20261122, MAX_TOKENS, MAX_TILES)
    text = np.maximum(2, lengths.text // scale)
    lengths = Lengths(text + config.num_image_token * lengths.tiles, text, lengths.tiles)
    cost = Cost(*pack_cost_terms(config, supervised=float(text.sum() / 2 / lengths.tokens.sum()), recompute=True))
    settings = PlanSettings(True, 1, 0, MAX_TOKENS // scale, MAX_TILES, cost=cost)
    plan = plan_epoch(ArraySizes(lengths.tokens, lengths.tiles), settings, 0)
    packs = plan.steps[:steps, 0]
    return Data(config, lengths, tuple(plan.entries[plan.starts[p] : plan.starts[p + 1]] for p in packs))


# -- one variant ------------------------------------------------------------------------------------------------------


def stopwatch(device: torch.device) -> Callable[[], Callable[[], float]]:
    """``start = stopwatch(device); stop = start(); ...; seconds = stop()``; on a GPU by its own clock."""

    def gpu() -> Callable[[], float]:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()

        def stop() -> float:
            end.record()
            end.synchronize()
            return float(begin.elapsed_time(end)) / 1000

        return stop

    def host() -> Callable[[], float]:
        begin = time.perf_counter()
        return lambda: time.perf_counter() - begin

    return gpu if device.type == "cuda" else host


def prepared(side: Any, step: Step, device: torch.device) -> Any:
    """The step as the side takes it, in page-locked memory where there is a GPU."""
    pin = device.type == "cuda"
    batches = tuple(batch.pin_memory() if pin else batch for batch in step.batches)
    if isinstance(side, Ours):
        return Step(batches)
    made = [side.ready(batch) for batch in batches]
    return [{k: v.pin_memory() for k, v in values.items()} for values in made] if pin else made


def measure(
    model: Model, variant: Variant, data: Data, device: torch.device, dtype: torch.dtype, backend: str
) -> dict[str, Any]:
    """One row. Raises whatever goes wrong."""
    whole, side, flops = build(model, variant, data.config, device, dtype)
    torch._dynamo.utils.counters.clear()
    compile_layers(whole, variant.compiled, backend)
    started = time.perf_counter()
    # Numbers first: on fresh weights, of the same samples for all.
    loss = float(side.backward(prepared(side, data.first(variant.batch), device), device))
    norm = gradient_norm(whole)
    forget(whole)
    optimizer = torch.optim.AdamW((p for p in whole.parameters() if p.requires_grad), lr=1e-5, fused=True)
    steps = data.steps(variant.batch)
    ready = [prepared(side, step, device) for step in steps]

    def one(step: Any) -> None:
        side.backward(step, device)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    # Compiled code meets every shape before the clock runs.
    for step in ready if variant.compiled else ready[:2]:
        one(step)
    warm = time.perf_counter() - started
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start, seconds = stopwatch(device), []
    for step in ready:
        stop = start()
        one(step)
        seconds.append(stop())
    return {
        "kernel": kernel(variant, device),
        "loss": loss,
        "gradient norm": norm,
        "warm-up seconds": round(warm, 1),
        # More than one graph a tower: compiled again for a row with another number of samples; torch gives up after 8.
        **({"graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"]} if variant.compiled else {}),
        **rates(steps, seconds, data, flops, device),
        **memory(device),
    }


def rates(
    steps: Sequence[Step], seconds: Sequence[float], data: Data, flops: TowerFlops, device: torch.device
) -> dict[str, Any]:
    """Throughput over all timed steps; MFU is the useful work over the peak, HFU has recomputation in it."""
    total = sum(seconds)
    tokens, tiles = sum(step.tokens for step in steps), sum(step.tiles for step in steps)
    supervised = sum(step.supervised for step in steps)
    counts = (tokens, data.squares(), supervised, tiles)
    found = {name: getattr(flops, name).of(*counts) / total for name in ("vit", "llm", "vit_again", "llm_again")}
    row = {
        "steps": len(steps),
        "step seconds": [round(value, 4) for value in seconds],
        "median step seconds": round(statistics.median(seconds), 4),
        "tokens/s": round(tokens / total, 1),
        "tiles/s": round(tiles / total, 1),
        "supervised tokens/s": round(supervised / total, 1),
        "padding": round(1 - tokens / sum(step.positions for step in steps), 4),
        "ViT TFLOP/s": round(found["vit"] / 1e12, 6),
        "LLM TFLOP/s": round(found["llm"] / 1e12, 6),
    }
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    if peak:
        row |= {"peak TFLOP/s": peak / 1e12, "MFU": round((found["vit"] + found["llm"]) / peak, 4)}
        row |= {"ViT MFU": round(found["vit"] / peak, 4), "LLM MFU": round(found["llm"] / peak, 4)}
        row["HFU"] = round(sum(found.values()) / peak, 4)
    return row


def memory(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {"peak MiB": round(status_mib("VmHWM"))}
    return {
        "peak MiB": round(torch.cuda.max_memory_allocated() / 2**20),
        "reserved MiB": round(torch.cuda.max_memory_reserved() / 2**20),
    }


def attempt(
    model: Model, variant: Variant, data: Data, device: torch.device, dtype: torch.dtype, backend: str
) -> dict[str, Any]:
    """A row, or why there is none; nothing of it stays on the device."""
    try:
        return measure(model, variant, data, device, dtype, backend)
    except NotHere as reason:
        return {"not available": str(reason)}
    except Exception as error:  # one variant must not end the run
        if device.type == "cpu" and not isinstance(error, InternVLError):
            raise  # a dry run is there to find mistakes of this script
        return {"not available": f"{type(error).__name__}: {first_line(error)}"[:300]}
    finally:
        torch.compiler.reset()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def compared(row: dict[str, Any], first: dict[str, Any], dtype: torch.dtype) -> str:
    """Whether loss and gradient norm are those of the first variant."""
    words = []
    for name, tolerance in zip(("loss", "gradient norm"), TOLERANCE[dtype], strict=True):
        off = abs(row[name] - first[name]) / abs(first[name])
        words += [f"{name} is off by {off:.2%}"] if not off <= tolerance else []
    return "; ".join(words) or "same"


# -- all of them ------------------------------------------------------------------------------------------------------


def run(models: Sequence[str], chosen: Sequence[str], args: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows, each printed as soon as it is there."""
    tiny = args.dry_run
    device = torch.device("cpu" if tiny else "cuda")
    dtype, backend = (torch.float32, "aot_eager") if tiny else (torch.bfloat16, "inductor")
    rows = []
    for name in models:
        config = config_for(MODELS[name], tiny)
        data = make_data(config, args.steps, tiny, tower_flops(config))
        first: dict[str, Any] | None = None
        for title in chosen:
            row = attempt(MODELS[name], variants(args.batch)[title], data, device, dtype, backend)
            if "loss" in row:
                first = first or row
                row["numbers"] = compared(row, first, dtype)
                row["speed"] = round(row["tokens/s"] / first["tokens/s"], 3)
            rows.append({"model": name, "variant": title, **row})
            print(json.dumps(rows[-1]), flush=True)
            if args.json:
                with Path(args.json).open("a", encoding="utf-8") as file:
                    file.write(json.dumps({**machine(), **rows[-1]}) + "\n")
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    head = ("model", "variant", "s a step", "tokens/s", "tiles/s", "speed", "padding", "MFU", "ViT", "LLM", "peak MiB",
            "numbers")  # fmt: skip
    names = ("median step seconds", "tokens/s", "tiles/s", "speed", "padding", "MFU", "ViT MFU", "LLM MFU", "peak MiB")
    lines = []
    for row in rows:
        missing = row.get("not available")
        cells = [f"not available: {missing}"] if missing else [row.get(name, "") for name in names]
        lines.append([row["model"], row["variant"], *cells, *[""] * (len(names) - len(cells)), row.get("numbers", "")])
    return table(head, lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS)
    parser.add_argument("--variants", nargs="+", choices=variants(1), help="the first is what others are compared with")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=4, help="samples of a padded micro-batch")
    parser.add_argument("--quick", action="store_true", help=f"1b, 3 steps, {', '.join(QUICK)}")
    parser.add_argument("--dry-run", action="store_true", help="tiny models on the CPU, one step")
    parser.add_argument("--json", metavar="FILE", help="append a line of JSON per row")
    args = parser.parse_args()
    args.steps = args.steps or (1 if args.dry_run else 3 if args.quick else 6)
    if not args.dry_run and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --dry-run tries everything at a tiny size on the CPU")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*base_model_name_or_path")
    library_logging.set_verbosity_error()  # a toy's vocabulary has no place for the family's special tokens
    attention.register_packed_attention()
    register_backends()
    chosen = args.variants or (QUICK if args.quick else tuple(variants(args.batch)))
    rows = run(args.models or (["1b"] if args.quick else list(MODELS)), chosen, args)
    print(f"\n{json.dumps(machine())}\nflash-attn: {importlib.util.find_spec('flash_attn') is not None}\n")
    print(markdown(rows))
    return int(any(row.get("numbers", "same") != "same" for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
