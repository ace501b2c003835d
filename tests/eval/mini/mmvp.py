"""Miniature MMVP: two pairs."""

from __future__ import annotations

from pathlib import Path

from tests.eval.mini.blobs import table
from tests.eval.mini.common import picture

ROWS = tuple(
    {"lndex": str(k + 1), "Question": f"Door {k // 2}?", "Options": "(a) Open (b) Closed", "Correct Answer": answer}
    for k, answer in enumerate(("(a)", "(b)", "(b)", "(a)"))
)


def guide(root: Path) -> None:
    table(root / "MMVP/Questions.csv", ROWS, ",")
    for number in range(1, len(ROWS) + 1):
        picture(root / f"MMVP/MMVP Images/{number}.jpg", number)


WRITERS = {"MMVP": guide}
