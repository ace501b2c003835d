"""Boxes of RefCOCO and DIOR-RSVG."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.eval.score.boxes import refcoco_box, refcoco_iou, refcoco_right, rsvg_box, rsvg_iou, rsvg_right
from tests.eval.cases import cases, expected


@pytest.mark.parametrize("case", cases("refcoco_iou"))
def test_refcoco(case: dict[str, Any]) -> None:
    truth, due = case["ground_truth"], expected(case)
    iou = refcoco_iou(case["prediction"], truth["bbox"], truth["width"], truth["height"])
    assert iou == pytest.approx(due["iou"], abs=1e-6)
    assert float(refcoco_right(iou)) == due["correct"]


@pytest.mark.parametrize("case", cases("refcoco_precision"))
def test_precision(case: dict[str, Any]) -> None:
    truth = case["ground_truth"]
    ious = [refcoco_iou(answer, truth["bbox"], truth["width"], truth["height"]) for answer in case["prediction"]]
    assert sum(map(refcoco_right, ious)) / len(ious) == expected(case)


@pytest.mark.parametrize(
    ("answer", "box"),
    [
        ("[1,2,3,4]", (1, 2, 3, 4)),
        ("[[[[1, 2.5, 3, 4]]", (1, 2.5, 3, 4)),
        ("here, [[ 1 ,2,3,4 ]] and [[5,6,7,8]]", (1, 2, 3, 4)),
        ("[a, b, c, d] [[1,2,3,4]]", None),
        ("[1,2,3,4,5]", None),
        ("1,2,3,4]", None),
        ("[[1,2,3,4", None),
        ("", None),
        ("[[1,\n2,3,4]]", None),
        ("[1e2,2,3,4]", (100, 2, 3, 4)),
    ],
)
def test_first_box(answer: str, box: tuple[float, ...] | None) -> None:
    assert refcoco_box(answer) == box


def test_fractions_and_nonsense() -> None:
    gold = [10, 20, 110, 220]
    assert refcoco_iou("[0.05, 0.05, 0.55, 0.55]", gold, 200, 400) == pytest.approx(1)
    # Less than 4 by so little that it is 4 in 32 bits: thousandths.
    assert refcoco_iou("[0, 0, 1, 2.99999999]", [0, 0, 0.2, 1.2], 200, 400) == pytest.approx(1, abs=1e-5)
    assert refcoco_iou("[0, 0, 1, 2.99]", [0, 0, 0.2, 1.2], 200, 400) == pytest.approx(0, abs=1e-5)
    assert refcoco_iou("[[nan, 1, 2, 3]]", gold, 200, 400) == 0
    assert refcoco_iou("[[0, 0, inf, inf]]", gold, 200, 400) == 0


@pytest.mark.parametrize("case", cases("dior_rsvg"))
def test_dior(case: dict[str, Any]) -> None:
    truth = case["ground_truth"]
    assert rsvg_right(case["prediction"], truth["bbox"], *truth["size"]) == expected(case)


def test_dior_by_hand() -> None:
    assert rsvg_box("x [[0, 0, 500, 1000]]", 800, 600) == (0, 0, 400, 600)
    assert rsvg_box("[0, 0, 500, 1000]", 800, 600) is None
    assert rsvg_box("[[0, 0, 500]]", 800, 600) is None
    assert rsvg_iou((0, 0, 1, 1), (1, 1, 2, 2)) == 1 / 7
    assert rsvg_iou((0, 0, 1, 1), (5, 5, 6, 6)) == 0


@given(st.lists(st.integers(0, 1000), min_size=4, max_size=4))
def test_a_box_is_like_itself(values: list[int]) -> None:
    x1, x2 = sorted((values[0], values[2]))
    y1, y2 = sorted((values[1], values[3]))
    answer = f"[[{x1}, {y1}, {x2}, {y2}]]"
    assert rsvg_right(answer, (x1, y1, x2, y2), 1000, 1000) == 1
    whole = x2 > x1 and y2 > y1 and x1 + x2 + y1 + y2 >= 4
    assert refcoco_iou(answer, (x1, y1, x2, y2), 1000, 1000) == pytest.approx(float(whole), abs=1e-4)
