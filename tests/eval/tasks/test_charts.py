"""ChartQA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from internvl_chat.errors import ConfigError, DataError
from internvl_chat.eval.registry import keys, tasks
from internvl_chat.eval.tasks.charts import COMBINED
from tests.eval.harness import ask, format_cases
from tests.eval.mini.common import json_file, jsonl, picture
from tests.eval.mini.vqa import WRITERS
from tests.eval.tasks.layouts import parquet_file, picture_cell, read_both_ways
from tests.eval.tasks.test_vqa import original

HALVES = {"chartqa_test_human": "vqa-chartqa-test-human", "chartqa_test_augmented": "vqa-chartqa-test-augmented"}
FOLDER = "chartqa/ChartQA Dataset/test"


@pytest.mark.parametrize("name", HALVES)
def test_both_rules_are_told(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path)
    asked = ask(HALVES[name], tmp_path, ["95", "red.", "0.48"])
    assert asked.result is not None
    # 95 is within 5% of 100, but not 100 of 95; 0.48 is within 5% of 0.5 and the other way round.
    assert asked.result.marks == [0, 0, 1]
    assert asked.result.figures == {"relaxed_accuracy": 1 / 3, "relaxed_accuracy_definition": 2 / 3}
    assert asked.result.notes == {"answers on which the two rules differ": 1}
    asked = ask(HALVES[name], tmp_path, ["95", "red.", "0.48"], relaxed="definition")
    assert asked.result is not None
    assert asked.result.marks == [1, 0, 1]
    assert asked.result.figures == {"relaxed_accuracy": 2 / 3, "relaxed_accuracy_internvl": 1 / 3}
    with pytest.raises(ConfigError, match="relaxed"):
        ask(HALVES[name], tmp_path, ["95", "red.", "0.48"], relaxed="loose")


@pytest.mark.parametrize("case", format_cases(*HALVES), ids=lambda case: case["dataset"])
def test_as_the_original_writes_it(tmp_path: Path, case: dict[str, Any]) -> None:
    name = case["dataset"]
    jsonl(tmp_path / tasks()[name].layouts[0].files[0], [case["input_record"]])
    picture(tmp_path / "a.png")
    asked = ask(HALVES[name], tmp_path, case["model_answers"])
    assert asked.prompts == case["prompts_seen"]
    assert asked.files[f"{name}.json"].content.decode() == original(case)
    assert asked.result is not None
    assert asked.result.lines == [line for line in case["stdout"] if "relaxed_accuracy" in line]


def test_the_one_figure() -> None:
    names, combine = COMBINED["ChartQA"]
    assert names == keys()["vqa-chartqa-test"] == tuple(HALVES)
    assert combine(0.5, 1.0) == 75
    assert {tasks()[name].max_tiles for name in names} == {12}


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("release", ["official", "HuggingFaceM4"])
def test_releases(tmp_path: Path, name: str, release: str) -> None:
    half = name.removeprefix("chartqa_test_")
    rows = [("chart0.png", "How many?", "14"), ("chart1.png", "Which colour?", "Red")]
    for number, (image, *_) in enumerate(rows):
        picture(tmp_path / FOLDER / "png" / image, number)
    if release == "official":
        found = [{"imgname": image, "query": query, "label": label} for image, query, label in rows]
        json_file(tmp_path / FOLDER / f"test_{half}.json", found)
    else:
        cells = [
            {
                "image": picture_cell(tmp_path / FOLDER / "png" / image),
                "query": query,
                "label": [label],
                "human_or_machine": which,
            }
            for image, query, label in rows
            for which in ((0,) if half == "human" else (1, 0))
        ]
        parquet_file(tmp_path / "chartqa/data/test-00000-of-00001.parquet", cells)
    items = read_both_ways(HALVES[name], tmp_path, release)
    assert [item["gold"] for item in items] == ["14", "Red"]
    assert items[0]["text"] == "How many? Answer the question using a single word or phrase."


def test_another_file(tmp_path: Path) -> None:
    json_file(tmp_path / FOLDER / "test_human.json", {"a": 1})
    with pytest.raises(DataError, match="a list of questions is expected"):
        ask("vqa-chartqa-test-human", tmp_path, [])
