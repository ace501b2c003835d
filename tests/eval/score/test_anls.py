"""ANLS."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.errors import DataError
from internvl_chat.eval.score.anls import anls, check_submission, levenshtein
from tests.eval.cases import cases, expected


@pytest.mark.parametrize("case", cases("anls"))
def test_anls(case: dict[str, Any]) -> None:
    if isinstance(case["expected"], dict):
        with pytest.raises(DataError, match="a single text"):
            anls(case["prediction"], case["ground_truth"])
        return
    assert anls(case["prediction"], case["ground_truth"]) == pytest.approx(expected(case), abs=1e-12)


@pytest.mark.parametrize("case", cases("anls_levenshtein"))
def test_levenshtein(case: dict[str, Any]) -> None:
    assert levenshtein(case["prediction"], case["ground_truth"]) == expected(case)


@pytest.mark.parametrize("case", cases("anls_submission_check"))
def test_submission(case: dict[str, Any]) -> None:
    questions = case["ground_truth"]["data"]
    if expected(case) == "ok":
        check_submission(case["prediction"], questions)
        return
    with pytest.raises(DataError):
        check_submission(case["prediction"], questions)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"questionId": 1, "answer": "a"}], "1 answers to 2 questions"),
        ([{"questionId": 1, "answer": "a"}, {"questionId": 1, "answer": "a"}], "ids of answers and questions differ"),
        ([{"questionId": 1}, {"questionId": 2, "answer": "a"}], "an object with questionId and answer"),
        ([{"questionId": "x", "answer": "a"}, {"questionId": 2, "answer": "a"}], "no whole number"),
        ([{"questionId": 1, "answer": ["a"]}, {"questionId": 2, "answer": "a"}], "a single text"),
    ],
)
def test_submission_is_refused(entries: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_submission(entries, [{"questionId": 1}, {"questionId": "2"}])


def test_ids_may_be_texts() -> None:
    check_submission(
        [{"questionId": "2", "answer": "a"}, {"questionId": 1, "answer": ""}], [{"questionId": 1}, {"questionId": 2}]
    )


def test_the_divisor_is_the_raw_length() -> None:
    assert anls("ab   x", ["ab y"]) == 1 - 1 / 6
    assert anls("hell", ["", "hello"]) == 1 - 1 / 5
    with pytest.raises(DataError, match="without any right answer"):
        anls("a", [])


@given(st.text(max_size=12), st.text(max_size=12))
def test_bounds(answer: str, gold: str) -> None:
    value = anls(answer, [gold])
    assert value == 0 or 0.5 <= value <= 1
    assert levenshtein(answer, gold) == levenshtein(gold, answer) <= max(len(answer), len(gold))
