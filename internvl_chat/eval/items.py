"""The items of a task, read and checked before any time is spent on a model; and an item as a question to one."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

from PIL import Image

from internvl_chat.constants import IMAGE_PLACEHOLDER
from internvl_chat.data.faults import Fault
from internvl_chat.data.opening import members_of
from internvl_chat.data.record import Turn
from internvl_chat.data.storage import Medium
from internvl_chat.errors import ConfigError, DataError, nearest
from internvl_chat.eval.sources import find
from internvl_chat.eval.task import Ask, Item, Layout, Record, Task
from internvl_chat.infer.pictures import Joined, Picture, Shown, Video
from internvl_chat.infer.questions import Question

_NAMED = 5


def find_layout(task: Task, root: Path) -> Layout:
    """The first layout of which all files are below the data root. Raises DataError saying what is missing."""
    for layout in task.layouts:
        if not missing_files(layout, root):
            return layout
    if not root.is_dir():
        raise DataError(
            f"{task.name}: the data folder {root} does not exist; --data_root (when training: --eval_data_root) names "
            f"it, and `internvl eval --verify {task.name}` says what belongs there"
        )
    lacking = "; or ".join(", ".join(str(root / name) for name in missing_files(one, root)) for one in task.layouts)
    where = "".join(f" ({one.name}: {one.source})" for one in task.layouts if one.source)
    raise DataError(f"{task.name}: not there: {lacking}; docs/evaluation.md says where it is published{where}")


def missing_files(layout: Layout, root: Path) -> list[str]:
    """The files of a layout that are not below the data root, as its patterns have them."""
    return [pattern for pattern in layout.files if not find(root, [pattern])]


def options_of(task: Task, given: Mapping[str, str]) -> dict[str, str]:
    """Every option of the task: what is given, else its default. Raises ConfigError for a value it does not take."""
    for name, value in given.items():
        legal = task.options.get(name)
        if legal is None:
            names = ", ".join(task.options) or "none"
            raise ConfigError(f"{task.name} has no option {name!r}{nearest(name, task.options)} (options: {names})")
        if "" not in legal and value not in legal:
            raise ConfigError(f"{task.name}: option {name}={value!r}; legal: {', '.join(legal)}")
    return {name: given.get(name, legal[0]) for name, legal in task.options.items()}


def load_items(task: Task, ask: Ask, limit: int | None = None) -> list[Item]:
    """All items of a task. Raises DataError for missing files, records that cannot be used, ids that come twice.

    Also for pictures that are not there, of the first ``limit`` items; None: of all.
    """
    layout = find_layout(task, ask.root)
    items: list[Item] = []
    records, number, end = iter(layout.read(ask.root)), 0, object()
    while True:
        number += 1
        try:
            record = next(records, end)
            if record is end:
                break
            items.append(task.item(cast(Record, record), ask))
        except (DataError, ConfigError) as error:
            raise type(error)(f"{_name(task, layout)}: record {number}: {error}") from error
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, StopIteration) as error:
            what = f"{type(error).__name__}: {error}"
            raise DataError(
                f"{_name(task, layout)}: record {number} is not what {task.name} has ({what}); is it the right file, "
                "of the right version?"
            ) from error
    if not items:
        raise DataError(f"{_name(task, layout)}: there is no record in it; download or write it again")
    _check_ids(task, layout, items)
    _check_media(task, items[:limit])
    return items


def _name(task: Task, layout: Layout) -> str:
    return f"{task.name} ({', '.join(layout.files[:2]) or layout.name})"


def _check_ids(task: Task, layout: Layout, items: list[Item]) -> None:
    seen: dict[str, int] = {}
    twice = []
    for number, item in enumerate(items, 1):
        if item.id in seen:
            twice.append(f"{item.id!r} (records {seen[item.id]} and {number})")
        seen.setdefault(item.id, number)
    if twice:
        more = f" and {len(twice) - _NAMED} more" if len(twice) > _NAMED else ""
        raise DataError(
            f"{_name(task, layout)}: ids come twice: {', '.join(twice[:_NAMED])}{more}; one would count for the other: "
            "remove the copies, or download the file again"
        )


def _check_media(task: Task, items: Sequence[Item]) -> None:
    """Raises DataError unless every picture that is a file of this machine is there."""
    lost: dict[str, str] = {}
    for item in items:
        for source in media_of(item.shown):
            path = Path(source) if isinstance(source, (str, Path)) else getattr(source, "local", None)
            if path is not None and not path.exists():
                lost.setdefault(str(path), item.id)
    if lost:
        first = ", ".join(f"{path} (item {item!r})" for path, item in list(lost.items())[:_NAMED])
        mend = f"`internvl eval --verify {task.name}` looks for all of them"
        raise DataError(f"{task.name}: {len(lost)} pictures or videos are not there: {first}; {mend}")


def media_of(shown: tuple[Shown, ...]) -> Iterator[Picture]:
    """Where all that is shown lies, pictures that are joined one by one."""
    for one in shown:
        if isinstance(one.source, Joined):
            yield from media_of(one.source.parts)
        else:
            yield one.source.source if isinstance(one.source, Video) else one.source


def question_of_item(item: Item) -> Question:
    """The item as a conversation with one question; as in the original, pictures without a tag stand in front as one.

    Raises DataError if tags and pictures do not match.
    """
    text, shown = item.text, item.shown
    tags = text.count(IMAGE_PLACEHOLDER)
    if shown and not tags:
        text = f"{IMAGE_PLACEHOLDER}\n{text}"
        shown = shown if len(shown) == 1 else (Shown(Joined(shown), 1),)
        tags = 1
    due = sum(one.source.num_segments if isinstance(one.source, Video) else 1 for one in shown)
    if tags != due:
        raise DataError(f"item {item.id!r}: {tags} {IMAGE_PLACEHOLDER} in its text, {due} pictures and frames")
    return Question((Turn("human", text),), shown)


def digest_of(item: Item) -> str:
    """Hash of all that an item's answer depends on beside the settings.

    Of pictures: name and size, of those in archives what ``_stamp`` gives, too.
    """
    parts: list[object] = [item.id, item.text]
    for one in _flat(item.shown):
        source = one.source.source if isinstance(one.source, Video) else one.source
        parts.append([_identity(source), one.max_tiles, one.enlarge])
        if isinstance(one.source, Video):
            parts.append([one.source.num_segments, one.source.bound, one.source.fps, one.source.first])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _flat(shown: tuple[Shown, ...]) -> Iterator[Shown]:
    for one in shown:
        if isinstance(one.source, Joined):
            yield from _flat(one.source.parts)
        else:
            yield one


def _identity(source: object) -> list[object]:
    if isinstance(source, Image.Image):
        return [hashlib.sha256(source.tobytes()).hexdigest(), *source.size]
    if isinstance(source, Medium) and source.member:
        return [source.name, source.member, *_stamp(source)]
    if isinstance(source, Medium) and source.local is None:
        return [hashlib.sha256(source.url.encode()).hexdigest(), ""]
    path = source.local if isinstance(source, Medium) else Path(str(source))
    assert path is not None
    return [path.name, path.stat().st_size if path.is_file() else 0]


def _stamp(medium: Medium) -> list[int]:
    """What the archive's list says of a member's content: checksum and size in a zip, size and time in a tar.

    Empty where the archive or the member is not there: whoever opens the picture tells why.
    """
    try:
        _, info = members_of(medium.url)[medium.member]
    except (OSError, LookupError, Fault):
        return []
    return [info.CRC, info.file_size] if isinstance(info, zipfile.ZipInfo) else [info.size, int(info.mtime)]
