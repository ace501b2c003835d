"""``internvl convert-data``: an annotation in any container and format becomes a JSONL file of the InternVL format."""

from __future__ import annotations

import argparse
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from internvl_chat.constants import MAX_PICTURE_BYTES
from internvl_chat.data.address import Address
from internvl_chat.data.boxes import fill_in_boxes, read_objects
from internvl_chat.data.containers import Kind, json_line, kind_of, read_lines
from internvl_chat.data.faults import Fault, FaultCode, FaultRecord, Ledger, show
from internvl_chat.data.formats.table import FORMATS, check_format, recognise, to_internvl
from internvl_chat.data.record import is_preference, parse_json, parse_record
from internvl_chat.errors import ConfigError, DataError

_SHOWN = 5
_BATCH = 1000
# Types whose usual suffix is not their second half.
_SUFFIXES = {"jpeg": "jpg", "x-msvideo": "avi", "octet-stream": "bin", "svg+xml": "svg", "quicktime": "mov"}


@dataclass(frozen=True)
class Wish:
    """What is asked for. ``base``: the folder that references to files in ``media_dir`` start from."""

    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    root: str | None = None
    media_dir: Path | None = None
    base: Path = Path()


@dataclass
class Outcome:
    """What came of it: how many items of each format, faults of each code, the first of them, files of media.

    ``boxed``: items whose boxes are still in pixels; ``embedded``: media that are still part of their line.
    """

    formats: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    first: list[FaultRecord] = field(default_factory=list)
    media: set[str] = field(default_factory=set)
    boxed: int = 0
    embedded: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command ``internvl convert-data``."""
    parser.add_argument("source", metavar="IN", help="JSONL, JSON array, either of them gzipped, or parquet")
    parser.add_argument("out", metavar="OUT", help="JSONL file to write; what is left out goes to OUT.faults.jsonl")
    parser.add_argument("--format", choices=tuple(FORMATS), default=None, help="default: recognised item by item")
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="NAME=KEY",
        help="keys that the data names otherwise; needs --format",
    )
    parser.add_argument(
        "--media_dir", "--media-dir", default=None, metavar="DIR",
        help="write media that are embedded in the file to DIR; named relative to --root, else to the folder of OUT",
    )  # fmt: skip
    parser.add_argument(
        "--root", default=None, help="where media paths start; pictures are looked up, to write boxes into the text"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")


def run(args: argparse.Namespace) -> int:
    """Convert. Returns 0 if every item was written, 1 if some were left out."""
    source, out = Path(args.source), Path(args.out)
    columns = _read_columns(args.columns)
    check_format(args.format, columns)
    ledger = Path(f"{out}.faults.jsonl")
    _check_paths(source, out, ledger, args.overwrite)
    media_dir = None if args.media_dir is None else Path(args.media_dir)
    if args.root is not None and "://" not in args.root and not Path(args.root).exists():
        raise ConfigError(f"--root {args.root} does not exist; give the folder that media paths start from")
    if media_dir is not None and args.root is not None and not Path(args.root).is_dir():
        raise ConfigError(f"--media_dir: --root {args.root} is no folder, so nothing in it can be named; leave one out")
    base = out.parent if args.root is None else Path(args.root)
    outcome = convert_file(source, out, ledger, Wish(args.format, columns, args.root, media_dir, base))
    written, left_out = outcome.formats.total(), outcome.codes.total()
    print(f"wrote {out}: {written} of {written + left_out} items ({_say(outcome.formats)})")
    if outcome.media:
        print(f"wrote {len(outcome.media)} media to {media_dir}; give the data set the root {base.resolve()}")
    if outcome.boxed:
        print(f"{outcome.boxed} items keep their 'objects' in pixels; --root writes the boxes into the text")
    if outcome.embedded:
        print(f"{outcome.embedded} media stay embedded; --media_dir writes them to files")
    if left_out:
        print(f"left out {left_out} ({_say(outcome.codes)}), all listed in {ledger}:")
        print("\n".join(map(str, outcome.first)))
    return 1 if left_out else 0


def convert_file(source: Path, out: Path, ledger: Path, wish: Wish) -> Outcome:
    """Write ``out``, whole or not at all, and ``ledger`` if there are faults.

    Raises DataError if the file is damaged or none of its items can be converted, ConfigError if it or ``out`` cannot
    be opened.
    """
    from internvl_chat.data.annotation import replace_file

    outcome, faults = Outcome(), list[FaultRecord]()
    ledger.unlink(missing_ok=True)

    def write(target: BinaryIO) -> None:
        for result in _convert(source, kind_of(source), wish, outcome):
            if isinstance(result, FaultRecord):
                faults.append(result)
                outcome.codes[result.code] += 1
            else:
                target.write(result + b"\n")
            if len(faults) >= _BATCH:
                _flush(faults, ledger, outcome)
        _flush(faults, ledger, outcome)
        if not outcome.formats:
            shown = "\n".join(map(str, outcome.first))
            what = f"{source}: none of its {outcome.codes.total()} items can be converted; {out} is not written:"
            raise DataError(f"{what}\n{shown}")

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_file(out, write)
    except OSError as error:
        raise ConfigError(f"{error.filename or out}: {error.strerror or error}; check the path and the disk") from error
    return outcome


def convert_item(line: bytes, wish: Wish) -> tuple[str, dict[str, Any]]:
    """(name of its format, item in the InternVL format). Raises Fault."""
    item = parse_json(line)
    name = recognise(item) if wish.format is None else wish.format
    item = to_internvl(item, name, wish.columns)
    _check(item)
    return name, item if wish.root is None else _resolve_boxes(item, wish.root)


def _convert(source: Path, kind: Kind, wish: Wish, outcome: Outcome) -> Iterator[bytes | FaultRecord]:
    """For each line the line to write, or why there is none."""
    for number, line in enumerate(read_lines(source, kind)):
        try:
            name, item = convert_item(line, wish)
            if wish.media_dir is not None:
                item = _save_media(item, wish.media_dir, wish.base, outcome.media)
        except Fault as fault:
            yield FaultRecord.of(fault, Address(source.stem, number), source, "convert", kind)
        else:
            outcome.formats[name] += 1
            outcome.boxed += _has_pixel_boxes(item)
            outcome.embedded += sum(path.startswith("data:") for path in _media_of(item))
            yield json_line(item)


def _check(item: dict[str, Any]) -> None:
    """Raise Fault unless the item can be trained on, or is a preference pair of three texts."""
    if not is_preference(item):
        parse_record(item, "internvl")
        return
    for key in ("question", "chosen", "rejected"):
        if not isinstance(item[key], str) or not item[key].strip():
            raise Fault(FaultCode.FORMAT, f"key {key!r} holds {show(item[key])}", "give a text")


def _resolve_boxes(item: dict[str, Any], root: str) -> dict[str, Any]:
    """The item with its ``objects`` written into the turns; those of a preference pair are kept. Raises Fault.

    Sizes are those of the files: what a line says about them may be wrong.
    """
    if not item.get("objects") or is_preference(item):
        return item
    from internvl_chat.data.media import read_image_size
    from internvl_chat.data.storage import locate_medium

    sizes = [read_image_size(locate_medium(root, name)) for name in parse_record(item, "internvl").images]
    turns = item["conversations"]
    texts = fill_in_boxes([turn["value"] for turn in turns], read_objects(item["objects"]), sizes)
    filled = [{**turn, "value": text} for turn, text in zip(turns, texts, strict=True)]
    return {key: value for key, value in {**item, "conversations": filled}.items() if key != "objects"}


def _has_pixel_boxes(item: dict[str, Any]) -> bool:
    """Whether boxes are left that ``--root`` would write into the text and nothing else can."""
    if not item.get("objects") or is_preference(item):
        return False
    return any(box.in_pixels for box in read_objects(item["objects"]).boxes)


def _media_of(item: dict[str, Any]) -> Iterator[str]:
    for value in (item.get("image"), item.get("video")):
        yield from (path for path in (value if isinstance(value, list) else [value]) if isinstance(path, str))


def _save_media(item: dict[str, Any], folder: Path, base: Path, written: set[str]) -> dict[str, Any]:
    """The item with paths, relative to ``base``, in the place of embedded media. Raises Fault for broken ones."""

    def saved(value: Any) -> Any:
        if isinstance(value, list):
            return [saved(one) for one in value]
        return _save(value, folder, base, written) if isinstance(value, str) and value.startswith("data:") else value

    return {key: saved(value) if key in ("image", "video") else value for key, value in item.items()}


def _save(url: str, folder: Path, base: Path, written: set[str]) -> str:
    """Path of the file that holds the content of a data URL; the same content is written once."""
    from internvl_chat.data.annotation import replace_file
    from internvl_chat.data.parquet import mime_of
    from internvl_chat.data.storage import locate_medium

    content = locate_medium("", url).read(MAX_PICTURE_BYTES)
    kind = (mime_of(content) or url[len("data:") :].partition(",")[0].partition(";")[0]).rpartition("/")[2].lower()
    suffix = _SUFFIXES.get(kind, kind)
    name = f"{hashlib.sha256(content).hexdigest()[:40]}.{suffix if suffix.isalnum() else 'bin'}"
    path = folder / name
    if name not in written and not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda file: file.write(content))
    written.add(name)
    return Path(os.path.relpath(path.resolve(), base.resolve())).as_posix()


def _flush(faults: list[FaultRecord], ledger: Path, outcome: Outcome) -> None:
    if faults:
        Ledger(ledger).write(faults)
        outcome.first += faults[: _SHOWN - len(outcome.first)] if len(outcome.first) < _SHOWN else []
        faults.clear()


def _read_columns(pairs: Sequence[str]) -> dict[str, str]:
    columns = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    for pair in pairs:
        if "=" not in pair:
            raise ConfigError(f"--columns {pair}: write NAME=KEY, e.g. messages=dialog")
    return columns


def _check_paths(source: Path, out: Path, ledger: Path, overwrite: bool) -> None:
    """Raise ConfigError unless the input is a file and nothing is lost by writing."""
    if not source.is_file():
        raise ConfigError(f"{source} is not a file; give the annotation to convert")
    for target in (out, ledger):
        if target.exists() and target.samefile(source):
            raise ConfigError(f"{target} is the input itself; choose another OUT")
    if out.exists() and (out.is_dir() or not overwrite):
        mend = "choose another OUT" if out.is_dir() else "choose another OUT, or pass --overwrite"
        raise ConfigError(f"{out} exists already; {mend}")


def _say(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())
