"""MME: cleaning, points of a subtask, sums."""

from __future__ import annotations

import re
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
    # Ours is said in words where an answer has a tab: it does no harm.
    value = points_without_tabs(case) if isinstance(case.get("ours"), str) else expected(case)
    assert subtask_score(case["ground_truth"], answers) == value


def points_without_tabs(case: dict[str, Any]) -> float:
    rows = zip(case["prediction"]["rows"], case["ground_truth"], strict=True)
    hits = [parse_answer(row["prediction"].replace("\t", " ")) == gold.lower() for row, gold in rows]
    pairs = [all(hits[place : place + 2]) for place in range(0, len(hits), 2)]
    return 100 * sum(hits) / len(hits) + 100 * sum(pairs) / len(pairs)


def test_points_with_a_tab_as_a_further_case_might_have_it() -> None:
    rows = [{"prediction": answer} for answer in ("no\t", "no", "\tyes", "no")]
    case = {"prediction": {"rows": rows}, "ground_truth": ["Yes", "No", "Yes", "No"], "expected": 0, "ours": "words"}
    assert points_without_tabs(case) == 125
    test_points(case)


def points_of(words: str) -> dict[str, float]:
    """The points of all subtasks, which the cases say in words; those that are not named are whole."""
    names = (*PERCEPTION, *COGNITION)
    points = dict.fromkeys(names, 0.0 if "wrong" in words else 200.0)
    if found := re.search(r"the rest at (\d+)", words):
        points = dict.fromkeys(names, float(found[1]))
    named = [name for name in names if re.search(rf"\b{name}\b", words)]
    if found := re.search(r"(\d+) in one subtask", words):
        return points | {PERCEPTION[0]: float(found[1])}
    if found := re.search(r"always the same answer scores (\d+)", words):  # in one subtask of each group
        return points | {PERCEPTION[0]: float(found[1]), COGNITION[-1]: float(found[1])}
    if named:
        found = re.search(r"at (\d+)", words)
        assert found, words
        return points | dict.fromkeys(named, float(found[1]))
    assert re.search(r"\b(all|everything)\b", words), f"a case in words that no rule is for: {words}"
    return points


@pytest.mark.parametrize("case", cases("mme_totals"))
def test_totals(case: dict[str, Any]) -> None:
    assert totals(points_of(case["prediction"])) == expected(case)


@pytest.mark.parametrize(
    ("words", "perception", "cognition"),
    [
        ("OCR and text_translation at 75, the rest at 100", 975, 375),
        ("count and OCR at 0, the rest at 200", 1600, 800),
        ("150 in one subtask", 1950, 800),
        ("everything right", 2000, 800),
        ("all wrong", 0, 0),
    ],
)
def test_totals_as_further_cases_might_say_them(words: str, perception: float, cognition: float) -> None:
    due = {"perception": perception, "cognition": cognition, "total": perception + cognition}
    test_totals({"prediction": words, "expected": due})


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
