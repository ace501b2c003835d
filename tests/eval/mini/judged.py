"""Miniature sets with free answers: MM-Vet, LLaVA-Bench, MMHal-Bench, MathVista, DriveLM."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tests.eval.mini.common import json_file, jsonl, picture
from tests.eval.mini.vlm import base64_picture

MMVET_GOLDS = {
    "v1_0": {"imagename": "v1_0.png", "question": "What is x?", "answer": "-1 <AND> -5", "imagesource": "web",
             "capability": ["ocr", "math"]},
    "v1_1": {"imagename": "v1_1.png", "question": "Who?", "answer": "a cat", "imagesource": "web",
             "capability": ["rec"]},
}  # fmt: skip
MMVET_V2 = {
    "v1_0": {"question": "What is x?<IMG>v1_0.png", "answer": "-1", "added_in": "v1", "capability": ["ocr", "math"]},
    "v2_0": {"question": "Compare<IMG>v2_0_0.png<IMG>with<IMG>v2_0_1.png<IMG>please.", "answer": "bigger",
             "added_in": "v2", "capability": ["rec", "seq"]},
}  # fmt: skip
LLAVA = (
    {"question_id": 0, "image": "001.jpg", "text": "What is it?", "category": "conv"},
    {"question_id": 1, "image": "001.jpg", "text": "Describe it.", "category": "detail"},
    {"question_id": 2, "image": "002.jpg", "text": "Why?", "category": "complex"},
)
MATHVISTA: Sequence[dict[str, Any]] = (
    {"pid": "1", "question": "Which?", "image": "images/1.jpg", "choices": ["3/11", "8/11", "3/5"], "unit": None,
     "precision": None, "answer": "8/11", "question_type": "multi_choice", "answer_type": "text",
     "query": "Hint: Give the letter.\nQuestion: Which?\nChoices:\n(A) 3/11\n(B) 8/11\n(C) 3/5"},
    {"pid": "2", "question": "How many?", "image": "images/2.jpg", "choices": None, "unit": "cm", "precision": 1.0,
     "answer": "1.2", "question_type": "free_form", "answer_type": "float",
     "query": "Hint: A number with one decimal.\nQuestion: How many? (Unit: cm)"},
    {"pid": "3", "question": "How much?", "image": "images/1.jpg", "choices": None, "unit": None, "precision": 0.0,
     "answer": "14", "question_type": "free_form", "answer_type": "integer",
     "query": "Hint: An integer.\nQuestion: How much?"},
)  # fmt: skip
METADATA = {"category": "math", "context": "scene", "grade": "daily life", "img_height": 50, "img_width": 80,
            "language": "english", "source": "own", "split": "testmini", "task": "figure question answering",
            "skills": ["arithmetic reasoning", "numeric commonsense"]}  # fmt: skip
DRIVELM = (
    {"id": "s_1", "image": "a.jpg", "conversations": [
        {"from": "human", "value": "<image>\nWhat is ahead?"}, {"from": "gpt", "value": "A car."}]},
    {"id": "s_2", "image": "a.jpg", "conversations": [
        {"from": "human", "value": "<image>\nWhat is <c1,CAM_BACK,[500, 750]>?"}, {"from": "gpt", "value": "A bus."}]},
)  # fmt: skip


def mmvet(root: Path, golds: bool = True) -> None:
    records = []
    for number, (name, gold) in enumerate(MMVET_GOLDS.items()):
        picture(root / f"mm-vet/images/{name}.png", number)
        records.append({"image": f"{name}.png", "text": gold["question"], "question_id": number})
    jsonl(root / "mm-vet/llava-mm-vet.jsonl", records)
    if golds:
        json_file(root / "mm-vet/mm-vet.json", MMVET_GOLDS)


def _mmvet_v2(root: Path) -> None:
    for number, name in enumerate(("v1_0", "v2_0_0", "v2_0_1")):
        picture(root / f"mm-vet-v2/images/{name}.png", number)
    json_file(root / "mm-vet-v2/mm-vet-v2.json", MMVET_V2)


def _llava(root: Path) -> None:
    folder = root / "llava-bench-in-the-wild"
    for number, name in enumerate(("001.jpg", "002.jpg")):
        picture(folder / "images" / name, number)
    jsonl(folder / "questions.jsonl", LLAVA)
    jsonl(folder / "context.jsonl", [{"id": "1", "image": "001.jpg", "caption": "A hill."},
                                     {"id": "2", "image": "002.jpg", "caption": "A sea."}])  # fmt: skip
    references = [{"question_id": number, "text": text} for number, text in enumerate(("hill", "green hill", "tide"))]
    # The ids tell which is whose, not the lines.
    jsonl(folder / "answers_gpt4.jsonl", references[::-1])


def _mmhal(root: Path) -> None:
    records = [
        {"image": base64_picture(number), "question": f"Question {number}?", "image_content": ["Hill", "Tree"],
         "gt_answer": f"gold {number}"}
        for number in range(9)
    ]  # fmt: skip
    jsonl(root / "mm-halbench/mmhal-bench_with_image.jsonl", records)


def _png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (80, 50), (60 * number % 256, 90, 10)).save(buffer, "PNG")
    return buffer.getvalue()


def mathvista(root: Path, split: str = "testmini") -> None:
    """The parquet file of the Hugging Face data set; the test split has no answers."""
    import pyarrow
    from pyarrow import parquet

    rows = []
    for record in MATHVISTA:
        number = int(record["image"][7])
        answer = record["answer"] if split == "testmini" else ""
        image = {"bytes": _png(number), "path": None}
        rows.append({**record, "answer": answer, "metadata": METADATA, "decoded_image": image})
    path = root / f"MathVista/data/{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def mathvista_annotations(root: Path) -> None:
    """The JSON file of the release with the unpacked pictures."""
    records = {record["pid"]: {**record, "metadata": METADATA} for record in MATHVISTA}
    json_file(root / "MathVista/annot_testmini.json", records)
    for number in (1, 2):
        path = root / f"MathVista/images/{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_png(number))


def _drivelm(root: Path) -> None:
    folder = root / "InternVL-Domain-Adaptation-Data"
    picture(folder / "images/drivelm/stitch/a.jpg", 1, (268, 90))
    jsonl(folder / "val/drivelm_val.jsonl", DRIVELM)


WRITERS = {
    "mmvet": mmvet,
    "mmvet-v2": _mmvet_v2,
    "llava_bench": _llava,
    "mmhal-bench_with_image": _mmhal,
    "MathVista_testmini": mathvista,
    "MathVista_test": lambda root: mathvista(root, "test"),
    "DriveLM_val": _drivelm,
}
