"""Pictures and files for miniature data sets in the layouts of the guide and of the public releases."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image


def picture(path: Path, number: int = 0, size: tuple[int, int] = (80, 50)) -> Path:
    """A small picture of its own colours, told by the number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = Image.new("RGB", (2, 2))
    small.putdata([((40 * number + 60 * k) % 256, (90 * k) % 256, (70 * number) % 256) for k in range(4)])
    small.resize(size).save(path)
    return path


def jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def json_file(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path
