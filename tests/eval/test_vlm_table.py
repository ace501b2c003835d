"""Tables for VLMEvalKit: columns, types, answers that look like formulas, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from internvl_chat.errors import DataError
from internvl_chat.eval.vlm_table import vlm_table, write_vlm_table
from tests.eval.mini.common import jsonl

ROWS = [
    {"index": "0", "question": "Which?", "A": "None", "B": "dog", "answer": "B", "category": "c", "image": "x" * 70},
    {"index": "7", "question": "=1+1", "A": "NA", "B": "2", "answer": "A", "category": "d", "image": "0"},
    {"index": "8", "question": "text", "A": "", "B": "", "answer": "no", "category": "e", "image": ""},
]


@pytest.fixture()
def table(tmp_path: Path) -> Path:
    path = tmp_path / "MMStar.tsv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(ROWS[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(ROWS)
    return path


def test_the_table_that_is_scored(tmp_path: Path, table: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    run = tmp_path / "out/my model/mmstar"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"task": "mmstar", "model": "my model"}))
    jsonl(run / "predictions.jsonl", [{"id": "7", "answer": "=B\x0b"}, {"id": "0", "answer": "B. dog"}])
    path = write_vlm_table(run, table)
    assert path == run / "my model_MMStar.xlsx"
    header, *rows = openpyxl.load_workbook(path).active.iter_rows(values_only=True)
    assert header == ("index", "question", "A", "B", "answer", "category", "prediction")
    assert rows == [
        (0, "Which?", "None", "dog", "B", "c", "B. dog"),
        (7, "=1+1", "NA", "2", "A", "d", "=B"),
    ]
    cells = openpyxl.load_workbook(path).active
    assert cells["G3"].data_type == "s" and cells["A3"].data_type == "n"


def test_answers_that_do_not_fit_the_table(tmp_path: Path, table: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 2 rows .* have no answer .*index 7"):
        vlm_table(table, {"0": "A"}, "m")
    with pytest.raises(DataError, match="has no index '9', which was answered"):
        vlm_table(table, {"0": "A", "7": "B", "9": "C"}, "m")
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(DataError, match="names no model"):
        write_vlm_table(tmp_path, table)
    (tmp_path / "other.tsv").write_text("question\nWhat?\n")
    with pytest.raises(DataError, match="no field 'index'"):
        vlm_table(tmp_path / "other.tsv", {}, "m")
