"""Miniature MME: two subtasks, two pictures each."""

from __future__ import annotations

from pathlib import Path

from tests.eval.mini.common import picture

PICTURES = "mme/MME_Benchmark_release_version"
# Subtask, picture, question, answer.
LINES = tuple(
    (subtask, f"000{number}.jpg", f"Is it {word} {number}? Please answer yes or no.", answer)
    for subtask in ("existence", "code_reasoning")
    for number in (1, 2)
    for word, answer in (("a cat", "Yes"), ("a dog", "No"))
)


def guide(root: Path) -> None:
    (root / "mme/Your_Results").mkdir(parents=True, exist_ok=True)
    for number, (subtask, image, question, answer) in enumerate(LINES):
        picture(root / PICTURES / subtask / image, number // 2)
        with (root / f"mme/Your_Results/{subtask}.txt").open("a", encoding="utf-8") as file:
            file.write(f"{image}\t{question}\t{answer}\n")


def release(root: Path) -> None:
    """Beside the pictures; the second subtask as those with folders of their own."""
    for number, (subtask, image, question, answer) in enumerate(LINES):
        own = subtask == "code_reasoning"
        folder = root / PICTURES / subtask
        picture(folder / ("images" if own else "") / image, number // 2)
        text = folder / ("questions_answers_YN" if own else "") / f"{Path(image).stem}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        with text.open("a", encoding="utf-8") as file:
            file.write(f"{question}\t{answer}\n")


WRITERS = {"mme": guide}
