"""What the definitions of tasks share: prompts, options by letter, one picture, output files."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from internvl_chat.data.storage import Medium
from internvl_chat.errors import ConfigError
from internvl_chat.eval.task import Ask, OutputFile
from internvl_chat.infer.pictures import Shown

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
LETTER_CN = "请直接回答选项字母。"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def one(picture: Path | Medium, ask: Ask) -> tuple[Shown, ...]:
    """One picture with the tile limit of the task."""
    return (Shown(picture, ask.max_tiles),)


def option_lines(options: Sequence[str]) -> str:
    """``A. first``, ``B. second``, ... one a line."""
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))


def json_file(name: str, value: Any) -> OutputFile:
    """JSON on one line, as ``json.dump`` writes it."""
    return OutputFile(name, json.dumps(value).encode())


def jsonl_file(name: str, records: Iterable[Mapping[str, Any]]) -> OutputFile:
    """A JSON object a line."""
    return OutputFile(name, "".join(json.dumps(record) + "\n" for record in records).encode())


def xlsx_file(name: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> OutputFile:
    """A sheet with a header. Raises ConfigError without openpyxl."""
    try:
        from openpyxl import Workbook
        from openpyxl.cell import WriteOnlyCell
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
    except ImportError as error:
        raise ConfigError(f"{name} needs openpyxl; pip install 'internvl_chat[eval]'") from error
    book = Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")

    def written(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        cell = WriteOnlyCell(sheet, ILLEGAL_CHARACTERS_RE.sub("", value))
        cell.data_type = "s"  # an answer that begins with "=" is no formula
        return cell

    sheet.append(list(columns))
    for row in rows:
        sheet.append([written(row.get(column)) for column in columns])
    buffer = io.BytesIO()
    book.save(buffer)
    return OutputFile(name, buffer.getvalue())
