"""Miniature Tiny LVLM: five abilities."""

from __future__ import annotations

from pathlib import Path

from tests.eval.mini.common import json_file, picture

RECORDS = {
    "Visual_Reasoning": [
        {"image_path": "a.png", "question": "What is it?", "gt_answers": ["dog", "a puppy"]},
        {"image_path": "b.png", "question": "How many?", "gt_answers": "two"},
    ],
    "Visual_Perception": [{"image_path": "a.png", "question": "Which colour?", "gt_answers": "red"}],
    "Visual_Knowledge_Acquisition": [{"image_path": "a.png", "question": "Who?", "gt_answers": "Ada"}],
    "Visual_Commonsense": [{"image_path": "a.png", "question": "Can it fly?", "gt_answers": "no"}],
    "Object_Hallucination": [{"image_path": "a.png", "question": "Is there a cat?", "gt_answers": "no"}],
}


def guide(root: Path) -> None:
    for ability, records in RECORDS.items():
        folder = root / "tiny_lvlm/updated_datasets" / ability
        json_file(folder / "dataset.json", records)
        for number, record in enumerate(records):
            picture(folder / str(record["image_path"]), number)


WRITERS = {"updated_datasets": guide}
