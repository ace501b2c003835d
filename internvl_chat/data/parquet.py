"""Rows of a parquet file as JSON values: pictures inside it become data URLs."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from datetime import date, time
from pathlib import Path
from typing import Any

from internvl_chat.errors import ConfigError, DataError, first_line

# Rows with pictures inside are large; this many are in memory at a time.
_ROWS = 64
# Start of a file -> its type; a tuple: behind the length that RIFF and MP4 files begin with.
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (0, b"BM", "image/bmp"),
    (0, b"II*\x00", "image/tiff"),
    (0, b"MM\x00*", "image/tiff"),
    (4, b"ftypavif", "image/avif"),
    (4, b"ftyp", "video/mp4"),
    (0, b"\x1a\x45\xdf\xa3", "video/webm"),
    (8, b"AVI ", "video/x-msvideo"),
)
_UNKNOWN = "application/octet-stream"


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows in order, JSON values only. Raises DataError for a damaged file, ConfigError without pyarrow.

    ``{"bytes", "path"}`` (a picture of a Hugging Face data set) becomes a data URL, or its path where no bytes are
    inside; bytes in a column of their own become a data URL, or a text if they are one; dates ISO texts; NaN null.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(f"{path}: parquet needs pyarrow; pip install pyarrow") from error
    broken = (pyarrow.ArrowException, OSError, ValueError, KeyError, OverflowError)
    number = 0
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=_ROWS):
                rows = [{key: plain(value) for key, value in row.items()} for row in batch.to_pylist()]
                yield from rows
                number += len(rows)
    except broken as error:
        what = f"{path}: the parquet file cannot be read behind row {number} ({first_line(error)})"
        raise DataError(f"{what}; download or write it again") from error


def plain(value: Any) -> Any:
    """A value of a table as JSON has it."""
    if isinstance(value, dict):
        if "bytes" in value and value.keys() <= {"bytes", "path"}:
            content = value["bytes"]
            return data_url(content) if isinstance(content, bytes) and content else value.get("path")
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, bytes):
        return _bytes(value)
    if isinstance(value, float):
        return None if math.isnan(value) else value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (str, bool, int)):
        return value
    return value.isoformat() if isinstance(value, (date, time)) else str(value)


def data_url(content: bytes) -> str:
    """``data:<type>;base64,..`` of a file, its type told by its first bytes."""
    return f"data:{mime_of(content) or _UNKNOWN};base64,{base64.b64encode(content).decode()}"


def mime_of(content: bytes) -> str | None:
    """Type of a picture or video file, e.g. ``image/png``; None if its first bytes are of none."""
    return next((mime for at, magic, mime in _MAGIC if content[at : at + len(magic)] == magic), None)


def _bytes(value: bytes) -> str:
    """Old writers store texts as bytes."""
    if mime_of(value) is None:
        try:
            return value.decode()
        except UnicodeDecodeError:
            pass  # some other file
    return data_url(value)
