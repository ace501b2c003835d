"""Files for servers against their published formats, told here by other means: fields, types, one entry an item."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.eval.registry import GROUPS, keys
from internvl_chat.eval.task import Item
from tests.eval.harness import Asked, ask
from tests.eval.mini import write_task

ODD = 'a "quoted"\n=1+1, über\t<b>'


def entries(asked: Asked, name: str, fields: dict[str, type]) -> list[dict[str, Any]]:
    """The list of objects that a server takes: just these fields, of these types."""
    found = json.loads(asked.files[name].content)
    assert isinstance(found, list) and len(found) == len(asked.items)
    for entry in found:
        assert {field: type(value) for field, value in entry.items()} == fields
    return found


def answers(item: Item) -> str:
    return f"{ODD} {item.id}"


def by_question(name: str, fields: dict[str, type], key: str) -> Callable[[Asked], None]:
    def check(asked: Asked) -> None:
        found = entries(asked, name, fields)
        assert len({entry[key] for entry in found}) == len(found), "an entry for each question"
        assert {entry["answer"] for entry in found} == {answers(item) for item in asked.items}

    return check


def mmmu(asked: Asked) -> None:
    found = json.loads(asked.files["MMMU_test.json"].content)
    assert found.keys() == {item.id for item in asked.items}
    assert all(name.startswith("test_") and isinstance(answer, str) for name, answer in found.items())


def mmbench(name: str) -> Callable[[Asked], None]:
    def check(asked: Asked) -> None:
        openpyxl = pytest.importorskip("openpyxl")
        for file in (f"{name}.xlsx", f"{name}_submission.xlsx"):
            sheet = openpyxl.load_workbook(io.BytesIO(asked.files[file].content)).active
            head, *rows = list(sheet.iter_rows(values_only=True))
            assert {"index", "question", "A", "B", "C", "D", "prediction"} <= set(head)
            assert len(rows) == len(asked.items)
            assert all(isinstance(row[head.index("index")], int) for row in rows)
            assert all(isinstance(row[head.index("prediction")], str) for row in rows)
        assert "answer" in head, "the server wants the column, empty or not"

    return check


CHECKS: dict[str, Callable[[Asked], None]] = {
    "vqa-vizwiz-test": by_question("vizwiz_test.json", {"image": str, "answer": str}, "image"),
    "vqa-vqav2-testdev": by_question(
        "vqav2_testdev_submission.json", {"question_id": int, "answer": str}, "question_id"
    ),
    "vqa-docvqa-test": by_question("docvqa_test.json", {"questionId": int, "answer": str}, "questionId"),
    "vqa-infovqa-test": by_question(
        "infographicsvqa_test_submission.json", {"questionId": int, "answer": str}, "questionId"
    ),
    "vqa-mpdocvqa-test": by_question(
        "mpdocvqa_test_submission.json", {"questionId": int, "answer": str, "answer_page": int}, "questionId"
    ),
    "mmbench-test-en": mmbench("mmbench_test_en_20231003"),
    "mmbench-test-cn": mmbench("mmbench_test_cn_20231003"),
    "mmmu-test": mmmu,
}


@pytest.mark.parametrize("key", GROUPS["all-submit"])
def test_the_format_of_the_server(key: str, tmp_path: Path) -> None:
    for name in keys()[key]:
        write_task(name, tmp_path)
    CHECKS[key](ask(key, tmp_path, answers))
