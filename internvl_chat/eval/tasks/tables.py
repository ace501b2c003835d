"""VLMEvalKit's tables: TSV files of ``data/LMUData`` with pictures inside, and how InternVL is asked from them."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from internvl_chat.errors import DataError
from internvl_chat.eval.sources import field_of, read_table, unpacked
from internvl_chat.eval.task import Ask, Layout, Record
from internvl_chat.eval.tasks.common import LETTER, LETTER_CN
from internvl_chat.infer.pictures import Shown, place_pictures

FOLDER = "LMUData"
_ADDRESS = "https://opencompass.openxlab.space/utils/VLMEval/{}.tsv"
# A picture's field of at most so many characters is the index of the row that has the picture.
_REFERENCE = 64
# Tiles that all pictures of a question share.
TOTAL_TILES = 64
_CHINESE = re.compile("[\u4e00-\u9fff]")
_DIRECT = "Answer the question directly."
_DIRECT_CN = "请直接回答问题。"


def table_layout(name: str, md5: str = "") -> Layout:
    """The table ``LMUData/<name>.tsv``; its records have the table's columns, and ``images``, a list of paths."""
    file = f"{FOLDER}/{name}.tsv"
    sums = {file: f"md5:{md5}"} if md5 else {}
    return Layout("guide", (file,), _reader(name), _ADDRESS.format(name), sums)


def _reader(name: str) -> Callable[[Path], Iterator[Record]]:
    def read(root: Path) -> Iterator[Record]:
        yield from table_records(root / FOLDER / f"{name}.tsv")

    return read


def table_records(path: Path) -> Iterator[Record]:
    """The rows of a table that have a picture. Raises DataError for pictures that are damaged or cannot be found."""
    rows = list(unpacked([path], _rows))
    pictures = {str(field_of(row, "index", str(path))): row.get("image") for row in rows}
    for row in rows:
        images = row.pop("image", None)
        if isinstance(images, dict):
            images = pictures.get(images["row"])
            if not isinstance(images, list):
                raise DataError(f"{path}: row {row['index']!r} refers to a row without a picture; download it again")
        if images is None and row.get("image_path"):
            images = [str(_placed(path, name)) for name in texts_of(row["image_path"])]
        if images:
            yield {**row, "images": images}


def _rows(path: Path) -> Iterator[Record]:
    """Rows with pictures as data URLs, or as ``{"row": index}``."""
    for row in read_table(path):
        image = row.get("image")
        if image is None:
            yield dict(row)
        elif len(image) <= _REFERENCE:
            yield {**row, "image": {"row": image}}
        else:
            yield {**row, "image": [f"data:image/jpeg;base64,{one}" for one in texts_of(image)]}


def _placed(table: Path, name: str) -> Path:
    """Where a picture of the column ``image_path`` lies: below ``images/<table>``, or below the tables' folder."""
    inside = table.parent / "images" / table.stem / name
    return inside if inside.exists() or not (table.parent / name).exists() else table.parent / name


def texts_of(text: str | None) -> list[str]:
    """A field that is a list written as text; any other text is a list of one."""
    if not text:
        return []
    if text.startswith("[") and text.endswith("]"):
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return [text]
        if isinstance(found, list):
            return [str(one) for one in found]
    return [text]


def row_options(record: Mapping[str, Any]) -> dict[str, str]:
    """Letter -> option of a row."""
    return {letter: str(record[letter]) for letter in string.ascii_uppercase if record.get(letter) is not None}


def option_prompt(record: Mapping[str, Any]) -> str:
    """Hint, question, options, and the request for a letter, or for an answer where there are none."""
    options = row_options(record)
    parts = [str(record["hint"])] if record.get("hint") else []
    parts += [str(record["question"]), *(f"{letter}. {text}" for letter, text in options.items())]
    text = "\n".join(parts)
    chinese = _CHINESE.search(text) is not None
    if options:
        return f"{text}\n{LETTER_CN if chinese else LETTER}"
    return f"{text}\n{_DIRECT_CN if chinese else _DIRECT}"


def shown_with(text: str, images: Iterable[str], ask: Ask, enlarge: int = 1) -> tuple[str, tuple[Shown, ...]]:
    """The question with its pictures: several are announced line by line and share 64 tiles.

    ``enlarge``: of the first picture. Models that cut no tiles see the first picture only, as it is.
    """
    paths = [Path(image) for image in images]
    if not ask.dynamic:
        return text, (Shown(paths[0], ask.max_tiles),)
    limit = max(1, min(ask.max_tiles, TOTAL_TILES // len(paths)))
    shown = tuple(Shown(path, limit, enlarge if place == 0 else 1) for place, path in enumerate(paths))
    if len(paths) == 1:
        return text, shown
    return place_pictures("", len(paths)) + text, shown
