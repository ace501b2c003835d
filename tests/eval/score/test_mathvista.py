"""MathVista: extraction and scores, the original's and VLMEvalKit's."""

from __future__ import annotations

from typing import Any

import pytest

from internvl_chat.eval.score.mathvista import extract, settled, vlm_prefetch, vlm_right
from tests.eval.cases import cases, expected
from tests.eval.judges import FakeJudge

OPTIONS = {"A": "3/11", "B": "8/11", "C": "6/11", "D": "3/5"}
FREE = {"question_type": "free_form", "answer_type": "integer", "choices": None, "query": "Q"}
CHOICE = {"question_type": "multi_choice", "answer_type": "text", "choices": list(OPTIONS.values()), "query": "Q"}


@pytest.mark.parametrize("case", cases("mathvista_extract"))
def test_extract(case: dict[str, Any]) -> None:
    judge = FakeJudge({"": "JUDGE"})
    found = extract(case["prediction"]["response"], case["ground_truth"], case["prediction"]["quick"], judge)
    assert {"extraction": found.text, "asked_judge": bool(judge.asked)} == expected(case)
    assert found.judged == bool(judge.asked)


def test_extract_without_a_judge() -> None:
    assert extract("It is 14.", FREE, False, None).text is None
    assert extract("", FREE, False, None).text == ""
    assert extract("14", FREE, False, None).text == "14"
    assert extract("I think.\nFinal answer: (B)\nDone", CHOICE, True, None).text == "(B)"


def test_an_empty_reply_is_asked_for_again() -> None:
    judge = FakeJudge({"": ["", " 7 "]})
    assert extract("seven", FREE, False, judge).text == "7"
    assert judge.temperatures == [0.0, 0.5]
    assert judge.asked[0][0].endswith("\nQ\nModel: seven\nExtracted answer: ")


@pytest.mark.parametrize("case", cases("mathvista_score") + cases("mathvista_score_ugly"))
def test_settled(case: dict[str, Any]) -> None:
    found = settled(case["prediction"]["extraction"], case["prediction"])
    assert {"prediction": found, "correct": found == case["ground_truth"]} == expected(case)


@pytest.mark.parametrize(
    ("extraction", "choice"), [("Z", "3/5"), ("the answer (c) is right", "6/11"), (" D ", "3/5"), ("8/1", "8/11")]
)
def test_options(extraction: str, choice: str) -> None:
    # "Z" takes three edits for "3/5" and four for the others.
    assert settled(extraction, CHOICE) == choice


@pytest.mark.parametrize("value", ["inf", "nan", "", "1e999"])
def test_what_is_no_whole_number(value: str) -> None:
    assert settled(value, FREE) is None
    assert settled("14.7", FREE) == "14"
    assert settled("1.23", {**FREE, "answer_type": "float", "precision": None}) is None


@pytest.mark.parametrize("case", cases("mathvista_vlm_check"))
def test_vlm_right(case: dict[str, Any]) -> None:
    record = {**case["ground_truth"], "options": OPTIONS}
    assert vlm_right(case["prediction"], record, lists=True) == expected(case)
    assert vlm_right(case["prediction"], record, lists=False) == case["expected"]


@pytest.mark.parametrize("case", cases("mathvista_vlm_prefetch"))
def test_vlm_prefetch(case: dict[str, Any]) -> None:
    found = vlm_prefetch(case["prediction"], {**case["ground_truth"], "options": OPTIONS})
    assert found == (None if case["expected"] is False else case["expected"])
    assert found is None or type(found) is type(case["expected"])


def test_vlm_prefetch_by_hand() -> None:
    free = {"question_type": "free_form", "answer_type": "float", "answer": "0.60", "options": {}}
    assert vlm_prefetch("0.6", free) == 0.6
    assert vlm_prefetch("nan", {**free, "answer": "nan"}) is None
    assert vlm_prefetch("[1]", {**free, "answer_type": "list", "answer": "[1]"}) is None
    assert vlm_prefetch("x", {"question_type": "multi_choice", "answer_type": "text", "options": OPTIONS}) is None
