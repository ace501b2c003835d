"""A benchmark answered by the runner, against one question after the other as the original does it, in one run.

One tiny model with random weights, greedy, the items of a miniature TextVQA: a picture and a short question each, ten
new tokens. Baseline: one process, a picture cut, ``model.chat`` called, the next picture cut. Ours: ``run_job``, which
writes every answer to its file and scores at the end, with ``--processes`` of them sharing the items, started before
the clock. Medians count, the first turn of each way does not; that all give the same answers is checked.

python bench/eval.py            # a minute on two cores; --save writes bench/results/eval_<device>.json
python bench/eval.py --device cuda --dtype bfloat16 --hidden 2048 --layers 24 --processes 1 --save
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
from PIL import Image
from train_common import RESULTS, machine, table
from transformers.utils.logging import disable_progress_bar

from internvl_chat.eval.items import question_of_item
from internvl_chat.eval.plan import Job, Wishes, plan_job
from internvl_chat.eval.registry import tasks
from internvl_chat.eval.results import read_answers
from internvl_chat.eval.run import Setup, run_job
from internvl_chat.infer.load import load
from internvl_chat.infer.pictures import cut_shown
from internvl_chat.launch import Launch
from internvl_chat.tools.tiny import make_tiny

TASK = "textvqa_val"
TOKENS = 10


def write_data(root: Path, items: int) -> None:
    """Items about pictures of several sizes, in the guide's layout."""
    rng = np.random.default_rng(0)
    folder = root / "textvqa"
    (folder / "train_images").mkdir(parents=True)
    lines, annotations = [], []
    for number in range(items):
        name = f"train_images/{number % 32}.jpg"
        if number < 32:
            small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            small.resize((int(rng.integers(200, 800)), int(rng.integers(200, 800)))).save(folder / name)
        question = "what does the sign say?" + " and the other one?" * int(rng.integers(0, 3))
        lines.append({"image": f"data/textvqa/{name}", "question": question, "question_id": number, "answer": "x"})
        annotations.append({"question_id": number, "answers": [{"answer": "x"}] * 10})
    (folder / "textvqa_val.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "textvqa_val_annotations.json").write_text(json.dumps({"annotations": annotations}))


def job_of(root: Path) -> Job:
    wishes = Wishes(root, generation={"min_new_tokens": TOKENS}, max_new_tokens=TOKENS)
    return plan_job(tasks()[TASK], wishes, dynamic=True)


def loaded_of(args: argparse.Namespace, folder: Path, threads: int) -> Any:
    torch.set_num_threads(threads)
    disable_progress_bar()
    return load(folder, device=args.device, dtype=getattr(torch, args.dtype))


def one_by_one(model: Any, job: Job) -> tuple[float, dict[str, str]]:
    """As the original does it: batch size 1, everything in turn."""
    found, start = {}, time.perf_counter()
    for item in job.items:
        cut = cut_shown(question_of_item(item).shown, model.tiles)
        pixels = cut.pixels.to(model.model.device)
        found[item.id] = model.chat(model.tokenizer, pixels, item.text, dict(job.generation))
    return time.perf_counter() - start, found


def share(rank: int, args: argparse.Namespace, root: Path, size: int, barrier: Any, times: Any) -> None:
    """A process of the runner; the clock starts when all have their model."""
    model = loaded_of(args, root / "model", max(1, args.threads // size))
    job = job_of(root / "data")
    for turn in range(args.repeats + 1):
        setup = Setup(
            root / f"out{size}-{turn}", "tiny", {"checkpoint": "tiny"}, Launch("torchrun", rank, size, rank, size),
            f"{size}-{turn}", batch_size=args.batch_size,
        )  # fmt: skip
        barrier.wait()
        start = time.perf_counter()
        run_job(job, setup, lambda: model)
        barrier.wait()
        if rank == 0:
            times.put(time.perf_counter() - start)


def sharded(args: argparse.Namespace, root: Path, size: int) -> tuple[float, dict[str, str]]:
    """Median seconds of ``size`` processes, and the answers."""
    context = mp.get_context("spawn")
    barrier, times = context.Barrier(size), context.Queue()
    mp.spawn(share, (args, root, size, barrier, times), size)
    seconds = [times.get() for _ in range(args.repeats + 1)][1:]
    folder = root / f"out{size}-0" / "tiny" / job_of(root / "data").folder
    return statistics.median(seconds), read_answers(folder / "predictions.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--items", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    args.threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        write_data(root / "data", args.items)
        make_tiny(
            root / "model", "qwen2", image_size=56, vision_hidden=args.hidden // 2, vision_layers=args.layers,
            llm_hidden=args.hidden, llm_layers=args.layers,
        )  # fmt: skip
        model, job = loaded_of(args, root / "model", args.threads), job_of(root / "data")
        times = []
        for _ in range(args.repeats + 1):
            seconds, expected = one_by_one(model, job)
            times.append(seconds)
        slow = statistics.median(times[1:])
        rows = [{"way": "one by one", "processes": 1, "batch": 1, "items_per_s": args.items / slow, "ratio": 1.0}]
        for size in args.processes:
            seconds, found = sharded(args, root, size)
            unlike = sum(found[name] != answer for name, answer in expected.items())
            if unlike and args.dtype == "float32":
                raise SystemExit(f"{unlike} of {args.items} answers differ from those of one by one")
            rows.append({
                "way": "runner", "processes": size, "batch": args.batch_size, "items_per_s": args.items / seconds,
                "ratio": slow / seconds,
            })  # fmt: skip
    for row in rows:
        row["items_per_s"], row["ratio"] = round(row["items_per_s"], 1), round(row["ratio"], 2)
    print(table(list(rows[0]), [list(row.values()) for row in rows]))
    if args.save:
        path = RESULTS / f"eval_{args.device.split(':')[0]}.json"
        path.write_text(json.dumps({"machine": machine(), "arguments": vars(args), "rows": rows}, indent=2) + "\n")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
