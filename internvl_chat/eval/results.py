"""What an evaluation leaves on the disk: manifest, answers, marks, figures, files for servers; and reading it."""

from __future__ import annotations

import json
import os
import platform
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from internvl_chat import __version__
from internvl_chat.constants import IMAGE_PLACEHOLDER
from internvl_chat.errors import ConfigError, DataError, first_line
from internvl_chat.eval.plan import Job
from internvl_chat.eval.sources import read_records
from internvl_chat.eval.task import Item, Record, Result

PREDICTIONS, SCORED, METRICS, MANIFEST = "predictions.jsonl", "scored.jsonl", "metrics.json", "run.json"
_SHOWN = 3
_LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "pillow", "numpy", "flash-attn", "bitsandbytes")


@dataclass(frozen=True)
class Run:
    """A finished evaluation as it lies in a folder; ``metrics`` is empty where there is no score."""

    folder: Path
    manifest: Mapping[str, Any]
    metrics: Mapping[str, Any] = field(default_factory=dict)


def partial_of(manifest: Mapping[str, Any]) -> str | None:
    """``partial: n of m``, ``partial: without A, B``; None where every item of the public data set has an answer.

    Raises KeyError, TypeError for a manifest that is none.
    """
    if manifest["complete"] is True:
        return None
    missing, whole = manifest.get("missing"), max(manifest["there"], manifest["count"] or 0)
    parts = [f"{manifest['answered']} of {whole}"] if manifest["answered"] < whole or not missing else []
    if missing:
        more = f", ... ({len(missing)} in all)" if len(missing) > _SHOWN else ""
        parts.append(f"without {', '.join(missing[:_SHOWN])}{more}")
    return f"partial: {', '.join(parts)}"


def versions() -> dict[str, str]:
    """Of this package, Python and what decides on pixels, ids and logits."""
    found = {"internvl_chat": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_whole(path: Path, content: bytes) -> None:
    """A file that is there as a whole or not at all, in a folder that is made. Raises ConfigError.

    Where several processes write it, one of them is the last.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(content)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({first_line(error)}); make room or see to the folder, then the same command "
            "goes on with what is there"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, whole or not at all. Half an emoji, which UTF-8 has no bytes for, stays as JSON escapes it."""
    write_whole(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))


def read_answers(path: Path, job: Job | None = None) -> dict[str, str]:
    """Answers by id, of ``predictions.jsonl`` or of any file with ``id`` and ``answer`` a line.

    ``job``: of whose items they have to be. Raises DataError.
    """
    known = {} if job is None else {item.id: item for item in job.items}
    answers: dict[str, str] = {}
    for number, record in enumerate(read_records(path), 1):
        if record.get("error") is not None:
            continue
        name, answer = record.get("id"), record.get("answer")
        if not isinstance(name, (str, int)) or not isinstance(answer, str):
            lacking = "answer" if isinstance(name, (str, int)) else "id"
            fields = ", ".join(str(key) for key in record) or "none"
            what = f'{{"id": .., "answer": ".."}} is expected, {lacking!r} is missing or no text (fields: {fields})'
            raise DataError(f"{path}:{number}: {what}")
        if str(name) in answers:
            raise DataError(f"{path}:{number}: a second answer to {name!r}; leave one of them")
        if job is not None and (other := _other_question(job, known.get(str(name)), record)):
            raise DataError(f"{path}:{number}: {other}; are these the answers to another task?")
        answers[str(name)] = answer
    return answers


def _other_question(job: Job, item: Item | None, record: Record) -> str | None:
    """What shows that a line answers something else than the item that is asked now."""
    if item is None:
        return f"{job.task.name} has no item {str(record['id'])!r} (its first is {job.items[0].id!r})"
    theirs, ours = record.get("question"), _plain(item.text)
    # Whoever asks with words of his own around the question may have noted it without them.
    if isinstance(theirs, str) and _plain(theirs) not in ours and ours not in _plain(theirs):
        return f"item {item.id!r} was asked {_plain(theirs)[:60]!r}, that of {job.task.name} is {ours[:60]!r}"
    # `internvl chat --output` notes its line, whose digest is another one.
    if "line" not in record and record.get("digest", job.digests[item.id]) != job.digests[item.id]:
        return (
            f"item {item.id!r} had another digest: its pictures are others, or --option and --max_tiles are to be "
            "given as when it was asked (lines without `digest` are not compared)"
        )
    return None


def _plain(text: str) -> str:
    return " ".join(text.replace(IMAGE_PLACEHOLDER, " ").split())


def write_scores(folder: Path, job: Job, model: str, complete: bool, result: Result | None) -> None:
    """Marks and figures of each item; where there is no score, none are left."""
    if result is not None:
        marks = list(result.marks) or [None] * len(job.items)
        lines = (json.dumps({"id": item.id, "mark": mark}) for item, mark in zip(job.items, marks, strict=True))
        write_whole(folder / SCORED, "".join(f"{line}\n" for line in lines).encode())
        write_json(
            folder / METRICS,
            {
                "task": job.task.name,
                "model": model,
                "complete": complete,
                "main": result.main,
                "figures": dict(result.figures),
                "notes": dict(result.notes),
            },
        )
    else:
        for name in (SCORED, METRICS):
            (folder / name).unlink(missing_ok=True)
