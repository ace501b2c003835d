"""AI2D, GQA and OCR-VQA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from internvl_chat.errors import DataError
from internvl_chat.eval.registry import tasks
from tests.eval.harness import ask, format_cases
from tests.eval.mini.common import json_file, jsonl, picture
from tests.eval.mini.vlm import base64_picture, table
from tests.eval.mini.vqa import WRITERS
from tests.eval.tasks.layouts import read_both_ways
from tests.eval.tasks.test_vqa import original

KEYS = {
    "ai2diagram_test": "vqa-ai2d-test",
    "gqa_testdev_llava": "vqa-gqa-testdev",
    "ocrvqa_val": "vqa-ocrvqa-val",
    "ocrvqa_test": "vqa-ocrvqa-test",
}


@pytest.mark.parametrize(
    ("name", "answers", "marks"),
    [
        ("ai2diagram_test", [" b", "(A)", "C"], [1, 0, 1]),
        ("gqa_testdev_llava", ["Yes..", "Red ", "left"], [1, 0, 1]),
        ("ocrvqa_val", ["YES ", "", "right"], [1, 0, 0]),
        ("ocrvqa_test", ["no", "Red", "left"], [0, 1, 1]),
    ],
)
def test_score_by_hand(tmp_path: Path, name: str, answers: list[str], marks: list[float]) -> None:
    WRITERS[name](tmp_path)
    asked = ask(KEYS[name], tmp_path, answers)
    assert asked.result is not None
    assert asked.result.marks == marks
    scale = 100 if name.startswith("gqa") else 1
    assert asked.result.figures == {"accuracy": pytest.approx(scale * sum(marks) / 3)}


@pytest.mark.parametrize("case", format_cases(*KEYS), ids=lambda case: case["dataset"])
def test_as_the_original_writes_it(tmp_path: Path, case: dict[str, Any]) -> None:
    name = case["dataset"]
    jsonl(tmp_path / tasks()[name].layouts[0].files[0], [case["input_record"]])
    picture(tmp_path / "a.png")
    asked = ask(KEYS[name], tmp_path, case["model_answers"])
    assert asked.prompts == case["prompts_seen"]
    assert asked.files[f"{name}.json"].content.decode() == original(case)
    assert asked.result is not None
    assert asked.result.lines[0] in case["stdout"]


def test_gqa_predictions_for_its_own_scorer(tmp_path: Path) -> None:
    WRITERS["gqa_testdev_llava"](tmp_path)
    asked = ask("vqa-gqa-testdev", tmp_path, ["Yes.", "a", "b"])
    content = asked.files["gqa_testdev_llava_submission.json"].content
    assert content.startswith(b'[{"questionId": 1, "prediction": "yes"},')


def test_ai2d_table(tmp_path: Path) -> None:
    rows = [
        {"index": 0, "question": "Which?", "A": "leaf", "B": "None", "answer": "B", "image": base64_picture(1)},
        {"index": 1, "question": "And?", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "D", "image": "0"},
    ]
    table(tmp_path / "LMUData/AI2D_TEST.tsv", rows)
    first, second = read_both_ways("vqa-ai2d-test", tmp_path, "VLMEvalKit")
    assert first["text"] == (
        "Which?\nA. leaf\nB. None\nAnswer with the option's letter from the given choices directly."
    )
    assert (first["id"], first["gold"], second["gold"]) == ("0", "B", "D")
    assert first["shown"] == second["shown"]


def test_gqa_release(tmp_path: Path) -> None:
    picture(tmp_path / "gqa/images/n161313.jpg")
    questions = {"201307251": {"imageId": "n161313", "question": "Is it overcast?", "answer": "no", "isBalanced": True}}
    json_file(tmp_path / "gqa/testdev_balanced_questions.json", questions)
    (item,) = read_both_ways("vqa-gqa-testdev", tmp_path, "official")
    assert (item["id"], item["gold"]) == ("201307251", "no")


@pytest.mark.parametrize(("name", "split"), [("ocrvqa_val", 2), ("ocrvqa_test", 3)])
def test_ocrvqa_release(tmp_path: Path, name: str, split: int) -> None:
    picture(tmp_path / "ocrvqa/images/17.jpg")
    books = {
        str(number): {
            "imageURL": "http://ecx.example.org/images/I/51a.jpg",
            "questions": ["Who wrote this book?", "What is the title?"],
            "answers": ["Ann", "T"],
            "split": which,
        }
        for number, which in ((16, 5 - split), (17, split))
    }
    json_file(tmp_path / "ocrvqa/dataset.json", books)
    items = read_both_ways(KEYS[name], tmp_path, "official")
    assert [(item["id"], item["gold"], item["extra"]["question_id"]) for item in items] == [
        ("0", "Ann", "17_0"),
        ("1", "T", "17_1"),
    ]


def test_bad_data(tmp_path: Path) -> None:
    json_file(tmp_path / "gqa/testdev_balanced_questions.json", [])
    with pytest.raises(DataError, match="an object of questions by id is expected"):
        ask("vqa-gqa-testdev", tmp_path, [])
    picture(tmp_path / "a.png")
    jsonl(
        tmp_path / "ai2diagram/test_vlmevalkit.jsonl",
        [{"image": "data/a.png", "question": "Q", "question_id": 1, "answer": []}],
    )
    with pytest.raises(DataError, match="question 1 has no answer"):
        ask("vqa-ai2d-test", tmp_path, ["A"])
