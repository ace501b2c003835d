"""MMBench, CCBench, SEED, MMVP and MME-RealWorld: layouts, prompts, files, scores."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from internvl_chat.errors import DataError
from internvl_chat.eval.registry import resolve, tasks
from tests.eval.harness import ask, format_cases
from tests.eval.mini import mmbench, mmvp, realworld, seed
from tests.eval.mini.blobs import base64_png, table
from tests.eval.mini.common import jsonl, picture
from tests.eval.tasks.test_yes_no import asked_of, items_of


def test_who_writes_sheets_says_so() -> None:
    """Before the model is asked, not behind its last answer."""
    found = {task.name for task in tasks().values() if "openpyxl" in task.needs}
    assert found == {name for name in tasks() if name.lower().startswith(("mmbench", "ccbench"))}


def sheet(content: bytes) -> tuple[list[str], list[dict[str, object]]]:
    from openpyxl import load_workbook

    rows = list(load_workbook(io.BytesIO(content)).active.values)
    return list(rows[0]), [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


# -- MMBench and CCBench --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case",
    format_cases("mmbench_dev_20230712", "mmbench_test_cn_20231003", "ccbench_dev_cn"),
    ids=lambda case: case["dataset"],
)
def test_mmbench_as_the_original_writes_it(tmp_path: Path, case: dict) -> None:
    pytest.importorskip("openpyxl")
    name = case["dataset"]
    table(tmp_path / mmbench.FILES[name][0], [{**case["input_record"], "image": base64_png(1)}])
    asked = ask(case["evaluate_sh_key"], tmp_path, case["model_answers"])
    assert asked.prompts == case["prompts_seen"]
    (expected,) = case["files"].values()
    columns, rows = sheet(asked.files[f"{name}.xlsx"].content)
    assert columns == expected["columns"]
    assert rows == expected["rows"]
    if name == "mmbench_test_cn_20231003":
        assert asked.result is None
        columns, rows = sheet(asked.files[f"{name}_submission.xlsx"].content)
        assert columns == ["index", "question", "A", "B", "C", "D", "prediction", "answer"]
        assert rows[0]["answer"] is None


def test_mmbench_by_hand(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    mmbench.WRITERS["mmbench_dev_20230712"](tmp_path)
    asked = ask("mmbench-dev-en", tmp_path, ["A", "(B)", "two"])
    # "None" and "NA" are options, not missing values.
    assert asked.prompts[0].split("\n")[1:4] == ["A. None", "B. NA", "C. two"]
    assert asked.prompts[1].startswith("Look closely.\nWhat colour?\nA. red\nB. blue\nAnswer")
    assert asked.result is not None
    # The first question is right in one of its two rotations only; "two" is its option B there.
    assert asked.result.marks == [1, 1, 0]
    assert asked.result.figures == {
        "circular": 50.0, "vanilla": 100.0, "all rows": pytest.approx(200 / 3), "l2-category/perception": 50.0,
        "category/colour": 100.0, "category/counting": 0.0,
    }  # fmt: skip
    assert asked.result.notes == {"answers that name no option": 0}
    # The rotation refers to the row that has the picture.
    assert asked.items[2].shown[0].source == asked.items[0].shown[0].source


def test_mmbench_in_vlmevalkits_folder(tmp_path: Path) -> None:
    mmbench.WRITERS["MMBench_TEST_EN_V11"](tmp_path / "a")
    table(tmp_path / "b/LMUData/MMBench_TEST_EN_V11.tsv", mmbench.rows(True))
    key = "mmbench-test-en-v11"
    assert asked_of(items_of(key, tmp_path / "a")) == asked_of(items_of(key, tmp_path / "b"))


def test_mmbench_without_labels(tmp_path: Path) -> None:
    table(tmp_path / "mmbench/MMBench_TEST_EN_V11.tsv", mmbench.rows(False))
    with pytest.raises(DataError, match=r"record 1: index 1: the answer is None.*take the table with labels"):
        items_of("mmbench-test-en-v11", tmp_path)


# -- SEED -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", format_cases("SEEDv1"), ids=lambda case: case["evaluate_sh_key"])
def test_seed_as_the_original_writes_it(tmp_path: Path, case: dict) -> None:
    jsonl(tmp_path / "SEED/seed.jsonl", [case["input_record"]])
    picture(tmp_path / "SEED" / case["input_record"]["image"])
    question = {"question_id": "1", "question_type_id": 1, "data_type": "image", "answer": "A"}
    types = {"question_type": {"Scene Understanding": 1}, "questions": [question]}
    (tmp_path / "SEED/SEED-Bench.json").write_text(json.dumps(types))
    asked = ask("seed", tmp_path, case["model_answers"])
    assert asked.prompts == case["prompts_seen"]
    (content,) = case["files"].values()
    assert asked.files["SEEDv1.jsonl"].content.decode() == content
    assert asked.result is not None
    # Where the original divides by zero, ours goes on.
    assert list(asked.result.lines) == [*case["stdout"][2:-1], "Total accuracy: 100.00%", "Image accuracy: 100.00%"]


def test_seed_by_hand(tmp_path: Path) -> None:
    seed.guide(tmp_path)
    asked = ask("seed", tmp_path, ["A", "", "Cats"])
    assert asked.result is not None
    assert asked.result.figures == {
        "Scene Understanding": 100.0, "Instance Identity": 0.0, "Action Recognition": 100.0,
        "Total accuracy": pytest.approx(200 / 3), "Image accuracy": 50.0, "Video accuracy": 100.0,
    }  # fmt: skip


def test_seed_layouts_agree(tmp_path: Path) -> None:
    seed.guide(tmp_path / "guide")
    seed.types(tmp_path / "release")
    guide = asked_of(items_of("seed", tmp_path / "guide"))
    assert asked_of(items_of("seed", tmp_path / "release")) == guide[:2]  # pictures only
    (task,) = resolve(["seed"])
    assert task.layouts[0].write is not None
    task.layouts[0].write(tmp_path / "release", task.layouts[1].read(tmp_path / "release"))
    assert asked_of(items_of("seed", tmp_path / "release")) == guide[:2]


def test_seed_without_types(tmp_path: Path) -> None:
    seed.guide(tmp_path)
    (tmp_path / "SEED/SEED-Bench.json").unlink()
    asked = ask("seed", tmp_path, ["A", "B", "D"])
    assert asked.result is not None
    assert asked.result.figures == {"Total accuracy": pytest.approx(200 / 3)}
    assert asked.result.notes["questions of unknown type (SEED/SEED-Bench.json is not there)"] == 3


def test_seed_of_two_versions(tmp_path: Path) -> None:
    seed.guide(tmp_path)
    jsonl(tmp_path / "SEED/seed.jsonl", [{"question_id": "v2_1", "image": "x", "text": "?", "answer": "A"}])
    with pytest.raises(DataError, match=r"question v2_1 is not in SEED/SEED-Bench\.json; take version 1 of both"):
        items_of("seed", tmp_path)


def test_seed_with_a_broken_table(tmp_path: Path) -> None:
    seed.guide(tmp_path)
    table_of_types = {"question_type": seed.TYPES, "questions": [{"question_id": "11"}]}
    (tmp_path / "SEED/SEED-Bench.json").write_text(json.dumps(table_of_types))
    with pytest.raises(DataError, match=r"SEED-Bench\.json: question 1: no field 'question_type_id'"):
        items_of("seed", tmp_path)


# -- MMVP -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", format_cases("MMVP"), ids=lambda case: case["evaluate_sh_key"])
def test_mmvp_as_the_original_writes_it(tmp_path: Path, case: dict) -> None:
    golds = ("(a)", "(b)")
    rows = [{**case["input_record"], "Index": str(k), "Correct Answer": gold} for k, gold in enumerate(golds, 1)]
    table(tmp_path / "MMVP/Questions.csv", rows, ",")
    for number in (1, 2):
        picture(tmp_path / f"MMVP/MMVP Images/{number}.jpg", number)
    asked = ask("mmvp", tmp_path, case["model_answers"])
    assert asked.prompts == case["prompts_seen"]
    (content,) = case["files"].values()
    assert asked.files["MMVP.jsonl"].content.decode() == content
    assert asked.result is not None
    assert list(asked.result.lines) == case["stdout"][2:]


def test_mmvp_by_hand(tmp_path: Path) -> None:
    mmvp.guide(tmp_path)
    asked = ask("mmvp", tmp_path, ["Open", "B", "B", ""])
    assert asked.result is not None
    assert asked.result.figures == {"accuracy": 0.5, "single questions": 0.75}
    assert asked.result.notes == {"answers without a letter": 1}


def test_mmvp_pairs_are_told_by_the_index(tmp_path: Path) -> None:
    mmvp.guide(tmp_path)
    table(tmp_path / "MMVP/Questions.csv", mmvp.ROWS[1:], ",")
    with pytest.raises(DataError, match="row 1 has the index '2'"):
        items_of("mmvp", tmp_path)


# -- MME-RealWorld --------------------------------------------------------------------------------------------------


def test_realworld_by_hand(tmp_path: Path) -> None:
    realworld.WRITERS["MME-RealWorld"](tmp_path)
    asked = ask("MME-RealWorld", tmp_path, ["", "(B)", "The best answer is blue"])
    assert asked.prompts[0] == (
        "What is it?The choices are listed below:\n(A) red\n(B) green\n(C) blue\nSelect the best answer to the "
        "multiple-choice question based on the image. "
        + " "
        * 12
        + "Respond with only the letter (A, B, C, D, or E) of the "
        "correct option. \nThe best answer is:"
    )
    (file,) = (json.loads(file.content) for file in asked.files.values())
    assert file[1] == {"question": asked.prompts[1], "answer": "(B)", "gt_answers": "B", "id": "perception/1"}
    assert asked.result is not None
    assert asked.result.marks == [0, 1, 1]  # an empty answer would be A
    assert asked.result.figures["Overall"] == pytest.approx(2 / 3)
    assert asked.result.figures["Perception"] == 0.5
    assert asked.result.notes == {"answers without a letter": 1}


def test_realworld_speaks_the_right_language(tmp_path: Path) -> None:
    realworld.WRITERS["MME-RealWorld-CN"](tmp_path)
    asked = ask("MME-RealWorld-CN", tmp_path, ["A"] * 3)
    assert "选项如下所示" in asked.prompts[0]
    assert asked.prompts[0].endswith("。\n 最佳答案为：")
    assert list(asked.files) == ["MME-RealWorld-CN.json"]
    assert [task.name for task in resolve(["mme—realworld"])] == ["MME-RealWorld", "MME-RealWorld-CN"]
