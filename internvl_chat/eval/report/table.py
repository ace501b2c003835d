"""Scores of many runs as a table, tasks by models, with rows made of several tasks; and the table in Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module

from internvl_chat.eval.published import Figure, published_for
from internvl_chat.eval.registry import MODULES
from internvl_chat.eval.report.runs import Entry

Combined = Mapping[str, tuple[tuple[str, ...], Callable[..., float]]]


@dataclass(frozen=True, eq=False)
class Cell:
    """A model's main figure at a task. ``value`` None: there is no score. ``partial``: as of a run."""

    value: float | None
    partial: str | None = None
    warnings: Sequence[str] = ()
    published: Figure | None = None
    run: Entry | None = None


@dataclass(frozen=True, eq=False)
class Table:
    """``rows``: label of a task -> (name of its main figure, cells of the models in order; None: it was not run)."""

    models: tuple[str, ...]
    rows: Mapping[str, tuple[str, tuple[Cell | None, ...]]]


@cache
def combined() -> Combined:
    """Rows made of several tasks: name -> (tasks, function of their main figures), as the task modules give them."""
    found: dict[str, tuple[tuple[str, ...], Callable[..., float]]] = {}
    for module in MODULES:
        found |= getattr(import_module(f"internvl_chat.eval.tasks.{module}"), "COMBINED", {})
    return found


def table_of(runs: Iterable[Entry], more: Combined | None = None) -> Table:
    """The runs as a table. ``more``: rows made of several tasks, None = ``combined()``."""
    columns = _columns(runs)
    cells = {(name, run.label): _cell(run) for name, group in columns.items() for run in group}
    mains: dict[str, str] = {}
    for group in columns.values():
        for run in group:
            mains[run.label] = run.main or mains.get(run.label, "")
    rows = {label: (main, tuple(cells.get((name, label)) for name in columns)) for label, main in mains.items()}
    together = combined() if more is None else more
    for row, (tasks, function) in together.items():
        joined = tuple(_joined(row, model, tasks, function, cells) for model in columns)
        if any(joined) and row not in rows:
            rows = _behind(rows, tasks, row, ("of its parts", joined))
    return Table(tuple(columns), rows)


def _columns(runs: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Models with their runs; where a model did a task twice, its folder tells one from the other."""
    groups: dict[str, dict[str, list[Entry]]] = {}
    for run in runs:
        groups.setdefault(run.model, {}).setdefault(str(run.folder.parent), []).append(run)
    columns = {}
    for model, places in groups.items():
        labels = [run.label for group in places.values() for run in group]
        if len(set(labels)) == len(labels):
            columns[model] = [run for group in places.values() for run in group]
        else:
            columns |= {f"{model} ({place})": group for place, group in places.items()}
    return dict(sorted(columns.items(), key=lambda column: column[0].lower()))


def _cell(run: Entry) -> Cell:
    published = run.published
    if run.main is not None:
        known = published.get(run.main)
    else:  # a server gave the figure
        known = next(iter(published.values())) if len(published) == 1 else None
    return Cell(run.value, run.partial, run.warnings, known, run)


def _joined(
    row: str,
    model: str,
    tasks: Sequence[str],
    function: Callable[..., float],
    cells: Mapping[tuple[str, str], Cell],
) -> Cell | None:
    parts = [cells.get((model, task)) for task in tasks]
    there = [part for part in parts if part is not None and part.value is not None]
    if len(there) != len(tasks):
        return None
    partial = [f"{task} {part.partial}" for task, part in zip(tasks, there, strict=True) if part.partial]
    warnings = [f"{task}: {text}" for task, part in zip(tasks, there, strict=True) for text in part.warnings]
    release = there[0].run.model if there[0].run is not None else model
    value = float(function(*(part.value for part in there)))
    return Cell(value, "; ".join(partial) or None, warnings, published_for(release, row).get("main"))


def _behind(
    rows: Mapping[str, tuple[str, tuple[Cell | None, ...]]],
    tasks: Sequence[str],
    name: str,
    row: tuple[str, tuple[Cell | None, ...]],
) -> dict[str, tuple[str, tuple[Cell | None, ...]]]:
    """The rows with one more behind the last of its tasks."""
    last = max((place for place, label in enumerate(rows) if label in tasks), default=len(rows) - 1)
    listed = list(rows.items())
    return dict([*listed[: last + 1], (name, row), *listed[last + 1 :]])


def figure_text(value: float) -> str:
    """A figure with the digits that a table needs: 0.7119, 90.25, 1794.40."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) > 1:
        return f"{value:.0f}"
    return f"{value:.4f}" if abs(value) <= 1 else f"{value:.2f}"


def difference_text(known: Figure, value: float | None) -> str:
    """``published 72.8, +0.04``, with a (!) where that cannot come out; no difference without a value."""
    mark = " (!)" if known.impossible else ""
    printed = f"{known.value:.6f}".rstrip("0").rstrip(".")
    text = f"published {printed}{' %' if known.unit == 'percent' else ''}{mark}"
    if value is None:
        return text
    return f"{text}, {known.difference(value):{'+.4f' if known.unit == 'share' else '+.2f'}}"


def impossible_text(known: Figure) -> str:
    """Why a published figure is marked (!)."""
    near = " or ".join(f"{value:.10g}" for value in known.nearest)
    return f"no number of right answers gives {known.value:.10g}; the nearest that can come out: {near}"


def markdown_table(runs: Iterable[Entry]) -> str:
    """The table in Markdown, with a line below for each mark in it. Partial runs never stand without their mark."""
    table = table_of(runs)
    if not table.rows:
        return "No runs.\n"
    lines = [
        "| task | figure | " + " | ".join(_plain(model) for model in table.models) + " |",
        "| --- | --- |" + " --- |" * len(table.models),
    ]
    notes: list[str] = []
    for label, (main, cells) in table.rows.items():
        texts = [_cell_text(label, cell, notes) for cell in cells]
        lines.append(f"| {_plain(label)} | {_plain(main)} | " + " | ".join(texts) + " |")
    below = [f"* {note}" for note in dict.fromkeys(notes)]
    return "\n".join([*lines, "", *below] if below else lines) + "\n"


def _cell_text(label: str, cell: Cell | None, notes: list[str]) -> str:
    if cell is None:
        return ""
    parts = ["no score" if cell.value is None else figure_text(cell.value)]
    if cell.partial is not None:
        parts.append(f"({cell.partial})")
    elif cell.published is not None:
        parts.append(f"({difference_text(cell.published, cell.value)})")
        if cell.published.impossible:
            notes.append(_plain(f"(!) {label}: {impossible_text(cell.published)}"))
    notes.extend(_plain(f"{label}: {text}") for text in cell.warnings)
    return _plain(" ".join(parts))


def _plain(text: str) -> str:
    """Text within a cell: no bar, no line end, no HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
