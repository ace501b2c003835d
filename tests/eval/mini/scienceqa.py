"""Miniature ScienceQA and M3CoT."""

from __future__ import annotations

from pathlib import Path

from tests.eval.mini.common import jsonl, picture

RECORDS = (
    {"image": "data/scienceqa/images/a.png", "hint": "H", "question": "Q?", "choices": ["pear", "apple"], "answer": 1},
    {"image": "data/scienceqa/images/b.png", "hint": "", "question": "Which?", "choices": ["x", "y", "z"], "answer": 0},
    {"image": "data/scienceqa/images/a.png", "hint": "", "question": "And?", "choices": ["u", "v"], "answer": 1},
)


def _write(root: Path, annotation: str) -> None:
    for number, name in enumerate(("a", "b")):
        picture(root / f"scienceqa/images/{name}.png", number)
    jsonl(root / annotation, RECORDS)


# Name of a task -> what writes its data below the data root, in the guide's layout.
WRITERS = {
    "sqa_test": lambda root: _write(root, "scienceqa/scienceqa_test_img.jsonl"),
    "m3cot_test": lambda root: _write(root, "M3CoT/test.jsonl"),
}
