"""MMVP: pairs of pictures that CLIP takes for the same, one question about both."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from internvl_chat.errors import DataError
from internvl_chat.eval.score.letters import mcq_letter
from internvl_chat.eval.score.mmvp import pair_accuracy, whole_pairs
from internvl_chat.eval.sources import picture, read_table
from internvl_chat.eval.task import Answered, Ask, Item, Layout, OutputFile, Record, Result, Task
from internvl_chat.eval.tasks.common import LETTER, jsonl_file, one, option_lines

_QUESTIONS = "MMVP/Questions.csv"
_OPTIONS = re.compile(r"\(a\)(?P<a>.*)\(b\)(?P<b>.*)", re.DOTALL)
_GOLDS = {"(a)": "A", "(b)": "B"}


def _item(record: Record, ask: Ask) -> Item:
    found = _OPTIONS.search(record["Options"])
    if found is None:
        raise DataError(f"row {record['Index']}: the options {record['Options']!r} are not '(a) ... (b) ...'")
    options = [found["a"].strip(), found["b"].strip()]
    return Item(
        str(record["Index"]),
        f"{record['Question']}\n{option_lines(options)}\n{LETTER}",
        one(picture(ask.root, f"{record['Index']}.jpg", "MMVP/MMVP Images"), ask),
        _GOLDS[record["Correct Answer"].strip()],
        {"options": dict(zip("AB", options, strict=True))},
    )


def _letters(run: Answered) -> list[str]:
    return [mcq_letter(answer, item.extra["options"]) for item, answer in zip(run.items, run.answers, strict=True)]


def _score(run: Answered) -> Result:
    letters = _letters(run)
    marks = [letter == item.gold for item, letter in zip(run.items, letters, strict=True)]
    numbers = [int(item.id) for item in run.items]
    accuracy = pair_accuracy(numbers, marks)
    notes = {"answers without a letter": sum(letter not in ("A", "B") for letter in letters)}
    lonely = len(numbers) - 2 * len(whole_pairs(numbers))
    if lonely:
        notes["questions without their partner, left out"] = lonely
    figures = {"accuracy": accuracy, "single questions": sum(marks) / len(marks)}
    return Result(figures, "accuracy", [float(mark) for mark in marks], notes, [f"The accuracy is {accuracy}"])


def _files(run: Answered) -> list[OutputFile]:
    records = [
        {"question": item.text, "answer": letter, "gt_answers": item.gold, "data_id": item.id}
        for item, letter in zip(run.items, _letters(run), strict=True)
    ]
    return [jsonl_file("MMVP.jsonl", records)]


def _read(root: Path) -> Iterator[Record]:
    """Rows in order; the published file calls the index "lndex". Rows 2k - 1 and 2k are a pair."""
    for number, row in enumerate(read_table(root / _QUESTIONS, ","), 1):
        index = row.get("Index") or row.get("lndex")
        if index != str(number):
            raise DataError(
                f"{_QUESTIONS}: row {number} has the index {index!r}; pairs are told by it: take the file as published"
            )
        yield {**row, "Index": index}


TASKS = (
    Task(
        "MMVP",
        "MMVP, pairs that CLIP cannot tell apart",
        (Layout("guide", (_QUESTIONS,), _read, "https://huggingface.co/datasets/MMVP/MMVP, below MMVP/"),),
        _item,
        _score,
        max_new_tokens=100,
        count=300,
        files=_files,
        neighbours=2,
    ),
)
KEYS = {"mmvp": ("MMVP",)}
