"""Soft accuracy and the texts that it compares."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.errors import DataError
from internvl_chat.eval.score.vqa import normalise, normalise_punctuation, normalise_words, soft_accuracy
from tests.eval.cases import cases, expected


@pytest.mark.parametrize("case", cases("vqa_normalise") + cases("vqa_normalise_ugly"))
def test_normalise(case: dict[str, Any]) -> None:
    assert normalise(case["prediction"]) == expected(case)


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("a man's hat", "man 's hat"),  # the first step parts it
        ("couldntve couldnt've couldn'tve", "couldntve couldn't've couldn't've"),
        ("yall'd've y'alld've y'all'dve", "y'all'd've y'all'd've y'all'd've"),
        ("somebody'd twas Im", "somebodyd 'twas im"),
        ("ten zero none eleven the a an", "10 0 0 eleven"),
        ("x-ray", "x ray"),
        ("x- ray", "x ray"),
        ("5.0 p.m. 3.", "5.0 pm 3"),
        ("no?", "no"),
        ("a/b [c]", "b c"),
        ("multi\n\nline", "multi line"),
    ],
)
def test_normalise_by_hand(text: str, made: str) -> None:
    assert normalise(text) == made


def test_punctuation_alone() -> None:
    """Other scorers use the two tables without the first step: there thousands can still have their comma."""
    assert normalise_punctuation("1,000-2") == "10002"
    assert normalise_punctuation("a,b-c") == "a b c"
    assert normalise_words("The TWO dogs dont") == "2 dogs don't"


@pytest.mark.parametrize("case", cases("vqa_soft_accuracy"))
def test_soft_accuracy(case: dict[str, Any]) -> None:
    if isinstance(case["expected"], dict):
        with pytest.raises(DataError, match="question 77: 9 answers"):
            soft_accuracy(case["prediction"], case["ground_truth"], 77)
        return
    assert soft_accuracy(case["prediction"], case["ground_truth"]) == pytest.approx(expected(case), abs=1e-12)


@pytest.mark.parametrize("case", cases("vqa_soft_accuracy_mean"))
def test_mean(case: dict[str, Any]) -> None:
    pairs = zip(case["prediction"], case["ground_truth"], strict=True)
    scores = [soft_accuracy(answer, golds) for answer, golds in pairs]
    assert sum(scores) / len(scores) == expected(case)


@pytest.mark.parametrize(("agreeing", "share"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_steps(agreeing: int, share: float) -> None:
    golds = ["dog"] * agreeing + ["cat"] * (10 - agreeing)
    for turned in (golds, golds[::-1]):
        assert soft_accuracy("a Dog.", turned) == pytest.approx(share, abs=1e-12)


@given(st.text(max_size=30))
def test_any_text_is_made_like_itself(text: str) -> None:
    assert soft_accuracy(text, [text] * 10) == 1
    assert normalise(text) == " ".join(normalise(text).split())
