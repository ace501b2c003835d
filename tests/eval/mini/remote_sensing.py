"""Miniature RSVQA, as its authors publish it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.eval.mini.common import json_file, picture

QUESTIONS = (
    ("presence", "Is a road there?", "yes"),
    ("count", "How many roads are there?", "7"),
    ("area", "What is the area of roads?", "30m2"),
    ("comp", "Are there more roads than buildings?", "no"),
)


def _writer(stem: str, folder: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        for number in (0, 1):
            picture(root / folder / f"{number}.tif", number)
        questions = [
            {"id": 10 + number, "active": True, "type": kind, "question": text, "img_id": number % 2,
             "answers_ids": [90 + number]}
            for number, (kind, text, _) in enumerate(QUESTIONS)
        ]  # fmt: skip
        answers = [
            {"id": 90 + number, "active": True, "answer": answer} for number, (*_, answer) in enumerate(QUESTIONS)
        ]
        # Entries of other splits are there, too, but not active.
        json_file(root / f"{stem}_questions.json", {"questions": [{"id": 1, "active": False}, *questions]})
        json_file(root / f"{stem}_answers.json", {"answers": [{"id": 1, "active": False}, *answers]})

    return write


# Name of a task -> what writes its data below the data root.
WRITERS = {
    "rsvqa_lr": _writer("rsvqa/lr/LR_split_test", "rsvqa/lr/Images_LR"),
    "rsvqa_hr_test1": _writer("rsvqa/hr/USGS_split_test", "rsvqa/hr/Data"),
    "rsvqa_hr_test2": _writer("rsvqa/hr/USGS_split_test_phili", "rsvqa/hr/Data"),
}
