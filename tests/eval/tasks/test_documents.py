"""DocVQA and InfographicVQA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.errors import DataError
from internvl_chat.eval.registry import tasks
from tests.eval.cases import cases, expected
from tests.eval.harness import ask, format_cases
from tests.eval.mini import write_task
from tests.eval.mini.common import json_file, jsonl, picture
from tests.eval.mini.vqa import QUESTIONS, WRITERS
from tests.eval.tasks.layouts import parquet_file, picture_cell, read_both_ways
from tests.eval.tasks.test_vqa import original

KEYS = {
    "docvqa_val": "vqa-docvqa-val",
    "docvqa_test": "vqa-docvqa-test",
    "infographicsvqa_val": "vqa-infovqa-val",
    "infographicsvqa_test": "vqa-infovqa-test",
}


@pytest.mark.parametrize("name", ["docvqa_val", "infographicsvqa_val"])
def test_score_by_hand(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path)
    asked = ask(KEYS[name], tmp_path, ["hagues", "3", ""])
    assert asked.result is not None
    assert asked.result.marks == pytest.approx([1 - 1 / 6, 0, 0])
    assert asked.result.figures == pytest.approx({"anls": 5 / 18})
    assert asked.result.lines == ["Overall ANLS: 0.2778"]


@pytest.mark.parametrize("case", format_cases(*KEYS), ids=lambda case: case["dataset"])
def test_as_the_original_writes_it(tmp_path: Path, case: dict[str, Any]) -> None:
    name = case["dataset"]
    layout = tasks()[name].layouts[0]
    jsonl(tmp_path / layout.files[0], [case["input_record"]])
    picture(tmp_path / "a.png")
    if len(layout.files) > 1:
        answers = case["input_record"]["answer"]
        data = [{"questionId": 1, "question": "what is it?", "answers": answers}]
        json_file(tmp_path / layout.files[1], {"dataset_name": "d", "data": data})
    asked = ask(KEYS[name], tmp_path, case["model_answers"])
    assert asked.prompts == case["prompts_seen"]
    assert asked.files[f"{name}.json"].content.decode() == original(case)
    if name == "infographicsvqa_test":
        assert asked.files[f"{name}_submission.json"].content == b'[{"questionId": 1, "answer": "x"}]'
    if name.endswith("_val"):
        assert asked.result is not None
        assert asked.result.lines[0] in case["stdout"]
    else:
        assert asked.result is None


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("docvqa_val", False), ("docvqa_test", True), ("infographicsvqa_val", False), ("infographicsvqa_test", True),
        ("mpdocvqa_val", False), ("mpdocvqa_test", True),
    ],
)  # fmt: skip
def test_what_is_not_ascii_in_files(tmp_path: Path, name: str, escaped: bool) -> None:
    write_task(name, tmp_path)
    answer = "größer 5 €\ud800"  # a model can write half a character
    asked = ask(name, tmp_path, lambda item: answer)
    text = asked.files[f"{name}.json"].content.decode()
    assert ("größer" in text, "gr\\u00f6\\u00dfer" in text) == (not escaped, escaped)
    assert {row["answer"] for row in json.loads(text)} == {answer}


def test_tiles_of_the_published_figures() -> None:
    assert [tasks()[name].max_tiles for name in KEYS] == [18, 18, 24, 24]
    assert {tasks()[name].max_new_tokens for name in KEYS} == {100}


@pytest.mark.parametrize(
    ("name", "release"),
    [
        *((name, release) for name in KEYS for release in ("official", "lmms-lab")),
        ("infographicsvqa_val", "lmms-lab in docvqa"),
        ("infographicsvqa_test", "lmms-lab in docvqa"),
    ],
)
def test_releases(tmp_path: Path, name: str, release: str) -> None:
    release, _, place = release.partition(" in ")
    layout = next(layout for layout in tasks()[name].layouts if layout.name == release and place in layout.files[0])
    document = name.startswith("docvqa")
    folder = tmp_path / (f"docvqa/{name[7:]}" if document else "infographicsvqa/infographicsvqa_images")
    rows: list[dict[str, Any]] = []
    for number, question in enumerate(QUESTIONS):
        image = f"documents/d{number}.png" if document else f"{number}.jpeg"
        picture(folder / image, number)
        row: dict[str, Any] = {"question": question, "image" if document else "image_local_name": image}
        row["questionId"] = 337 + number
        rows.append(row if name.endswith("_test") else row | {"answers": [f"gold {number}", "x"]})
    if release == "official":
        json_file(tmp_path / layout.files[0], {"dataset_name": "d", "data": rows})
    else:
        cells = [
            {
                "questionId": str(row["questionId"]),
                "question": row["question"],
                "answers": row.get("answers"),
                "image": picture_cell(folder / str(row.get("image") or row["image_local_name"])),
            }
            for row in rows
        ]
        parquet_file(tmp_path / layout.files[0].replace("*", "00000-of-00001"), cells)
    items = read_both_ways(KEYS[name], tmp_path, release)
    assert [item["id"] for item in items] == ["337", "338", "339"]
    assert items[1]["gold"] == (None if name.endswith("_test") else ["gold 1", "x"])


@pytest.mark.parametrize("case", cases("anls_submission_check"), ids=lambda case: case["id"])
def test_questions_and_annotations_of_one_release(tmp_path: Path, case: dict[str, Any]) -> None:
    if not isinstance(case["prediction"], list):
        return  # the answers are ours, one for each question
    picture(tmp_path / "a.png")
    rows = [{"image": "data/a.png", "question": "?", "question_id": one["questionId"]} for one in case["prediction"]]
    jsonl(tmp_path / "docvqa/val.jsonl", rows)
    json_file(tmp_path / "docvqa/val/val_v1.0.json", case["ground_truth"])
    if expected(case) == "ok":
        assert len(ask("vqa-docvqa-val", tmp_path, ["a", "b"]).items) == len(rows)
        return
    with pytest.raises(DataError, match="take both of one release"):
        ask("vqa-docvqa-val", tmp_path, ["a", "b"])


def test_questions_that_the_annotation_file_has_alone(tmp_path: Path) -> None:
    WRITERS["docvqa_val"](tmp_path)
    path = tmp_path / "docvqa/val/val_v1.0.json"
    document = json.loads(path.read_text())
    document["data"].append({"questionId": 9, "question": "?", "answers": ["x"]})
    json_file(path, document)
    with pytest.raises(DataError, match=r"val_v1\.0\.json: 1 questions that docvqa/val\.jsonl does not have, '9' for"):
        ask("vqa-docvqa-val", tmp_path, ["x"] * 3)
    json_file(path, {"dataset_name": "d"})
    with pytest.raises(DataError, match="no field 'data'"):
        ask("vqa-docvqa-val", tmp_path, ["x"] * 3)
