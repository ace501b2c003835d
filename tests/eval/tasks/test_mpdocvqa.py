"""MP-DocVQA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from internvl_chat.errors import DataError
from tests.eval.harness import ask, format_cases
from tests.eval.mini.common import json_file, picture
from tests.eval.mini.vqa import WRITERS
from tests.eval.tasks.test_vqa import original

SHORT = "Answer the question using a single word or phrase."


def test_score_by_hand(tmp_path: Path) -> None:
    WRITERS["mpdocvqa_val"](tmp_path)
    asked = ask("vqa-mpdocvqa-val", tmp_path, ["X", "lift", "bob"])
    assert asked.result is not None
    assert asked.result.marks == [1, 0.75, 0]
    assert asked.result.figures == {"anls": 1.75 / 3}


def test_pages_are_announced_by_the_number_of_tiles(tmp_path: Path) -> None:
    WRITERS["mpdocvqa_val"](tmp_path)
    prompts = ask("vqa-mpdocvqa-val", tmp_path, [""] * 3).prompts
    two = f"Image-1: <image>\nImage-2: <image>\nQ? {SHORT}"
    # p2 is twice as wide as high and becomes two tiles, p3 is a small square and stays one.
    assert prompts == [two, f"Image-1: <image>\nWhich? {SHORT}", f"Who? {SHORT}"]
    assert ask("vqa-mpdocvqa-val", tmp_path, [""] * 3, dynamic=False).prompts == [
        two,
        f"Which? {SHORT}",
        f"Who? {SHORT}",
    ]


@pytest.mark.parametrize(("pages", "limit"), [(1, 18), (3, 18), (4, 16), (10, 6), (64, 1), (70, 1)])
def test_pages_share_64_tiles(tmp_path: Path, pages: int, limit: int) -> None:
    picture(tmp_path / "mpdocvqa/images/p.jpg")
    record = {"page_ids": ["p"] * pages, "questionId": 1, "question": "Q?", "answers": ["x"]}
    json_file(tmp_path / "mpdocvqa/val.json", {"data": [record]})
    (item,) = ask("vqa-mpdocvqa-val", tmp_path, ["x"]).items
    assert [shown.max_tiles for shown in item.shown] == [limit] * pages


@pytest.mark.parametrize("case", format_cases("mpdocvqa_val"), ids=lambda case: case["dataset"])
def test_as_the_original_writes_it(tmp_path: Path, case: dict[str, Any]) -> None:
    for number, name in enumerate(case["input_record"]["page_ids"]):
        picture(tmp_path / f"mpdocvqa/images/{name}.jpg", number)
    json_file(tmp_path / "mpdocvqa/val.json", {"data": [case["input_record"]]})
    asked = ask("vqa-mpdocvqa-val", tmp_path, case["model_answers"], dynamic=False)
    assert asked.prompts == case["prompts_seen"]
    assert asked.files["mpdocvqa_val.json"].content.decode() == original(case)
    assert asked.result is not None
    assert asked.result.lines[0] in case["stdout"]


def test_submission(tmp_path: Path) -> None:
    WRITERS["mpdocvqa_test"](tmp_path)
    asked = ask("vqa-mpdocvqa-test", tmp_path, ["a", "b", "c"])
    assert asked.result is None
    assert asked.files["mpdocvqa_test.json"].content.startswith(b'[{"questionId": 5, "answer": "a"},')
    assert b'{"questionId": 6, "answer": "b", "answer_page": 0}' in asked.files["mpdocvqa_test_submission.json"].content


def test_bad_pages(tmp_path: Path) -> None:
    json_file(tmp_path / "mpdocvqa/val.json", {"data": [{"page_ids": [], "questionId": 1, "question": "Q?"}]})
    with pytest.raises(DataError, match="question 1 has no page"):
        ask("vqa-mpdocvqa-val", tmp_path, ["x"])
    record = {"page_ids": ["p"], "questionId": 1, "question": "Q?", "answers": ["x"]}
    json_file(tmp_path / "mpdocvqa/val.json", {"data": [record]})
    with pytest.raises(DataError, match=r"1 pictures or videos are not there: .*p.jpg"):
        ask("vqa-mpdocvqa-val", tmp_path, ["x"])
    (tmp_path / "mpdocvqa/images").mkdir()
    (tmp_path / "mpdocvqa/images/p.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"p\.jpg"):
        ask("vqa-mpdocvqa-val", tmp_path, ["x"])
