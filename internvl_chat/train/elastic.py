"""Going on from a checkpoint with another number of ranks, or another ZeRO stage.

Without DeepSpeed every checkpoint holds the whole optimizer, and there is nothing to do. Under ZeRO each rank saves its
own share of it, which DeepSpeed reads back only into the same number of ranks. Its converter makes one folder per
parameter of it (a "universal" checkpoint), which any number can read. That copy is as large as the optimizer state; it
is removed when the run has saved a checkpoint of its own, and made again from the old one whenever it is needed.

What DeepSpeed 0.19 leaves undone when it reads such a copy is put right in ``Settle``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from internvl_chat.config.train import TrainArguments
from internvl_chat.errors import CheckpointError
from internvl_chat.log import get_logger
from internvl_chat.train import dist
from internvl_chat.train.state import DataState

log = get_logger(__name__)

# DeepSpeed's own file: which folder of the checkpoint is the universal one. Here also: it is complete.
_LATEST = "latest_universal"
_TEMPORARY = "universal.tmp"
_EXTRACT_WORKERS, _MERGE_WORKERS = 4, 2  # the converter's own defaults; more of them cost memory


@dataclass(frozen=True)
class _Saved:
    """What DeepSpeed left in a checkpoint. ``stage``: None without DeepSpeed, 0, 2 (also of stage 1, alike) or 3."""

    folder: Path | None
    stage: int | None
    shards: int


def prepare(checkpoint: Path, saved: DataState, args: TrainArguments) -> list[TrainerCallback]:
    """Make a checkpoint loadable by today's ranks; returns what the Trainer needs to go on from it rightly.

    Collective; before the model loads. ``args`` get a DeepSpeed configuration that reads the universal copy, if one is
    needed. Raises CheckpointError on every rank for a checkpoint that cannot go on under these flags.
    """
    stage = _stage_of(args)
    name = dist.decide_on_main(lambda: _prepare_folder(checkpoint, saved.world_size, dist.world_size(), stage, args))
    callbacks: list[TrainerCallback] = []
    if name is not None:
        args.hf_deepspeed_config.config.setdefault("checkpoint", {})["load_universal"] = True
        callbacks.append(Settle(checkpoint, name))
    if saved.world_size != dist.world_size():
        callbacks.append(FreshRandomness(args.seed, saved.step))
    return callbacks


def _stage_of(args: TrainArguments) -> int | None:
    """ZeRO stage of a run, 1 counted as 2 (what they save is alike); None without DeepSpeed."""
    config = getattr(args, "hf_deepspeed_config", None)
    return _stage_in(None if config is None else config.config)


def _stage_in(config: Mapping[str, Any] | None) -> int | None:
    if config is None:
        return None
    stage = int(config.get("zero_optimization", {}).get("stage", 0))
    return 2 if stage == 1 else stage


def _prepare_folder(checkpoint: Path, then: int, now: int, stage: int | None, args: TrainArguments) -> str | None:
    """On rank 0: check, convert if need be; name of the universal folder, None where the checkpoint loads as it is."""
    saved = _look_at(checkpoint)
    _check_kind(checkpoint, saved.stage, stage)
    if saved.folder is None or not stage or (then == now and saved.stage == stage):
        remove_universal(checkpoint)  # left by an attempt with another number of ranks
        return None
    if saved.shards != then:
        raise CheckpointError(
            f"{saved.folder} holds the optimizer of {saved.shards} ranks, but {then} wrote it: to go on with another "
            "number of ranks or ZeRO stage, the files of all nodes must be in this folder"
        )
    if _offloads_to_disk(args):
        raise CheckpointError(
            f"{checkpoint} was written by {then} ranks: with the optimizer on NVMe (offload_optimizer) a run goes on "
            f"only with as many ranks and the same ZeRO stage; start {then} ranks"
        )
    name = f"{saved.folder.name}_universal_zero{stage}"
    latest = checkpoint / _LATEST
    if latest.is_file() and latest.read_text(encoding="utf-8").strip() == name and (checkpoint / name).is_dir():
        log.info("%s: using the universal copy that is there", checkpoint)
        return name
    change = f"{then} ranks -> {now}" if then != now else f"ZeRO stage {saved.stage} -> {stage}"
    _convert(checkpoint, saved.folder, name, saved.stage != stage, change)
    return name


def check_kind(checkpoint: Path, config: Mapping[str, Any] | None) -> None:
    """Raise CheckpointError where the optimizer of a checkpoint cannot go on under this DeepSpeed configuration."""
    _check_kind(checkpoint, _look_at(checkpoint).stage, _stage_in(config))


def _look_at(checkpoint: Path) -> _Saved:
    latest = checkpoint / "latest"
    if not latest.is_file():
        return _Saved(None, None, 0)
    folder = checkpoint / latest.read_text(encoding="utf-8").strip()
    shards = len(list(folder.glob("*zero_pp_rank_*_mp_rank_00_optim_states.pt")))
    third = any(folder.glob("zero_pp_rank_*_mp_rank_00_model_states.pt"))
    return _Saved(folder, 3 if third else 2 if shards else 0, shards)


def _check_kind(checkpoint: Path, then: int | None, now: int | None) -> None:
    """Raise CheckpointError where optimizer states cannot be carried over: with and without DeepSpeed or ZeRO."""
    if then == now or (then and now):
        return

    def kind(stage: int | None) -> str:
        return (
            "without --deepspeed"
            if stage is None
            else f"with --deepspeed and {f'ZeRO-{stage}' if stage else 'no ZeRO'}"
        )

    raise CheckpointError(
        f"{checkpoint} was written {kind(then)} and cannot go on {kind(now)}: the two keep the optimizer in different "
        f"forms. Resume {kind(then)}, or start a new run (another --output_dir) from its weights: "
        f"--model_name_or_path {checkpoint} (of a LoRA run: what `internvl merge-lora` makes of it)"
    )


def _offloads_to_disk(args: TrainArguments) -> bool:
    config: Mapping[str, Any] = args.hf_deepspeed_config.config.get("zero_optimization", {})
    return (config.get("offload_optimizer") or {}).get("device") == "nvme"


def _convert(checkpoint: Path, folder: Path, name: str, other_stage: bool, change: str) -> None:
    """Write the universal copy of a ZeRO checkpoint; it counts only when it is whole."""
    remove_universal(checkpoint)
    started = time.monotonic()
    size = _size(folder)
    free = shutil.disk_usage(checkpoint).free
    if free < 2 * size:  # fragments and the parameters made of them, for a while side by side
        raise CheckpointError(
            f"{checkpoint}: to go on ({change}) its optimizer must be rewritten, which takes up to {_gb(2 * size)} of "
            f"disk for a while; only {_gb(free)} are free there"
        )
    log.info("%s: rewriting the optimizer (%s; %s), once", checkpoint, change, _gb(size))
    temporary = checkpoint / _TEMPORARY
    _run_converter(folder, temporary / name, change)
    if other_stage:
        _fit_stage(temporary / name)
    (temporary / name).replace(checkpoint / name)
    latest = temporary / _LATEST
    latest.write_text(name, encoding="utf-8")
    latest.replace(checkpoint / _LATEST)
    shutil.rmtree(temporary, ignore_errors=True)
    log.info(
        "wrote %s (%s) in %.0f s; it is removed after the next checkpoint",
        checkpoint / name, _gb(_size(checkpoint / name)), time.monotonic() - started,
    )  # fmt: skip


def _run_converter(folder: Path, output: Path, change: str) -> None:
    """DeepSpeed's converter, in a process of its own: it forks workers, which this one, with its threads, must not."""
    words = [
        *("--input_folder", str(folder), "--output_folder", str(output)),
        # What only tensor parallelism would have saved.
        "--inject_missing_state",
        *("--num_extract_workers", str(_EXTRACT_WORKERS), "--num_merge_workers", str(_MERGE_WORKERS)),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""},
    )
    if done.returncode:
        shutil.rmtree(output.parent, ignore_errors=True)
        reason = (done.stdout.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise CheckpointError(
            f"{folder}: DeepSpeed cannot rewrite this optimizer for the change {change} ({reason}); resume with the "
            "number of ranks and the ZeRO stage that it was written with"
        )


def _fit_stage(universal: Path) -> None:
    """Files of a universal checkpoint as ZeRO-1/2 and as ZeRO-3 want them: stage 3 reads and writes less of them.

    ``zero/NAME/{fp32,exp_avg,exp_avg_sq}.pt``: ``{"param": tensor}``; ``step.pt`` beside them; ``optimizer_state.pt``
    with the groups' settings at both places; the engine's state under both names.
    """
    import deepspeed

    path = universal / "zero" / "optimizer_state.pt"
    state = _load_state(path)
    groups = state["param_groups"]
    parameters = sorted({file.parent for file in universal.glob("zero/**/exp_avg.pt")})
    base = state.get("optimizer_state_dict")
    steps = parameters[0] / "step.pt"
    step = torch.load(steps, weights_only=True) if base is None else base["state"][0]["step"]
    for parameter in parameters:
        if not (parameter / "step.pt").exists():
            torch.save(step, parameter / "step.pt")
        for key in ("fp32", "exp_avg", "exp_avg_sq"):
            tensor = torch.load(parameter / f"{key}.pt", weights_only=True)
            if not isinstance(tensor, dict):
                torch.save({"param": tensor}, parameter / f"{key}.pt")
    kept = {key: value for key, value in state.items() if key not in ("optimizer_state_dict", "fp32_flat_groups")}
    whole = {"optimizer_state_dict": {"state": {0: {"step": step}}, "param_groups": groups}}
    torch.save({**kept, **whole, "ds_version": deepspeed.__version__}, path)
    one, three = universal / "mp_rank_00_model_states.pt", universal / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    if one.exists():
        one.replace(three)
    else:
        three.replace(one)


def _load_state(path: Path) -> dict[str, Any]:
    """DeepSpeed's own file, made by its converter a moment ago: it holds objects, and DeepSpeed reads it so, too."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
    return state


def remove_universal(checkpoint: Path) -> None:
    """Remove the universal copy beside a checkpoint, or what is left of making one."""
    (checkpoint / _LATEST).unlink(missing_ok=True)  # first: half a copy must not be taken for one
    for folder in (checkpoint / _TEMPORARY, *checkpoint.glob("global_step*_universal*")):
        if folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"


class Settle(TrainerCallback):
    """Completes the loading of a universal copy, and removes it when the run has a checkpoint of its own.

    ZeRO-3 gives all parameter groups the settings of the first (weight decay also where there is none), and all parts
    one common step counter, which then advances several times per step.
    """

    def __init__(self, checkpoint: Path, name: str) -> None:
        self._checkpoint, self._name = checkpoint, name

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        path = self._checkpoint / self._name / "zero" / "optimizer_state.pt"
        groups = _load_state(path)["param_groups"]
        optimizer = _innermost(kwargs["optimizer"])
        for group, saved in zip(optimizer.param_groups, groups, strict=True):
            group.update({key: value for key, value in saved.items() if key != "params"})
        fused = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
        for parameter, values in optimizer.state.items():
            if isinstance(step := values.get("step"), torch.Tensor):
                # Where torch's own load_state_dict would put it.
                values["step"] = step.detach().clone().to(parameter.device if fused else step.device)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._remove()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        if dist.rank() == 0 and (self._checkpoint / self._name).exists():
            log.info("removing %s", self._checkpoint / self._name)
            remove_universal(self._checkpoint)


def _innermost(optimizer: Any) -> torch.optim.Optimizer:
    """torch's optimizer inside accelerate's and DeepSpeed's wrappers."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


class FreshRandomness(TrainerCallback):
    """With another number of ranks no saved state of the generators fits: every rank begins a sequence of its own.

    A pure function of (seed, step, rank), so that the same restart is the same run.
    """

    def __init__(self, seed: int, step: int) -> None:
        self._key: tuple[int, int] | None = (seed, step)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Not before: the library restores the states that it finds for some of the ranks just before the first step.
        if self._key is not None:
            seeds = np.random.SeedSequence([*self._key, dist.rank()]).generate_state(1)
            set_seed(int(seeds[0]))
            self._key = None
