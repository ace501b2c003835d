"""MME: cleaning, points of a subtask, sums."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.eval.score.mme import (
    COGNITION,
    PERCEPTION,
    clean_answer,
    marks,
    parse_answer,
    report_lines,
    subtask_score,
    totals,
)
from tests.eval.cases import cases, expected


@pytest.mark.parametrize("case", cases("mme_post_process"))
def test_clean(case: dict[str, Any]) -> None:
    assert clean_answer(case["prediction"]) == expected(case)


@pytest.mark.parametrize("case", cases("mme_parse"))
def test_parse(case: dict[str, Any]) -> None:
    assert parse_answer(case["prediction"]) == expected(case)


@pytest.mark.parametrize("case", cases("mme_task_score"))
def test_points(case: dict[str, Any]) -> None:
    answers = [row["prediction"] for row in case["prediction"]["rows"]]
    # Ours in words: with the tab replaced both answers are right.
    value = 200.0 if isinstance(case.get("ours"), str) else expected(case)
    assert subtask_score(case["ground_truth"], answers) == value


# What the cases say in words.
SPECIAL = {
    "mme_totals-01": ({}, 200),
    "mme_totals-02": ({"existence": 50, "code_reasoning": 50}, 200),
    "mme_totals-03": ({}, 0),
    "mme_totals-04": ({"existence": 50, "code_reasoning": 50}, 200),
    "mme_totals-05": ({"existence": 125}, 200),
}


@pytest.mark.parametrize("case", cases("mme_totals"))
def test_totals(case: dict[str, Any]) -> None:
    special, rest = SPECIAL[case["id"]]
    assert totals({name: special.get(name, rest) for name in (*PERCEPTION, *COGNITION)}) == expected(case)


def test_always_the_same_answer_scores_fifty() -> None:
    assert subtask_score(["Yes", "No"], ["yes", "yes"]) == 50


def test_untrue_and_now_are_kept_as_they_are() -> None:
    assert clean_answer("Untrue") == "unyes"
    assert parse_answer("now") == "no"
    assert parse_answer("it is yes") == "other"
    assert clean_answer("不是的 x") == "no x"


def test_lines() -> None:
    lines = report_lines({"existence": 190.0, "OCR": 110.0, "code_reasoning": 85.0})
    assert lines == [
        "=========== Perception ===========", "total score: 300.0 ", "", "\t existence  score: 190.0",
        "\t OCR  score: 110.0", "", "=========== Cognition ===========", "total score: 85.0 ", "",
        "\t code_reasoning  score: 85.0", "",
    ]  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(["Yes", "No"]), st.text(max_size=8)), max_size=9))
def test_points_lie_between_0_and_200(rows: list[tuple[str, str]]) -> None:
    golds, answers = [gold for gold, _ in rows], [answer for _, answer in rows]
    assert 0 <= subtask_score(golds, answers) <= 200
    assert subtask_score(golds, [""] * len(rows)) == 0
    assert len(marks(golds, answers)) == len(rows)
    assert all("\n" not in clean_answer(answer) and "\t" not in clean_answer(answer) for answer in answers)
