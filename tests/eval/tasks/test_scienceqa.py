"""ScienceQA and M3CoT."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.eval.harness import ask, format_cases
from tests.eval.mini.common import jsonl, picture
from tests.eval.mini.scienceqa import WRITERS


@pytest.mark.parametrize("key", ["scienceqa", "m3cot"])
def test_score_by_hand(tmp_path: Path, key: str) -> None:
    WRITERS[{"scienceqa": "sqa_test", "m3cot": "m3cot_test"}[key]](tmp_path)
    asked = ask(key, tmp_path, ["It is an apple", "B. y", "(B)"])
    assert asked.result is not None
    assert asked.result.marks == [1.0, 0.0, 1.0]
    assert asked.result.figures == {"accuracy": 2 / 3}


@pytest.mark.parametrize("case", format_cases("sqa_test"), ids=lambda case: case["evaluate_sh_key"])
def test_as_the_original_writes_it(tmp_path: Path, case: dict) -> None:
    record = case["input_record"]
    jsonl(tmp_path / "scienceqa/scienceqa_test_img.jsonl", [record])
    picture(tmp_path / "a.png")
    cot = {"cot": "on"} if case["evaluate_sh_key"].endswith("--cot") else {}
    asked = ask("scienceqa", tmp_path, case["model_answers"], **cot)
    assert asked.prompts == case["prompts_seen"]
    (content,) = case["files"].values()
    assert asked.files["sqa_test.jsonl"].content.decode() == content
    assert asked.result is not None
    assert asked.result.lines == case["stdout"][-1:]
