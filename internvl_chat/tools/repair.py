"""``internvl repair``: the same data without the lines that training would leave out; what is left away is listed."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvl_chat.errors import ConfigError, DataError
from internvl_chat.tools.data_view import View, add_meta, read_own, read_view

if TYPE_CHECKING:
    import numpy as np

    from internvl_chat.data.faults import FaultRecord
    from internvl_chat.data.index import LineIndex
    from internvl_chat.data.manifest import DatasetSpec

MANIFEST, LEFT_OUT = "manifest.json", "left_out.jsonl"


@dataclass(frozen=True)
class Result:
    """What became of a data set. ``file`` None: no line of it is usable."""

    spec: DatasetSpec
    kept: int
    left_out: int
    file: Path | None


def add_own(parser: argparse.ArgumentParser) -> None:
    """Flags of the tool itself."""
    parser.add_argument("--drop_duplicates", "--drop-duplicates", action="store_true", help="keep the first of equals")
    parser.add_argument("--decode", action="store_true", help="load every sample whole: leaves out truncated pictures")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command ``internvl repair``."""
    add_meta(parser)


def run(args: argparse.Namespace) -> int:
    """Write the cleaned data and print counts. Returns the exit status."""
    own, flags = read_own(args, "repair", add_own, ("OUT_DIR", "new or empty folder for the cleaned data"))
    out = Path(own.extra)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: is there already and not an empty folder; give a new OUT_DIR")
    results = repair(read_view(own.meta, flags), out, own.drop_duplicates, own.decode)
    for one in results:
        where = one.file if one.file is not None else "nothing usable, not in the new manifest"
        print(f"{one.spec.name}: {one.kept} lines kept, {one.left_out} left out: {where}")
        if one.spec.repeat_time % 1 and one.left_out:
            print(f"  repeat_time {one.spec.repeat_time:g} takes the first part of the new, shorter file")
    print(f"left out, with reasons: {out / LEFT_OUT}")
    print(f"manifest: {out / MANIFEST}")
    return 0


def repair(view: View, out: Path, drop_duplicates: bool = False, decode: bool = False) -> list[Result]:
    """Write cleaned annotations, their manifest and the list of what was left away below ``out``.

    Raises DataError if an annotation cannot be read, or if nothing at all is left.
    """
    indexes = [view.open(spec) for spec in view.specs]  # all are read before anything is written
    surveys = [_survey(view, spec, index, decode) for spec, index in zip(view.specs, indexes, strict=True)]
    out.mkdir(parents=True, exist_ok=True)
    entries: dict[str, Any] = {}
    results = []
    taken = {LEFT_OUT.casefold()}
    with (out / LEFT_OUT).open("w", encoding="utf-8", errors="backslashreplace") as ledger:
        for spec, index, survey in zip(view.specs, indexes, surveys, strict=True):
            path = out / _file_name(spec.name, taken)
            bad = dict(_left_out(view, spec, index, survey, drop_duplicates))
            for number, record in sorted(bad.items()):
                content = index.line(number).decode("utf-8", "backslashreplace")
                ledger.write(json.dumps({**asdict(record), "content": content}, ensure_ascii=False) + "\n")
            good = [number for number in range(len(index)) if number not in bad]
            for part, numbers, where in _parts(spec, index, good, path):
                with where.open("wb") as file:
                    file.writelines(index.line(number) + b"\n" for number in numbers)
                entries[part.name] = entry_of(part, where, len(numbers))
            results.append(Result(spec, len(good), len(bad), path if good else None))
    if not entries:
        raise DataError(f"{view.manifest}: no line of any data set can be used; {out / LEFT_OUT} says why")
    (out / MANIFEST).write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return results


def _parts(
    spec: DatasetSpec, index: LineIndex, good: list[int], path: Path
) -> Iterator[tuple[DatasetSpec, list[int], Path]]:
    """The data set with its lines and file. Held-out ones get a data set of their own: lots are drawn by line number,
    and lines move up where others are left out.
    """
    from internvl_chat.data.corpus import held_out_lines

    held_out = held_out_lines(spec, len(index))
    split = spec.eval_share > 0 and spec.split == "train"
    train = [number for number in good if not (split and held_out[number])]
    if train:
        yield replace(spec, eval_share=0.0) if split else spec, train, path
    if kept := [number for number in good if split and held_out[number]]:
        other = replace(spec, name=f"{spec.name}, held out", eval_share=0.0, split="eval", weight=None)
        yield other, kept, path.with_suffix(".held_out.jsonl")


@dataclass(frozen=True, eq=False)
class _Seen:
    """``earlier`` (lines,): the first line with the same content, or -1; ``unloadable``: lines that fail to load."""

    earlier: np.ndarray
    unloadable: np.ndarray


def _survey(view: View, spec: DatasetSpec, index: LineIndex, decode: bool) -> _Seen:
    import numpy as np

    from internvl_chat.data.survey import earlier_lines, survey_dataset

    found = survey_dataset(spec, index, view.maker, workers=view.workers, decode=decode)
    content = found.content.copy()
    content[found.unloadable] = np.uint64(0)  # its twin is not to be dropped in favour of it
    return _Seen(earlier_lines(content), found.unloadable)


def _left_out(
    view: View, spec: DatasetSpec, index: LineIndex, seen: _Seen, drop_duplicates: bool
) -> Iterator[tuple[int, FaultRecord]]:
    """(line from 0, why) of each line that is not kept."""
    import numpy as np

    from internvl_chat.data.address import Address
    from internvl_chat.data.faults import Fault, FaultRecord
    from internvl_chat.data.index import explain_line
    from internvl_chat.data.survey import fault_codes

    codes = fault_codes(index, view.maker.limits)
    for number in np.flatnonzero(codes).tolist():
        yield number, explain_line(index, spec, view.maker, number)
    for number in seen.unloadable.tolist():
        address = Address(spec.name, number)
        try:
            view.maker.load(index.line(number), spec, address, index.footprint(number))
        except Fault as fault:
            yield number, FaultRecord.of(fault, address, spec.annotation, "load", index.kind)
    if not drop_duplicates:
        return
    for number in np.flatnonzero(seen.earlier >= 0).tolist():
        reason = f"the same conversation and media as line {int(seen.earlier[number]) + 1}"
        where = (spec.name, str(spec.annotation), number + 1, 0)
        yield number, FaultRecord(*where, "repair", "DUPLICATE", reason, "none needed, the first is kept", index.kind)


def _file_name(name: str, taken: set[str]) -> str:
    """A plain file name for a data set that no other has."""
    stem = re.sub(r"[^\w.-]+", "_", name).strip("._")[:60] or "data"
    number = 1
    while (found := f"{stem}{'' if number == 1 else f'-{number}'}.jsonl").casefold() in taken:
        number += 1
    taken.add(found.casefold())
    return found


def entry_of(spec: DatasetSpec, annotation: Path, lines: int) -> dict[str, Any]:
    """The data set's entry of a manifest, with paths that hold in any folder.

    What the original reads is always written: root, annotation, data_augment, repeat_time, length.
    """
    from internvl_chat.data.manifest import ImageLimits

    entry: dict[str, Any] = {"root": absolute_root(spec.root), "annotation": str(annotation.resolve())}
    entry["data_augment"] = spec.data_augment
    if spec.weight is None:  # the two exclude each other
        entry["repeat_time"] = int(spec.repeat_time) if spec.repeat_time % 1 == 0 else spec.repeat_time
    entry["length"] = lines
    for field in fields(spec):
        if field.name in ("name", "image_limits", "repeat_time", *entry):
            continue
        value = getattr(spec, field.name)
        if value != field.default:
            entry[field.name] = dict(value) if field.name == "columns" else value
    limits = asdict(spec.image_limits)
    return entry | {key: limits[key] for key in ImageLimits.__dataclass_fields__ if limits[key] is not None}


def absolute_root(root: str) -> str:
    """A root that means the same in any working directory; URLs stay, archives inside of them are made absolute."""
    chain, joint, container = root.rpartition("::")
    return root if "://" in container else f"{chain}{joint}{Path(container).resolve()}"
