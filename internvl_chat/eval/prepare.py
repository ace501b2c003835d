"""The data of a task on this machine: what is there and whether it is right; a release turned into the guide's layout.

Nothing is downloaded: licences are for a person to accept, and releases move.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from internvl_chat.data.faults import Fault
from internvl_chat.data.storage import Medium
from internvl_chat.errors import ConfigError, DataError, InternVLError
from internvl_chat.eval.items import media_of, missing_files, options_of, question_of_item
from internvl_chat.eval.sources import DATA, find
from internvl_chat.eval.task import Ask, Item, Layout, Record, Task

# Examples that a message names of what is wrong many times.
_NAMED = 5
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Verdict:
    """What was found of a task's data. ``layout``: None if no layout is whole. ``problems``: all of them, a text each.

    ``hashed``: files whose published hash was compared; ``pictures``: files and members of archives, each once.
    ``counted``: whether it is known how many items there should be. ``own``: data of one's own, nothing published.
    """

    task: str
    layout: str | None
    problems: tuple[str, ...] = ()
    items: int = 0
    pictures: int = 0
    hashed: int = 0
    counted: bool = True
    own: bool = False

    @property
    def good(self) -> bool:
        """Whether a score on these data is one on the public data set, as far as it can be told."""
        return self.layout is not None and not self.problems

    def text(self) -> str:
        """For the command line: one line if all is well, else a line for each problem."""
        layout = "own data" if self.own else f"{self.layout} layout"
        what = f"{layout}, {self.items} items, {self.pictures} pictures or videos"
        if self.good:
            hashes = f", {self.hashed} published hashes" if self.hashed else ""
            unknown = "" if self.counted or self.own else "; how many items there should be is not known"
            return f"{self.task}: good ({what}{hashes}{unknown})"
        wrong = "cannot be used as it is" if self.own else "not as published"
        head = "not there" if self.layout is None else f"{wrong} ({what})"
        return "\n".join([f"{self.task}: {head}", *(f"  {problem}" for problem in self.problems)])


def verify(task: Task, root: Path) -> Verdict:
    """Look at every file, record and picture of a task; whatever is wrong is told, not only the first."""
    whole = [layout for layout in task.layouts if not missing_files(layout, root)]
    if not whole:
        return Verdict(task.name, None, tuple(_lacking(task, root)))
    layout = whole[0]
    hashed, problems = _compare_sums(layout, root)
    items, wrong = _read_all(task, layout, root)
    problems += wrong
    if not wrong and task.count is not None and len(items) != task.count:
        problems.append(
            f"{len(items)} items, the public data set has {task.count}: part of it, or another version"
            f"{_published(layout)}"
        )
    media = {str(source): source for item in items for source in media_of(item.shown)}
    problems += _lost(media.values())
    counted, own = task.count is not None, _is_own(layout)
    return Verdict(task.name, layout.name, tuple(problems), len(items), len(media), hashed, counted, own)


def _is_own(layout: Layout) -> bool:
    """Whether its data are where a YAML file says, and not below the data root."""
    return not layout.files


def prepare(task: Task, root: Path, overwrite: bool = False) -> list[str]:
    """Write the guide's layout from a release that is there; returns what was done, a line each.

    Files of the guide's layout that are there stay, unless ``overwrite``; those that are read always stay.
    Raises ConfigError where there is nothing to convert, DataError for a release that is missing or cannot be read, and
    for files in the way.
    """
    if all(_is_own(layout) for layout in task.layouts):
        return ["own data need no preparing"]
    guide = next((layout for layout in task.layouts if layout.write is not None), None)
    if guide is None or guide.write is None:
        places = "; ".join(f"{', '.join(layout.files)}{_published(layout)}" for layout in task.layouts)
        raise ConfigError(f"{task.name}: there is nothing to convert, it is read as it is published: {places}")
    there = find(root, guide.files)
    if not missing_files(guide, root) and not overwrite:
        return [f"nothing to do, {', '.join(map(str, there[:_NAMED]))} is there (--overwrite writes it anew)"]
    releases = [layout for layout in task.layouts if layout is not guide]
    release = next((layout for layout in releases if not missing_files(layout, root)), None)
    if release is None:
        raise DataError("\n".join([f"{task.name}: no release of it is below {root}:", *_lacking(task, root, releases)]))
    sources = set(find(root, release.files))
    shared = sources | _files_of_others(task, root, releases)
    # Folders are added to.
    ours = [path for path in there if path.is_file() and path not in (sources if overwrite else shared)]
    if ours and not overwrite:
        raise DataError(
            f"{task.name}: {', '.join(map(str, ours))} is there, but not {', '.join(missing_files(guide, root))}; "
            "--overwrite writes all of them"
        )
    counted = _Counted(release.read(root))
    with _unchanged([path for path in there if path.is_file() and path not in ours]):
        guide.write(root, counted)
    if lacking := missing_files(guide, root):
        raise DataError(f"{task.name}: {', '.join(lacking)} was not written; report this as an error of the project")
    again = sum(1 for _ in guide.read(root))
    if again != counted.count:
        raise DataError(
            f"{task.name}: {counted.count} records were read from {', '.join(release.files)}, but {again} written; "
            "remove what was written, and report this as an error of the project"
        )
    new = [path for path in find(root, guide.files) if path not in there or path in ours]
    written = [f"{path} ({_size(path)})" for path in new]
    source = ", ".join(map(str, find(root, release.files)[:_NAMED]))
    return [f"{counted.count} records of {source} ({release.name})", *(f"wrote {text}" for text in written)]


def _files_of_others(task: Task, root: Path, releases: Sequence[Layout]) -> set[Path]:
    """Files that releases of the task, or other tasks, have: they are not in the way of what is to be written."""
    from internvl_chat.eval.registry import tasks

    others = [layout for other in tasks().values() if other.name != task.name for layout in other.layouts]
    return {path for layout in (*releases, *others) for path in find(root, layout.files)}


@contextmanager
def _unchanged(paths: Sequence[Path]) -> Iterator[None]:
    """Puts the files back as they were, whatever is written to them meanwhile."""
    with ExitStack() as stack:
        for path in paths:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".kept-", dir=path.parent))
            stack.callback(_put_back, path, Path(shutil.copy2(path, folder)), path.stat())
        yield


def _put_back(path: Path, copy: Path, before: os.stat_result) -> None:
    now = path.stat() if path.exists() else None
    if now is None or (now.st_ino, now.st_size, now.st_mtime_ns) != (before.st_ino, before.st_size, before.st_mtime_ns):
        copy.replace(path)


class _Counted:
    """Records that are counted as they go by."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.records, self.count = records, 0

    def __iter__(self) -> Iterator[Record]:
        for record in self.records:
            self.count += 1
            yield record


def _lacking(task: Task, root: Path, layouts: Sequence[Layout] | None = None) -> Iterator[str]:
    """What is missing of each layout, those of which most is there first; and where it is published."""
    if not root.is_dir():
        yield f"the data folder {root} does not exist; --data_root names it"
    shares = {
        layout: len(missing_files(layout, root)) / max(1, len(layout.files)) for layout in layouts or task.layouts
    }
    for layout in sorted(shares, key=lambda one: shares[one]):
        there = "" if shares[layout] == 1 else ", the rest is there"
        names = ", ".join(str(root / name) for name in missing_files(layout, root))
        yield f"{layout.name} layout lacks {names}{there}{_published(layout)}"


def _published(layout: Layout) -> str:
    return f" (published at {layout.source})" if layout.source and not _is_own(layout) else ""


def _compare_sums(layout: Layout, root: Path) -> tuple[int, list[str]]:
    """How many files have a published hash and are there, and those that are others."""
    problems, hashed = [], 0
    for name, published in layout.sums.items():
        path = root / name.removeprefix(DATA)
        if not path.is_file():
            problems.append(f"{path} is not there{_published(layout)}")
            continue
        hashed += 1
        kind, _, expected = published.partition(":")
        found = hash_of(path, kind)
        if found != expected.lower():
            problems.append(
                f"{path}: {kind} {found}, published is {expected}: cut off, changed, or another version; download it "
                f"again{_published(layout)}"
            )
    return hashed, problems


def hash_of(path: Path, kind: str) -> str:
    """Hash of a file as hex; ``kind``: "md5", "sha256"."""
    state = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            state.update(block)
    return state.hexdigest()


def _read_all(task: Task, layout: Layout, root: Path) -> tuple[list[Item], list[str]]:
    """The items of all records that can be used, and what is wrong with the others."""
    ask = Ask(root, task.max_tiles, True, options_of(task, {}))
    items: list[Item] = []
    places: dict[str, int] = {}
    bad, twice, problems = list[str](), list[str](), list[str]()
    number = 0
    try:
        for number, record in enumerate(layout.read(root), 1):
            try:
                item = task.item(record, ask)
                question_of_item(item)
            except InternVLError as error:
                bad.append(f"record {number}: {error}")
                continue
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                bad.append(f"record {number} is not what {task.name} has ({type(error).__name__}: {error})")
                continue
            if item.id in places:
                twice.append(f"{item.id!r} (records {places[item.id]} and {number})")
            places.setdefault(item.id, number)
            items.append(item)
    except InternVLError as error:
        problems.append(f"reading stopped after record {number}: {error}")
    if not number and not problems:
        problems.append(f"{', '.join(layout.files) or layout.name}: there is no record in it{_published(layout)}")
    problems += [_some("records cannot be used", bad)] if bad else []
    problems += [_some("ids come twice", twice)] if twice else []
    return items, problems


def _lost(media: Iterable[object]) -> list[str]:
    """Pictures that are not there, or have no bytes."""
    missing, empty = [], []
    for source in media:
        if isinstance(source, Medium) and source.local is None:
            missing += [source.name] if not _can_be_opened(source) else []
            continue
        path = source.local if isinstance(source, Medium) else source
        if not isinstance(path, (str, Path)):
            continue  # in memory
        if not Path(path).exists():
            missing.append(str(path))
        elif Path(path).is_file() and not Path(path).stat().st_size:
            empty.append(str(path))
    found = [_some("pictures or videos are not there", missing)] if missing else []
    return found + ([_some("pictures or videos are empty files", empty)] if empty else [])


def _can_be_opened(medium: Medium) -> bool:
    """Whether an archive has it, or it is part of the record; what lies on the network is not asked for."""
    if "://" in medium.url and not medium.member:
        return True
    try:
        medium.open().close()
    except (OSError, Fault, InternVLError, ValueError):
        return False
    return True


def _some(what: str, examples: Sequence[str]) -> str:
    more = f" and {len(examples) - _NAMED} more" if len(examples) > _NAMED else ""
    return f"{len(examples)} {what}: {'; '.join(examples[:_NAMED])}{more}"


def _size(path: Path) -> str:
    if path.is_dir():
        return "folder"
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size} bytes"
