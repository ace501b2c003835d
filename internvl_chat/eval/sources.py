"""Files of benchmarks -> records: JSONL, JSON, gzip, parquet, TSV, CSV; and the pictures that records name."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from internvl_chat.config.cache import cache_folder
from internvl_chat.constants import MAX_PICTURE_BYTES
from internvl_chat.data.containers import kind_of, read_lines
from internvl_chat.data.faults import Fault
from internvl_chat.data.locks import alone
from internvl_chat.data.parquet import mime_of
from internvl_chat.data.storage import Medium, locate_medium
from internvl_chat.errors import ConfigError, DataError, first_line
from internvl_chat.eval.task import Record

# The folder that annotation files begin their paths with.
DATA = "data/"
_SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/gif": ".gif", "image/webp": ".webp"}
_DATA_URL = "data:"
# Of a folder of unpacked pictures: its records, and how they name a picture.
_RECORDS = "records.jsonl"
_NAMED = re.compile(r"data:([0-9a-f]{24}\.[a-z]+)")


def read_records(path: Path) -> Iterator[Record]:
    """The objects of a JSONL, JSON array, gzip or parquet file. Raises DataError naming file and line."""
    try:
        if not path.stat().st_size:
            raise DataError(f"{path} is empty; download or write it again")
        for number, line in enumerate(read_lines(path, kind_of(path)), 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}:{number}: no JSON ({error}); download or write the file again") from error
            if not isinstance(record, dict):
                raise DataError(f"{path}:{number}: {str(record)[:40]!r} is no object; check that it is the right file")
            yield record
    except OSError as error:
        raise DataError(f"{path} cannot be read ({first_line(error)})") from error


def read_json(path: Path) -> Any:
    """The one value of a JSON file. Raises DataError."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({first_line(error)}); download or write it again") from error


def read_table(path: Path, delimiter: str = "\t") -> Iterator[dict[str, str | None]]:
    """The rows of a table with a header, all as text; an empty field is None, and only that one. Raises DataError."""
    csv.field_size_limit(sys.maxsize)  # pictures are fields, too
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        f"{path}:{reader.line_num}: not as many fields as the header has; download it again"
                    )
                yield {name: value or None for name, value in row.items()}
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({first_line(error)}); download it again") from error


def find(root: Path, patterns: Iterable[str]) -> list[Path]:
    """The files of ``patterns`` below the data root, sorted within each pattern; all those that are there."""
    return [path for pattern in patterns for path in sorted(root.glob(pattern))]


def picture(root: Path, name: str, folder: str = "") -> Path | Medium:
    """Where a picture of a record lies. ``folder``: below the data root, for names that do not begin with ``data/``.

    Data URLs and members of archives (``pics.zip``) too. Raises DataError for a name that cannot be one.
    """
    if not isinstance(name, str) or not name:
        raise DataError(f"picture {name!r}: the name of a file is expected")
    inside = root / name.removeprefix(DATA) if name.startswith(DATA) else root / folder / name
    if not name.startswith(_DATA_URL) and "://" not in name and ".zip" not in name and ".tar" not in name:
        return inside
    try:
        medium = locate_medium("" if name.startswith(DATA) else str(root / folder), name)
    except Fault as fault:
        raise DataError(str(fault)) from fault
    return medium if medium.local is None else medium.local


def field_of(record: Mapping[str, Any], name: str, where: str = "record") -> Any:
    """``record[name]``. Raises DataError naming the record and its fields."""
    if name not in record:
        known = ", ".join(str(key) for key in list(record)[:12])
        raise DataError(f"{where}: no field {name!r} (there are: {known}); is it the right file?")
    return record[name]


def unpacked(files: Iterable[Path], read: Callable[[Path], Iterable[Record]] = read_records) -> Iterator[Record]:
    """Records of files with pictures inside (parquet, tables): each data URL becomes the path of a picture file.

    The pictures are written once, below ``INTERNVL_CACHE``, and again those that are lost; the key is the files' paths,
    sizes and times. Raises DataError, and ConfigError where the cache cannot be written.
    """
    paths = [path.resolve() for path in files]
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    key = hashlib.sha256(json.dumps([stats, read.__module__, read.__qualname__]).encode()).hexdigest()[:16]
    folder = cache_folder() / "eval" / f"{paths[0].stem}-{key}" if paths else cache_folder() / "eval" / key
    with writing_cache(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not _is_whole(folder):
            with alone(folder.parent / f"{folder.name}.lock") as held:
                if not _is_whole(folder):  # else another process was faster
                    if held:
                        for left in folder.parent.glob(f".part-{folder.name}-*"):  # of a killed process
                            shutil.rmtree(left, ignore_errors=True)
                    _unpack(paths, read, folder)
    for record in read_records(folder / _RECORDS):
        yield _placed(record, folder)


@contextmanager
def writing_cache(folder: Path) -> Iterator[None]:
    """What the disk refuses to the cache, as the user's error. Raises ConfigError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"INTERNVL_CACHE: {folder} cannot be written ({first_line(error)}); make room or see to the folder, or "
            "have INTERNVL_CACHE name another one"
        ) from error


def _is_whole(folder: Path) -> bool:
    """Whether the folder has every picture that its records name, and none of them is an empty file."""
    if not (folder / _RECORDS).is_file():
        return False
    there = {path.name for path in folder.iterdir() if path.stat().st_size}
    with (folder / _RECORDS).open(encoding="utf-8") as lines:
        return all(there.issuperset(_NAMED.findall(line)) for line in lines)


def _unpack(paths: Sequence[Path], read: Callable[[Path], Iterable[Record]], folder: Path) -> None:
    """Write pictures and records of all files; what a folder that is there has already is replaced file by file."""
    part = Path(tempfile.mkdtemp(prefix=f".part-{folder.name}-", dir=folder.parent))
    try:
        with (part / _RECORDS).open("w", encoding="utf-8") as out:
            for path in paths:
                for number, record in enumerate(read(path), 1):
                    try:
                        out.write(json.dumps(_written(record, part)) + "\n")
                    except Fault as fault:
                        what = f"{path}: row {number}: a picture is damaged ({fault.reason})"
                        raise DataError(f"{what}; download it again") from fault
        part.chmod(0o755)
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            # Pictures were lost, or another process was faster: others may be reading, so nothing is taken away.
            for file in sorted(part.iterdir(), key=lambda one: one.name == _RECORDS):
                file.replace(folder / file.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _written(value: Any, folder: Path) -> Any:
    """The value with its data URLs replaced by ``data:NAME`` of files in the folder."""
    if isinstance(value, dict):
        return {name: _written(inner, folder) for name, inner in value.items()}
    if isinstance(value, list):
        return [_written(inner, folder) for inner in value]
    if not isinstance(value, str) or not value.startswith(_DATA_URL) or ";base64," not in value[:100]:
        return value
    content = locate_medium("", value).read(MAX_PICTURE_BYTES)
    name = hashlib.sha256(content).hexdigest()[:24] + _SUFFIXES.get(mime_of(content) or "", ".bin")
    if not (folder / name).exists():
        (folder / name).write_bytes(content)
    return f"{_DATA_URL}{name}"


def _placed(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {name: _placed(inner, folder) for name, inner in value.items()}
    if isinstance(value, list):
        return [_placed(inner, folder) for inner in value]
    named = _NAMED.fullmatch(value) if isinstance(value, str) else None
    return value if named is None else str(folder / named[1])


def write_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """A JSONL file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    part.replace(path)


def keep_picture(source: str, target: Path) -> None:
    """Put a picture of a release where the guide has it; one that is there stays."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
