"""``internvl tour``: a vision-language model from parts on two CPU cores, that answers in whole sentences.

SmolLM2 gets eyes in three trainings: a random tower learns to see together with a tiny language model; the tower and a
fresh projector learn to speak to SmolLM2, which is frozen; LoRA in SmolLM2. Every step is printed as a command that
does the same by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from internvl_chat.errors import ConfigError, InternVLError
from internvl_chat.log import get_logger, setup_logging
from internvl_chat.tools.smollm2 import DEFAULT_OUT
from internvl_chat.tools.tour_data import SYSTEM
from internvl_chat.tools.tour_models import ask_plain, evaluate, has_bf16_units, make_start, tally

log = get_logger(__name__)

TEMPLATE = "internvl2_5"  # ChatML, line breaks included: what SmolLM2 was taught
# Packs in an optimizer step, dealt to the processes: the step is the same on one core and on two.
PACKS_PER_STEP = 2
SHARED: dict[str, Any] = {
    "use_packed_ds": True,
    "max_seq_length": 160,
    "num_images_expected": 64,
    "dynamic_image_size": False,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "adam_beta2": 0.99,
    # The activations of such packs fit; computing them again would cost a third of the speed.
    "grad_checkpoint": False,
    "vision_grad_checkpoint": False,
    "dataloader_num_workers": 0,
    "save_strategy": "no",
    "overwrite_output_dir": True,
}
# The tower learns to see with a language model that costs a thirtieth per picture; InternVL 2.5 did so in large, with a
# tower trained beside a small language model and then given to larger ones.
SEEING: dict[str, Any] = {"max_packed_tokens": 512, "learning_rate": 8e-4, "weight_decay": 0.05, "logging_steps": 20}
STAGE_1: dict[str, Any] = {
    "freeze_llm": True,
    "max_packed_tokens": 256,
    "learning_rate": 1e-3,
    "vit_lr": 2e-4,  # it can see already; the projector is the part that is fresh
    "logging_steps": 5,
}
STAGE_2: dict[str, Any] = {
    "use_llm_lora": 16,
    "freeze_backbone": True,
    "max_packed_tokens": 256,
    "learning_rate": 5e-4,
    "mlp_lr": 2e-4,
    "logging_steps": 5,
}
NAMES = {
    "digit": "digit",
    "new digit": "... in new colours",
    "ink": "colour of it",
    "paper": "background",
    "sentence": "whole sentence",
}
SHOWN = 24


@dataclass(frozen=True)
class Size:
    """How much is made, trained and asked. ``steps`` cuts the stages short."""

    first: int = 8000
    second: int = 1500
    held_out: int = 300
    talk: int = 40
    repeat: int = 4
    # The tiny model sees all pictures of ``first`` so often; SmolLM2 a part of them.
    seeing_epochs: float = 4.0
    first_epochs: float = 0.5
    steps: int = -1


QUICK = Size(first=48, second=24, held_out=12, talk=3, repeat=1, steps=2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``internvl tour``."""
    add = parser.add_argument
    add("--out", type=Path, default=Path("work_dirs/tour"), help="default: %(default)s")
    add(
        "--smollm2",
        type=Path,
        default=None,
        help=f"folder of the language model (default: {DEFAULT_OUT}, fetched if it is not there)",
    )
    add("--seed", type=int, default=0, help="default: %(default)s")
    add("--quick", action="store_true", help="a few samples and steps: shows that all steps run, teaches nothing")


def run(args: argparse.Namespace) -> int:
    """All steps in order. Returns the exit status."""
    from internvl_chat.tools.memory import TreeMemory
    from internvl_chat.train.dist import prepare_environment

    setup_logging()
    prepare_environment([])

    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if args.smollm2 is not None and not (args.smollm2 / "config.json").is_file():
        raise ConfigError(f"--smollm2 {args.smollm2}: no model folder, there is no config.json in it")
    tour = Tour(args.out, args.smollm2 or Path(DEFAULT_OUT), QUICK if args.quick else Size(), args.seed)
    with TreeMemory() as memory:
        summary, answers = tour.take()
    summary["peak_rss_mib"] = round(memory.peak_mib)
    (args.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    _report(args.out, summary, answers)
    _say_what_next(args.out, summary, answers)
    return 0


@dataclass(frozen=True)
class Tour:
    """The steps, each with its command."""

    out: Path
    llm: Path
    size: Size
    seed: int
    commands: list[str] = field(default_factory=list)

    def show(self, title: str, command: Sequence[str]) -> None:
        """Print a step and keep its command for the report."""
        self.commands.append(shlex.join(command))
        print(f"\n## {title}\n$ {self.commands[-1]}", flush=True)

    def take(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Take all steps; what was measured, and the answers to the held-out questions."""
        from internvl_chat.tools.tour_data import PLAIN_QUESTIONS, answer_plain

        self.out.mkdir(parents=True, exist_ok=True)
        started, seconds = time.monotonic(), dict[str, float]()

        def done(name: str) -> None:
            seconds[name] = round(time.monotonic() - started - sum(seconds.values()), 1)

        self.fetch()
        done("fetch")
        self.make_data()
        done("data")
        self.make_start()
        eyes, first, second = (self.out / name for name in ("eyes", "stage1", "stage2"))
        self.train("the tower learns to see, with the tiny language model", eyes, self.seeing_flags())
        done("seeing")
        self.train("stage 1: tower and projector learn, the language model is frozen", first, self.first_flags())
        done("stage 1")
        before = evaluate(first, self.out / "data")
        done("evaluation 1")
        self.train("stage 2: LoRA in the language model, the tower is frozen", second, self.second_flags())
        done("stage 2")
        after = evaluate(second, self.out / "data")
        done("evaluation 2")
        plain = dict(answer_plain(self.llm, PLAIN_QUESTIONS, whole=False))
        talk = [
            {"question": question, "before": plain.get(question, ""), "after": answer}
            for question, answer in zip(PLAIN_QUESTIONS, ask_plain(second, PLAIN_QUESTIONS), strict=True)
        ]
        return {
            "accuracy": {"stage 1": tally(before), "stage 2": tally(after)},
            "held_out": len(after),
            "loss": {stage.name: _losses(stage) for stage in (eyes, first, second)},
            "talk": talk,
            "seconds": seconds,
            "total_seconds": round(time.monotonic() - started, 1),
            "commands": self.commands,
        }, [{**new, "stage 1": old["prediction"]} for old, new in zip(before, after, strict=True)]

    def fetch(self) -> None:
        """The language model's folder, unless it is there."""
        self.show("the language model", ["internvl", "fetch-smollm2", str(self.llm)])
        if (self.llm / "config.json").is_file():
            log.info("%s is there already", self.llm)
            return
        from internvl_chat.tools.smollm2 import fetch, prove

        answer, perplexity = prove(fetch(self.llm))
        log.info("it says %r; perplexity %.1f", answer, perplexity)

    def make_data(self) -> None:
        """Pictures of both stages and for the evaluation; lines without a picture, answered by the model itself."""
        from internvl_chat.tools.tour_data import make_data

        size = self.size
        values = (size.first, size.second, size.held_out, size.talk, size.repeat, self.seed)
        self.show("pictures, questions, answers", _python(make_data, self.out / "data", self.llm, *values))
        make_data(self.out / "data", self.llm, *values)

    def make_start(self) -> None:
        """A random vision tower, with a tiny language model."""
        self.show(
            "a random vision tower, with a tiny language model", _python(make_start, self.out / "start", self.seed)
        )
        make_start(self.out / "start", self.seed)

    def seeing_flags(self) -> dict[str, Any]:
        """The whole tiny model learns."""
        whole = {"model_name_or_path": self.out / "start", "meta_path": self.out / "data" / "first.json"}
        return {**whole, "num_train_epochs": self.size.seeing_epochs, **SEEING}

    def first_flags(self) -> dict[str, Any]:
        """Stage 1 begins with the parts: the tower that can see, SmolLM2, a fresh projector."""
        parts = {"vision_path": self.out / "eyes", "llm_path": self.llm, "conv_style": TEMPLATE}
        parts["system_message"] = SYSTEM  # that of the data: who chats with the model begins with it
        data = {"meta_path": self.out / "data" / "first.json", "num_train_epochs": self.size.first_epochs}
        return {**parts, **data, "bf16": has_bf16_units(), **STAGE_1}

    def second_flags(self) -> dict[str, Any]:
        """Stage 2 goes on with what stage 1 has written."""
        begun = {"model_name_or_path": self.out / "stage1", "meta_path": self.out / "data" / "second.json"}
        return {**begun, "num_train_epochs": 1, "bf16": has_bf16_units(), **STAGE_2}

    def train(self, title: str, out: Path, flags: Mapping[str, Any]) -> None:
        """Run ``internvl train`` on two processes if there are two cores."""
        shutil.rmtree(out / "runs", ignore_errors=True)
        processes = min(PACKS_PER_STEP, len(os.sched_getaffinity(0)))
        all_flags = {
            **flags, "output_dir": out, "deepspeed": "zero1", "max_steps": self.size.steps, "seed": self.seed,
            "gradient_accumulation_steps": PACKS_PER_STEP // processes, "index_dir": self.out / "index", **SHARED,
        }  # fmt: skip
        words = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        words += ["-m", "internvl_chat.train"]
        words += [word for name, value in all_flags.items() for word in (f"--{name}", str(value))]
        self.show(title, ["python", *words])
        # One thread a process: two cores are busy with two processes. A GPU would need other sizes than these.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        process = subprocess.Popen([sys.executable, *words], env=environment)
        try:
            status = process.wait()
        finally:
            if process.poll() is None:  # interrupted: the launcher takes its processes with it
                process.terminate()
                process.wait(30)
        if status:
            raise InternVLError(f"training ended with status {status}; its messages are above")


def _losses(stage: Path) -> list[float]:
    records = map(json.loads, (stage / "train_log.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if "loss" in record]


def _python(function: Any, *values: Path | int) -> list[str]:
    """The command that calls one of the functions of the tour."""
    given = ", ".join(json.dumps(str(value)) if isinstance(value, Path) else str(value) for value in values)
    return ["python", "-c", f"from {function.__module__} import {function.__name__}; {function.__name__}({given})"]


def _share(row: Mapping[str, int]) -> str:
    return f"{100 * row['right'] / max(1, row['total']):.1f} % of {row['total']}"


def _report(out: Path, summary: Mapping[str, Any], answers: Sequence[dict[str, Any]]) -> None:
    """The page of the quickstart, with both stages in it: as many wrong as right answers, up to a screenful."""
    from internvl_chat.tools.report import write_report

    accuracy = {
        f"{NAMES[fact]}, {stage}": row
        for fact in NAMES
        for stage, table in summary["accuracy"].items()
        if (row := table[fact])["total"]
    }
    losses = [*summary["loss"]["stage1"], *summary["loss"]["stage2"]]
    curve = [{"step": number * STAGE_1["logging_steps"], "loss": loss} for number, loss in enumerate(losses)]
    wrong = [answer for answer in answers if not answer["right"]][: SHOWN // 3]
    right = [answer for answer in answers if answer["right"]][: SHOWN - len(wrong)]
    facts = {f"seconds, {name}": str(value) for name, value in summary["seconds"].items()}
    facts |= {"peak memory, MiB": str(summary["peak_rss_mib"])}
    facts |= {f"command {number}": command for number, command in enumerate(summary["commands"], start=1)}
    facts |= {f"{talk['question']} (no picture)": talk["after"] for talk in summary["talk"]}
    write_report(
        out / "report.html", title="internvl_chat tour", curve=curve, accuracy=accuracy, samples=[*right, *wrong],
        facts=facts,
    )  # fmt: skip


def _say_what_next(out: Path, summary: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> None:
    print("\n## held-out pictures: after stage 1, after stage 2")
    for fact, name in NAMES.items():
        print(f"{name:19}" + "".join(f"  {_share(table[fact]):>18}" for table in summary["accuracy"].values()))
    print("\n## some answers (stage 2)")
    for answer in answers[:6]:
        question = answer["question"].splitlines()[-1]
        print(f"{Path(answer['images'][0]).name}  {question}  {answer['prediction']!r} (right: {answer['answer']!r})")
    for talk in summary["talk"]:
        print(f"no picture  {talk['question']}  {talk['after']!r} (SmolLM2 alone: {talk['before']!r})")
    picture = answers[0]["images"][0]
    print(f"\n{summary['total_seconds']:.0f} s, at most {summary['peak_rss_mib']} MiB; report: {out / 'report.html'}")
    print(f"ask it yourself: internvl chat {out / 'stage2'} --image {picture} 'What do you see?'")
