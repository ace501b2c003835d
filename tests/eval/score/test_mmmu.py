"""MMMU: open answers, letters, the table of subjects."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.eval.score.mmmu import DOMAINS, candidates, letter_is, open_is, report, subject_of
from tests.eval.cases import cases, expected


@pytest.mark.parametrize("case", cases("mmmu_open") + cases("mmmu_open_ugly"))
def test_open(case: dict[str, Any]) -> None:
    assert open_is(case["prediction"], case["ground_truth"]) is expected(case)
    if "parsed" in case:
        assert sorted(str(one) for one in candidates(case["prediction"])) == sorted(case["parsed"])


@pytest.mark.parametrize("case", cases("mmmu_multi_choice"))
def test_letters(case: dict[str, Any]) -> None:
    assert letter_is(case["prediction"], case["ground_truth"]) is expected(case)


@pytest.mark.parametrize("case", cases("mmmu_aggregate"))
def test_report(case: dict[str, Any]) -> None:
    golds, answers = case["ground_truth"], case["prediction"]
    # "count missing ids as wrong": our items are those of the data, an answer that is missing is "".
    names = golds if "ours" in case else answers
    marks = []
    for name in names:
        gold, answer = golds[name], answers.get(name, "")
        is_right = letter_is if gold["question_type"] == "multiple-choice" else open_is
        marks.append((name, is_right(answer, gold["ground_truth"])))
    table = report(marks)
    if "ours" in case:
        assert table["Overall"] == {"num": 6, "acc": 0.167}
        assert table["Art"] == {"num": 2, "acc": 0.5}
    else:
        assert list(table.items()) == list(case["expected"].items())


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("So it is 12, thus the result is 12.5", "12.5", True),
        ("The answer is 4.\nIt is $1,250", "1250", True),
        ("a = 3\nb = 4", "3", False),  # the equals sign counts in the last line only
        ("a = 3\nb = 4", "4", True),
        ("-5", "5", False),
        ("", "7", False),
        ("so ", "so", True),
        ("1e400", "7", False),
    ],
)
def test_open_by_hand(answer: str, gold: str, right: bool) -> None:
    assert open_is(answer, gold) is right


def test_thirty_subjects() -> None:
    assert sum(len(subjects) for subjects in DOMAINS.values()) == 30
    assert subject_of("validation_Basic_Medical_Science_12") == "Basic_Medical_Science"


@given(st.text(), st.text(min_size=1))
def test_any_answer_can_be_read(answer: str, gold: str) -> None:
    assert open_is(answer, gold) in (True, False)
    assert not open_is("", gold)
