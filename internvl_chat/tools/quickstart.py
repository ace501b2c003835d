"""``internvl quickstart``: sample data, a tiny model, training, held-out accuracy, a report. No GPU, no download.

Every step is the product's own: ``internvl digits``, ``internvl tiny``, ``internvl train`` under torchrun with ZeRO-1,
and the chat layer for the evaluation.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl_chat.constants import IMAGE_PLACEHOLDER
from internvl_chat.errors import InternVLError
from internvl_chat.log import get_logger, setup_logging

log = get_logger(__name__)

# Held-out exact match that a run must reach, for one and two digits; --goal sets others.
GOALS = (0.95, 0.85)
# Packs in an optimizer step, dealt to the processes: one process takes both, and the step is the same.
PACKS_PER_STEP = 2
# Mostly one and two digits: longer numbers need more tiles, and teach the same scans.
DIGIT_SHARES = (0.38, 0.36, 0.14, 0.12)
TEXT_SHARE = COMPARE_SHARE = 0.04
MODEL: dict[str, Any] = {"image_size": 56, "vision_hidden": 128, "vision_layers": 2, "llm_hidden": 128, "llm_layers": 2}
TRAINING = {
    "use_packed_ds": True,
    # At 56 pixels a thumbnail of four digits shows nothing that the tiles do not.
    "use_thumbnail": False,
    "max_packed_tokens": 320,
    "max_seq_length": 256,
    "num_images_expected": 64,
    "learning_rate": 8e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "adam_beta2": 0.99,
    "weight_decay": 0.05,
    "grad_checkpoint": False,
    "vision_grad_checkpoint": False,
    "dataloader_num_workers": 0,
    "logging_steps": 10,
    "logging_first_step": True,
    "save_strategy": "no",
    "overwrite_output_dir": True,
}
SHOWN = 24


@dataclass(frozen=True)
class Size:
    """How much is made and trained."""

    train: int = 10000
    held_out: int = 1000
    epochs: float = 3.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``internvl quickstart``."""
    size = Size()
    parser.add_argument("--out", type=Path, default=Path("work_dirs/quickstart"), help="default: %(default)s")
    parser.add_argument("--data", type=Path, default=Path("playground"), help="default: %(default)s")
    parser.add_argument("--train", type=int, default=size.train, help="training samples (default: %(default)s)")
    parser.add_argument("--held_out", type=int, default=size.held_out, help="held-out samples (default: %(default)s)")
    parser.add_argument("--epochs", type=float, default=size.epochs, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    goal = "exact match that one and two digits must reach, else the exit status is 1; 0 0 asks for nothing"
    parser.add_argument(
        "--goal", type=float, nargs=2, default=GOALS, metavar="SHARE", help=f"{goal} (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """All steps in order; 1 if the goals are missed."""
    from internvl_chat.tools.memory import TreeMemory
    from internvl_chat.train.dist import prepare_environment

    setup_logging()
    prepare_environment([])

    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    size = Size(args.train, args.held_out, args.epochs)
    out, started = args.out, time.monotonic()
    with TreeMemory() as memory:
        _make_data(args.data, size, args.seed)
        _clear(out)
        log.info("training; TensorBoard shows it live: tensorboard --logdir %s", out)
        train_seconds = _train(_make_model(out, args.seed), args.data, out, size, args.seed)
        answers = _evaluate(out, args.data)
    curve = [json.loads(line) for line in (out / "train_log.jsonl").read_text().splitlines()]
    accuracy = _accuracy(answers)
    summary = _summarise(curve, accuracy, size, train_seconds, memory.peak_mib)
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    _report(out, curve, accuracy, answers, summary)
    _say_what_next(out, args.data, answers, summary, time.monotonic() - started)
    return _check_goals(summary["exact_match"], args.goal)


def _make_data(data: Path, size: Size, seed: int) -> None:
    """Write the sample data unless they are there already, made the same way."""
    from internvl_chat.tools.digits import MADE_WITH, make_digits

    shares = [*DIGIT_SHARES, TEXT_SHARE, COMPARE_SHARE]
    wanted = {"train": size.train, "held_out": size.held_out, "seed": seed, "shares": shares}
    stamp = data / MADE_WITH
    if stamp.is_file() and json.loads(stamp.read_text()) == wanted and _is_complete(data):
        log.info("sample data are in %s already", data)
        return
    log.info("drawing %d + %d sample pictures from real handwritten digits", size.train, size.held_out)
    make_digits(
        data, train=size.train, held_out=size.held_out, seed=seed,
        digit_shares=DIGIT_SHARES, text_share=TEXT_SHARE, compare_share=COMPARE_SHARE,
    )  # fmt: skip
    stamp.write_text(json.dumps(wanted))


def _is_complete(data: Path) -> bool:
    """Whether the annotations and all their pictures are there."""
    scans = data / "data" / "digits" / "scans.json"
    manifests = [data / "digits.json", data / "digits_test.json"]
    annotations = [data / "opensource" / f"digits_{side}.jsonl" for side in ("train", "test")]
    if not all(path.is_file() for path in (scans, *manifests, *annotations)):
        return False
    return all((scans.parent / name).is_file() for name in json.loads(scans.read_text()))


def _clear(out: Path) -> None:
    """Remove what an earlier quickstart left there and would mix with this one; nothing else."""
    shutil.rmtree(out / "runs", ignore_errors=True)
    for name in ("summary.json", "report.html", "train_log.jsonl"):
        (out / name).unlink(missing_ok=True)


def _make_model(out: Path, seed: int) -> Path:
    """A random model; its tokenizer has learnt the system message and the questions, so that samples are short."""
    from internvl_chat.data.template import TEMPLATES
    from internvl_chat.tools.digits import COMPARE_QUESTION, READ_QUESTIONS
    from internvl_chat.tools.tiny import make_tiny

    template = TEMPLATES["internvl2_5"]
    texts = [template.system_message, "system\n", "user\n", "assistant\n", "Image-1.", "Image-2.", "Repeat: "]
    texts += [*READ_QUESTIONS, *(f"\n{question}" for question in READ_QUESTIONS), *COMPARE_QUESTION.split("<image>")]
    return make_tiny(
        out / "start", "qwen2", **MODEL, vocab_size=600, max_dynamic_patch=4, seed=seed, extra_texts=texts * 20
    )


def _train(model: Path, data: Path, out: Path, size: Size, seed: int) -> float:
    """Run ``internvl train`` on two processes if there are two cores; seconds it took."""
    processes = min(PACKS_PER_STEP, len(os.sched_getaffinity(0)))
    flags = {
        "model_name_or_path": model, "meta_path": data / "digits.json", "output_dir": out, "deepspeed": "zero1",
        "num_train_epochs": size.epochs, "seed": seed, "index_dir": out / "index",
        "gradient_accumulation_steps": PACKS_PER_STEP // processes, **TRAINING,
    }  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += ["-m", "internvl_chat.train"]
    command += [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    started = time.monotonic()
    # One thread per process: two cores are busy with two processes, and sums come out the same each time. A GPU is not
    # used even where there is one: two processes cannot share it, and the losses should be the same everywhere.
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})
    try:
        status = process.wait()
    finally:
        if process.poll() is None:  # interrupted: the launcher takes its processes with it
            process.terminate()
            process.wait(30)
    if status:
        raise InternVLError(f"training ended with status {status}; its messages are above")
    return time.monotonic() - started


def _evaluate(out: Path, data: Path) -> list[dict[str, Any]]:
    """Answers of the trained model to all held-out questions, as a user would load and ask it."""
    from internvl_chat.infer.batch import batch_answer
    from internvl_chat.infer.load import load

    lines = [json.loads(line) for line in (data / "opensource" / "digits_test.jsonl").read_text().splitlines()]
    log.info("asking %d held-out questions", len(lines))
    items = []
    for line in lines:
        names = line.get("image", [])
        pictures = [data / "data" / "digits" / name for name in ([names] if isinstance(names, str) else names)]
        items.append((line["conversations"][0]["value"], pictures))
    predictions = batch_answer(load(out, device="cpu"), items, batch_size=64, max_new_tokens=8)
    return [
        {
            "kind": str(line["digits"]) if line["kind"] == "read" else line["kind"],
            "images": [str(picture) for picture in pictures],
            "question": question,
            "answer": line["conversations"][1]["value"],
            "prediction": prediction,
            "right": prediction == line["conversations"][1]["value"],
        }
        for line, (question, pictures), prediction in zip(lines, items, predictions, strict=True)
    ]


def _accuracy(answers: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Right and total per number of digits, and for the other kinds of question."""
    table: dict[str, dict[str, int]] = {}
    for answer in sorted(answers, key=lambda answer: answer["kind"]):
        row = table.setdefault(answer["kind"], {"right": 0, "total": 0})
        row["right"] += answer["right"]
        row["total"] += 1
    return table


def _summarise(
    curve: list[dict[str, Any]], accuracy: dict[str, dict[str, int]], size: Size, train_seconds: float, peak_mib: float
) -> dict[str, Any]:
    losses = [record["loss"] for record in curve if "loss" in record]
    return {
        "exact_match": {kind: round(row["right"] / row["total"], 4) for kind, row in accuracy.items()},
        "train_seconds": round(train_seconds, 1),
        "peak_rss_mib": round(peak_mib),
        "first_loss": losses[0],
        "final_loss": losses[-1],
        "steps": curve[-1]["step"],
        "samples": int(size.train * size.epochs),
    }


def _report(
    out: Path,
    curve: list[dict[str, Any]],
    accuracy: dict[str, dict[str, int]],
    answers: list[dict[str, Any]],
    summary: dict[str, Any],
) -> None:
    """The page: as many right as wrong answers as there are, up to a screenful."""
    from internvl_chat.tools.report import write_report

    wrong = [answer for answer in answers if not answer["right"] and answer["images"]][: SHOWN // 3]
    right = [answer for answer in answers if answer["right"] and answer["images"]][: SHOWN - len(wrong)]
    facts = {name.replace("_", " "): str(value) for name, value in summary.items() if name != "exact_match"}
    write_report(
        out / "report.html", title="internvl_chat quickstart", curve=[r for r in curve if "loss" in r],
        accuracy=accuracy, samples=[*right, *wrong], facts=facts,
    )  # fmt: skip


def _say_what_next(
    out: Path, data: Path, answers: list[dict[str, Any]], summary: dict[str, Any], seconds: float
) -> None:
    shown = next((answer for answer in answers if answer["kind"] == "2"), answers[0])
    rates = ", ".join(f"{kind}: {100 * rate:.1f} %" for kind, rate in summary["exact_match"].items())
    print(f"\n{_chat(out, shown)}")
    print(f"held-out exact match: {rates}")
    print(f"{seconds:.0f} s in all, at most {summary['peak_rss_mib']} MiB of memory\n")
    picture = shown["images"][0] if shown["images"] else data / "data/digits/test/000000.jpg"
    prefix = "" if Path(sys.executable).parent in map(Path, os.get_exec_path()) else f"{_shown_bin()}/"
    print("What to type next:")
    print(f"  {prefix}internvl chat {out} --image {picture} 'What number is written?'")
    print(f"  {prefix}tensorboard --logdir {out}")
    print(f"  open {out}/report.html in a browser")
    print(f"  {prefix}internvl demo {out}      (a page in the browser; pip install -e '.[demo]')")
    print("  your own data: README.md, 'Fine-tune on your data'; scores: docs/evaluation.md")


def _chat(out: Path, shown: dict[str, Any]) -> str:
    """The question of a held-out picture asked as ``internvl chat`` would, and what the model says."""
    from internvl_chat.infer.chat import Chat
    from internvl_chat.infer.load import load

    answer = Chat(load(out, device="cpu")).ask(shown["question"], shown["images"], max_new_tokens=8)
    question = shown["question"].replace(IMAGE_PLACEHOLDER, "").strip()
    return f"chat: {', '.join(shown['images'])} {question!r} -> {answer!r} (right: {shown['answer']!r})"


def _shown_bin() -> str:
    """Folder of the running interpreter's commands, relative to here if it lies below."""
    folder = Path(sys.executable).parent
    return str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)


def _check_goals(exact_match: dict[str, float], goals: Sequence[float]) -> int:
    missed = [
        f"{digits} digit(s): {exact_match[digits]:.3f} < {goal}"
        for digits, goal in zip(("1", "2"), goals, strict=True)
        if exact_match.get(digits, 0.0) < goal
    ]
    if missed:
        log.error("accuracy goals missed: %s", "; ".join(missed))
    return 1 if missed else 0
