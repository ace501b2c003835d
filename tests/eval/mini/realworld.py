"""Miniature MME-RealWorld, English and Chinese."""

from __future__ import annotations

from pathlib import Path

from tests.eval.mini.common import json_file, picture

ROWS = tuple(
    {
        "Question_id": f"{task.lower()}/{number}", "Image": f"maps/{number}.jpg", "Text": "What is it?",
        "Question Type": "Multiple Choice", "Answer choices": ["(A) red", "(B) green", "(C) blue"],
        "Ground truth": gold, "Task": task, "Subtask": "Monitoring", "Category": category,
    }
    for number, (task, category, gold) in enumerate(
        (("Perception", "count", "A"), ("Perception", "colour", "B"), ("Reasoning", "count", "C"))
    )
)  # fmt: skip


def _writer(file: str):  # type: ignore[no-untyped-def]
    def guide(root: Path) -> None:
        json_file(root / "MME-RealWorld" / file, ROWS)
        for number in range(3):
            picture(root / f"MME-RealWorld/maps/{number}.jpg", number)

    return guide


WRITERS = {"MME-RealWorld": _writer("MME_RealWorld.json"), "MME-RealWorld-CN": _writer("MME_RealWorld_CN.json")}
