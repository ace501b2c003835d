"""Tiny LVLM: golds as whole words."""

from __future__ import annotations

from typing import Any

import pytest

from internvl_chat.eval.score.tiny_lvlm import contains_gold, shares
from tests.eval.cases import cases, expected


@pytest.mark.parametrize("case", cases("tiny_lvlm"))
def test_words(case: dict[str, Any]) -> None:
    assert int(contains_gold(case["prediction"], case["ground_truth"])) == expected(case)


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [("two cats", "2", True), ("", "the", False), ("a (dog)", "dog", True), ("x", " ", False)],
)
def test_by_hand(answer: str, gold: str, right: bool) -> None:
    assert contains_gold(answer, gold) is right


def test_overall_is_a_sum() -> None:
    assert shares([("a", True), ("b", True), ("a", False)]) == {"a": 0.5, "b": 1.0, "Overall": 1.5}
