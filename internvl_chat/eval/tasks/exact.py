"""Data sets scored by equality: AI2D, GQA and OCR-VQA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from internvl_chat.errors import DataError
from internvl_chat.eval.score.exact import exact, gqa, gqa_answer
from internvl_chat.eval.sources import read_json
from internvl_chat.eval.task import Item, Record, Task
from internvl_chat.eval.tasks.common import LETTER
from internvl_chat.eval.tasks.short import (
    golds_of,
    guide_writer,
    layout,
    lines_of,
    marked,
    row_with,
    short_item,
    written,
)
from internvl_chat.eval.tasks.tables import row_options, table_layout, table_records

_AI2D = "AI2D_TEST"
_GQA = "gqa/testdev_balanced_questions.json"
_GQA_GUIDE = "gqa/llava_gqa_testdev_balanced_qwen_format.jsonl"
_OCRVQA = "ocrvqa/dataset.json"
# OCR-VQA's numbers of its splits.
_SPLITS = {"val": 2, "test": 3}


def _read_ai2d(root: Path) -> Iterator[Record]:
    """Rows of VLMEvalKit's table as the guide's records: options and the request for a letter are in the question."""
    for number, row in enumerate(table_records(root / f"LMUData/{_AI2D}.tsv")):
        options = [f"{letter}. {text}" for letter, text in row_options(row).items()]
        yield {
            "number": number,
            "image": row["images"][0],
            "question": "\n".join([str(row["question"]), *options, LETTER]),
            "question_id": int(row["index"]),
            "answer": row["answer"],
        }


def _read_gqa(root: Path) -> Iterator[Record]:
    found = read_json(root / _GQA)
    if not isinstance(found, dict):
        raise DataError(f"{root / _GQA}: an object of questions by id is expected; is it GQA's own file?")
    for name, one in found.items():
        image = f"data/gqa/images/{one['imageId']}.jpg"
        yield {"image": image, "question": one["question"], "question_id": name, "answer": one["answer"]}


def _gqa_prediction(item: Item, answer: str) -> dict[str, Any]:
    return {"questionId": item.extra["question_id"], "prediction": gqa_answer(answer)}


def _ai2d_row(item: Item, answer: str) -> dict[str, Any]:
    # The original writes the id where a picture's name is meant.
    return {
        "question": item.text,
        "image": item.extra["question_id"],
        "answer": answer,
        "annotation": item.extra["answer"],
    }


def _ocrvqa(split: str) -> Task:
    name, path = f"ocrvqa_{split}", f"ocrvqa/ocrvqa_{split}.jsonl"

    def read(root: Path) -> Iterator[Record]:
        number = 0
        for book, one in read_json(root / _OCRVQA).items():
            if one["split"] != _SPLITS[split]:
                continue
            image = f"data/ocrvqa/images/{book}{PurePosixPath(urlsplit(one['imageURL']).path).suffix}"
            for place, (question, answer) in enumerate(zip(one["questions"], one["answers"], strict=True)):
                record = {"number": number, "image": image, "question": question}
                yield record | {"question_id": f"{book}_{place}", "answer": answer}
                number += 1

    source = "https://ocr-vqa.github.io"
    guide = layout("guide", (path,), lines_of(path), source, guide_writer(path, "ocrvqa/images"))
    return Task(
        name,
        f"OCR-VQA, {'validation' if split == 'val' else 'test'}",
        (guide, layout("official", (_OCRVQA,), read, source)),
        short_item(numbered=True),
        marked(lambda answer, item: exact(answer, golds_of(item)), "accuracy", _accuracy_line(name)),
        max_new_tokens=100,
        files=written(name, row_with("questionId", "annotation")),
    )


def _accuracy_line(name: str) -> Callable[[float], list[str]]:
    def lines(mean: float) -> list[str]:
        figures = {"accuracy": mean}
        return [f"{name} {figures}"]

    return lines


TASKS = (
    Task(
        "ai2diagram_test",
        "AI2D, test, labels masked",
        (
            layout(
                "guide", ("ai2diagram/test_vlmevalkit.jsonl",), lines_of("ai2diagram/test_vlmevalkit.jsonl"),
                "https://huggingface.co/OpenGVLab/InternVL",
                guide_writer("ai2diagram/test_vlmevalkit.jsonl", "ai2diagram/AI2D_TEST"),
            ),
            layout("VLMEvalKit", (f"LMUData/{_AI2D}.tsv",), _read_ai2d, table_layout(_AI2D).source),
        ),
        short_item("", numbered=True),
        marked(lambda answer, item: exact(answer, golds_of(item)), "accuracy", _accuracy_line("ai2diagram_test")),
        max_new_tokens=10,
        count=3088,
        files=written("ai2diagram_test", _ai2d_row),
    ),
    Task(
        "gqa_testdev_llava",
        "GQA, balanced test-dev",
        (
            layout(
                "guide", (_GQA_GUIDE,), lines_of(_GQA_GUIDE), "https://cs.stanford.edu/people/dorarad/gqa/download.html",
                guide_writer(_GQA_GUIDE, "gqa/images"),
            ),
            layout("official", (_GQA,), _read_gqa, "https://cs.stanford.edu/people/dorarad/gqa/download.html"),
        ),
        short_item(),
        marked(
            lambda answer, item: gqa(answer, golds_of(item)[0]), "accuracy",
            lambda mean: [f"gqa_testdev_llava Accuracy: {mean * 100:.2f}%"], scale=100,
        ),
        max_new_tokens=10,
        count=12578,
        files=written("gqa_testdev_llava", row_with("questionId", "annotation"), _gqa_prediction),
    ),
    _ocrvqa("val"),
    _ocrvqa("test"),
)  # fmt: skip
KEYS = {
    "vqa-ai2d-test": ("ai2diagram_test",),
    "vqa-gqa-testdev": ("gqa_testdev_llava",),
    "vqa-ocrvqa-val": ("ocrvqa_val",),
    "vqa-ocrvqa-test": ("ocrvqa_test",),
}
