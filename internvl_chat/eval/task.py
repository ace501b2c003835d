"""What a benchmark is: where its records lie, how one is asked, how answers are scored and handed in.

``records -> Item -> answer -> Result``; nothing here knows a model. A task is a value of ``Task`` in ``eval/tasks``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from internvl_chat.errors import InternVLError
from internvl_chat.infer.pictures import Shown

Record = dict[str, Any]
Style = Literal["internvl", "vlmevalkit"]


@dataclass(frozen=True)
class Ask:
    """How a data set is asked, as far as its items depend on it.

    ``root``: the data folder. ``max_tiles``: limit of a question's one picture. ``dynamic``: whether the checkpoint
    cuts pictures into tiles at all. ``options``: every option of the task with its value.
    """

    root: Path
    max_tiles: int
    dynamic: bool = True
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Item:
    """One question of a benchmark.

    ``id``: no two of a data set have the same. ``text``: what is sent, but that pictures without any ``<image>`` in it
    are put in front, as one. ``shown``: pictures and videos, one for each ``<image>`` (of a video: for all its
    frames). ``gold``: the right answer, ``extra``: what else scorer and files need; both JSON.
    """

    id: str
    text: str
    shown: tuple[Shown, ...] = ()
    gold: Any = None
    extra: Mapping[str, Any] = field(default_factory=dict)


class NoScore(InternVLError):
    """What there is does not suffice for a score: golds are missing, or the judge that compares with them. Says why."""


class Judge(Protocol):
    """A language model that compares answers. ``name``: its own, and its address."""

    name: str

    def ask(self, text: str, *, system: str | None = None, temperature: float = 0.0, max_tokens: int = 1024) -> str:
        """Its reply. Raises JudgeError when it cannot be had."""
        ...


@dataclass(frozen=True, eq=False)
class Answered:
    """All items of a data set with the model's answers, as they came; "" where there is none.

    ``options``: as in ``Ask``. ``model``: name of the checkpoint. ``judge``: None if there is none.
    """

    items: Sequence[Item]
    answers: Sequence[str]
    options: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    judge: Judge | None = None


@dataclass(frozen=True)
class Result:
    """What a scorer finds.

    ``figures``: name -> value in the unit in which it is published, in the order of the table; ``main`` names the one
    that stands for all. ``marks``: of each item the share of the point that it got; None where an item is not marked by
    itself. ``notes``: what a reader should know beside the score -> how often (answers without an option, ...).
    ``lines``: what the original prints. ``missing``: parts of the public data set that are not there: such a score is
    a partial one.
    """

    figures: Mapping[str, float]
    main: str
    marks: Sequence[float | None] = ()
    notes: Mapping[str, int] = field(default_factory=dict)
    lines: Sequence[str] = ()
    missing: Sequence[str] = ()


@dataclass(frozen=True)
class OutputFile:
    """A file beside the answers: the original's, or what a server takes."""

    name: str
    content: bytes


@dataclass(frozen=True, eq=False)
class Layout:
    """One way in which the data lie below the data root.

    ``name``: "guide" where the original's guide puts them, else what the release is called. ``files``: annotation files
    that have to be there, patterns of ``glob`` among them. ``read``: data root -> records, in the guide's fields
    whatever the layout; pictures are paths or data URLs. ``source``: where it is published. ``sums``: file -> "md5:..."
    or "sha256:...". ``write``: lay down records in this layout; the guide's has it where a release can be converted.
    """

    name: str
    files: tuple[str, ...]
    read: Callable[[Path], Iterable[Record]]
    source: str = ""
    sums: Mapping[str, str] = field(default_factory=dict)
    write: Callable[[Path, Iterable[Record]], None] | None = None


@dataclass(frozen=True, eq=False)
class Task:
    """A data set with the way to ask and to score it; one row of ``internvl eval --list``.

    ``layouts``: the first whose files are there is read. ``item``: record -> question. ``score``: None where the golds
    are not public. ``count``: items of the public data set. ``max_tiles``: the limit behind published figures.
    ``options``: name -> legal values, the first is the default; "" stands for any text. ``score`` raises NoScore.
    ``judged``: whether it asks a judge: never; where there is one; always. ``neighbours``: so many items that follow
    each other are scored together. ``style``: whose prompts and scorer these are, recorded with the score. ``root``:
    where the data lie whatever the data root is. ``needs``: packages of Python without which its files cannot be
    written.
    """

    name: str
    title: str
    layouts: tuple[Layout, ...]
    item: Callable[[Record, Ask], Item]
    score: Callable[[Answered], Result] | None
    max_new_tokens: int
    min_new_tokens: int | None = 1
    max_tiles: int = 6
    count: int | None = None
    files: Callable[[Answered], Sequence[OutputFile]] | None = None
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    judged: Literal["no", "optional", "needed"] = "no"
    neighbours: int = 1
    root: Path | None = None
    needs: tuple[str, ...] = ()
    style: Style = "internvl"
