"""Miniature MMMU-Pro."""

from __future__ import annotations

from pathlib import Path

from tests.eval.mini.blobs import parquet, png

OPTIONS = "['red', 'green', 'blue']"
STANDARD = (
    {
        "id": "test_History_1", "question": "Compare <image 2> with <image 1>.", "options": OPTIONS, "answer": "B",
        "subject": "History", "image_1": png(1), "image_2": png(2),
    },
    {
        "id": "test_Art_2", "question": "What colour?", "options": OPTIONS, "answer": "C", "subject": "Art",
        "image_1": png(3), "image_2": None,
    },
)  # fmt: skip
VISION = tuple(
    {"id": row["id"], "image": row["image_1"], "options": OPTIONS, "answer": row["answer"], "subject": row["subject"]}
    for row in STANDARD
)


def standard(root: Path) -> None:
    parquet(root / "MMMU_Pro/standard (10 options)/test-00000-of-00001.parquet", STANDARD)


def vision(root: Path) -> None:
    parquet(root / "MMMU_Pro/vision/test-00000-of-00001.parquet", VISION)


WRITERS = {"MMMU_Pro_std10": standard, "MMMU_Pro_vision": vision}
