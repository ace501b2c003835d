"""Exact match and GQA."""

from __future__ import annotations

from typing import Any

import pytest

from internvl_chat.eval.score.exact import exact, gqa, gqa_answer
from tests.eval.cases import cases, expected
from tests.eval.score.test_relaxed import golds_of


@pytest.mark.parametrize("case", cases("exact_match"))
def test_exact(case: dict[str, Any]) -> None:
    assert exact(case["prediction"], golds_of(case)) == expected(case)


@pytest.mark.parametrize("case", cases("gqa_accuracy"))
def test_gqa(case: dict[str, Any]) -> None:
    due = expected(case)
    assert gqa_answer(case["prediction"]) == due["converted"]
    assert gqa(case["prediction"], case["ground_truth"]) == due["score"]


def test_gqa_does_not_strip() -> None:
    assert gqa("yes ", "yes") == 0
    assert gqa("yes. ", "yes") == 0
    assert gqa("YES", "yes") == 1
