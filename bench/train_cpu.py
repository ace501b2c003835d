"""Step time and peak memory of training with a real vocabulary, against transformers' own InternVL, in one run.

A tiny model with the 151,655 tokens of Qwen2, float32, AdamW, the same weights in both layouts, the same samples
(JSONL and PNG files made here; lengths of the wide mix of plan.py, scaled down), every sample once. Baseline: what a
plain loop around ``InternVLForConditionalGeneration`` gives: batches of N in random order, padded to the longest,
logits of all positions, the library's loss; N makes as many steps of an epoch as we have packs. Then: the same in
accumulated micro-batches of 4; our model on the baseline's batches (what the loss alone gives); our packs.

Every measurement is a process of its own, variants take turns, medians count; CPU seconds (all threads) are there for
machines that are busy otherwise. Loading is timed apart. Peak memory is VmHWM less what was there before the model was
built.

python bench/train_cpu.py            # 10 minutes on two busy cores; --save writes bench/results/train_cpu.json
python bench/train_cpu.py --samples 12 --repeats 1
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from plan import MAX_TILES, TILE_TOKENS, draw
from plan import MAX_TOKENS as REAL_TOKENS
from train_common import (
    RESULTS,
    ROOT,
    Ours,
    Step,
    Theirs,
    gradient_norm,
    machine,
    status_mib,
    table,
    wide_lengths,
)
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast

from internvl_chat.constants import IMG_CONTEXT
from internvl_chat.data.batch import pack_batch, pad_batch
from internvl_chat.data.corpus import Corpus, open_corpus
from internvl_chat.data.fit import Limits
from internvl_chat.data.loader import MicroBatches, Place
from internvl_chat.data.manifest import DatasetSpec
from internvl_chat.data.plan.cost import Cost
from internvl_chat.data.plan.epoch import PlanSettings
from internvl_chat.data.plan.schedule import Schedule
from internvl_chat.data.sample import SampleMaker
from internvl_chat.data.tiles import TileSettings
from internvl_chat.data.tokens import Encoder
from internvl_chat.folder import write_folder
from internvl_chat.model.build import load_config, load_model
from internvl_chat.model.catalogue import config_of, release
from internvl_chat.model.chat import InternVLChatModel
from internvl_chat.model.config import InternVLChatConfig
from internvl_chat.model.flops import Work, llm_forward, pack_cost_terms, tower_flops
from internvl_chat.model.hf_native import register_hf_native
from internvl_chat.model.loss import token_weights

# Real lengths over this; a tile of 84 pixels has 9 image tokens for 256 of 448 pixels.
SCALE, TILE, HIDDEN, LAYERS = 32, 84, 64, 2
MAX_TOKENS = REAL_TOKENS // SCALE
SMALL = 4
BASELINE = "transformers, padded, full logits"
SMALLER = f"transformers, the same in micro-batches of {SMALL}"
PADDED = "ours, padded, chunked loss"
PACKED = "ours, packed, chunked loss"
VARIANTS = (BASELINE, SMALLER, PADDED, PACKED)
SPEED_GOAL, MEMORY_GOAL, TOLERANCE = 2.0, 0.5, 1e-4
WORDS = (
    "the",
    "picture",
    "shows",
    "that",
    "there",
    "is",
    "one",
    "small",
    "red",
    "house",
    "by",
    "the",
    "green",
    "water",
)


# -- data and models, made once ---------------------------------------------------------------------------------------


@cache
def tokenizer() -> Any:
    return PreTrainedTokenizerFast.from_pretrained(ROOT / "tests/goldens/tokenizers/qwen2", local_files_only=True)


def make_config() -> InternVLChatConfig:
    """One layer more or less is nothing beside the vocabulary."""
    wide = {"hidden_size": HIDDEN, "intermediate_size": 4 * HIDDEN, "num_hidden_layers": LAYERS}
    return InternVLChatConfig(
        vision_config={**wide, "image_size": TILE, "patch_size": 14, "num_attention_heads": 4, "qkv_bias": True,
                       "norm_type": "layer_norm", "qk_normalization": False, "initializer_factor": 1.0},
        llm_config={**wide, "model_type": "qwen2", "vocab_size": len(tokenizer()), "num_attention_heads": 4,
                    "num_key_value_heads": 2, "max_position_embeddings": 8192, "tie_word_embeddings": False},
        template="internvl2_5", system_message="", force_image_size=TILE, downsample_ratio=0.5, ps_version="v2",
        dynamic_image_size=True, use_thumbnail=True, min_dynamic_patch=1, max_dynamic_patch=12,
        img_context_token_id=tokenizer().convert_tokens_to_ids(IMG_CONTEXT),
    )  # fmt: skip


def write_models(folder: Path) -> None:
    """The same weights in both layouts."""
    torch.manual_seed(0)
    model = InternVLChatModel(make_config()).float()
    for layout in ("original", "hf"):
        write_folder(model, tokenizer(), folder / layout, layout=layout)  # type: ignore[arg-type]


def write_data(folder: Path, samples: int) -> None:
    """Half of a sample's text is answers, in one round or several; tiles as one wide picture, or as single tiles."""
    lengths = wide_lengths(samples, 20261122, REAL_TOKENS, MAX_TILES)
    rng = np.random.default_rng(0)
    with (folder / "lines.jsonl").open("w", encoding="utf-8") as file:
        for number, (text, tiles) in enumerate(zip(lengths.text.tolist(), lengths.tiles.tolist(), strict=True)):
            names = list(write_pictures(folder, number, tiles, rng))
            words = max(2, round(text / SCALE))
            rounds = 1 + words // 16
            turns = []
            for turn in range(2 * rounds):
                said = " ".join(rng.choice(WORDS, max(1, words // (2 * rounds))))
                turns.append({"from": "gpt" if turn % 2 else "human", "value": said})
            turns[0]["value"] = "<image>\n" * len(names) + turns[0]["value"]
            pictures = {"image": names} if names else {}
            file.write(json.dumps({"id": number, **pictures, "conversations": turns}) + "\n")


def write_pictures(folder: Path, number: int, tiles: int, rng: np.random.Generator) -> Iterator[str]:
    """Names of pictures that are cut into so many tiles; one of n > 1 tiles gets a thumbnail beside them."""
    wide = [tiles - 1] if 3 <= tiles <= 13 else [1] * tiles
    for place, columns in enumerate(wide):
        name = f"{number}-{place}.png"
        pixels = rng.integers(0, 256, (TILE, TILE * columns, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        yield name


def open_data(folder: Path, config: InternVLChatConfig) -> Corpus:
    maker = SampleMaker(
        Encoder.from_config(tokenizer(), config), TileSettings.from_config(config), Limits(2**30, 2**30)
    )
    return open_corpus([DatasetSpec("bench", str(folder), folder / "lines.jsonl")], maker, folder / "index")


def batches_of(corpus: Corpus, config: InternVLChatConfig) -> MicroBatches:
    """Packs of one epoch, as a run would make them: one pack a step."""
    cost = Cost(*pack_cost_terms(config, supervised=corpus.supervised_share, recompute=True))
    settings = PlanSettings(True, 1, 0, MAX_TOKENS, MAX_TILES, cost=cost)
    schedule = Schedule(corpus, settings)
    return MicroBatches(corpus, schedule, Place(0, 1, 1), 0, schedule.steps_in(1), tokenizer().pad_token_id)


def steps_of(variant: str, corpus: Corpus, config: InternVLChatConfig) -> Iterator[Step]:
    """The variant's epoch, loaded step by step."""
    packs = batches_of(corpus, config)
    if variant == PACKED:
        yield from (Step((packs[number],)) for number in range(len(packs)))
        return
    order = np.random.default_rng(1).permutation(len(corpus))
    for chosen in np.array_split(order, len(packs)):
        pieces = -(-len(chosen) // SMALL) if variant == SMALLER else 1
        loaded = [[corpus.load(int(entry), 0) for entry in piece] for piece in np.array_split(chosen, pieces)]
        yield Step(tuple(pad_batch(samples, tokenizer().pad_token_id) for samples in loaded))


# -- one measurement, in its own process ------------------------------------------------------------------------------


def measure(variant: str, folder: Path) -> dict[str, Any]:
    """An epoch of the variant; its first step is made once more before, to warm up, and is not timed then."""
    config = load_config(folder / "original")
    corpus = open_data(folder, config)
    register_hf_native()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = status_mib("VmRSS")
    side, model = build(variant, folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    device, rows, loading = torch.device("cpu"), [], []
    steps = steps_of(variant, corpus, config)
    started = time.perf_counter()
    for step in steps:
        made = [side.ready(batch) for batch in step.batches] if isinstance(side, Theirs) else step
        loading.append(time.perf_counter() - started)
        for _again in (True, False) if not rows else (False,):
            started, worked = time.perf_counter(), time.process_time()
            loss = side.backward(made, device)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seconds, work = time.perf_counter() - started, time.process_time() - worked
        rows.append((seconds, work, step.supervised, step.tokens, step.positions, step.tiles, float(loss)))
        started = time.perf_counter()
    seconds, cpu, supervised, tokens, positions, tiles, _ = np.array(rows).sum(axis=0).tolist()
    return {
        "steps": len(rows),
        "seconds": seconds,
        "CPU seconds": cpu,
        "loading seconds": sum(loading),
        "supervised": int(supervised),
        "tokens": int(tokens),
        "positions": int(positions),
        "tiles": int(tiles),
        "before MiB": before,
        "peak MiB": status_mib("VmHWM"),
        "losses": [row[-1] for row in rows],
    }


def build(variant: str, folder: Path) -> tuple[Any, Any]:
    """(what makes its steps, the model), in training mode."""
    if variant.startswith("transformers"):
        theirs: Any = InternVLForConditionalGeneration.from_pretrained(
            folder / "hf", dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
        )
        return Theirs(theirs, load_config(folder / "original").normalize_type), theirs.train()
    ours: Any = load_model(folder / "original", torch.float32).train()
    return Ours(ours), ours


def same_numbers(folder: Path, samples: int = 6) -> dict[str, Any]:
    """Loss and gradient norm of some samples, all three ways, from both folders. Raises SystemExit if they differ."""
    config = load_config(folder / "original")
    corpus = open_data(folder, config)
    chosen = [corpus.load(entry, 0) for entry in range(min(samples, len(corpus)))]
    padded, packed = pad_batch(chosen, tokenizer().pad_token_id), pack_batch(chosen)
    device, found = torch.device("cpu"), {}
    for variant, batch in ((BASELINE, padded), (PADDED, padded), (PACKED, packed)):
        side, model = build(variant, folder)
        made = [side.ready(batch)] if isinstance(side, Theirs) else Step((batch,))
        found[variant] = {"loss": float(side.backward(made, device)), "gradient norm": gradient_norm(model)}
        del side, model
    for variant, numbers in found.items():
        for name, value in numbers.items():
            reference = found[BASELINE][name]
            if abs(value - reference) > TOLERANCE * abs(reference):
                raise SystemExit(f"{variant}: {name} {value}, but {reference} of {BASELINE}: nothing is measured")
    assert int((token_weights(padded.labels) > 0).sum()) == padded.num_supervised
    return found


def alone(folder: Path, *arguments: str) -> dict[str, Any]:
    """This script in a process of its own."""
    command = [sys.executable, __file__, "--folder", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# -- all of them ------------------------------------------------------------------------------------------------------


def compare(samples: int, repeats: int, variants: Sequence[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_models(folder)
        write_data(folder, samples)
        data = describe(folder, samples)
        numerics = same_numbers(folder)
        runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in variants}
        for repeat in range(repeats):
            for variant in variants[repeat % len(variants) :] + variants[: repeat % len(variants)]:
                runs[variant].append(alone(folder, "--measure", variant))
                seconds = runs[variant][-1]["seconds"]
                print(f"repetition {repeat + 1}: {variant}: {seconds:.1f} s", file=sys.stderr, flush=True)
    rows = {variant: summary(found) for variant, found in runs.items()}
    supervised = {row["supervised tokens"] for row in rows.values()}
    assert len(supervised) == 1, f"not the same work: {supervised}"
    return {
        "data": data,
        "numerics": numerics,
        "rows": rows,
        "against the baseline": against(runs) if BASELINE in runs else {},
        "arithmetic of InternVL2-1B": arithmetic(),
    }


def describe(folder: Path, samples: int) -> dict[str, Any]:
    config = load_config(folder / "original")
    corpus = open_data(folder, config)
    tokens, tiles = corpus.column("tokens"), corpus.column("tiles")
    assert np.array_equal(tiles, wide_lengths(samples, 20261122, REAL_TOKENS, MAX_TILES).tiles)
    work, packs = llm_forward(config.llm_config), batches_of(corpus, config)
    return {
        "samples": samples,
        "tokens": int(tokens.sum()),
        "percentiles of tokens (5, 50, 95, 100)": np.percentile(tokens, (5, 50, 95, 100)).round().astype(int).tolist(),
        "tiles": int(tiles.sum()),
        "supervised share": round(corpus.supervised_share, 4),
        "packs": len(packs),
        "budgets": f"{MAX_TOKENS} tokens, {MAX_TILES} tiles",
        "batch": round(samples / len(packs), 1),
        "output layer, of the language model's weights": round(work.target / (work.target + work.token), 3),
    }


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the repetitions."""
    first = runs[0]
    seconds = statistics.median(run["seconds"] for run in runs)
    own = statistics.median(run["peak MiB"] - run["before MiB"] for run in runs)
    return {
        "supervised tokens": first["supervised"],
        "steps": first["steps"],
        "padding": round(1 - first["tokens"] / first["positions"], 4),
        "positions": first["positions"],
        "seconds a step": round(seconds / first["steps"], 3),
        "CPU seconds a step": round(statistics.median(run["CPU seconds"] for run in runs) / first["steps"], 3),
        "fastest and slowest": [round(pick(r["seconds"] for r in runs) / first["steps"], 3) for pick in (min, max)],
        "supervised tokens/s": round(first["supervised"] / seconds, 2),
        "tokens/s": round(first["tokens"] / seconds, 1),
        "MiB before": round(statistics.median(run["before MiB"] for run in runs)),
        "peak MiB": round(statistics.median(run["peak MiB"] for run in runs)),
        "MiB of model and step": round(own),
        "loading, s a step": round(statistics.median(r["loading seconds"] for r in runs) / first["steps"], 3),
        "mean loss": round(statistics.mean(first["losses"]), 4),
    }


def against(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Ratios within a repetition, their median: what else the machine did meanwhile cancels out, mostly."""

    def own(run: dict[str, Any]) -> float:
        return float(run["peak MiB"] - run["before MiB"])

    found = {}
    for variant, mine in runs.items():
        pairs = list(zip(runs[BASELINE], mine, strict=True))
        speed = [base["seconds"] / run["seconds"] for base, run in pairs]
        cpu = [base["CPU seconds"] / run["CPU seconds"] for base, run in pairs]
        found[variant] = {
            "speed": round(statistics.median(speed), 2),
            "speed, each repetition": [round(ratio, 2) for ratio in speed],
            "speed by CPU seconds": round(statistics.median(cpu), 2),
            "speed by CPU seconds, each repetition": [round(ratio, 2) for ratio in cpu],
            "memory of model and step": round(statistics.median(own(run) / own(base) for base, run in pairs), 3),
            "peak memory of the process": round(
                statistics.median(run["peak MiB"] / base["peak MiB"] for base, run in pairs), 3
            ),
        }
    if PACKED in found:
        best = found[PACKED]
        found["goals"] = {
            f"speed >= {SPEED_GOAL}": "yes" if best["speed"] >= SPEED_GOAL else "no",
            f"memory < {MEMORY_GOAL}": "yes" if best["memory of model and step"] < MEMORY_GOAL else "no",
        }
    return found


def arithmetic() -> dict[str, float]:
    """FLOPs of the baseline over ours for a real model and real lengths: what is left of the gain where the output
    layer is a smaller part. 2,000 batches of the wide mix; no time is measured. Padding counts in attention, too.
    """
    flops = tower_flops(config_of(release("InternVL2-1B")))
    work: Work = flops.vit + flops.llm
    mix, found = draw("wide"), {}
    for batch in (SMALL, round(REAL_TOKENS / mix.tokens.mean())):
        chosen = np.random.default_rng(0).permutation(len(mix))[: 2000 * batch].reshape(-1, batch)
        tokens, tiles = mix.tokens[chosen].astype(float), mix.tiles[chosen].sum()
        longest = np.repeat(tokens.max(axis=1, keepdims=True), batch, axis=1)
        answers = (tokens - TILE_TOKENS * mix.tiles[chosen]).sum() / 2
        theirs = work.of(longest.sum(), (longest**2).sum(), longest.sum(), tiles)
        ours = work.of(tokens.sum(), (tokens**2).sum(), answers, tiles)
        found[f"batches of {batch}"] = round(theirs / ours, 2)
    return found


def markdown(found: dict[str, Any]) -> str:
    """What was found, for people."""
    head = (
        "",
        "s a step",
        "supervised tokens/s",
        "speed",
        "CPU s a step",
        "speed by it",
        "padding",
        "MiB of model and step",
        "memory",
        "peak MiB",
    )
    rows = []
    for variant, row in found["rows"].items():
        ratio = found["against the baseline"].get(variant, {})
        cells = [variant, row["seconds a step"], row["supervised tokens/s"], f"{ratio.get('speed', '')} x"]
        cells += [row["CPU seconds a step"], f"{ratio.get('speed by CPU seconds', '')} x"]
        cells += [
            f"{row['padding']:.1%}",
            row["MiB of model and step"],
            f"{ratio.get('memory of model and step', '')} x",
        ]
        rows.append([*cells, row["peak MiB"]])
    data = ", ".join(f"{name} {value}" for name, value in found["data"].items())
    goals = found["against the baseline"].get("goals", {})
    lines = [table(head, rows), "", data, *(f"- {goal}: {said}" for goal, said in goals.items())]
    lines += [f"- arithmetic of InternVL2-1B, {k}: {v} x" for k, v in found["arithmetic of InternVL2-1B"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--json", action="store_true", help="print the results as JSON, not as a table")
    parser.add_argument("--save", action="store_true", help="write bench/results/train_cpu.json")
    for hidden in ("--folder", "--measure"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        folder = Path(args.folder)
        print(json.dumps(measure(args.measure, folder)))
        return
    found = compare(args.samples, args.repeats, args.variants)
    report = {**machine(), "baseline": BASELINE, "repeats": args.repeats, "results": found}
    text = json.dumps(report, indent=2)
    print(text if args.json else markdown(found))
    if args.save:
        (RESULTS / "train_cpu.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
