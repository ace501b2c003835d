"""Miniature MMMU: two subjects, options and an open question, one and two pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.eval.mini.blobs import parquet, png
from tests.eval.mini.common import json_file


def rows(split: str) -> dict[str, list[dict[str, Any]]]:
    hidden = split == "test"
    art = {
        "id": f"{split}_Art_1",
        "question": "Look at <image 1>. Which?",
        "options": "['cat', \"dog's\"]",
        "answer": "?" if hidden else "B",
        "question_type": "multiple-choice",
        "image_1": png(1),
        "image_2": None,
    }
    math = {
        "id": f"{split}_Math_1",
        "question": "How many?",
        "options": "[]",
        "answer": "?" if hidden else "['7', 'seven']",
        "question_type": "open",
        "image_1": png(2),
        "image_2": png(3),
    }
    return {"Art": [art], "Math": [math]}


def writer(split: str):  # type: ignore[no-untyped-def]
    def guide(root: Path) -> None:
        for subject, records in rows(split).items():
            parquet(root / f"MMMU/{subject}/{split}-00000-of-00001.parquet", records)
        if split == "test":
            golds = {
                "test_Art_1": {"question_type": "multiple-choice", "ground_truth": "B"},
                "test_Math_1": {"question_type": "short-answer", "ground_truth": ["7", "seven"]},
            }
            json_file(root / "MMMU/answer_dict_test.json", golds)

    return guide


WRITERS = {f"MMMU_{split}": writer(split) for split in ("dev", "validation", "test")}
WRITERS |= {f"{name}_cot": write for name, write in WRITERS.items()}
