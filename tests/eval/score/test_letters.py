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


@pytest.mark.parametrize("case", cases("cot_extract_answer"))
def test_final_answer(case: dict[str, Any]) -> None:
    assert final_answer(case["prediction"]) == expected(case)
