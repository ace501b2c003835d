"""Plans on disk: made by one process, shared by all of a machine through the page cache, found again on resume."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from internvl_chat.data.locks import alone
from internvl_chat.data.plan.epoch import EpochPlan, PlanSettings, plan_epoch
from internvl_chat.data.plan.sizes import Sizes
from internvl_chat.log import get_logger

log = get_logger(__name__)

# Goes into the key: raise it when the same settings give another plan.
FORMAT = 1
# Smaller epochs are planned anew in less time than it takes to look for them.
_KEPT_FROM = 50_000
# Plans that nothing has used for so many seconds are deleted when another is written; so is what was left half made.
_KEPT, _KEPT_HALF = 30 * 24 * 3600, 24 * 3600
_ARRAYS = ("entries", "starts", "steps", "costs")
# Written last: length and crc32 of each array.
_WHOLE = "whole.json"

# Sizes, settings, epoch, what tells these sizes from others of the same data -> plan.
Planner = Callable[[Sizes, PlanSettings, int, str], EpochPlan]


def plan_in_memory(sizes: Sizes, settings: PlanSettings, epoch: int, name: str) -> EpochPlan:
    """The plan, made anew."""
    return plan_epoch(sizes, settings, epoch)


@dataclass(frozen=True)
class PlanStore:
    """Keeps the plans of large epochs in ``folder``. ``data``: hash of the sizes of all entries."""

    folder: Path
    data: str
    workers: int = 1
    kept_from: int = _KEPT_FROM

    def plan(self, sizes: Sizes, settings: PlanSettings, epoch: int, name: str) -> EpochPlan:
        """The plan of an epoch. ``name`` tells sizes of the same data from each other.

        Where the folder cannot be written it is made in memory, and a warning says so.
        """
        if len(sizes) < self.kept_from:
            return plan_in_memory(sizes, settings, epoch, name)
        wanted = json.dumps([FORMAT, self.data, settings.as_json(), epoch, name])
        path = self.folder / f"plan-{hashlib.sha256(wanted.encode()).hexdigest()[:20]}"
        try:
            plan = _load(path)
            if plan is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                with alone(path.with_name(f".{path.name}.lock")):  # the others wait, and find it
                    plan = _load(path) or self._write(path, sizes, settings, epoch)
        except OSError as error:
            log.warning("the plan of epoch %d cannot be kept in %s (%s): it takes memory instead", epoch, path, error)
            plan = None
        return plan or plan_epoch(sizes, settings, epoch, self.workers)

    def _write(self, path: Path, sizes: Sizes, settings: PlanSettings, epoch: int) -> EpochPlan | None:
        _delete_old(self.folder)
        # Where locks do not work another process may write the same plan: each does so in a folder of its own.
        scratch = self.folder / f".{path.name}-{socket.gethostname()}-{os.getpid()}"
        try:
            scratch.mkdir()
            plan = plan_epoch(sizes, settings, epoch, self.workers, scratch)
            whole = {name: [len(getattr(plan, name)), _crc(getattr(plan, name))] for name in _ARRAYS}
            for name in _ARRAYS[1:]:
                np.save(scratch / f"{name}.npy", getattr(plan, name))
            (scratch / _WHOLE).write_text(json.dumps(whole), encoding="utf-8")
            if path.exists():  # damaged
                shutil.rmtree(path)
            with suppress(OSError):  # the other one was faster
                scratch.rename(path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return _load(path)


def _load(path: Path) -> EpochPlan | None:
    """None if it is not there, or not whole (a lost node or a full disk leaves such)."""
    try:
        whole = json.loads((path / _WHOLE).read_text(encoding="utf-8"))
        arrays = [np.load(path / f"{name}.npy", mmap_mode="r") for name in _ARRAYS]
        if [[len(array), _crc(array)] for array in arrays] != [whole[name] for name in _ARRAYS]:
            return None
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None
    with suppress(OSError):  # somebody else's
        os.utime(path)
    return EpochPlan(*arrays)


def _crc(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data)


def _delete_old(folder: Path) -> None:
    for path, kept in (
        (p, k) for pattern, k in (("plan-*", _KEPT), (".plan-*", _KEPT_HALF)) for p in folder.glob(pattern)
    ):
        with suppress(OSError):  # another process was faster
            if time.time() - path.stat().st_mtime > kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
