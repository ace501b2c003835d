"""Relaxed accuracy."""

from __future__ import annotations

from typing import Any

import pytest

from internvl_chat.eval.score.relaxed import chartqa_average, relaxed
from tests.eval.cases import cases, expected


def golds_of(case: dict[str, Any]) -> list[str]:
    gold = case["ground_truth"]
    return [gold] if isinstance(gold, str) else gold


@pytest.mark.parametrize("case", cases("chartqa_relaxed") + cases("chartqa_relaxed_ugly"))
def test_relaxed(case: dict[str, Any]) -> None:
    assert relaxed(case["prediction"], golds_of(case)) == expected(case)
    if "expected_by_definition" in case:
        assert relaxed(case["prediction"], golds_of(case), "definition") == case["expected_by_definition"]


@pytest.mark.parametrize(
    ("answer", "internvl", "definition"),
    [("95", 0, 1), ("95.3", 1, 1), ("105", 1, 1), ("105.2", 1, 0), ("105.27", 0, 0), ("94", 0, 0), ("10000%", 1, 1)],
)
def test_whose_five_percent(answer: str, internvl: float, definition: float) -> None:
    assert relaxed(answer, ["100"]) == internvl
    assert relaxed(answer, ["100"], "definition") == definition


def test_ends() -> None:
    assert relaxed(" 7 ", ["7"]) == 1
    assert relaxed("red ", ["blue", "RED"]) == 1
    assert relaxed("0", ["0"]) == relaxed("0", ["0"], "definition") == 1
    assert relaxed("0", ["0.01"]) == 0
    assert relaxed("-5", ["-5.2"]) == 1
    assert relaxed("inf", ["1e999"]) == 0


@pytest.mark.parametrize("case", cases("chartqa_average"))
def test_average(case: dict[str, Any]) -> None:
    halves = case["prediction"]
    assert chartqa_average(halves["human"], halves["augmented"]) == pytest.approx(expected(case), abs=1e-9)
