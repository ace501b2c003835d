"""Letters of answers."""

from __future__ import annotations

from typing import Any

import pytest

from internvl_chat.eval.score.letters import scienceqa_letter
from internvl_chat.eval.score.thought import final_answer
from tests.eval.cases import cases, expected


@pytest.mark.parametrize("case", cases("scienceqa_post_process") + cases("scienceqa_post_process_ugly"))
def test_scienceqa(case: dict[str, Any]) -> None:
    assert scienceqa_letter(case["prediction"], case["ground_truth"]) == expected(case)


def test_scienceqa_strips_first() -> None:
    options = {"A": "pear", "B": "apple"}
    answers = [" B", "B. apple\n", "\n(B)", " X.", "  ", "\tbanana "]
    assert [scienceqa_letter(answer, options) for answer in answers] == ["B", "B", "B", "X", "", "banana"]


@pytest.mark.parametrize("case", cases("cot_extract_answer"))
def test_final_answer(case: dict[str, Any]) -> None:
    assert final_answer(case["prediction"]) == expected(case)


def test_an_answer_without_a_marker_stays_as_it_is() -> None:
    assert final_answer(" no marker\n") == " no marker\n"
    assert final_answer(" Answer:  B \nmore") == "B"
