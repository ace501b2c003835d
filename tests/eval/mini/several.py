"""Miniature Mantis-Eval, MIRB and MMIU."""

from __future__ import annotations

from pathlib import Path

from tests.eval.mini.blobs import parquet, png
from tests.eval.mini.common import json_file, jsonl, picture

MANTIS = (
    {
        "id": "mantis_1", "question_type": "multi-choice", "question": "<image> <image> Which differs? ",
        "images": [png(1), png(2)], "options": ["(A) the first", "(B) the second"], "answer": "B", "data_source": "x",
        "category": "y",
    },
    {
        "id": "mantis_2", "question_type": "short-answer", "question": "Is <image> larger than <image>?",
        "images": [png(3), png(4)], "options": [], "answer": "Yes", "data_source": "x", "category": "y",
    },
)  # fmt: skip
MIRB_OTHERS = (
    "3d_scene", "arxiv", "attribute", "codeu", "food", "image_jigsaw", "plot_code", "sightseeing", "visual_chain",
)  # fmt: skip
MMIU = (
    {
        "task": "ordering", "question": "Which?", "context": "Select from:\nA: one\nB: two",
        "options": "A: one\nB: two", "input_image_path": ["./ordering/a.png", "./ordering/b.png"], "output": "B",
    },
    {
        "task": "counting", "question": "How many?", "context": "Select.", "options": "A: 1\nB: 2",
        "input_image_path": ["./ordering/a.png"], "output": "A",
    },
)  # fmt: skip


def mantis(root: Path) -> None:
    parquet(root / "mantis_eval/mantis_eval/test-00000-of-00001.parquet", MANTIS)


def mirb(root: Path) -> None:
    images = ["images/a.png", "images/b.png"]
    for number, name in enumerate(images):
        picture(root / "MIRB" / name, number)
    for task in MIRB_OTHERS:
        json_file(root / f"MIRB/{task}.json", [{"questions": f"What of {task}?", "answers": "x", "images": images}])
    json_file(root / "MIRB/count.json", [{"questions": "How many cats?", "answers": 3, "images": images}])
    json_file(root / "MIRB/analogy.json", [{"questions": "The same?", "answers": "No", "images": images}])
    json_file(root / "MIRB/other.json", [{"something": "else"}])


def mmiu_pictures(root: Path) -> None:
    for number, name in enumerate(("a", "b")):
        picture(root / f"mmiu/ordering/{name}.png", number)


def mmiu(root: Path) -> None:
    mmiu_pictures(root)
    records = [
        {
            "task": row["task"],
            "options": row["options"],
            "input": {name: row[name] for name in ("question", "context", "input_image_path")},
            "output": {"output_text": row["output"]},
        }
        for row in MMIU
    ]
    jsonl(root / "mmiu/mmiu.jsonl", records)


WRITERS = {"Mantis-Eval": mantis, "MIRB": mirb, "mmiu": mmiu}
