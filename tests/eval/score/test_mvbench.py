"""MVBench: the option of an answer, shares by task, and frames."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.data.frames import inference_indices
from internvl_chat.eval.score.mvbench import option_matches, task_shares
from tests.eval.cases import cases, expected


@pytest.mark.parametrize("case", cases("mvbench_check"))
def test_option(case: dict[str, Any]) -> None:
    assert option_matches(case["prediction"], case["ground_truth"]) is expected(case)


@pytest.mark.parametrize("case", cases("mvbench_check_ugly"))
def test_ugly_option(case: dict[str, Any]) -> None:
    # "ours" of an option without text is said in words: the letters are compared.
    value = same_letter(case) if isinstance(case.get("ours"), str) else expected(case)
    assert option_matches(case["prediction"], case["ground_truth"]) is value


def same_letter(case: dict[str, Any]) -> bool:
    letters = [re.search("[A-Za-z]", case[name]) for name in ("prediction", "ground_truth")]
    return len({found[0].lower() for found in letters if found}) == 1 and all(letters)


@pytest.mark.parametrize(
    ("answer", "gold"), [("B", "(A) "), ("(a)", "(A)"), ("", "(B) "), ("c.", "(C) "), ("(", "(C)")]
)
def test_an_option_without_text_as_a_further_case_might_have_it(answer: str, gold: str) -> None:
    test_ugly_option(
        {"prediction": answer, "ground_truth": gold, "expected": {"raises": "IndexError"}, "ours": "words"}
    )


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("", False),
        ("()", False),
        (".", False),
        ("Answer: ", False),
        (" (B) blue", False),
        ("(A).", True),
        ("ab", False),
    ],
)
def test_by_hand(answer: str, right: bool) -> None:
    assert option_matches(answer, "(A) red") is right


@pytest.mark.parametrize("case", cases("mvbench_average"))
def test_average(case: dict[str, Any]) -> None:
    marks = [(task, n < right) for task, (right, total) in case["prediction"].items() for n in range(total)]
    assert task_shares(marks) == expected(case)


@pytest.mark.parametrize("case", cases("mvbench_frame_index"))
def test_frames(case: dict[str, Any]) -> None:
    asked = case["prediction"]
    bound = tuple(asked["bound"]) if asked["bound"] else None
    found = inference_indices(bound, asked["fps"], asked["max_frame"], asked["first_idx"], asked["num_segments"])
    assert found == expected(case)


@given(st.text(alphabet=" .()\t\n:", max_size=8))
def test_an_answer_without_a_word_is_never_right(answer: str) -> None:
    assert not option_matches(answer, "(A) red")
