"""Pictures inside files: parquet as Hugging Face writes it, tables with base64."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image


def png(number: int = 0, size: tuple[int, int] = (40, 24)) -> bytes:
    """A small picture of its own colours, as a file."""
    picture = Image.new("RGB", (2, 2))
    picture.putdata([((40 * number + 60 * k) % 256, (90 * k) % 256, (70 * number) % 256) for k in range(4)])
    buffer = io.BytesIO()
    picture.resize(size).save(buffer, "PNG")
    return buffer.getvalue()


def base64_png(number: int = 0) -> str:
    return base64.b64encode(png(number)).decode()


def parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Bytes, and lists of bytes, become pictures as the ``datasets`` library stores them."""
    import pyarrow
    from pyarrow import parquet as writer

    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_table(pyarrow.Table.from_pylist([{k: _stored(v) for k, v in row.items()} for row in rows]), path)
    return path


def arrow(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """As ``parquet``, in the form of the library's cache."""
    import pyarrow

    path.parent.mkdir(parents=True, exist_ok=True)
    found = pyarrow.Table.from_pylist([{k: _stored(v) for k, v in row.items()} for row in rows])
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_stream(file, found.schema) as writer:
        writer.write_table(found)
    return path


def _stored(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    return [_stored(one) for one in value] if isinstance(value, list) else value


def table(path: Path, rows: Sequence[Mapping[str, Any]], delimiter: str = "\t") -> Path:
    """A table with a header; None is an empty field."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows([{k: "" if v is None else v for k, v in row.items()} for row in rows])
    return path
