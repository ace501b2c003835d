"""``internvl import-manifest``: LLaMA-Factory's dataset_info.json becomes a manifest; data files stay as they are."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from internvl_chat.data.faults import show
from internvl_chat.data.formats.table import COLUMNS, check_format
from internvl_chat.errors import ConfigError, nearest

_HUBS = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
_FORMATS = ("alpaca", "sharegpt")
_UNREADABLE = (".csv", ".arrow", ".txt")
# Keys that are read here or say nothing about training.
_READ = ("file_name", "file_sha1", "formatting", "columns", "tags", "ranking")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command ``internvl import-manifest``."""
    parser.add_argument("source", metavar="DATASET_INFO", help="LLaMA-Factory's dataset_info.json")
    parser.add_argument("out", metavar="OUT", help="manifest to write (.json or .yaml)")
    parser.add_argument("--only", nargs="+", default=None, metavar="NAME", help="these data sets alone (default: all)")
    parser.add_argument(
        "--media_dir", "--media-dir", default=None, metavar="DIR",
        help="folder that media paths start from (default: the folder of dataset_info.json)",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")


def run(args: argparse.Namespace) -> int:
    """Write the manifest. Returns 1 if a data set named by ``--only``, or every one, was left out, else 0."""
    source, out = Path(args.source), Path(args.out)
    described = _read(source)
    for name in args.only or ():
        if name not in described:
            raise ConfigError(f"--only {name}: {source} has no such data set{nearest(name, described)}")
    if out.exists() and (not args.overwrite or not out.is_file() or out.samefile(source)):
        raise ConfigError(f"{out} exists already; choose another OUT, or pass --overwrite")
    media_dir = source.parent if args.media_dir is None else Path(args.media_dir)
    if not media_dir.is_dir():
        raise ConfigError(f"--media_dir {media_dir} is not a folder; give the one that media paths start from")
    manifest: dict[str, dict[str, Any]] = {}
    left_out = []
    for name in args.only or described:
        notes: list[str] = []
        try:
            entries = import_entry(name, described[name], source.parent, media_dir, notes)
        except ConfigError as error:
            left_out.append(f"left out {name!r}: {error}")
            continue
        manifest |= entries
        print("\n".join([f"{name!r}: {', '.join(repr(entry['annotation']) for entry in entries.values())}", *notes]))
    if left_out:
        print("\n".join(left_out))
    if not manifest:
        print(f"nothing is left; {out} is not written")
        return 1
    from internvl_chat.data.annotation import replace_file

    content = _written(manifest, out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(out, lambda file: file.write(content.encode(errors="backslashreplace")))
    except OSError as error:
        raise ConfigError(f"{error.filename or out}: {error.strerror or error}; check the path and the disk") from error
    print(f"wrote {out}: {len(manifest)} data sets, {len(left_out)} left out; check it, then pass it as --meta_path")
    return 1 if args.only and left_out else 0


def _written(manifest: dict[str, Any], out: Path) -> str:
    """The manifest in the language that the name of its file stands for."""
    if out.suffix.lower() in (".yaml", ".yml"):
        import yaml

        return str(yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True))
    return json.dumps(manifest, ensure_ascii=False, indent=2) + "\n"


def import_entry(name: str, entry: Any, folder: Path, media_dir: Path, notes: list[str]) -> dict[str, dict[str, Any]]:
    """Manifest entries of one data set: one, or NAME/1, NAME/2 .. of a folder of files.

    ``folder``: that of dataset_info.json. Appends to ``notes`` what is not taken over. Raises ConfigError with the
    reason if the data set cannot be used.
    """
    if not isinstance(entry, dict):
        raise ConfigError(f"must be an object, not {show(entry)}")
    for key in _HUBS:
        if entry.get(key):
            raise ConfigError(f"it comes from a hub ({key}); download it, and give its file as file_name")
    if entry.get("ranking"):
        raise ConfigError("it holds preference pairs (ranking), which cannot be trained on yet")
    format = entry.get("formatting") or "alpaca"
    if format not in _FORMATS:
        raise ConfigError(f"formatting is {show(format)}; only {' and '.join(_FORMATS)} are known")
    columns = _columns(format, entry)
    files = _files(entry.get("file_name"), folder)
    for key in entry:
        if key not in _READ and entry[key] not in (None, False, ""):
            notes.append(f"{name!r}: {key} {show(entry[key])} is not taken over{_HELP.get(key, '')}")
    result: dict[str, dict[str, Any]] = {}
    for number, file in enumerate(files, 1):
        entry_name = name if len(files) == 1 else f"{name}/{number}"
        result[entry_name] = {
            "root": str(media_dir.resolve()),
            "annotation": str(file.resolve()),
            "format": format,
            **({"columns": columns} if columns else {}),
            "repeat_time": 1,
        }
    return result


_HELP = {"num_samples": "; all lines are used, set repeat_time below 1 for fewer"}


def _columns(format: str, entry: Mapping[str, Any]) -> dict[str, str]:
    """``columns`` and ``tags`` in one, without what is usual anyway."""
    merged: dict[str, Any] = {}
    for key in ("columns", "tags"):
        told = entry.get(key) or {}
        if not isinstance(told, dict):
            raise ConfigError(f"{key} must be an object, not {show(told)}")
        if key == "columns" or format == "sharegpt":  # alpaca has no tags
            merged |= {name: value for name, value in told.items() if value is not None}
    if "kto_tag" in merged:
        raise ConfigError("it holds good and bad single answers (kto_tag), which cannot be trained on")
    usual = COLUMNS[format]
    columns = {name: value for name, value in merged.items() if usual.get(name) != value}
    check_format(format, columns)
    return columns


def _files(file_name: Any, folder: Path) -> list[Path]:
    """The data set's file, or the files of its folder by name."""
    if not isinstance(file_name, str) or not file_name:
        raise ConfigError(f"file_name is {show(file_name)}; name the file or folder, relative to {folder}")
    path = folder / file_name
    if not path.exists():
        raise ConfigError(f"{path} does not exist; put the file there")
    found = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    if not found:
        raise ConfigError(f"{path} is an empty folder")
    for file in found:
        if file.suffix.lower() in _UNREADABLE:
            raise ConfigError(f"{file} is a {file.suffix[1:]} file; write it as JSONL or parquet")
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give LLaMA-Factory's dataset_info.json"
        ) from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}:{error.colno}: not JSON ({error.msg})") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, too deep
        raise ConfigError(f"{path}: not JSON ({error})") from error
    if not isinstance(described, dict):
        raise ConfigError(f"{path}: must be one object of data sets, not a {type(described).__name__}")
    return described
