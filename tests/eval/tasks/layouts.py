"""A release of a data set, read as it is and again after it was laid down as in the guide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
from PIL import Image
from pyarrow import parquet

from internvl_chat.eval.items import find_layout, load_items, options_of
from internvl_chat.eval.registry import resolve
from internvl_chat.eval.task import Ask, Item


def described(item: Item) -> dict[str, Any]:
    """What of an item must not hang on the layout. Pictures by their size and a colour."""
    pictures = []
    for shown in item.shown:
        with Image.open(str(shown.source)) as image:
            pictures.append((image.size, image.convert("RGB").getpixel((1, 1)), shown.max_tiles))
    return {"id": item.id, "text": item.text, "gold": item.gold, "extra": dict(item.extra), "shown": pictures}


def read_both_ways(key: str, root: Path, layout: str) -> list[dict[str, Any]]:
    """The items of the release ``layout`` below the root; asserts that the guide's layout gives the same."""
    (task,) = resolve([key])
    found = find_layout(task, root)
    assert found.name == layout
    ask = Ask(root, task.max_tiles, options=options_of(task, {}))
    released = [described(item) for item in load_items(task, ask)]
    guide = task.layouts[0]
    assert guide.write is not None
    guide.write(root, found.read(root))
    assert find_layout(task, root) is guide
    assert [described(item) for item in load_items(task, ask)] == released
    return released


def parquet_file(path: Path, rows: list[dict[str, Any]]) -> None:
    """A parquet file; pictures are ``{"bytes", "path"}``, as Hugging Face has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def picture_cell(path: Path) -> dict[str, Any]:
    return {"bytes": path.read_bytes(), "path": None}
