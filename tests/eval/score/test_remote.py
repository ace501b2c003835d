"""RSVQA."""

from __future__ import annotations

from typing import Any

import pytest

from internvl_chat.eval.score.remote import bucket, rsvqa, shares
from tests.eval.cases import cases, expected


@pytest.mark.parametrize("case", cases("rsvqa"))
def test_rsvqa(case: dict[str, Any]) -> None:
    asked = case["prediction"]
    assert rsvqa(asked["type"], asked["response"], case["ground_truth"]) == expected(case)


def test_buckets() -> None:
    numbers = ["0", "1", "100", "101", "1000", "1001", "-1", "1.0", "", "12m2"]
    assert [bucket(text) for text in numbers] == [0, 1, 1, 2, 2, 3, None, None, None, None]
    assert rsvqa("area", "0", "0m2") == 1
    assert rsvqa("area", "12", "30m2") == 1
    assert rsvqa("comp", "YES", "yes") == 1


def test_gold_loses_its_last_twos_with_the_unit() -> None:
    assert rsvqa("area", "1", "122m2") == 1
    assert rsvqa("area", "122", "122m2") == 0
    assert [rsvqa("area", answer, "2m2") for answer in ("2", "0", "")] == [0, 0, 0]
    assert rsvqa("area", "7", "22m25") == 0
    assert rsvqa("count", "2", "2") == 1  # without a unit nothing is cut


def test_useful_leaves_counts_out() -> None:
    figures = shares(["count", "presence", "area", "comp"], [0, 1, 0, 0])
    assert figures == {"count": 0, "presence": 1, "area": 0, "comp": 0, "useful": 0.5, "total": 0.25}
    assert shares(["count"], [1]) == {"count": 1, "total": 1}
