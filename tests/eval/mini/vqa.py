"""Miniature sets of short answers, in the guide's layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.eval.mini.common import json_file, jsonl, picture

QUESTIONS = ("what is it?", "how many dogs are there?", "is it red?")
ANSWERS = (["dog"] * 6 + ["a cat"] * 4, ["2"] * 3 + ["two"] * 7, ["no"] * 9 + ["yes"])


def _records(folder: str, answers: Sequence[Any], suffix: str = ".png") -> list[dict[str, Any]]:
    """Records without their answers where ``answers`` has None."""
    found = []
    for number, (question, answer) in enumerate(zip(QUESTIONS, answers, strict=True), 1):
        record = {"image": f"data/{folder}/p{number}{suffix}", "question": question, "question_id": number}
        found.append(record if answer is None else record | {"answer": answer})
    return found


def _pictures(root: Path, records: Sequence[dict[str, Any]]) -> None:
    for number, record in enumerate(records):
        picture(root / record["image"].removeprefix("data/"), number)


def _plain(path: str, folder: str, answers: Sequence[Any]) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        records = _records(folder, answers)
        _pictures(root, records)
        jsonl(root / path, records)

    return write


def _soft(path: str, annotations: str, folder: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        _plain(path, folder, [golds[0] for golds in ANSWERS])(root)
        rows = [
            {"question_id": number, "answers": [{"answer": gold} for gold in golds]}
            for number, golds in enumerate(ANSWERS, 1)
        ]
        json_file(root / annotations, {"annotations": rows})

    return write


def _documents(path: str, annotations: str, folder: str) -> Callable[[Path], None]:
    golds = [["the hague", "hague"], ["2"], ["no"]]

    def write(root: Path) -> None:
        _plain(path, folder, golds)(root)
        data = [
            {"questionId": number, "question": question, "answers": answers}
            for number, (question, answers) in enumerate(zip(QUESTIONS, golds, strict=True), 1)
        ]
        json_file(root / annotations, {"dataset_name": "mini", "data": data})

    return write


def _vizwiz_test(root: Path) -> None:
    records = _records("vizwiz/test", [None] * 3, ".jpg")
    _pictures(root, records)
    jsonl(root / "vizwiz/vizwiz_test.jsonl", [record | {"question_id": record["image"]} for record in records])


def _mpdocvqa(split: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        sizes = {"p1": (60, 60), "p2": (80, 40), "p3": (60, 60)}
        for number, (name, size) in enumerate(sizes.items()):
            picture(root / f"mpdocvqa/images/{name}.jpg", number, size)
        data: list[dict[str, Any]] = [
            {"page_ids": ["p1", "p2"], "questionId": 5, "question": "Q?"},
            {"page_ids": ["p2"], "questionId": 6, "question": "Which?"},
            {"page_ids": ["p3"], "questionId": 7, "question": "Who?"},
        ]
        if split == "val":
            data = [record | {"answers": [answer]} for record, answer in zip(data, ("x", "left", "ann"), strict=True)]
        json_file(root / f"mpdocvqa/{split}.json", {"dataset_name": "mini", "data": data})

    return write


_INFO = "infographicsvqa/infographicsvqa_images"
_LETTERS = ("B", "A", "c")
_WORDS = ("yes", "red", "left")
_NUMBERS = ("100", "Red", "0.5")
_NOTHING = (None, None, None)
# Name of a task -> what writes its data below the data root.
WRITERS: dict[str, Callable[[Path], None]] = {
    "okvqa_val": _soft("okvqa/okvqa_val.jsonl", "okvqa/mscoco_val2014_annotations.json", "okvqa/val2014"),
    "textvqa_val": _soft("textvqa/textvqa_val.jsonl", "textvqa/textvqa_val_annotations.json", "textvqa/train_images"),
    "textvqa_val_ocr": _soft(
        "textvqa/textvqa_val_llava.jsonl", "textvqa/textvqa_val_annotations.json", "textvqa/train_images"
    ),
    "vizwiz_val": _soft("vizwiz/vizwiz_val.jsonl", "vizwiz/vizwiz_val_annotations.json", "vizwiz/val"),
    "vizwiz_test": _vizwiz_test,
    "vqav2_val": _soft("vqav2/vqav2_val.jsonl", "vqav2/v2_mscoco_val2014_annotations.json", "vqav2/val2014"),
    "vqav2_testdev": _plain("vqav2/vqav2_testdev.jsonl", "vqav2/test2015", _NOTHING),
    "docvqa_val": _documents("docvqa/val.jsonl", "docvqa/val/val_v1.0.json", "docvqa/val/documents"),
    "docvqa_test": _plain("docvqa/test.jsonl", "docvqa/test/documents", _NOTHING),
    "infographicsvqa_val": _documents(
        "infographicsvqa/val.jsonl", "infographicsvqa/infographicsVQA_val_v1.0_withQT.json", _INFO
    ),
    "infographicsvqa_test": _plain("infographicsvqa/test.jsonl", _INFO, _NOTHING),
    "mpdocvqa_val": _mpdocvqa("val"),
    "mpdocvqa_test": _mpdocvqa("test"),
    "chartqa_test_human": _plain("chartqa/test_human.jsonl", "chartqa/ChartQA Dataset/test/png", _NUMBERS),
    "chartqa_test_augmented": _plain("chartqa/test_augmented.jsonl", "chartqa/ChartQA Dataset/test/png", _NUMBERS),
    "ai2diagram_test": _plain("ai2diagram/test_vlmevalkit.jsonl", "ai2diagram/AI2D_TEST", _LETTERS),
    "gqa_testdev_llava": _plain("gqa/llava_gqa_testdev_balanced_qwen_format.jsonl", "gqa/images", _WORDS),
    "ocrvqa_val": _plain("ocrvqa/ocrvqa_val.jsonl", "ocrvqa/images", _WORDS),
    "ocrvqa_test": _plain("ocrvqa/ocrvqa_test.jsonl", "ocrvqa/images", _WORDS),
}
