"""Miniature SEED-Bench: two questions about pictures, one about a video's frame."""

from __future__ import annotations

from pathlib import Path

from tests.eval.mini.common import json_file, jsonl, picture

LETTER = "Answer with the option's letter from the given choices directly."
TYPES = {"Scene Understanding": 1, "Instance Identity": 2, "Action Recognition": 10}
QUESTIONS = tuple(
    {
        "question_id": str(number), "question_type_id": kind, "data_type": "video" if kind > 9 else "image",
        "data_id": f"{number}_7", "question": f"Which {number}?", "answer": answer,
        "choice_a": "u", "choice_b": "v", "choice_c": "w", "choice_d": "x",
    }
    for number, kind, answer in ((11, 1, "A"), (12, 2, "B"), (13, 10, "C"))
)  # fmt: skip


def image_of(question: dict[str, object]) -> str:
    if question["data_type"] == "video":
        return f"SEED-Bench-video-image/10_{question['question_id']}.png"
    return f"SEED-Bench-image/{question['data_id']}"


def types(root: Path) -> None:
    json_file(root / "SEED/SEED-Bench.json", {"question_type": TYPES, "questions": QUESTIONS})
    for number, question in enumerate(QUESTIONS):
        target = root / "SEED" / image_of(question)
        picture(target.parent / f"{target.name}.png", number).rename(target)  # names of the release have no suffix


def questions(root: Path) -> None:
    records = [
        {
            "image": image_of(question),
            "text": f"{question['question']}\nA. u\nB. v\nC. w\nD. x\n{LETTER}",
            "question_id": question["question_id"],
            "answer": question["answer"],
        }
        for question in QUESTIONS
    ]
    jsonl(root / "SEED/seed.jsonl", records)


def guide(root: Path) -> None:
    types(root)
    questions(root)


WRITERS = {"SEEDv1": guide}
