"""Plans on disk: made once per machine, shared by its processes through the page cache, found again on resume."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from internvl_chat.data.plan.epoch import EpochPlan, PlanSettings, plan_epoch
from internvl_chat.data.plan.sizes import Sizes

# Goes into the key: raise it when the same settings give another plan.
FORMAT = 1
# Plans that nothing has used for so many seconds are deleted when another is written.
_KEPT = 30 * 24 * 3600
_ARRAYS = ("entries", "starts", "steps", "costs")

# Sizes, settings, epoch, what tells these sizes from others of the same data -> plan.
Planner = Callable[[Sizes, PlanSettings, int, str], EpochPlan]


def plan_in_memory(sizes: Sizes, settings: PlanSettings, epoch: int, name: str) -> EpochPlan:
    """The plan, made anew."""
    return plan_epoch(sizes, settings, epoch)


@dataclass(frozen=True)
class PlanStore:
    """Keeps plans in ``folder``. ``data``: hash of the sizes of all entries."""

    folder: Path
    data: str
    workers: int = 1

    def plan(self, sizes: Sizes, settings: PlanSettings, epoch: int, name: str) -> EpochPlan:
        """The plan of an epoch, memory-mapped. ``name`` tells sizes of the same data from each other.

        Raises OSError if the folder cannot be written.
        """
        wanted = json.dumps([FORMAT, self.data, settings.as_json(), epoch, name])
        path = self.folder / f"plan-{hashlib.sha256(wanted.encode()).hexdigest()[:20]}"
        plan = _load(path)
        if plan is None:
            self._write(path, sizes, settings, epoch)
            plan = _load(path)
        if plan is None:
            raise OSError(f"{path} was written, and cannot be read")
        os.utime(path)
        return plan

    def _write(self, path: Path, sizes: Sizes, settings: PlanSettings, epoch: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        _delete_old(self.folder)
        # Another process may write the same plan: each in a folder of its own, the first to end gives the name.
        scratch = Path(tempfile.mkdtemp(prefix=".plan-", dir=self.folder))
        try:
            plan = plan_epoch(sizes, settings, epoch, self.workers, scratch)
            if isinstance(plan.entries, np.memmap):
                plan.entries.flush()
            for name in _ARRAYS[1:]:
                np.save(scratch / f"{name}.npy", getattr(plan, name))
            if path.exists():
                shutil.rmtree(path, ignore_errors=True)
            scratch.rename(path)
        except OSError:
            if _load(path) is None:
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _load(path: Path) -> EpochPlan | None:
    """None if it is not there, or not whole (a lost node or a full disk leaves such)."""
    try:
        return EpochPlan(*(np.load(path / f"{name}.npy", mmap_mode="r") for name in _ARRAYS))
    except (OSError, ValueError, EOFError):
        return None


def _delete_old(folder: Path) -> None:
    for path in folder.glob("plan-*"):
        try:
            if time.time() - path.stat().st_mtime > _KEPT:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue  # another process was faster
