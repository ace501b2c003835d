"""Plans of an epoch against the original's packer and against padded batches, from lengths alone, in one run.

Lengths are drawn anew from published summaries; nobody's data are needed. Baselines: a replay of the original's online
packer (original_packer.py), padded batches of 4 at random, and padded batches dealt out by length as the original does.

python bench/plan.py                 # about a minute; writes bench/results/plan_cpu.json with --save
python bench/plan.py --part plans --ranks 8 64
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from original_packer import WORKERS, replay

from internvl_chat.data.plan.cost import Cost, parts_of_step
from internvl_chat.data.plan.epoch import EpochPlan, PlanSettings, plan_epoch
from internvl_chat.data.plan.sizes import ArraySizes

ROOT = Path(__file__).parents[1]
PARTS = ("plans", "planning")
MAX_TOKENS, MAX_TILES, BATCH = 16384, 48, 4
TILE_TOKENS = 256
PERCENTILES = (5, 25, 50, 75, 95, 99)
# Of four data sets of documents: samples, {tiles with thumbnail: share}, percentiles of what is not image tokens.
DOCUMENTS = {
    "AI2D": (12413, {1: 0.467, 3: 0.299, 4: 0.049, 5: 0.186}, (41, 47, 52, 58, 75, 99)),
    "ChartQA": (18317, {1: 0.032, 3: 0.060, 4: 0.001, 5: 0.908}, (39, 43, 66, 119, 218, 321)),
    "DocVQA": (10211, {1: 0.001, 3: 0.186, 4: 0.003, 5: 0.810}, (66, 135, 231, 378, 697, 866)),
    "SynthDoG": (29765, {3: 0.58, 5: 0.42}, (61, 84, 110, 146, 216, 278)),
}
# The wider mix adds: samples, fewest and most tiles (alike in between). Their text is not published. Filled in here:
# log-normal, cut at 20 and 4096 tokens, with a median of exp(6.3) = 545 for samples of text alone and of exp(5.3) = 200
# beside pictures, which makes 223 M tokens of the 220 M.
WIDER = {"text": (30000, 0, 0), "tiles": (25000, 3, 13), "images": (8000, 4, 24), "video": (6000, 8, 32)}
TEXT_ALONE, TEXT_BESIDE = (6.3, 0.8), (5.3, 0.7)
# (samples, M tokens) as published.
PUBLISHED = {"real": (70706, 80.3), "wide": (139706, 220.0)}
# {ranks: what the issue asks for} of useful work; of packs over the least possible.
USEFUL_GOAL, PACKS_GOAL = {8: 0.995, 64: 0.985, 512: 0.97}, 1.005


@dataclass(frozen=True)
class Mix:
    """A table of lengths; ``datasets``: which samples are whose."""

    tokens: np.ndarray
    tiles: np.ndarray
    datasets: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return len(self.tokens)


def quantiles(rng: np.random.Generator, count: int, values: Sequence[int]) -> np.ndarray:
    """Logarithms are alike between two percentiles; below the first down to 0.8 of it, above the last up to 1.3."""
    places = (0, *PERCENTILES, 100)
    logs = np.log((values[0] * 0.8, *values, values[-1] * 1.3))
    return np.rint(np.exp(np.interp(100 * rng.random(count), places, logs))).astype(np.int64)


def shared_out(rng: np.random.Generator, count: int, shares: dict[int, float]) -> np.ndarray:
    """Each value as often as its share says, in random order: the sum is no matter of luck."""
    ends = np.rint(np.cumsum(list(shares.values())) / sum(shares.values()) * count).astype(int)
    return rng.permutation(np.repeat(list(shares), np.diff([0, *ends])))


@cache
def draw(name: str) -> Mix:
    """``real``: the documents; ``wide``: with text alone, many tiles, several images and video."""
    rng = np.random.default_rng(20261122)
    tokens, tiles = [], []
    for count, shares, percentiles in DOCUMENTS.values():
        tiles.append(shared_out(rng, count, shares))
        tokens.append(quantiles(rng, count, percentiles) + TILE_TOKENS * tiles[-1])
    for count, low, high in WIDER.values() if name == "wide" else ():
        tiles.append(shared_out(rng, count, dict.fromkeys(range(low, high + 1), 1.0)))
        text = np.exp(rng.normal(*(TEXT_BESIDE if high else TEXT_ALONE), count)).clip(20, 4096)
        tokens.append(np.rint(text).astype(np.int64) + TILE_TOKENS * tiles[-1])
    ends = np.cumsum([0, *map(len, tokens)])
    owners = tuple(np.arange(low, high) for low, high in pairwise(ends))
    return Mix(np.concatenate(tokens), np.concatenate(tiles).astype(np.int64), owners)


def flops() -> Cost:
    """Forward pass of InternViT-300M (24 layers, 1024 wide, 1025 patches) per tile, of 7.7 G weights per token, of
    causal attention (32 layers, 4096 wide, half of the pairs) per squared token. Training is 3 times that throughout.
    """
    patches, width, layers = 1025, 1024, 24
    tile = layers * (2 * patches * (4 * width**2 + 2 * width * 4 * width) + 4 * patches**2 * width)
    return Cost(2 * 7.7e9, float(tile), 2.0 * 32 * 4096)


COST = flops()


# -- what becomes of the lengths --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """Batches of all ranks: ``took`` (S, R): work of each rank in each step that all have, padding included."""

    took: np.ndarray
    real: float  # work of the samples in these steps
    steps: tuple[int, int]  # fewest and most of any rank
    seen: int  # samples in these steps
    packs: int | None = None
    padding: float = 0.0

    @property
    def useful(self) -> float:
        return float(self.real / (self.took.max(axis=1).sum() * self.took.shape[1]))


def work(mix: Mix, samples: np.ndarray) -> float:
    return float(COST.of_samples(mix.tokens[samples], mix.tiles[samples]).sum())


def planned(mix: Mix, ranks: int) -> Way:
    """Our plan: one pack per rank and step."""
    settings = PlanSettings(True, ranks, 0, MAX_TOKENS, MAX_TILES, cost=COST)
    plan = plan_epoch(ArraySizes(mix.tokens, mix.tiles), settings, 0)
    check_plan(plan, mix)
    return way_of_plan(plan, mix, ranks)


def check_plan(plan: EpochPlan, mix: Mix) -> None:
    """Nothing that follows means anything if a sample is missing or a budget broken."""
    assert np.array_equal(np.sort(plan.entries), np.arange(len(mix)))
    assert np.array_equal(np.sort(plan.steps[plan.steps >= 0]), np.arange(len(plan.starts) - 1))
    for sizes, budget in ((mix.tokens, MAX_TOKENS), (mix.tiles, MAX_TILES)):
        assert np.add.reduceat(sizes[plan.entries], plan.starts[:-1]).max() <= budget


def way_of_plan(plan: EpochPlan, mix: Mix, ranks: int) -> Way:
    counts = np.diff(plan.starts)
    tokens, tiles = mix.tokens[plan.entries], mix.tiles[plan.entries]
    costs = np.append(COST.of_packs(tokens, tiles, counts), 0.0)
    dealt = np.stack([parts_of_step(row, ranks, 1)[0, :, 0] for row in plan.steps])
    per_rank = (dealt >= 0).sum(axis=0)
    steps = int(per_rank.min()), int(per_rank.max())
    return Way(costs[dealt], work(mix, plan.entries), steps, len(plan.entries), len(counts))


def originally(mix: Mix, ranks: int) -> Way:
    """The original's packer. Steps end with the rank that runs out first."""
    packs = replay(mix.datasets, mix.tokens, mix.tiles, ranks, MAX_TOKENS, MAX_TILES)
    assert sorted(sample for own in packs for pack in own for sample in pack) == list(range(len(mix)))
    steps = [len(own) for own in packs]
    common = min(steps)
    took = np.array([[work(mix, np.array(pack)) for pack in own[:common]] for own in packs]).T
    seen = sum(len(pack) for own in packs for pack in own[:common])
    return Way(took, float(took.sum()), (common, max(steps)), seen, sum(steps))


def padded(mix: Mix, ranks: int, order: np.ndarray) -> Way:
    """Batches of BATCH in this order, rank after rank. What makes no whole step is not counted, and not lost either."""
    order = order[: len(order) // (ranks * BATCH) * ranks * BATCH]
    tokens = mix.tokens[order].reshape(-1, BATCH)
    longest = np.repeat(tokens.max(axis=1), BATCH)
    took = COST.of_samples(longest, mix.tiles[order]).reshape(-1, ranks, BATCH).sum(axis=2)
    padding = 1 - tokens.sum() / longest.sum()
    return Way(took, work(mix, order), (len(took),) * 2, len(mix), padding=float(padding))


def at_random(mix: Mix, ranks: int) -> Way:
    return padded(mix, ranks, np.random.default_rng(1).permutation(len(mix)))


def as_grouped_originally(mix: Mix, ranks: int) -> Way:
    """Samples of a step, longest first, each to the rank that has least tokens yet; by true lengths."""
    order = np.random.default_rng(1).permutation(len(mix))
    whole = order[: len(order) // (ranks * BATCH) * ranks * BATCH].reshape(-1, ranks * BATCH)
    dealt = []
    for step in whole:
        step = step[np.argsort(-mix.tokens[step], kind="stable")]
        sums, batches = np.zeros(ranks), [[] for _ in range(ranks)]
        for sample in step.tolist():
            rank = int(sums.argmin())
            batches[rank].append(sample)
            sums[rank] += mix.tokens[sample] if len(batches[rank]) < BATCH else math.inf
        dealt.append(np.concatenate(batches))
    return padded(mix, ranks, np.concatenate(dealt))


def grouped(mix: Mix, ranks: int) -> Way:
    """Our padded batches with --train_sampling_strategy group_by_length."""
    settings = PlanSettings(False, ranks, 0, batch_size=BATCH, by_length=True, cost=COST)
    plan = plan_epoch(ArraySizes(mix.tokens, mix.tiles), settings, 0)
    counts = np.diff(plan.starts)
    costs = np.append(COST.of_padded(mix.tokens[plan.entries], mix.tiles[plan.entries], counts), 0.0)
    longest = np.maximum.reduceat(mix.tokens[plan.entries], plan.starts[:-1])
    padding = 1 - mix.tokens.sum() / (longest * counts).sum()
    steps = (int((plan.steps >= 0).sum(axis=0).min()), len(plan.steps))
    return Way(costs[plan.steps], work(mix, plan.entries), steps, len(plan.entries), padding=float(padding))


WAYS = {
    "padded, random": at_random,
    "padded, grouped as the original": as_grouped_originally,
    "padded, grouped, ours": grouped,
    "original's packs": originally,
    "our plan": planned,
}


def facts(way: Way, mix: Mix, ranks: int) -> dict[str, Any]:
    """One row of the table."""
    row: dict[str, Any] = {"useful": round(way.useful, 4), "padding": round(way.padding, 4)}
    row |= {"steps": list(way.steps), "samples lost": len(mix) - way.seen}
    if way.packs is not None:
        least = max(mix.tokens.sum() / MAX_TOKENS, mix.tiles.sum() / MAX_TILES)
        whole = math.ceil(least / ranks) * ranks
        row |= {"packs": way.packs, "least packs": math.ceil(least), "least packs in whole steps": whole}
        row |= {
            "packs / least": round(way.packs / least, 4),
            "packs / least in whole steps": round(way.packs / whole, 4),
        }
        row["token fill"] = round(float(mix.tokens.sum()) / way.packs / MAX_TOKENS, 4)
        row["tile fill"] = round(float(mix.tiles.sum()) / way.packs / MAX_TILES, 4)
    return row


def plans(ranks: Sequence[int]) -> dict[str, Any]:
    """Every way, mix and number of ranks; and our plan's useful work over the others'."""
    results: dict[str, Any] = {}
    for name in PUBLISHED:
        mix = draw(name)
        size = {"samples": len(mix), "M tokens": round(mix.tokens.sum() / 1e6, 1), "tiles": int(mix.tiles.sum())}
        results[name] = {"lengths": size}
        for count in ranks:
            rows = {way: facts(make(mix, count), mix, count) for way, make in WAYS.items()}
            ours = rows["our plan"]
            gains = {way: round(ours["useful"] / row["useful"], 3) for way, row in rows.items() if row is not ours}
            results[name][f"{count} ranks"] = {
                **rows,
                "our useful work over that of": gains,
                "goals": goals(ours, count),
            }
    return results


def goals(row: dict[str, Any], ranks: int) -> dict[str, str]:
    """What was asked for, and in which sense it is there."""
    packs, useful, steps = row["packs / least"], row["useful"], row["steps"]
    if packs <= PACKS_GOAL:
        said = "yes"
    elif row["packs / least in whole steps"] <= PACKS_GOAL:
        exact = row["least packs"] / ranks
        said = (
            f"in whole steps only: {row['least packs']} packs would be {exact:.1f} steps of {ranks}, so there are "
            f"{steps[1]} whole ones of lighter packs"
        )
    else:
        said = "no"
    enough = useful >= USEFUL_GOAL.get(ranks, 0)
    return {
        f"packs <= {PACKS_GOAL} x least": said,
        f"useful >= {USEFUL_GOAL.get(ranks, 0)}": "yes" if enough else "no",
        "equal steps": "yes" if steps[0] == steps[1] else "no",
    }


# -- planning itself --------------------------------------------------------------------------------------------------


def peak_mib() -> float:
    """Of this process. (getrusage would tell that of the process it was forked from.)"""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def plan_many(count: int) -> dict[str, Any]:
    """Seconds and memory of one plan of ``count`` samples of the wide mix, 64 packs a step; in a fresh process."""
    mix = draw("wide")
    chosen = np.random.default_rng(0).integers(0, len(mix), count, dtype=np.int32)
    sizes = ArraySizes(mix.tokens.astype(np.uint32)[chosen], mix.tiles.astype(np.uint16)[chosen])
    del chosen
    before, start, cpu_start = peak_mib(), time.perf_counter(), time.process_time()
    plan = plan_epoch(sizes, PlanSettings(True, 64, 0, MAX_TOKENS, MAX_TILES, cost=COST), 0)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    assert len(plan.entries) == count
    return {
        "seconds": round(seconds, 2),
        "seconds of the core": round(cpu, 2),  # fewer, if the machine has other work to do
        "samples/s": round(count / cpu),
        "peak MiB": round(peak_mib()),
        "MiB before planning (Python, numpy, the table)": round(before),
    }


def planning(counts: Sequence[int]) -> dict[str, Any]:
    """Each in a process of its own, on one core."""
    results = {}
    for count in counts:
        command = [sys.executable, __file__, "--plan_many", str(count)]
        results[f"{count} samples"] = json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout
        )
    return results


# -- the table --------------------------------------------------------------------------------------------------------


def markdown(results: dict[str, Any]) -> str:
    """What was found, for people."""
    lines = []
    for name, found in results.get("plans", {}).items():
        size = found["lengths"]
        published = PUBLISHED[name]
        lines += [
            f"**{name}**: {size['samples']} samples, {size['M tokens']} M tokens (published: {published[1]} M), "
            f"{size['tiles']} tiles; packs of {MAX_TOKENS} tokens and {MAX_TILES} tiles, padded batches of {BATCH}",
            "",
            "| ranks | | packs | / least | / least in whole steps | tokens filled | tiles filled | padding | useful | "
            "ours / it | steps of a rank | samples lost |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for ranks, rows in found.items():
            if ranks != "lengths":
                lines += [markdown_row(ranks.split()[0], way, rows) for way in WAYS]
        lines.append("")
        for ranks, rows in found.items():
            if ranks != "lengths":
                lines.append(f"- {ranks}: " + "; ".join(f"{goal}: {said}" for goal, said in rows["goals"].items()))
        lines.append("")
    for count, row in results.get("planning", {}).items():
        lines.append(f"- planning {count} on one core: {row['seconds of the core']} s, {row['peak MiB']} MiB at most")
    return "\n".join(lines)


def markdown_row(ranks: str, way: str, rows: dict[str, Any]) -> str:
    row = rows[way]
    gain = rows["our useful work over that of"].get(way)
    low, high = row["steps"]
    cells = [ranks, way, row.get("packs", "")]
    cells += [f"{row[key]:.4f}" if key in row else "" for key in ("packs / least", "packs / least in whole steps")]
    cells += [f"{row[key]:.1%}" if key in row else "" for key in ("token fill", "tile fill")]
    cells += [f"{row['padding']:.1%}", f"{row['useful']:.3f}", f"{gain:.2f} x" if gain else ""]
    cells += [f"{low}" if low == high else f"{low} to {high}", row["samples lost"]]
    return f"| {' | '.join(map(str, cells))} |"


def short_table(results: dict[str, Any]) -> str:
    """The table of docs/packing.md."""
    lines = ["| data, ranks | | packs / least | tokens, tiles filled | useful | steps of a rank | samples lost |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    names = {
        "padded, random": f"padded, {BATCH} at random",
        "original's packs": "original's packer",
        "our plan": "plan",
    }
    for mix, found in results["plans"].items():
        for ranks in list(found)[1:]:
            for way, name in names.items():
                row = found[ranks][way]
                packs, fill = "", f"{row['padding']:.1%} padding"
                if way != "padded, random":
                    packs, fill = f"{row['packs / least']:.4f}", f"{row['token fill']:.1%}, {row['tile fill']:.1%}"
                if way == "our plan" and row["packs / least"] > PACKS_GOAL:
                    packs += f" ({row['packs / least in whole steps']:.4f} of what whole steps need)"
                low, high = row["steps"]
                cells = [f"{mix}, {ranks.split()[0]}", name, packs, fill, f"{row['useful']:.3f}"]
                cells += [f"{low}" if low == high else f"{low} to {high}", f"{row['samples lost']:,}"]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--ranks", type=int, nargs="+", default=list(USEFUL_GOAL))
    parser.add_argument("--samples", type=int, nargs="+", default=[1_000_000, 10_000_000], help="of the part planning")
    parser.add_argument("--json", action="store_true", help="print the results as JSON, not as a table")
    parser.add_argument("--save", action="store_true", help="write bench/results/plan_cpu.json")
    parser.add_argument("--short", action="store_true", help="print the table of docs/packing.md")
    parser.add_argument("--plan_many", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plan_many:
        print(json.dumps(plan_many(args.plan_many)))
        return
    results = {}
    if "plans" in args.part:
        results["plans"] = plans(args.ranks)
    if "planning" in args.part:
        results["planning"] = planning(args.samples)
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "device": f"cpu, {os.cpu_count()} cores, {platform.machine()}",
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "baseline": f"original's packer replayed: {WORKERS} workers a rank, buffer 20, non-strict",
        "results": results,
    }
    text = json.dumps(report, indent=2)
    print(text if args.json else short_table(results) if args.short else markdown(results))
    if args.save:
        (ROOT / "bench/results/plan_cpu.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
