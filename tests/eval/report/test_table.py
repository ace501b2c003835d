"""Runs as a table: partial runs are marked, published figures stand beside, several tasks make one row."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from internvl_chat.eval.report.runs import Entry, read_entries
from internvl_chat.eval.report.table import figure_text, markdown_table, table_of
from tests.eval.report.made import PLUS, line, made_run

LINES = [line("1"), line("2", mark=1.0)]


def entries_of(folder: Path) -> list[Entry]:
    entries, lost = read_entries(folder)
    assert not lost
    return entries


def rows_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in text.splitlines() if row[:1] == "|"]


def test_a_row_for_each_task_and_a_column_for_each_model(tmp_path: Path) -> None:
    made_run(tmp_path, "a", "t1", {"accuracy": 0.5}, LINES)
    made_run(tmp_path, "b", "t1", {"accuracy": 0.25}, LINES)
    made_run(tmp_path, "b", "t2", {"total": 1794.4, "other": 1}, LINES)
    rows = rows_of(markdown_table(entries_of(tmp_path)))
    assert rows[0] == ["task", "figure", "a", "b"]
    assert rows[2:] == [["t1", "accuracy", "0.5000", "0.2500"], ["t2", "total", "", "1794.40"]]


@pytest.mark.parametrize(
    ("changes", "mark"),
    [
        ({"complete": False, "limit": 2, "there": 4999, "count": 5000}, "partial: 2 of 5000"),
        ({"complete": False, "limit": 2, "there": 3}, "partial: 2 of 3"),
        ({"complete": False, "there": 2, "count": 3}, "partial: 2 of 3"),
        ({"complete": False, "items": 10, "there": 10, "answered": 7, "failed": 3}, "partial: 7 of 10"),
        ({"complete": False, "missing": ["A", "B"]}, "partial: without A, B"),
        ({"complete": False, "missing": list("ABCDE")}, "partial: without A, B, C, ... (5 in all)"),
        ({"complete": False, "missing": ["A"], "there": 3, "limit": 2}, "partial: 2 of 3, without A"),
        ({"complete": None}, "partial: 2 of 2"),
        ({"complete": True}, None),
        ({"complete": True, "limit": None, "count": 2}, None),
    ],
)
def test_a_partial_run_is_never_shown_without_its_mark(tmp_path: Path, changes: dict, mark: str | None) -> None:
    made_run(tmp_path, PLUS, "okvqa_val", {"accuracy": 0.9}, LINES, **changes)
    text = markdown_table(entries_of(tmp_path))
    ((*_, cell),) = rows_of(text)[2:]
    assert ("partial" in cell) == (mark is not None)
    if mark is not None:
        assert cell == f"0.9000 ({mark})"  # and is not compared with what was published


def test_another_number_of_items_than_the_public_set_is_said(tmp_path: Path) -> None:
    made_run(tmp_path, "a", "t", {"accuracy": 0.5}, LINES, count=3)
    assert "* t: 2 questions; the public data set has 3" in markdown_table(entries_of(tmp_path))


def test_published_figures_and_those_that_cannot_be(tmp_path: Path) -> None:
    made_run(tmp_path, PLUS, "okvqa_val", {"accuracy": 0.68}, LINES)
    made_run(tmp_path, PLUS, "textvqa_val", {"accuracy": 0.71188}, LINES)
    made_run(tmp_path, PLUS, "textvqa_val", {"accuracy": 0.1}, LINES, label="textvqa_val+max_tiles=1")
    made_run(tmp_path, PLUS, "docvqa_test", None, LINES)
    text = markdown_table(entries_of(tmp_path))
    cells = {row[0]: row[2] for row in rows_of(text)[2:]}
    assert cells["okvqa_val"] == "0.6800 (published 0.676386 (!), +0.0036)"
    assert cells["textvqa_val"] == "0.7119 (published 0.71188, +0.0000)"
    assert cells["docvqa_test"] == "no score (published 0.568)"  # a server scores it
    assert cells["textvqa_val+max_tiles=1"] == "0.1000"  # other settings than the published ones
    assert "the nearest that can come out: 0.6763773286" in text


def test_several_tasks_in_one_row(tmp_path: Path) -> None:
    for number, name in enumerate(("h", "a")):
        made_run(tmp_path, "m", name, {"accuracy": number + 0.5}, LINES)
        made_run(tmp_path, "n", name, {"accuracy": 0.5}, LINES, complete=number == 0)
    made_run(tmp_path, "o", "h", {"accuracy": 0.5}, LINES)
    entries, _ = read_entries(tmp_path)
    together = {"Both": (("h", "a"), lambda h, a: 10 * h + a)}
    table = table_of(entries, together)
    assert list(table.rows) == ["a", "h", "Both"]
    m, n, o = table.rows["Both"][1]
    assert m is not None and (m.value, m.partial) == (6.5, None)
    assert n is not None and n.partial == "a partial: 2 of 2"
    assert o is None
    assert "Both" not in table_of(entries, {"Both": (("h", "z"), max)}).rows


def test_one_model_twice_has_two_columns(tmp_path: Path) -> None:
    for place in ("x", "y"):
        made_run(tmp_path / place, "m", "t", {"accuracy": 0.5}, LINES)
    table = table_of(entries_of(tmp_path), {})
    assert table.models == (f"m ({tmp_path / 'x/m'})", f"m ({tmp_path / 'y/m'})")


def test_names_cannot_break_the_table(tmp_path: Path) -> None:
    made_run(tmp_path, "a|b", "t<script>", None, LINES)
    text = markdown_table(entries_of(tmp_path))
    assert "| t&lt;script> |  | no score |" in text
    assert "a\\|b" in text
    assert markdown_table([]) == "No runs.\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1.0000"),
        (0.71188, "0.7119"),
        (1230, "1230"),
        (90.246, "90.25"),
        (-3.0, "-3"),
        (0, "0.0000"),
        (math.nan, "nan"),
    ],
)
def test_digits(value: float, text: str) -> None:
    assert figure_text(value) == text
