"""Miniature POPE: five questions of three categories."""

from __future__ import annotations

from pathlib import Path

from tests.eval.mini.common import jsonl, picture

SHORT = "Answer the question using a single word or phrase."
# Category, picture, question, label.
ROWS = (
    ("random", "a.png", "Is there a cat in the image?", "yes"),
    ("random", "b.png", "Is there a dog in the image?", "no"),
    ("popular", "b.png", "Is there a chair in the image?", "yes"),
    ("adversarial", "a.png", "Is there a car in the image?", "no"),
    ("adversarial", "b.png", "Is there a tree in the image?", "yes"),
)


def labels(root: Path) -> None:
    for number, name in enumerate(("a.png", "b.png")):
        picture(root / "pope/val2014" / name, number)
    for category in ("random", "popular", "adversarial"):
        rows = [row for row in ROWS if row[0] == category]
        jsonl(
            root / f"pope/coco/coco_pope_{category}.json",
            [
                {"question_id": number, "image": image, "text": text, "label": label}
                for number, (_, image, text, label) in enumerate(rows, 1)
            ],
        )


def guide(root: Path) -> None:
    labels(root)
    jsonl(
        root / "pope/llava_pope_test.jsonl",
        [
            {"question_id": number, "image": image, "text": f"{text}\n{SHORT}", "category": category}
            for number, (category, image, text, _) in enumerate(ROWS)
        ],
    )


WRITERS = {"pope": guide}
