"""Checkpoints: complete or ignored. Which one to resume from, and whether it belongs to this run."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.log import get_logger

log = get_logger(__name__)

# Written last: a folder without it was interrupted while being saved.
MARKER = "internvl_state.json"
_NAME = re.compile(r"checkpoint-(\d+)$")


@dataclass(frozen=True)
class DataState:
    """All that the data need to go on: the step, and what the plan depends on."""

    step: int
    seed: int
    packs_per_step: int
    plan: str


def complete_checkpoints(output_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [(int(match[1]), path) for path in output_dir.glob("checkpoint-*") if (match := _NAME.search(path.name))]
    return [path for _, path in sorted(found) if (path / MARKER).is_file()]


def write_marker(checkpoint: Path, state: DataState) -> None:
    """Declare a checkpoint complete."""
    temporary = checkpoint / f"{MARKER}.tmp"
    temporary.write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
    temporary.replace(checkpoint / MARKER)


def read_marker(checkpoint: Path) -> DataState:
    """The data state of a checkpoint. Raises CheckpointError if it is incomplete."""
    try:
        return DataState(**json.loads((checkpoint / MARKER).read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{checkpoint} is not a complete checkpoint ({MARKER} is missing): its saving was interrupted, or it "
            "is a model folder; resume from another, or start from it with --model_name_or_path"
        ) from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint / MARKER} cannot be read ({error}); resume from another checkpoint"
        ) from error


def find_resume(output_dir: Path, overwrite: bool, requested: str | None) -> Path | None:
    """The checkpoint to go on from, None for a fresh start.

    An output folder with complete checkpoints is resumed unless ``overwrite``. Raises ConfigError for a folder that
    holds something else.
    """
    if requested and requested.lower() not in ("true", "false"):
        path = Path(requested)
        read_marker(path)
        return path
    checkpoints = complete_checkpoints(output_dir)
    if overwrite:
        return None
    if checkpoints:
        return checkpoints[-1]
    if requested and requested.lower() == "true":
        raise ConfigError(f"--resume_from_checkpoint True: no complete checkpoint in {output_dir}")
    leftovers = [path.name for path in output_dir.iterdir()] if output_dir.is_dir() else []
    if any(
        name == "config.json" or (_NAME.search(name) is None and name.endswith(".safetensors")) for name in leftovers
    ):
        raise ConfigError(
            f"--output_dir {output_dir} already holds a model but no checkpoint to resume from; choose another folder, "
            "or start again in it with --overwrite_output_dir True"
        )
    return None


def check_same_run(checkpoint: Path, state: DataState) -> None:
    """Raise CheckpointError unless the checkpoint was made with the same data, seed and packs per step."""
    old = read_marker(checkpoint)
    differing = [
        f"{name}: {getattr(old, name)} then, {getattr(state, name)} now"
        for name in ("seed", "packs_per_step", "plan")
        if getattr(old, name) != getattr(state, name)
    ]
    if differing:
        raise CheckpointError(
            f"{checkpoint} cannot be resumed exactly, the data plan differs ({'; '.join(differing)}); packs_per_step "
            "is ranks x accumulation x batch size, plan a hash of data, tokenizer and budgets; restore them, or start "
            "again from its weights with --model_name_or_path and a new --output_dir"
        )


def clear_old_run(output_dir: Path) -> None:
    """Make room for a fresh start: checkpoints and ledgers of the run before it are deleted."""
    output_dir.mkdir(parents=True, exist_ok=True)
    for checkpoint in output_dir.glob("checkpoint-*"):
        if _NAME.search(checkpoint.name):
            _delete(checkpoint)
    for ledger in output_dir.glob("faults*.jsonl"):
        ledger.unlink()


def keep_newest(output_dir: Path, count: int) -> None:
    """Delete complete checkpoints, oldest first, until ``count`` are left."""
    for checkpoint in complete_checkpoints(output_dir)[:-count]:
        _delete(checkpoint)


def _delete(checkpoint: Path) -> None:
    log.info("deleting old checkpoint %s", checkpoint)
    # The marker goes first: a deletion that is cut short must not leave half a checkpoint that looks whole.
    (checkpoint / MARKER).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)
