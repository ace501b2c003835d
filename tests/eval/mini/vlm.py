"""Miniature tables of VLMEvalKit."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

Row = Mapping[str, Any]


def base64_picture(number: int = 0, size: tuple[int, int] = (80, 50), kind: str = "PNG") -> str:
    """A small picture of one colour, or, above 100, part of a real one."""
    if number > 100:
        from skimage import data

        made = Image.fromarray((data.page() if number == 101 else data.astronaut())[:120, :200]).convert("RGB")
    else:
        made = Image.new("RGB", size, (50 * number % 256, 90, 130))
    buffer = io.BytesIO()
    made.save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


def table(path: Path, rows: Sequence[Row]) -> Path:
    """A TSV with all columns that some row has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def _mmstar() -> list[Row]:
    names = {"A": "a page", "B": "None", "C": "a dog", "D": "a car"}
    first = {"index": 0, "question": "What is it?", **names, "answer": "A", "category": "coarse perception"}
    second = {"index": 1, "question": "What\nis absent?", **names, "answer": "B", "category": "math"}
    third = {"index": 2, "question": "这是什么？", **names, "answer": "C", "category": "math"}
    return [
        {**first, "image": base64_picture(101), "l2_category": "image topic"},
        {**second, "image": base64_picture(1), "l2_category": "algebra"},
        {**third, "image": "0", "l2_category": "algebra"},
    ]


def _realworldqa() -> list[Row]:
    return [
        {"index": 0, "image": base64_picture(2), "question": "How many cars?", "A": "1", "B": "2", "answer": "B"},
        {"index": 1, "image": base64_picture(3, kind="JPEG"), "question": "Which way?", "A": "left", "B": "right",
         "C": "straight on", "answer": "A"},
    ]  # fmt: skip


def _mmmu() -> list[Row]:
    several = str([base64_picture(4), base64_picture(5), base64_picture(6)])
    return [
        {"index": 1, "id": "dev_Art_1", "image": base64_picture(102), "question": "Who <image 1>?", "hint": "Look.",
         "A": "one", "B": "two", "answer": "A", "category": "Art", "l2-category": "Art & Design", "split": "dev"},
        {"index": 2, "image": several, "question": "<image 1> <image 2> <image 3>: odd one?", "A": "1", "B": "2",
         "C": "3", "answer": "C", "category": "Art", "l2-category": "Art & Design", "split": "validation"},
        {"index": 3, "image": base64_picture(7), "question": "How many?", "answer": "7", "category": "Math",
         "l2-category": "Science", "split": "validation"},
    ]  # fmt: skip


def _ai2d() -> list[Row]:
    return [
        {"index": 10, "image": base64_picture(1), "question": "Which is a leaf?", "A": "a", "B": "b", "C": "c",
         "D": "d", "answer": "D"},
        {"index": 11, "image": "10", "question": "Which is a root?", "A": "a", "B": "b", "answer": "A"},
    ]  # fmt: skip


def _ocrbench() -> list[Row]:
    formula = "Handwritten Mathematical Expression Recognition"
    return [
        {"index": 0, "image": base64_picture(101), "question": "What is written?", "answer": "['Region', 'page']",
         "category": "Regular Text Recognition"},
        {"index": 1, "image": base64_picture(2), "question": "What is the total?", "answer": "['7.50']",
         "category": "Key Information Extraction"},
        {"index": 2, "image": base64_picture(3), "question": "Write it in LaTeX.", "answer": "['x ^ 2']",
         "category": formula},
    ]  # fmt: skip


def _hallusion() -> list[Row]:
    common = {"category": "VD", "l2-category": "VD_figure"}
    return [
        {"index": "VD_figure_1_0_1_0", "image": base64_picture(1), "question": "Is it red?", "answer": "No", **common},
        {"index": "VD_figure_1_0_1_1", "image": base64_picture(2), "question": "Is it new?", "answer": "Yes", **common},
        {"index": "VD_figure_2_0_2_0", "image": base64_picture(3), "question": "Is it red?", "answer": "Yes", **common},
        {"index": "VS_map_1_0_1_0", "image": base64_picture(4), "question": "Is it far?", "answer": "No",
         "category": "VS", "l2-category": "VS_map"},
        {"index": "VS_map_0_0_0_0", "question": "Without a picture?", "answer": "No", "category": "VS",
         "l2-category": "VS_map"},
    ]  # fmt: skip


def _mathvista() -> list[Row]:
    return [
        {"index": 1, "image": base64_picture(1), "question": "Hint: A letter.\nQuestion: Which?\nChoices:\n(A) 3/11\n"
         "(B) 8/11", "question_type": "multi_choice", "answer_type": "text", "choices": "['3/11', '8/11']",
         "answer": "8/11", "answer_option": "B", "task": "geometry problem solving",
         "skills": "['geometry reasoning', 'algebraic reasoning']"},
        {"index": 2, "image": base64_picture(2), "question": "Hint: An integer.\nQuestion: How many?",
         "question_type": "free_form", "answer_type": "integer", "answer": "0", "task": "figure question answering",
         "skills": "['statistical reasoning']"},
        {"index": 3, "image": base64_picture(3), "question": "Hint: A list.\nQuestion: When?",
         "question_type": "free_form", "answer_type": "list", "answer": "[1990, 1992]",
         "task": "figure question answering", "skills": "['statistical reasoning']"},
    ]  # fmt: skip


def _mmvet() -> list[Row]:
    return [
        {"index": "v1_0", "image": base64_picture(1), "question": "What is x?", "answer": "-1 <AND> -5",
         "category": "ocr,math"},
        {"index": "v1_1", "image": base64_picture(102), "question": "Who is it?", "answer": "an astronaut",
         "category": "rec"},
    ]  # fmt: skip


def _llava() -> list[Row]:
    return [
        {"index": 0, "image": base64_picture(1), "question": "What is it?", "caption": "A hill.", "gpt4_ans": "A hill.",
         "category": "conv"},
        {"index": 1, "image": "0", "question": "Describe it.", "caption": "A hill.", "gpt4_ans": "A green hill.",
         "category": "detail"},
        {"index": 2, "image": base64_picture(3), "question": "Why?", "caption": "A sea.", "gpt4_ans": "The tide.",
         "category": "complex"},
    ]  # fmt: skip


ROWS: Mapping[str, Callable[[], list[Row]]] = {
    "MMStar": _mmstar,
    "RealWorldQA": _realworldqa,
    "MMMU_DEV_VAL": _mmmu,
    "AI2D_TEST": _ai2d,
    "OCRBench": _ocrbench,
    "HallusionBench": _hallusion,
    "MathVista_MINI": _mathvista,
    "MMVet": _mmvet,
    "LLaVABench": _llava,
}


def _writer(name: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        table(root / f"LMUData/{name}.tsv", ROWS[name]())

    return write


WRITERS = {name: _writer(name) for name in ROWS}
