"""Manifest ("meta" JSON) -> one DatasetSpec per data set, checked before anything else is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl_chat.errors import ConfigError, nearest

REQUIRED_KEYS = ("root", "annotation")
OPTIONAL_KEYS = ("data_augment", "repeat_time", "max_dynamic_patch", "length")
KEYS = REQUIRED_KEYS + OPTIONAL_KEYS
_MAX_REPEAT = 10_000


@dataclass(frozen=True)
class DatasetSpec:
    """One data set of the manifest. ``repeat_time`` below 1 takes the first part of the file, above 1 repeats it."""

    name: str
    root: str
    annotation: Path
    data_augment: bool = False
    repeat_time: float = 1.0
    max_dynamic_patch: int | None = None


def load_manifest(path: str | Path) -> list[DatasetSpec]:
    """Read and check the manifest; data sets in the order of the file.

    Relative paths are looked up from the working directory, then from the manifest's folder. Raises ConfigError with
    every problem found, one per line, each naming file, data set, key and the mend.
    """
    path = Path(path)
    entries = _read_object(path)
    problems: list[str] = []
    specs = [_check_entry(path, name, entry, problems) for name, entry in entries.items()]
    if not entries:
        problems.append(f'{path}: no data set in it; add one, e.g. {{"mine": {{"root": "", "annotation": "a.jsonl"}}}}')
    if problems:
        raise ConfigError("\n".join(problems))
    return [spec for spec in specs if spec is not None]


def _read_object(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: the manifest cannot be read ({error.strerror}); check --meta_path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: the manifest is not UTF-8 ({error.reason}); save it as UTF-8") from error

    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise ConfigError(f"{path}: {key!r} occurs twice; give each a name of its own")
            seen[key] = value
        return seen

    try:
        entries = json.loads(text, object_pairs_hook=without_repeats)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path}:{error.lineno}:{error.colno}: not JSON ({error.msg}); often a comma after the last entry"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise ConfigError(f"{path}: not a manifest ({error})") from error
    if not isinstance(entries, dict):
        raise ConfigError(f"{path}: must be one JSON object of data sets, not a {type(entries).__name__}")
    return entries


def _check_entry(path: Path, name: str, entry: Any, problems: list[str]) -> DatasetSpec | None:
    where = f"{path}: data set {name!r}"
    before = len(problems)
    if not isinstance(entry, dict):
        problems.append(f"{where}: must be an object with {', '.join(REQUIRED_KEYS)}")
        return None
    for key in entry:
        if key not in KEYS:
            problems.append(f"{where}: unknown key {key!r}{nearest(key, KEYS)}; legal keys: {', '.join(KEYS)}")
    for key in REQUIRED_KEYS:
        if key not in entry:
            problems.append(f"{where}: key {key!r} is missing; {_MEANING[key]}")
        elif not isinstance(entry[key], str):
            problems.append(f"{where}: key {key!r} must be a string, not {entry[key]!r}; {_MEANING[key]}")
    repeat = entry.get("repeat_time", 1)
    if isinstance(repeat, bool) or not isinstance(repeat, (int, float)) or not 0 < repeat <= _MAX_REPEAT:
        problems.append(
            f"{where}: repeat_time must be a number above 0, at most {_MAX_REPEAT}, not {repeat!r}; 1 means once"
        )
    augment = entry.get("data_augment", False)
    if not isinstance(augment, bool):
        problems.append(f"{where}: data_augment must be true or false, not {augment!r}")
    tiles = entry.get("max_dynamic_patch")
    if tiles is not None and (isinstance(tiles, bool) or not isinstance(tiles, int) or tiles < 1):
        problems.append(f"{where}: max_dynamic_patch must be a whole number of at least 1, not {tiles!r}")
    if len(problems) > before:
        return None
    annotation = _find(path, entry["annotation"])
    if not annotation.is_file():
        problems.append(
            f"{where}: annotation {entry['annotation']!r} is not a file (looked in {Path.cwd()} and "
            f"{path.parent.resolve()}); give a path that exists"
        )
        return None
    root = entry["root"]
    if root and "://" not in root and not _find(path, root).is_dir():
        problems.append(f"{where}: root {root!r} is not a folder; give the folder that picture paths start from")
        return None
    return DatasetSpec(
        name, str(_find(path, root)) if root and "://" not in root else root, annotation, augment, float(repeat), tiles
    )


def _find(manifest: Path, value: str) -> Path:
    here, beside = Path(value), manifest.parent / value
    return here if here.exists() or not beside.exists() else beside


_MEANING = {
    "root": "it is the folder that picture paths start from, '' if they are absolute",
    "annotation": "it is the JSONL file with one sample per line",
}
