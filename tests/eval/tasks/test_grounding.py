"""RefCOCO and DIOR-RSVG."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.errors import DataError
from internvl_chat.eval.registry import keys, tasks
from internvl_chat.eval.tasks.grounding import COMBINED
from tests.eval.harness import ask, format_cases
from tests.eval.mini.common import json_file, jsonl, picture
from tests.eval.mini.grounding import BOXES, NAMES, SIZE, WRITERS
from tests.eval.tasks.layouts import parquet_file, picture_cell, read_both_ways
from tests.eval.tasks.test_vqa import original

ANSWERS = ["<ref>box 0</ref><box>[[100, 100, 300, 500]]</box>", "[[500, 0, 1000, 499]]", "nothing there"]


@pytest.mark.parametrize("name", NAMES)
def test_score_by_hand(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path)
    asked = ask(name.replace("_", "-"), tmp_path, ANSWERS)
    assert asked.result is not None
    assert asked.result.marks == [1, 0, 0]
    assert asked.result.figures == {"precision": 1 / 3}
    assert asked.result.notes == {"answers without a box": 1}
    assert asked.result.lines == [f"Precision @ 1: {1 / 3} "]


def test_dior_of_the_original(tmp_path: Path) -> None:
    rows = [
        {"image": "images/p.png", "prompt": "<ref>box 0</ref>", "bbox": BOXES[0], "size": list(SIZE)},
        {"image": "data/p.png", "prompt": "box 1.", "bbox": BOXES[1], "size": list(SIZE)},
    ]
    json_file(tmp_path / "InternVL-Domain-Adaptation-Data/val/dior_rsvg_test.json", rows)
    picture(tmp_path / "InternVL-Domain-Adaptation-Data/images/p.png", 1, SIZE)
    picture(tmp_path / "p.png", 2, SIZE)
    asked = ask("dior-rsvg", tmp_path, ANSWERS[::2])
    assert asked.prompts == ["Detect <ref>box 0</ref>", "Detect box 1."]
    assert [Path(str(item.shown[0].source)).exists() for item in asked.items] == [True, True]
    assert tasks()["dior_rsvg"].max_new_tokens == 200
    assert asked.result is not None
    assert asked.result.marks == [1, 0]
    assert asked.result.lines == ["Acc@0.5: 0.5"]
    assert json.loads(asked.files["dior_rsvg.json"].content)[1]["hw"] == [SIZE[1], SIZE[0]]
    rows[1]["size"] = [200]
    json_file(tmp_path / "InternVL-Domain-Adaptation-Data/val/dior_rsvg_test.json", rows)
    with pytest.raises(DataError, match=r"dior_rsvg_test\.json: record 2 is not what is expected"):
        ask("dior-rsvg", tmp_path, ANSWERS[:2])


def test_dior_wants_more_than_half(tmp_path: Path) -> None:
    WRITERS["dior_rsvg"](tmp_path)
    asked = ask("dior-rsvg", tmp_path, [ANSWERS[0], "[[500, 0, 1000, 520]]", "[0, 0, 50, 100]"])
    assert asked.result is not None
    # 53 of 101 rows of the second box; the third has single brackets.
    assert asked.result.marks == [1, 1, 0]
    assert asked.result.notes == {"answers without a box": 1}


def test_prompts(tmp_path: Path) -> None:
    WRITERS["refcoco_val"](tmp_path)
    plain = "Please provide the bounding box coordinate of the region this sentence describes: <ref>box 0</ref>"
    assert ask("refcoco-val", tmp_path, [""] * 3).prompts[0] == plain
    plural = ask("refcoco-val", tmp_path, [""] * 3, prompt="plural").prompts[0]
    assert plural == plain.replace("coordinate", "coordinates")


@pytest.mark.parametrize("case", format_cases(*NAMES), ids=lambda case: case["dataset"])
def test_as_the_original_writes_it(tmp_path: Path, case: dict[str, Any]) -> None:
    name = case["dataset"]
    jsonl(tmp_path / f"refcoco/{name}.jsonl", [case["input_record"]])
    picture(tmp_path / "a.png")
    asked = ask(case["evaluate_sh_key"], tmp_path, case["model_answers"])
    assert asked.prompts == case["prompts_seen"]
    assert asked.files[f"{name}.json"].content.decode() == original(case)
    assert asked.result is not None
    assert asked.result.lines[0] in case["stdout"]


def test_the_mean_of_the_splits() -> None:
    names, combine = COMBINED["RefCOCO"]
    assert names == keys()["refcoco"] == NAMES
    assert combine(83.6, 88.7, 79.8, 76.0, 83.6, 67.7, 80.2, 79.9) == pytest.approx(79.9, abs=0.05)
    assert all(tasks()[name].max_new_tokens == 100 for name in names)


def test_dior_release(tmp_path: Path) -> None:
    images = []
    for number in (1, 2):
        images.append(picture_cell(picture(tmp_path / f"p{number}.png", number, SIZE)))
    objects = [
        {"bbox": [BOXES[0], BOXES[2]], "captions": ["box 0", "box 2"]},
        {"bbox": [BOXES[1]], "captions": ["box 1"]},
    ]
    rows = [{"image": image, "path": "p.jpg", "objects": one} for image, one in zip(images, objects, strict=True)]
    parquet_file(tmp_path / "dior_rsvg/data/test-00000-of-00001.parquet", rows)
    items = read_both_ways("dior-rsvg", tmp_path, "parquet")
    assert [item["gold"] for item in items] == [BOXES[0], BOXES[2], BOXES[1]]
    assert items[0]["extra"]["hw"] == [100, 200]


@pytest.mark.parametrize("box", [[1, 2, 3], ["a", 1, 2, 3]])
def test_bad_box(tmp_path: Path, box: list[Any]) -> None:
    record = {"image": "data/a.png", "sent": "x", "bbox": box, "width": 2, "height": 2}
    jsonl(tmp_path / "refcoco/refcoco_val.jsonl", [record])
    with pytest.raises(DataError, match=r"record 1: bbox .* x1, y1, x2, y2 in pixels are expected"):
        ask("refcoco-val", tmp_path, [""])


def test_dior_boxes_of_another_form(tmp_path: Path) -> None:
    cell = picture_cell(picture(tmp_path / "p.png", 1, SIZE))
    rows = [{"image": cell, "objects": {"bbox": [[150, 50, 20, 10]], "captions": ["x"]}}]
    parquet_file(tmp_path / "dior_rsvg/data/test-00000-of-00001.parquet", rows)
    with pytest.raises(DataError, match="is no x1, y1, x2, y2"):
        ask("dior-rsvg", tmp_path, [""])
