"""Answers as the table that VLMEvalKit scores: ``vlmutil eval DATASET MODEL_DATASET.xlsx --judge exact_matching``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from internvl_chat.errors import DataError
from internvl_chat.eval.results import MANIFEST, PREDICTIONS, read_answers, write_whole
from internvl_chat.eval.sources import field_of, read_json, read_table
from internvl_chat.eval.task import OutputFile
from internvl_chat.eval.tasks.common import xlsx_file

_INDEX, _PREDICTION = "index", "prediction"
# Pictures: the table that is scored has none.
_LEFT_OUT = ("image",)


def vlm_table(table: Path, answers: Mapping[str, str], model: str) -> OutputFile:
    """``<model>_<dataset>.xlsx``: the columns of the data set's TSV but the pictures, and ``prediction``.

    ``table``: the TSV, called as VLMEvalKit calls the data set. ``answers``: index -> answer. Rows without a picture
    need none and are left out, as there. Raises DataError if another row has none, ConfigError without openpyxl.
    """
    columns: list[str] = []
    rows: list[dict[str, Any]] = []
    lacking: list[str] = []
    left = set(answers)
    for number, row in enumerate(read_table(table), 1):
        index = str(field_of(row, _INDEX, f"{table}: row {number}"))
        columns = columns or [name for name in row if name not in (*_LEFT_OUT, _PREDICTION)]
        if index in answers:
            left.discard(index)
            rows.append({**row, _INDEX: _number(index), _PREDICTION: answers[index]})
        elif row.get("image") or row.get("image_path"):
            lacking.append(index)
    if left:
        raise DataError(f"{table} has no index {min(left)!r}, which was answered; name the table that was asked")
    if lacking:
        raise DataError(
            f"{len(lacking)} of {len(rows) + len(lacking)} rows of {table} have no answer (the first: index "
            f"{lacking[0]}); VLMEvalKit would score the others as if they were all: ask the rest first"
        )
    return xlsx_file(f"{model}_{table.stem}.xlsx", [*columns, _PREDICTION], rows)


def write_vlm_table(run: Path, table: Path) -> Path:
    """Lay the table beside the answers of a finished evaluation, and return its path. Raises DataError, ConfigError."""
    manifest = read_json(run / MANIFEST)
    if not isinstance(manifest, dict) or not isinstance(manifest.get("model"), str):
        raise DataError(f"{run / MANIFEST} names no model; give the folder of a finished evaluation")
    file = vlm_table(table, read_answers(run / PREDICTIONS), manifest["model"])
    write_whole(run / file.name, file.content)
    return run / file.name


def _number(index: str) -> int | str:
    """VLMEvalKit sorts and joins by whole numbers."""
    return int(index) if index.isascii() and index.isdigit() else index
