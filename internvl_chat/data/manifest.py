"""Manifest ("meta" JSON or YAML) -> one DatasetSpec per data set, checked before anything else is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from internvl_chat.data.faults import Fault, FaultCode
from internvl_chat.data.formats.table import FORMATS, check_format
from internvl_chat.data.frames import check_method
from internvl_chat.data.template import OWN_TEMPLATE, get_template
from internvl_chat.data.unique import parse_json, parse_yaml
from internvl_chat.errors import ConfigError, nearest

_MAX_REPEAT = 10_000
_ARCHIVES = (".zip", ".tar")


@dataclass(frozen=True)
class ImageLimits:
    """Pictures outside of these are faults; None: no limit. ``max_image_ratio``: long side to short."""

    min_image_side: int | None = None
    max_image_pixels: int | None = None
    max_image_ratio: float | None = None

    def check(self, name: str, width: int, height: int) -> None:
        """Raise Fault for a picture that the data set does not want."""
        ratio = max(width, height) / min(width, height)
        for key, broken in (
            ("min_image_side", self.min_image_side is not None and min(width, height) < self.min_image_side),
            ("max_image_pixels", self.max_image_pixels is not None and width * height > self.max_image_pixels),
            ("max_image_ratio", self.max_image_ratio is not None and ratio > self.max_image_ratio),
        ):
            if broken:
                what = f"picture {name!r} is {width} x {height}, outside {key} {getattr(self, key):g} of the manifest"
                raise Fault(FaultCode.IMAGE_SIZE, what, "remove the line, or change the limit")


@dataclass(frozen=True)
class DatasetSpec:
    """One data set of the manifest.

    ``repeat_time`` below 1 takes the first part of the file, above 1 repeats it. ``weight``: share of the samples of an
    epoch, against the other weights; None = as many as there are. ``eval_share`` (0..1) of the lines is held out of
    training; with ``split`` "eval" all are. None elsewhere: what the flags and the checkpoint say.
    """

    name: str
    root: str
    annotation: Path
    data_augment: bool = False
    repeat_time: float = 1.0
    max_dynamic_patch: int | None = None
    length: int | None = None
    format: str | None = None
    columns: Mapping[str, str] | None = None
    conv_style: str | None = None
    system_message: str | None = None
    split: Literal["train", "eval"] = "train"
    eval_share: float = 0.0
    weight: float | None = None
    sampling_method: str | None = None
    min_num_frame: int | None = None
    max_num_frame: int | None = None
    image_limits: ImageLimits = ImageLimits()


def load_manifest(path: str | Path) -> list[DatasetSpec]:
    """Read and check the manifest; data sets in the order of the file.

    Relative paths are looked up from the working directory, then from the manifest's folder. Raises ConfigError with
    every problem found, one per line, each naming file, data set, key and the mend.
    """
    path = Path(path)
    entries = _read_object(path)
    problems: list[str] = []
    specs = [_check_entry(path, name, entry, problems) for name, entry in entries.items()]
    trained = [spec for spec in specs if spec is not None and spec.split == "train"]
    bare = [spec.name for spec in trained if spec.weight is None]
    if bare and len(bare) < len(trained):
        problems.append(f"{path}: data set {bare[0]!r} has no weight, others have; give every data set one, or none")
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
    entries = (
        parse_yaml(path, text, _mend_twice) if path.suffix.lower() in (".yaml", ".yml") else _read_json(path, text)
    )
    if not isinstance(entries, dict):
        raise ConfigError(f"{path}: must be one object of data sets, not a {type(entries).__name__}")
    return {str(name): entry for name, entry in entries.items()}


def _mend_twice(key: Hashable) -> str:
    return "remove one of them" if key in KEYS else "give each a name of its own"


def _read_json(path: Path, text: str) -> Any:
    try:
        return parse_json(path, text, _mend_twice)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path}:{error.lineno}:{error.colno}: not JSON ({error.msg}); {_json_mend(text, error)}"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise ConfigError(f"{path}: not a manifest ({error})") from error


def _json_mend(text: str, error: json.JSONDecodeError) -> str:
    if error.msg == "Extra data" and text.lstrip().startswith("{"):
        return (
            'an annotation? A manifest names it: {"mine": {"root": "pictures/", "annotation": "a.jsonl"}}'
            if '"conversations"' in text[: error.pos] or '"messages"' in text[: error.pos]
            else "one object of data sets is all that may be in it"
        )
    if not text.lstrip().startswith(("{", "[")):
        return "if it is YAML, let its name end with .yaml"
    return "often a comma after the last entry"


def _check_entry(path: Path, name: str, entry: Any, problems: list[str]) -> DatasetSpec | None:
    where = f"{path}: data set {name!r}"
    before = len(problems)
    if not isinstance(entry, dict):
        problems.append(f"{where}: must be an object with {', '.join(REQUIRED_KEYS)}")
        return None
    for key in entry:
        if key not in KEYS:
            problems.append(f"{where}: unknown key {key!r}{nearest(str(key), KEYS)}; legal keys: {', '.join(KEYS)}")
    for key, meaning in REQUIRED_KEYS.items():
        if key not in entry:
            problems.append(f"{where}: key {key!r} is missing; {meaning}")
        elif not isinstance(entry[key], str):
            problems.append(f"{where}: key {key!r} must be a string, not {entry[key]!r}; {meaning}")
    given = {key: entry[key] for key in OPTIONAL_KEYS if entry.get(key) is not None}
    for key, value in given.items():
        if (wrong := OPTIONAL_KEYS[key](value)) is not None:
            problems.append(f"{where}: {key} must be {wrong}, not {value!r}")
    if len(problems) == before:
        try:
            check_format(given.get("format"), given.get("columns"))
        except ConfigError as error:
            problems.append(f"{where}: {error}")
        if given.get("weight") is not None and "repeat_time" in given:
            problems.append(f"{where}: weight and repeat_time both say how often lines are seen; give one of them")
    if len(problems) == before and given.get("min_num_frame", 1) > given.get("max_num_frame", float("inf")):
        problems.append(f"{where}: min_num_frame is more than max_num_frame; swap them")
    if len(problems) > before:
        return None
    annotation, root = _find(path, entry["annotation"]), entry["root"]
    if not annotation.is_file():
        problems.append(
            f"{where}: annotation {entry['annotation']!r} is not a file (looked in {Path.cwd()} and "
            f"{path.parent.resolve()}); give a path that exists"
        )
    if root and "://" not in root:
        found = _find(path, root)
        if not found.is_dir() and not (found.is_file() and found.suffix.lower() in _ARCHIVES):
            problems.append(
                f"{where}: root {root!r} is not a folder; give the folder (or .zip, .tar) that picture paths start from"
            )
        root = str(found)
    return None if len(problems) > before else _make_spec(name, root, annotation, given)


def _make_spec(name: str, root: str, annotation: Path, given: dict[str, Any]) -> DatasetSpec:
    limits = {key: given.pop(key) for key in list(given) if key in ImageLimits.__dataclass_fields__}
    if "length" in given:
        given["length"] = int(given["length"])
    for key in ("repeat_time", "eval_share", "weight"):
        if key in given:
            given[key] = float(given[key])
    return DatasetSpec(name, root, annotation, **given, image_limits=ImageLimits(**limits))


def _find(manifest: Path, value: str) -> Path:
    here, beside = Path(value), manifest.parent / value
    return here if here.exists() or not beside.exists() else beside


Check = Callable[[Any], "str | None"]


def _number(low: float, high: float, wanted: str, *, whole: bool = False, above: bool = False) -> Check:
    """``low <= value <= high``, or ``low < value`` with ``above``."""

    def check(value: Any) -> str | None:
        number = not isinstance(value, bool) and isinstance(value, int if whole else (int, float))
        return None if number and (low < value if above else low <= value) and value <= high else wanted

    return check


def _one_of(*legal: str) -> Check:
    return lambda value: None if value in legal else f"one of {', '.join(legal)}"


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) else "a text"


def _length(value: Any) -> str | None:
    return None if str(value).isdigit() else "the number of lines"


def _conv_style(value: Any) -> str | None:
    return _refused_by(lambda: value == OWN_TEMPLATE or get_template(value), "a conversation template", value)


def _sampling_method(value: Any) -> str | None:
    return _refused_by(lambda: check_method(value), "a sampling method", value)


def _refused_by(ask: Callable[[], object], what: str, value: Any) -> str | None:
    if not isinstance(value, str):
        return what
    try:
        ask()
    except ConfigError as error:
        return f"{what} ({error})"
    return None


def _columns(value: Any) -> str | None:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        return "an object of names, e.g. {'messages': 'dialog'}"
    return None


REQUIRED_KEYS = {
    "root": "it is the folder that picture paths start from, '' if they are absolute",
    "annotation": "it is the file with the samples: JSONL, a JSON array, either of them gzipped, or parquet",
}
OPTIONAL_KEYS: dict[str, Check] = {
    "data_augment": lambda value: None if isinstance(value, bool) else "true or false",
    "repeat_time": _number(0, _MAX_REPEAT, f"a number above 0, at most {_MAX_REPEAT} (1 means once)", above=True),
    "max_dynamic_patch": _number(1, 10_000, "a whole number of at least 1", whole=True),
    "length": _length,
    "format": _one_of(*FORMATS),
    "columns": _columns,
    "conv_style": _conv_style,
    "system_message": _text,
    "split": _one_of("train", "eval"),
    "eval_share": _number(0, 1, "a number from 0 to 1, the share of the lines that is held out"),
    "weight": _number(0, 1e9, "a number above 0", above=True),
    "sampling_method": _sampling_method,
    "min_num_frame": _number(1, 10_000, "a whole number of at least 1", whole=True),
    "max_num_frame": _number(1, 10_000, "a whole number of at least 1", whole=True),
    "min_image_side": _number(1, 10**6, "a number of pixels, at least 1", whole=True),
    "max_image_pixels": _number(1, 10**12, "a number of pixels, at least 1", whole=True),
    "max_image_ratio": _number(1, 10**6, "a number of at least 1, the long side to the short"),
}
KEYS = (*REQUIRED_KEYS, *OPTIONAL_KEYS)
