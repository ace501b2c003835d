"""MP-DocVQA: questions on documents of several pages, scored by ANLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from internvl_chat.constants import IMAGE_PLACEHOLDER
from internvl_chat.data.faults import Fault
from internvl_chat.data.media import read_image_size
from internvl_chat.data.storage import Medium
from internvl_chat.data.tiles import TileSettings, count_tiles
from internvl_chat.errors import DataError
from internvl_chat.eval.sources import field_of, picture, read_json
from internvl_chat.eval.task import Ask, Item, Record, Task
from internvl_chat.eval.tasks.common import SHORT
from internvl_chat.eval.tasks.documents import anls_score
from internvl_chat.eval.tasks.short import layout, row_of, row_with, written
from internvl_chat.eval.tasks.tables import TOTAL_TILES
from internvl_chat.infer.pictures import Shown, place_pictures

_FOLDER = "mpdocvqa/images"


def _item(record: Record, ask: Ask) -> Item:
    names = list(record["page_ids"])
    if not names:
        raise DataError(f"question {record['questionId']!r} has no page; download the file again")
    pages = [picture(ask.root, f"{name}.jpg", _FOLDER) for name in names]
    limit = max(1, min(ask.max_tiles, TOTAL_TILES // len(pages)))
    # As in the original it is the number of tiles, not of pages, that decides whether pages are announced.
    if len(pages) > 1:
        lines = place_pictures("", len(pages))
    else:
        lines = f"Image-1: {IMAGE_PLACEHOLDER}\n" if ask.dynamic and _is_cut(pages[0], limit) else ""
    return Item(
        f"{record['questionId']}",
        f"{lines}{record['question']} {SHORT}",
        tuple(Shown(page, limit) for page in pages),
        record.get("answers"),
        {"question": record["question"], "question_id": record["questionId"], "answer": record.get("answers")},
    )


def _is_cut(page: Path | Medium, limit: int) -> bool:
    """Whether a page becomes more than one tile, for tiles of the usual 448 pixels."""
    if isinstance(page, Path) and not page.exists():
        return False  # reported with all the others that are missing
    try:
        width, height = read_image_size(page)
    except Fault as fault:
        raise DataError(str(fault)) from fault
    return count_tiles(width, height, TileSettings(max_tiles=limit)) > 1


def _page_row(item: Item, answer: str) -> dict[str, Any]:
    # The server demands a page beside the answer; a model that names none is counted for the first.
    return {"questionId": item.extra["question_id"], "answer": answer, "answer_page": 0}


def _task(split: str, title: str, count: int) -> Task:
    name, path = f"mpdocvqa_{split}", f"mpdocvqa/{split}.json"

    def read(root: Path) -> Iterator[Record]:
        yield from field_of(read_json(root / path), "data", path)

    test = split == "test"
    return Task(
        name,
        title,
        (layout("guide", (path,), read, "https://rrc.cvc.uab.es/?ch=17&com=downloads"),),
        _item,
        None if test else anls_score(),
        max_new_tokens=100,
        max_tiles=18,
        count=count,
        files=written(
            name,
            row_of("questionId") if test else row_with("questionId", "annotation"),
            _page_row if test else None,
            escaped=test,
        ),
    )


TASKS = (_task("val", "MP-DocVQA, validation", 5187), _task("test", "MP-DocVQA, test", 5019))
KEYS = {"vqa-mpdocvqa-val": ("mpdocvqa_val",), "vqa-mpdocvqa-test": ("mpdocvqa_test",)}
