"""What the definitions of tasks share: prompts, options by letter, one picture, output files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from internvl_chat.data.storage import Medium
from internvl_chat.errors import ConfigError
from internvl_chat.eval.task import Answered, Ask, OutputFile
from internvl_chat.infer.pictures import Shown

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
LETTER_CN = "请直接回答选项字母。"
BOX = "Please provide the bounding box coordinate of the region this sentence describes: <ref>{question}</ref>"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def one(picture: Path | Medium, ask: Ask) -> tuple[Shown, ...]:
    """One picture with the tile limit of the task."""
    return (Shown(picture, ask.max_tiles),)


def option_lines(options: Sequence[str]) -> str:
    """``A. first``, ``B. second``, ... one a line."""
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))


def json_file(name: str, value: Any, *, indent: int | None = None, escaped: bool = True) -> OutputFile:
    """JSON as ``json.dump`` writes it: on one line, or with ``indent`` blanks a level.

    ``escaped``: what is not ASCII is written as ``\\uXXXX``, else as it is, in UTF-8.
    """
    # A lone surrogate, which UTF-8 has no bytes for, is written as an escape in either case.
    text = json.dumps(value, indent=indent, ensure_ascii=escaped)
    return OutputFile(name, text.encode("utf-8", "backslashreplace"))


def answers_file(name: str) -> Callable[[Answered], list[OutputFile]]:
    """``<name>.json`` of question, answer, right answer and id, for data sets whose own form is not known."""

    def files(run: Answered) -> list[OutputFile]:
        records = [
            {"question": item.text, "answer": answer, "gt_answers": item.gold, "id": item.id}
            for item, answer in zip(run.items, run.answers, strict=True)
        ]
        return [json_file(f"{name}.json", records)]

    return files


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
        raise ConfigError(f"{name} needs openpyxl; pip install openpyxl") from error
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
