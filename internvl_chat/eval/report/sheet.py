"""The sheet of wrong answers: which are shown of a run, and each as a card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from internvl_chat.constants import IMAGE_PLACEHOLDER
from internvl_chat.eval.report.pictures import MOST, open_thumbnail, uri_of
from internvl_chat.eval.report.runs import Entry, read_lines
from internvl_chat.eval.results import PREDICTIONS, SCORED

# Cards of one run, and characters of a text on a card.
MOST_CARDS, MOST_CHARACTERS = 40, 1500


@dataclass(frozen=True, eq=False)
class Wrong:
    """An answer that did not get the whole point. ``record``: its line of predictions.jsonl; ``mark``: its share."""

    record: dict[str, Any]
    mark: float


def wrong_answers(entry: Entry, most: int = MOST_CARDS) -> tuple[list[Wrong], int]:
    """At most ``most`` wrong answers of a run and how many there are; those without any point first, evenly chosen."""
    marks = {
        str(line.get("id")): float(line["mark"])
        for line in read_lines(entry.folder / SCORED)
        if isinstance(line.get("mark"), (int, float)) and line["mark"] < 1
    }
    order = [name for name, mark in marks.items() if mark <= 0]
    if len(order) < most:
        order += [name for name, mark in sorted(marks.items(), key=lambda one: one[1]) if mark > 0]
        chosen = order[:most]
    else:
        chosen = [order[place * len(order) // most] for place in range(most)]
    wanted = set(chosen)
    records = {
        str(record.get("id")): record
        for record in read_lines(entry.folder / PREDICTIONS)
        if str(record.get("id")) in wanted
    }
    return [Wrong(records[name], marks[name]) for name in chosen if name in records], len(marks)


def cards(entry: Entry, wrong: list[Wrong]) -> Iterator[str]:
    """One card each: pictures, question, answer, gold."""
    data = entry.meta.get("data")
    root = data.get("root") if isinstance(data, dict) else None
    place = Path(root) if isinstance(root, str) else None
    for one in wrong:
        yield _card(entry, one, place)


def _card(entry: Entry, wrong: Wrong, root: Path | None) -> str:
    record = wrong.record
    answer, gold = record.get("answer"), record.get("gold")
    text = str(record.get("question") or "").replace(IMAGE_PLACEHOLDER, "").strip()
    mark = f", {wrong.mark:.2f} of a point" if wrong.mark > 0 else ""
    where = f"{entry.model}, {entry.label}, item {record.get('id')}{mark}"
    if record.get("error") is not None:
        said = f'<p class="answer">could not be asked: {_text(record["error"])}</p>'
    else:
        said = f'<p class="answer">{_text(answer) or "(empty answer)"}</p>'
    return (
        f'<article class="card" data-run="{escape(run_key(entry))}" data-task="{escape(entry.task)}">'
        f'<div class="shown">{_pictures(record, root)}</div><div class="words">'
        f'<p class="where">{escape(where)}</p>'
        f'<p class="question">{_text(text)}</p>{said}'
        f'<p class="gold">{_text(_gold_text(gold)) or "(none)"}</p></div></article>\n'
    )


def run_key(entry: Entry) -> str:
    """What the filter tells runs apart by."""
    return f"{entry.model} {entry.label} {entry.folder}"


def _pictures(record: dict[str, Any], root: Path | None) -> str:
    names = record.get("pictures")
    names = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    shown = []
    for number, name in enumerate(names[:MOST], 1):
        image = open_thumbnail(name, root)
        if image is None:
            shown.append(f"<span>cannot be read: {_text(name, 120)}</span>")
        else:
            uri = uri_of(image, str(record.get("answer") or ""), record.get("gold"))
            shown.append(f'<img alt="picture {number}" src="{uri}">')
    if len(names) > MOST:
        shown.append(f"<span>and {len(names) - MOST} more</span>")
    return "".join(shown) or "text only"


def _gold_text(gold: object) -> str:
    if isinstance(gold, str):
        return gold
    if isinstance(gold, list) and all(isinstance(one, str) for one in gold):
        return " | ".join(dict.fromkeys(gold))
    return "" if gold is None else json.dumps(gold, ensure_ascii=False)


def _text(value: object, most: int = MOST_CHARACTERS) -> str:
    text = str(value if value is not None else "").strip()
    cut = f" ... ({len(text)} characters)" if len(text) > most else ""
    return escape(text[:most] + cut)
