"""Finished runs as a reader sees them: the figure, what it is of, what speaks against it, what was published."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from internvl_chat.errors import first_line
from internvl_chat.eval.published import Figure, published_for
from internvl_chat.eval.registry import tasks
from internvl_chat.eval.results import METRICS, Run, manifests


@dataclass(frozen=True, eq=False)
class Entry:
    """One task of one model.

    ``label``: the folder's name, the task with the settings that differ from its defaults. ``main``: name of the figure
    that stands for all, None where there is no score. ``meta``: all of run.json. ``folder``: where the run lies.
    """

    task: str
    model: str
    label: str
    figures: Mapping[str, float] = field(default_factory=dict)
    main: str | None = None
    notes: Mapping[str, int] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path()

    @property
    def value(self) -> float | None:
        """The main figure."""
        return None if self.main is None else self.figures.get(self.main)

    @property
    def partial(self) -> str | None:
        """``partial: n of m`` unless every item of the data set was asked and the run came to its end."""
        asked, answered = _count(self.meta.get("items")), _count(self.meta.get("answered"))
        limited, whole = self.meta.get("limit") is not None, _count(self.meta.get("count"))
        if self.meta.get("complete") is True and not limited:
            return None
        seen = answered if answered is not None else asked
        # The items that were asked say nothing of the data set, if there was a limit.
        due = whole if whole is not None else None if limited else asked
        if limited and due is not None and seen is not None and seen >= due and self.meta.get("complete") is True:
            return None
        return f"partial: {'?' if seen is None else seen} of {'?' if due is None else due}"

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
    """All runs below a folder, in the order of the tasks; and of those that cannot be read: why."""
    entries, lost = [], {}
    for path in manifests(folder):
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
    return Entry(task, model, run.folder.name, figures, kept, notes, run.manifest, run.folder)


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
