"""RSVQA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from internvl_chat.errors import DataError
from internvl_chat.eval.registry import resolve
from tests.eval.harness import ask
from tests.eval.mini.common import json_file
from tests.eval.mini.remote_sensing import WRITERS


@pytest.mark.parametrize("name", WRITERS)
def test_score_by_hand(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path)
    asked = ask(name.replace("_", "-"), tmp_path, ["Yes", "99", "30m2", ""])
    assert asked.prompts[0] == "Is a road there?\nAnswer the question using a single word or phrase."
    assert asked.result is not None
    assert asked.result.marks == [1, 1, 0, 0]
    assert asked.result.main == "useful"
    assert asked.result.figures == {"presence": 1, "count": 1, "area": 0, "comp": 0, "useful": 0.5, "total": 0.5}
    assert asked.result.notes == {"counts and areas that are no whole number": 1}
    assert list(asked.result.lines) == [
        "presence: 1.0000", "count: 1.0000", "area: 0.0000", "comp: 0.0000", "useful: 0.5000", "total: 0.5000",
    ]  # fmt: skip
    content = asked.files[f"{name}.json"].content.decode()
    due = {
        "question": "How many roads are there?", "response": "99", "gt_answer": "7", "index": 11,
        "question_type": "count",
    }  # fmt: skip
    rows = json.loads(content)
    assert rows[1] == due
    assert list(rows[1]) == list(due)
    assert content == json.dumps(rows, indent=4)
    assert resolve([name.replace("_", "-")])[0].max_new_tokens == 50


def test_the_two_high_resolution_sets_are_not_exchanged(tmp_path: Path) -> None:
    WRITERS["rsvqa_hr_test2"](tmp_path)
    assert len(ask("rsvqa-hr-test2", tmp_path, [""] * 4).items) == 4
    with pytest.raises(DataError, match=r"USGS_split_test_questions\.json"):
        ask("rsvqa-hr-test1", tmp_path, [""] * 4)


def test_answers_of_another_split(tmp_path: Path) -> None:
    WRITERS["rsvqa_lr"](tmp_path)
    json_file(tmp_path / "rsvqa/lr/LR_split_test_answers.json", {"answers": []})
    with pytest.raises(DataError, match=r"record 1 is not what is expected \(KeyError: 90\)"):
        ask("rsvqa-lr", tmp_path, [""] * 4)
