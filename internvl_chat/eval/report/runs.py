"""Finished runs as a reader sees them: the figure, what it is of, what speaks against it, what was published."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from internvl_chat.errors import first_line
from internvl_chat.eval.published import Figure, published_for
from internvl_chat.eval.registry import tasks
from internvl_chat.eval.results import MANIFEST, METRICS, Run, partial_of
from internvl_chat.log import get_logger

logger = get_logger(__name__)


@dataclass(frozen=True, eq=False)
class Entry:
    """One task of one model.

    ``label``: the folder's name, the task with the settings that differ from its defaults. ``main``: name of the figure
    that stands for all, None where there is no score. ``meta``: all of run.json. ``folder``: where the run lies.
    ``partial``: of how many items it is, None if of the whole public data set.
    """

    task: str
    model: str
    label: str
    figures: Mapping[str, float] = field(default_factory=dict)
    main: str | None = None
    notes: Mapping[str, int] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path()
    partial: str | None = None

    @property
    def value(self) -> float | None:
        """The main figure."""
        return None if self.main is None else self.figures.get(self.main)

    @property
    def warnings(self) -> list[str]:
        """What a reader has to know before the figure is believed."""
        found = []
        asked, whole, failed = (_count(self.meta.get(key)) for key in ("items", "count", "failed"))
        if failed:
            found.append(f"{failed} of {asked} questions could not be asked")
        if self.partial is None and None not in (asked, whole) and asked != whole:
            found.append(f"{asked} questions; the public data set has {whole}")
        return found

    @property
    def published(self) -> Mapping[str, Figure]:
        """Published figures of this model at this task, by the scorer's names; none for other settings than those."""
        if self.meta.get("changed"):
            return {}
        found = dict(published_for(self.model, self.task))
        if "main" in found and self.main is not None:
            found[self.main] = found.pop("main")
        return found


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def read_entries(folder: Path) -> tuple[list[Entry], dict[Path, str]]:
    """All runs below a folder, in the order of the tasks, also of models that are links; of unreadable ones: why."""
    entries, lost = [], {}
    for path in sorted({*folder.rglob(MANIFEST), *folder.glob(f"*/{MANIFEST}"), *folder.glob(f"*/*/{MANIFEST}")}):
        metrics = path.with_name(METRICS)
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            scores = json.loads(metrics.read_text(encoding="utf-8")) if metrics.is_file() else {}
            entries.append(entry_of(Run(path.parent, manifest, scores)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            lost[path.parent] = f"{type(error).__name__}: {first_line(error)}"
    order = {name: place for place, name in enumerate(tasks())}
    entries.sort(key=lambda one: (order.get(one.task, len(order)), one.task, one.label.lower(), one.model.lower()))
    return entries, lost


def entry_of(run: Run) -> Entry:
    """A finished run. Raises KeyError, TypeError, AttributeError if its files are not what is written."""
    task, model = run.manifest["task"], run.manifest["model"]
    if not isinstance(task, str) or not isinstance(model, str):
        raise TypeError("task and model have to be texts")
    figures = {
        str(name): float(value)
        for name, value in (run.metrics.get("figures") or {}).items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }
    main = run.metrics.get("main")
    notes = {str(name): number for name, number in (run.metrics.get("notes") or {}).items() if isinstance(number, int)}
    kept = main if main in figures else None
    partial = partial_of(run.manifest)
    return Entry(task, model, run.folder.name, figures, kept, notes, run.manifest, run.folder, partial)


def log_scalars(folder: Path, step: int, entries: Sequence[Entry]) -> None:
    """``eval/<task>/<figure>`` of complete runs, for TensorBoard."""
    from torch.utils.tensorboard.writer import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for entry in entries:
            if entry.partial is not None:
                logger.warning("%s: not written for TensorBoard (%s)", entry.task, entry.partial)
                continue
            for name, value in entry.figures.items():
                writer.add_scalar(f"eval/{entry.task}/{name}", value, step)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; lines that are none (cut by a kill) are left out, as is a file that is not there."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                yield record
