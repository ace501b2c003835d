"""ANLS."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.errors import DataError
from internvl_chat.eval.score.anls import anls, levenshtein
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
