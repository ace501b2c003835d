"""Training runs for tests: in processes of their own, several in a row."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tests.train import warm

BASE = {
    "max_seq_length": 400,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_num_workers": 0,
    "learning_rate": 0.01,
    "grad_checkpoint": False,
}


def flags(model: Path, data: Path, out: Path, **changes: Any) -> list[str]:
    """Command line of a short run."""
    values = {"model_name_or_path": model, "meta_path": data, "output_dir": out, **BASE, **changes}
    return [word for name, value in values.items() if value is not None for word in (f"--{name}", str(value))]


def run_all(jobs: Sequence[Sequence[str]], processes: int = 1, timeout: int = 300) -> str:
    """Run the command lines one after the other in the same process(es); returns what they printed.

    The processes are forks of one that has imported everything (``warm``), with the environment of torchrun. A job
    ``["copy", source, target]`` copies a folder between two runs; ``["measure", file, *flags]`` counts a run's tensors;
    ``["poison", bad, report, *flags]`` is a run of ``poisoned``; ``["call", "module:function", *words]`` is no run.
    """
    with tempfile.TemporaryDirectory() as folder:
        ranks = warm.start(jobs, processes, Path(folder), environment())
        codes = ranks.wait(timeout)
        ranks.end()
        output = ranks.output()
    (Path(os.environ.get("INTERNVL_TEST_LOG", os.devnull))).write_text(output)
    assert codes == [0] * processes, (
        f"exit status by rank {codes} (None: still ran after {timeout} s)\n{output[-6000:]}"
    )
    return output


def environment() -> dict[str, str]:
    """One thread per process: two cores are all there are, and sums come out the same each time."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def losses(out: Path) -> list[float]:
    return [record["loss"] for record in log_of(out) if "loss" in record]


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "train_log.jsonl").read_text().splitlines()]


def weights(out: Path) -> dict[str, Any]:
    return load_file(out / "model.safetensors")


def _fail_at(number: int) -> None:
    from internvl_chat.train.trainer import InternVLTrainer

    step = InternVLTrainer.training_step

    def fail(self: InternVLTrainer, *args: Any, **kwargs: Any) -> Any:
        assert self.state.global_step < number - 1, "this rank has a fault of its own"
        return step(self, *args, **kwargs)

    InternVLTrainer.training_step = fail  # type: ignore[method-assign]


def _be_slow_in(name: str) -> None:
    """Once, in this method of the trainer."""
    from internvl_chat.train.trainer import InternVLTrainer

    method, slept = getattr(InternVLTrainer, name), list[int]()

    def slow(self: InternVLTrainer, *args: Any, **kwargs: Any) -> Any:
        if not slept and self.state.global_step >= 2:
            slept.append(1)
            time.sleep(5)
        return method(self, *args, **kwargs)

    setattr(InternVLTrainer, name, slow)


def work(jobs: Sequence[Sequence[str]]) -> None:
    """Be one rank of these runs; ``["run", flags ...]`` is one with the ending of the command line."""
    from accelerate.state import AcceleratorState

    from internvl_chat.train import dist, ending
    from internvl_chat.train.main import train

    if jobs[0][0] != "run":
        argv = [word for job in jobs for word in job]
        dist.join(dist.prepare_environment(argv), argv)
    for job in jobs:
        if job[0] == "run":
            if os.environ.get("FAILING_RANK", "none") == os.environ.get("RANK"):
                _fail_at(int(os.environ.get("FAILING_STEP", "5")))
            if os.environ.get("SLOW_RANK", "none") == os.environ.get("RANK"):
                _be_slow_in(os.environ["SLOW_IN"])
            sys.exit(ending.run(job[1:]))
        if job[0] == "copy":
            if os.environ.get("RANK", "0") == "0":
                shutil.copytree(job[1], job[2])
            continue
        if job[0] == "measure":
            from tests.train.measured import measure

            measure(job[1], job[2:])
        elif job[0] == "call":
            module, _, name = job[1].partition(":")
            getattr(importlib.import_module(module), name)(list(job[2:]))
        elif job[0] == "poison":
            from tests.train.poisoned import poison

            poison(job[1], job[2], job[3:])
        else:
            train(list(job))
        AcceleratorState._reset_state()
    dist.leave()
