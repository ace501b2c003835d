"""Files that the ``datasets`` library keeps of a data set: what the original's downloads have left below ``data/``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from internvl_chat.data.parquet import plain
from internvl_chat.errors import ConfigError, DataError, first_line
from internvl_chat.eval.task import Record


def read_arrow(path: Path) -> Iterator[Record]:
    """The rows of an Arrow stream as JSON values; pictures become data URLs, as those of parquet files do.

    Raises DataError for a damaged file, ConfigError without pyarrow.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise ConfigError(f"{path}: Arrow files need pyarrow; pip install pyarrow") from error
    number = 0
    try:
        with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as reader:
            for batch in reader:
                for row in batch.to_pylist():
                    yield {name: plain(value) for name, value in row.items()}
                    number += 1
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path}: the Arrow file cannot be read behind row {number} ({first_line(error)}); download it again"
        ) from error
