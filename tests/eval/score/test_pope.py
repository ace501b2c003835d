"""POPE: yes or no, counts, ratios."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.eval.score.pope import counts, overall_f1, ratios, report_lines, unclear, yes_or_no
from tests.eval.cases import cases, expected


@pytest.mark.parametrize("case", cases("pope_answer"))
def test_answer(case: dict[str, Any]) -> None:
    assert yes_or_no(case["prediction"]) == expected(case)


@pytest.mark.parametrize("case", cases("pope_category"))
def test_category(case: dict[str, Any]) -> None:
    labels, answers = case["ground_truth"], case["prediction"]
    if len(labels) != len(answers):  # the original cuts what has no partner; here every answer has its own label
        with pytest.raises(ValueError, match="zip"):
            counts(labels, answers)
        return
    found = counts(labels, answers)
    assert found | ratios(found) == expected(case)


@pytest.mark.parametrize("case", cases("pope_overall"))
def test_overall(case: dict[str, Any]) -> None:
    found = case["prediction"]
    assert [ratios(one)["f1"] for one in found.values()] == case["expected"]["f1"]
    assert round(overall_f1(found.values()), 2) == case["expected"]["overall_f1_x100"]


def test_published_lines() -> None:
    lines = report_lines("random", {"TP": 1230, "FP": 18, "TN": 1392, "FN": 270})
    assert lines[:3] == ["Category: random, # samples: 2910", "TP\tFP\tTN\tFN\t", "1230\t18\t1392\t270"]
    assert lines[6].startswith("F1 score: 0.8951965")


@pytest.mark.parametrize(("answer", "guessed"), [("Yes", False), ("no, it", False), ("isn't", True), ("", True)])
def test_unclear(answer: str, guessed: bool) -> None:
    assert unclear(answer) is guessed


def test_nothing_is_divided_by_zero() -> None:
    found = counts(["yes", "yes"], ["no", "no"])
    assert ratios(found) == {"accuracy": 0, "precision": 0, "recall": 0, "f1": 0, "yes_ratio": 0}
    assert overall_f1([]) == 0


@given(st.lists(st.tuples(st.sampled_from(["yes", "no"]), st.text(max_size=10))))
def test_every_answer_is_counted_once(rows: list[tuple[str, str]]) -> None:
    found = counts([label for label, _ in rows], [answer for _, answer in rows])
    assert sum(found.values()) == len(rows)
    assert found["TP"] + found["FN"] == sum(label == "yes" for label, _ in rows)
