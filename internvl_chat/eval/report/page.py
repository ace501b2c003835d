"""``internvl eval --report DIR``: all runs below a folder on one page, without network or other files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from internvl_chat.errors import DataError
from internvl_chat.eval.report.runs import Entry, read_entries
from internvl_chat.eval.report.sheet import MOST_CARDS, cards, run_key, wrong_answers
from internvl_chat.eval.report.style import SCRIPT, STYLE
from internvl_chat.eval.report.table import Cell, Table, difference_text, figure_text, impossible_text, table_of
from internvl_chat.eval.results import write_whole
from internvl_chat.page import PAGE_END, page_head

NAME = "report.html"


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into the folder, and return its path.

    Raises DataError if there is no run below it, ConfigError if it cannot be written.
    """
    entries, lost = read_entries(folder)
    if not entries:
        first = "".join(f"; {place}: {why}" for place, why in list(lost.items())[:1])
        raise DataError(
            f"{folder}: no finished evaluation in it (a run.json in each); `internvl eval` writes them{first}"
        )
    path = folder / NAME
    text = "".join(page(entries, lost, f"Evaluation: {folder.resolve().name}"))
    write_whole(path, text.encode(errors="replace"))
    return path


def page(entries: Sequence[Entry], lost: dict[Path, str], title: str) -> Iterator[str]:
    """The page, piece by piece."""
    yield page_head(title, STYLE, SCRIPT)
    yield f"<section><h2>Scores</h2>{_scores(table_of(entries), _anchors(entries))}</section>\n"
    if lost:
        rows = "".join(f"<p>{escape(str(place))}: {escape(why)}</p>" for place, why in lost.items())
        yield f'<section class="warn"><h2>Runs that cannot be read</h2>{rows}</section>\n'
    anchors = _anchors(entries)
    details = "".join(_details(entry, anchors[entry]) for entry in entries)
    yield f"<section><h2>All figures and settings</h2>{details}</section>\n"
    yield from _sheet(entries)
    yield f"<script>{SCRIPT}</script>\n{PAGE_END}"


def _anchors(entries: Sequence[Entry]) -> dict[Entry, str]:
    return {entry: f"run-{number}" for number, entry in enumerate(entries, 1)}


# -- the table ------------------------------------------------------------------------------------------------------


def _scores(table: Table, anchors: dict[Entry, str]) -> str:
    head = "".join(f"<th>{escape(model)}</th>" for model in table.models)
    rows = []
    for label, (main, row) in table.rows.items():
        name = f"<th>{escape(label)}<small>{escape(main)}</small></th>"
        rows.append(f"<tr>{name}{''.join(_score(cell, anchors) for cell in row)}</tr>")
    note = (
        '<p class="note">Beside the figure: what the documents of the release give, and how much more this is; green '
        "within one point in a hundred. (!): no number of right answers gives the published figure.</p>"
    )
    body = "".join(rows)
    return (
        f'<div class="scroll"><table class="scores"><thead><tr><th>task</th>{head}</tr></thead><tbody>{body}</tbody>'
        f"</table></div>{note}"
    )


def _score(cell: Cell | None, anchors: dict[Entry, str]) -> str:
    if cell is None:
        return '<td class="empty">&ndash;</td>'
    value = "no score" if cell.value is None else f"<b>{figure_text(cell.value)}</b>"
    if cell.run is not None:
        value = f'<a href="#{anchors[cell.run]}">{value}</a>'
    parts = [value]
    if cell.partial is not None:
        parts.insert(0, f'<span class="partial">{escape(cell.partial)}</span> ')
    elif cell.published is not None:
        style = "" if cell.value is None else "near" if cell.published.agrees(cell.value) else "far"
        why = f' title="{escape(impossible_text(cell.published))}"' if cell.published.impossible else ""
        parts.append(f'<small class="{style}"{why}>{escape(difference_text(cell.published, cell.value))}</small>')
    parts += [f'<small class="warn">{escape(text)}</small>' for text in cell.warnings]
    style = "weak" if cell.partial else "whole"
    return f'<td class="{style}">{"".join(parts)}</td>'


# -- one run --------------------------------------------------------------------------------------------------------


def _details(entry: Entry, anchor: str) -> str:
    published = entry.published
    rows = []
    for name, value in entry.figures.items():
        known = published.get(name)
        beside = "" if known is None or entry.partial else difference_text(known, value)
        why = f"; {impossible_text(known)}" if beside and known is not None and known.impossible else ""
        rows.append(
            f"<tr><th>{escape(name)}</th><td>{figure_text(value)}<small>{escape(beside + why)}</small></td></tr>"
        )
    table = f'<table class="scores"><tbody>{"".join(rows)}</tbody></table>' if rows else '<p class="none">No score.</p>'
    notes = "".join(f"<p>{escape(name)}: {number}</p>" for name, number in entry.notes.items() if number)
    warnings = "".join(f'<p class="warn">{escape(text)}</p>' for text in entry.warnings)
    partial = f' <span class="partial">{escape(entry.partial)}</span>' if entry.partial else ""
    judge = entry.meta.get("judge")
    judged = f"<p>judge: {escape(str(judge))}</p>" if judge else ""
    meta = escape(json.dumps(entry.meta, indent=2, ensure_ascii=False))
    return (
        f'<details class="run" id="{anchor}"><summary>{escape(entry.model)}, {escape(entry.label)}{partial}</summary>'
        f"<div>{table}{warnings}{notes}{judged}<details><summary>Settings, versions, data</summary><pre>{meta}</pre>"
        f'</details><p class="note">{escape(str(entry.folder))}</p></div></details>\n'
    )


# -- wrong answers --------------------------------------------------------------------------------------------------


def _sheet(entries: Sequence[Entry]) -> Iterator[str]:
    found = {entry: wrong_answers(entry) for entry in entries}
    seen = {entry: wrong for entry, (wrong, _) in found.items() if wrong}
    yield "<section><h2>Wrong answers<small>"
    if not seen:
        yield 'none</small></h2><p class="none">No answer was marked wrong.</p></section>\n'
        return
    yield f"at most {MOST_CARDS} of a run, those without any point first; boxes of the answer are "
    yield "in colours, the right one is dashed in green</small></h2>"
    tasks = dict.fromkeys(entry.task for entry in seen)
    options = ['<option value="">all tasks</option>']
    options += [f'<option value="{escape(task)}">{escape(task)}</option>' for task in tasks]
    if len(seen) > len(tasks):
        for entry, wrong in seen.items():
            text = f"{entry.model}, {entry.label} ({len(wrong)} of {found[entry][1]})"
            options.append(f'<option value="{escape(run_key(entry))}">{escape(text)}</option>')
    yield (
        f'<div class="tools"><select id="run" aria-label="task">{"".join(options)}</select>'
        '<input id="text" type="search" placeholder="Search questions and answers" aria-label="search">'
        '<output id="count"></output></div>\n<div class="cards">\n'
    )
    for entry, wrong in seen.items():
        yield from cards(entry, wrong)
    yield "</div></section>\n"
