"""Own data as a task: a few lines of YAML (``internvl eval CKPT my_task.yaml``) -> ``Task``."""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from internvl_chat.data.unique import parse_yaml
from internvl_chat.errors import ConfigError, first_line, nearest
from internvl_chat.eval.own_items import FORMATS, Columns, Source, item_reader, read_source
from internvl_chat.eval.score.own import METRICS, scorer_of
from internvl_chat.eval.task import Layout, Task
from internvl_chat.eval.tasks.common import BOX, LETTER, SHORT
from internvl_chat.infer.pictures import NUM_SEGMENTS

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Files beside the folders of results are called so.
_NO_NAMES = (".md", ".json", ".jsonl", ".html")
_WHOLE = ("max_new_tokens", "max_tiles", "num_segments")
_TEXTS = ("name", "data", "root", "format", "prompt", "metric", "title")


@dataclass(frozen=True)
class _Settings:
    """The keys of the file. ``root``: folder or archive of pictures; like ``data``, relative to the file's folder."""

    name: str
    data: str
    metric: str
    root: str = "."
    format: str = "table"
    fields: Mapping[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    max_new_tokens: int = 100
    max_tiles: int = 6
    num_segments: int = NUM_SEGMENTS
    title: str | None = None


def load_task(path: Path) -> Task:
    """The task that a YAML file describes. Raises ConfigError naming the file, the key and the mend.

    Keys: ``name``, ``data``, ``metric`` (needed); ``root``, ``format`` (table or internvl), ``fields`` (question,
    image, images, video, answer, id, choices -> column), ``prompt`` (with ``{question}`` and
    ``{choices}``), ``max_new_tokens``, ``max_tiles``, ``num_segments``, ``title``.
    """
    settings = _read(path)
    names = _names(path, settings.prompt)
    columns = _columns(path, settings, names)
    prompt = _prompt(path, settings, columns, names)
    # Absolute: results name the pictures, and the report is made from any working folder.
    home = path.parent.resolve()
    source = Source(
        data=(home / Path(settings.data).expanduser()).resolve(),
        root=(home / Path(settings.root).expanduser()).resolve(),
        format=settings.format,
        columns=columns,
        prompt=prompt,
        metric=settings.metric,
        num_segments=settings.num_segments,
    )
    if not source.data.is_file():
        what = f"{source.data} is a folder" if source.data.is_dir() else f"there is no file {source.data}"
        raise ConfigError(f"{path}: data: {what}; a file is expected, its path relative to the folder of the YAML")
    return Task(
        settings.name,
        settings.title or f"own data, metric {settings.metric}",
        (Layout(str(source.data), (), lambda root: read_source(source), str(source.data)),),
        item_reader(source),
        scorer_of(settings.metric),
        max_new_tokens=settings.max_new_tokens,
        max_tiles=settings.max_tiles,
        root=source.root,
    )


def _read(path: Path) -> _Settings:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({first_line(error)})") from error
    found = parse_yaml(path, text, lambda key: "remove one of them")
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: keys are expected, as in 'name: my_task'; needed: name, data, metric")
    known = {one.name for one in fields(_Settings)}
    for key in found:
        if key not in known:
            raise ConfigError(
                f"{path}: unknown key {key!r}{nearest(str(key), known)} (keys: {', '.join(sorted(known))})"
            )
    given = {key: value for key, value in found.items() if value is not None}
    for key in ("name", "data", "metric"):
        if key not in given:
            raise ConfigError(f"{path}: the key {key!r} is missing; needed: name, data, metric")
    for key in _TEXTS:
        if key in given and not isinstance(given[key], str):
            raise ConfigError(f"{path}: {key}: {given[key]!r} is no text; put it in quotes")
    for key in _WHOLE:
        if key in given and (type(given[key]) is not int or given[key] < 1):
            raise ConfigError(f"{path}: {key}: {given[key]!r}; a whole number of at least 1 is expected")
    settings = _Settings(**given)
    _check(path, settings)
    return settings


def _check(path: Path, settings: _Settings) -> None:
    if not _NAME.fullmatch(settings.name) or settings.name.endswith(_NO_NAMES):
        raise ConfigError(
            f"{path}: name: {settings.name!r} cannot be the name of a folder; use letters, digits, '-', '_' and '.', "
            f"but not {', '.join(_NO_NAMES)} at the end"
        )
    for key, value, legal in (("metric", settings.metric, METRICS), ("format", settings.format, FORMATS)):
        if value not in legal:
            raise ConfigError(f"{path}: {key}: {value!r} is unknown{nearest(value, legal)}; legal: {', '.join(legal)}")


def _columns(path: Path, settings: _Settings, names: Collection[str]) -> Columns:
    given = settings.fields
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: fields: names of columns are expected, as in 'fields: {{answer: label}}'")
    if given and settings.format != "table":
        raise ConfigError(f"{path}: fields goes with 'format: table'; lines of the InternVL format have theirs")
    known = [one.name for one in fields(Columns)]
    for key, value in given.items():
        if key not in known:
            raise ConfigError(
                f"{path}: fields: unknown field {key!r}{nearest(str(key), known)} (fields: {', '.join(known)})"
            )
        several = key == "choices" and isinstance(value, list) and all(isinstance(one, str) for one in value)
        if not isinstance(value, str) and not several:
            more = ", or a list of columns with one choice each" if key == "choices" else ""
            raise ConfigError(f"{path}: fields: {key}: {value!r}; the name of a column is expected{more}")
    shown = settings.metric == "letter" or "choices" in names
    if shown and settings.format == "table" and "choices" not in given:
        return Columns(**{**given, "choices": "choices"})
    return Columns(**given)


def _names(path: Path, prompt: str | None) -> set[str]:
    """What a prompt has in braces."""
    if prompt is None:
        return set()
    try:
        parts = list(string.Formatter().parse(prompt))
    except ValueError as error:
        raise ConfigError(f"{path}: prompt: {error}; write {{{{ and }}}} for braces that are meant") from error
    names = {name for _, name, _, _ in parts if name is not None}
    if more := [name for _, name, form, conversion in parts if form or conversion]:
        raise ConfigError(f"{path}: prompt: write {{{more[0]}}} with nothing behind its name")
    for name in names - {"question", "choices"}:
        raise ConfigError(
            f"{path}: prompt: {{{name}}}{nearest(name, ('question', 'choices'))}; legal: {{question}}, {{choices}}; "
            "write {{ and }} for braces that are meant"
        )
    if "question" not in names:
        raise ConfigError(f"{path}: prompt: there is no {{question}} in it, so every item would be asked the same")
    return names


def _prompt(path: Path, settings: _Settings, columns: Columns, names: Collection[str]) -> str:
    chosen, metric = columns.choices is not None, settings.metric
    if settings.prompt is None:
        if settings.format == "internvl":
            return "{question}"
        if metric == "letter":
            return f"{{question}}\n{{choices}}\n{LETTER}"
        if chosen:
            raise ConfigError(
                f"{path}: fields: metric {metric!r} does not show choices; take 'metric: letter', or write a prompt "
                "that has {choices}"
            )
        return BOX if metric == "iou" else f"{{question}} {SHORT}"
    if "choices" in names and not chosen:
        raise ConfigError(
            f"{path}: prompt: it has {{choices}}, but lines of the InternVL format have them in their question; take "
            "it out"
        )
    if chosen and "choices" not in names:
        why = "fields has" if "choices" in settings.fields else f"metric {metric!r} is about them"
        raise ConfigError(f"{path}: prompt: it has no {{choices}}, but {why}; mend one of them")
    return settings.prompt
