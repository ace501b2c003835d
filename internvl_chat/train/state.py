"""Checkpoints: complete or ignored. Which one to resume from, and whether it belongs to this run.

A folder that is being written holds ``internvl_saving.json``; when all ranks are done, ``internvl_state.json`` takes
its place. Only folders with one of the two are ever deleted without being asked.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from internvl_chat.data.plan.schedule import Segment
from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.log import get_logger

log = get_logger(__name__)

MARKER = "internvl_state.json"
SAVING = "internvl_saving.json"
# Folder of the trained adapter, in the output folder.
ADAPTER = "adapter"
_NAME = re.compile(r"checkpoint-(\d+)$")
# Set by SLURM and torchrun when they start the same job again.
_RESTART_COUNTS = ("SLURM_RESTART_COUNT", "TORCHELASTIC_RESTART_COUNT")


@dataclass(frozen=True)
class DataState:
    """All that a run needs to go on: the step, and what plan, schedule and the meaning of the weights depend on.

    ``history``: settings of the plan, and for how many steps; more than one where a run went on with others. ``plan``:
    hash of the plan that the last of these steps belong to. ``data``: per data set what its entries depend on.
    ``model``: settings of the model and of what trains, nested. ``meter``: counts so far. All JSON values.
    """

    step: int
    history: list[dict[str, Any]]
    plan: str
    data: dict[str, dict[str, Any]]
    num_steps: int
    world_size: int
    model: dict[str, Any] = field(default_factory=dict)
    meter: dict[str, Any] = field(default_factory=dict)

    def segments(self) -> tuple[Segment, ...]:
        """The history, typed."""
        return tuple(Segment.from_json(one) for one in self.history)


def checkpoints(output_dir: Path) -> list[Path]:
    """All folders named checkpoint-N, by N."""
    found = [(int(match[1]), path) for path in output_dir.glob("checkpoint-*") if (match := _NAME.search(path.name))]
    return [path for _, path in sorted(found)]


def complete_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return [path for path in checkpoints(output_dir) if (path / MARKER).is_file()]


def begin_saving(checkpoint: Path) -> None:
    """Claim a folder for a checkpoint; what an interrupted save left in it is removed."""
    if checkpoint.exists():
        _delete(checkpoint)
    checkpoint.mkdir(parents=True)
    (checkpoint / SAVING).write_text("{}\n", encoding="utf-8")


def finish_saving(checkpoint: Path, state: DataState) -> None:
    """Declare a checkpoint complete."""
    temporary = checkpoint / f"{MARKER}.tmp"
    temporary.write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
    temporary.replace(checkpoint / MARKER)
    (checkpoint / SAVING).unlink(missing_ok=True)


def read_marker(checkpoint: Path) -> DataState:
    """The data state of a checkpoint. Raises CheckpointError if it is incomplete."""
    try:
        found = DataState(**json.loads((checkpoint / MARKER).read_text(encoding="utf-8")))
        found.segments()
        return found
    except (FileNotFoundError, NotADirectoryError) as error:
        if not checkpoint.is_dir():
            raise CheckpointError(f"--resume_from_checkpoint {checkpoint}: there is no such folder") from error
        raise CheckpointError(
            f"{checkpoint} is not a complete checkpoint ({MARKER} is missing): its saving was interrupted, it holds "
            "only a model, or another program wrote it; resume from another, or start from it with --model_name_or_path"
        ) from error
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{checkpoint / MARKER} cannot be read ({error}): it is damaged, or of another version of this program; "
            "resume from another, or start from its weights with --model_name_or_path and a new --output_dir"
        ) from error


def find_resume(output_dir: Path, overwrite: bool, requested: str | None) -> tuple[Path, DataState] | None:
    """The checkpoint to go on from with its state, None for a fresh start.

    An output folder with complete checkpoints is resumed unless ``overwrite``; a job that SLURM or torchrun started
    again always is. Raises ConfigError for a folder that holds something else.
    """
    complete = complete_checkpoints(output_dir)
    if requested and requested.lower() not in ("true", "false"):
        state = read_marker(Path(requested))
        later = [path.name for path in complete if read_marker(path).step > state.step]
        if later:
            raise ConfigError(
                f"--resume_from_checkpoint {requested}: {output_dir} holds later ones ({', '.join(later)}), which "
                "would be mixed up with those of this run; delete or move them, or choose another --output_dir"
            )
        return Path(requested), state
    restarted = any(os.environ.get(name, "0") not in ("", "0") for name in _RESTART_COUNTS)
    if complete and (restarted or not overwrite):
        return complete[-1], read_marker(complete[-1])
    if requested and requested.lower() == "true":
        raise ConfigError(f"--resume_from_checkpoint True: no complete checkpoint in {output_dir}")
    if not overwrite and output_dir.is_dir():
        _refuse_foreign(output_dir)
    return None


def _refuse_foreign(output_dir: Path) -> None:
    foreign = [path.name for path in checkpoints(output_dir) if not _is_unfinished(path)]
    models = [name for name in ("config.json", "model.safetensors", ADAPTER) if (output_dir / name).exists()]
    if foreign or models:
        raise ConfigError(
            f"--output_dir {output_dir} already holds {', '.join(foreign + models)}, but nothing this program can "
            "resume; choose another folder, or delete what is in it and start again with --overwrite_output_dir True"
        )


def check_same_data(checkpoint: Path, old: DataState, now: dict[str, dict[str, Any]]) -> None:
    """Raise CheckpointError unless the data sets are those that the checkpoint has seen, in their order."""
    if list(old.data.items()) != list(now.items()):
        found = "; ".join(_data_differences(old.data, now))
        raise CheckpointError(
            f"{checkpoint} cannot be resumed, its data were others: {found}. Restore manifest, annotations, "
            "tokenizer and the flags that decide which lines are used; or start again from its weights with "
            "--model_name_or_path and a new --output_dir"
        )


def check_same_run(checkpoint: Path, old: DataState, new: DataState, settings: dict[str, Any]) -> None:
    """Raise CheckpointError unless a run can go on from the checkpoint: the same model, and the steps it has done.

    ``new``: the state at the same step as it would be today. ``settings`` of the plan of what comes may be others
    (ranks, accumulation, budgets), which is said.
    """
    if old.plan != new.plan:
        raise CheckpointError(
            f"{checkpoint} cannot be resumed: this version of the program makes another plan of the steps that it has "
            "done, so that samples would be lost or seen twice; go on with the version that wrote it, or start again "
            "from its weights with --model_name_or_path and a new --output_dir"
        )
    changed = list(_differences(old.model, json.loads(json.dumps(new.model))))
    if changed:
        raise CheckpointError(
            f"{checkpoint} cannot go on as another run: {'; '.join(changed)}. Resume with the flags and the base it "
            "was made with, or start a new run (another --output_dir) from the model that it makes"
        )
    then = old.history[-1]["settings"]
    if then != settings:
        log.warning(
            "resuming with another plan (%s): what is left of this epoch is planned anew, every sample of it is still "
            "seen once; batches are not those of an undisturbed run", "; ".join(_differences(then, settings)),
        )  # fmt: skip
    for name, what in (("num_steps", "the learning-rate schedule"), ("world_size", "dropout")):
        if getattr(old, name) != getattr(new, name):
            log.warning(
                "resuming with %s %s instead of %s: %s will not be as it would have been",
                name, getattr(new, name), getattr(old, name), what,
            )  # fmt: skip


def _data_differences(old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Which data sets differ, and in what, in words."""
    for name in dict.fromkeys([*old, *new]):
        then, now = old.get(name), new.get(name)
        if then is None or now is None:
            yield f"data set {name!r} was {'not ' if then is None else ''}there"
        elif then["lines"] != now["lines"]:
            yield f"data set {name!r}: {then['lines']} usable lines then, {now['lines']} now"
        elif then["samples"] != now["samples"]:
            yield f"data set {name!r}: {then['samples']} samples in an epoch then, {now['samples']} now"
        elif then["sizes"] != now["sizes"]:
            yield f"data set {name!r}: other lines, or samples of other sizes"
        elif then != now:
            yield f"data set {name!r}: other lines were left out"
    if list(old) != list(new) and set(old) == set(new):
        yield "the data sets stand in another order"


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """``name: then, now`` for every value that differs, at any depth."""
    for name in sorted(old.keys() | new.keys()):
        then, now = old.get(name), new.get(name)
        if isinstance(then, dict) and isinstance(now, dict):
            yield from _differences(then, now, f"{prefix}{name}.")
        elif then != now:
            yield f"{prefix}{name}: {then} then, {now} now"


def check_model_survives(output_dir: Path, model: Path, fresh: bool) -> None:
    """Raise ConfigError when a run would overwrite or delete the very folder it starts from."""
    if model.resolve() == output_dir.resolve():
        raise ConfigError(f"--output_dir {output_dir} is the folder of the model to start from; choose another one")
    doomed = [path.resolve() for path in checkpoints(output_dir)]
    if fresh and model.resolve() in doomed:
        raise ConfigError(
            f"--overwrite_output_dir True would delete {model}, the model to start from; choose another --output_dir"
        )


def clear_old_run(output_dir: Path, overwrite: bool) -> None:
    """Make room for a fresh start. Without ``overwrite`` only what interrupted saves of this program left goes."""
    output_dir.mkdir(parents=True, exist_ok=True)
    for checkpoint in checkpoints(output_dir):
        if overwrite or _is_unfinished(checkpoint):
            _delete(checkpoint)
    for ledger in (*output_dir.glob("faults*.jsonl"), *output_dir.glob("nonfinite*.jsonl")):
        ledger.unlink()
    if overwrite:  # a model or adapter of the old run must not be taken for one of this run
        for file in (*output_dir.glob("model*.safetensors*"), output_dir / "config.json"):
            file.unlink(missing_ok=True)
        shutil.rmtree(output_dir / ADAPTER, ignore_errors=True)


def clear_unfinished(output_dir: Path) -> None:
    """Delete what interrupted saves left behind, before a run goes on from a complete checkpoint."""
    for checkpoint in checkpoints(output_dir):
        if _is_unfinished(checkpoint):
            _delete(checkpoint)


def keep_newest(output_dir: Path, count: int, protect: Path | None = None) -> None:
    """Delete complete checkpoints, oldest first, until ``count`` are left; never the newest, nor ``protect``."""
    complete = complete_checkpoints(output_dir)
    spared = {complete[-1].name, protect.name if protect else ""} if complete else set()
    doomed = [checkpoint for checkpoint in complete if checkpoint.name not in spared]
    excess = len(complete) - max(count, len(complete) - len(doomed))
    for checkpoint in doomed[: max(0, excess)]:
        _delete(checkpoint)


def _delete(checkpoint: Path) -> None:
    log.info("deleting old checkpoint %s", checkpoint)
    # The marker goes first: a deletion that is cut short must not leave half a checkpoint that looks whole.
    if (checkpoint / MARKER).is_file():
        (checkpoint / MARKER).replace(checkpoint / SAVING)
    for entry in checkpoint.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != SAVING:
            entry.unlink(missing_ok=True)
    # And the claim last: without it the rest would be taken for another program's, and never go.
    (checkpoint / SAVING).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def _is_unfinished(checkpoint: Path) -> bool:
    """Whether a save or a deletion was interrupted here; an empty folder is what is left between two of its steps."""
    claimed = (checkpoint / SAVING).is_file() or not any(checkpoint.iterdir())
    return claimed and not (checkpoint / MARKER).is_file()
