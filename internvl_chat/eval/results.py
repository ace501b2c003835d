"""What an evaluation leaves on the disk: manifest, answers, marks, figures, files for servers; and reading it."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from internvl_chat import __version__
from internvl_chat.errors import DataError
from internvl_chat.eval.plan import Job
from internvl_chat.eval.sources import read_json, read_records
from internvl_chat.eval.task import OutputFile, Result
from internvl_chat.log import get_logger

logger = get_logger(__name__)

PREDICTIONS, SCORED, METRICS, MANIFEST = "predictions.jsonl", "scored.jsonl", "metrics.json", "run.json"
_LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "pillow", "numpy", "flash-attn", "bitsandbytes")


@dataclass(frozen=True)
class Run:
    """A finished evaluation as it lies in a folder; ``metrics`` is empty where there is no score."""

    folder: Path
    manifest: Mapping[str, Any]
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every item of the data set has an answer."""
        return bool(self.manifest.get("complete"))


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
    """A file that is there as a whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    part.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, whole or not at all."""
    write_whole(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_answers(path: Path) -> dict[str, str]:
    """Answers by id, of ``predictions.jsonl`` or of any file with ``id`` and ``answer`` a line. Raises DataError."""
    answers: dict[str, str] = {}
    for number, record in enumerate(read_records(path), 1):
        if "error" in record:
            continue
        name, answer = record.get("id"), record.get("answer")
        if not isinstance(name, (str, int)) or not isinstance(answer, str):
            lacking = "answer" if isinstance(name, (str, int)) else "id"
            known = ", ".join(str(key) for key in record) or "none"
            what = f'{{"id": .., "answer": ".."}} is expected, {lacking!r} is missing or no text (fields: {known})'
            raise DataError(f"{path}:{number}: {what}")
        if str(name) in answers:
            raise DataError(f"{path}:{number}: a second answer to {name!r}; leave one of them")
        answers[str(name)] = answer
    return answers


def write_result(folder: Path, job: Job, model: str, manifest: Mapping[str, Any], result: Result | None) -> None:
    """Marks, figures and manifest; the manifest last: a folder with it is one of a finished evaluation."""
    if result is not None:
        marks = list(result.marks) or [None] * len(job.items)
        lines = (json.dumps({"id": item.id, "mark": mark}) for item, mark in zip(job.items, marks, strict=True))
        write_whole(folder / SCORED, "".join(f"{line}\n" for line in lines).encode())
        write_json(
            folder / METRICS,
            {
                "task": job.task.name,
                "model": model,
                "complete": manifest["complete"],
                "main": result.main,
                "figures": dict(result.figures),
                "notes": dict(result.notes),
            },
        )
    else:
        for name in (SCORED, METRICS):
            (folder / name).unlink(missing_ok=True)
    write_json(folder / MANIFEST, manifest)


def write_files(folder: Path, files: Iterable[OutputFile]) -> list[Path]:
    """The original's files and those for servers; returns their paths."""
    paths = []
    for file in files:
        write_whole(folder / file.name, file.content)
        paths.append(folder / file.name)
    return paths


def manifests(folder: Path) -> list[Path]:
    """The manifests of all evaluations below a folder, also in folders of models that are links."""
    return sorted({*folder.rglob(MANIFEST), *folder.glob(f"*/{MANIFEST}"), *folder.glob(f"*/*/{MANIFEST}")})


def find_runs(folder: Path) -> list[Run]:
    """All finished evaluations below a folder; damaged ones are left out, and it is said.

    Raises DataError if there is none.
    """
    runs = []
    for path in manifests(folder):
        metrics = path.with_name(METRICS)
        try:
            manifest, scores = read_json(path), read_json(metrics) if metrics.is_file() else {}
        except DataError as error:
            logger.warning("left out: %s", error)
            continue
        if isinstance(manifest, dict) and "task" in manifest:
            runs.append(Run(path.parent, manifest, scores))
    if not runs:
        raise DataError(f"{folder}: no finished evaluation in it (a {MANIFEST} in each); `internvl eval` writes them")
    return runs


def log_scalars(folder: Path, step: int, runs: Sequence[Run]) -> None:
    """``eval/<task>/<figure>`` of complete runs, for TensorBoard."""
    from torch.utils.tensorboard.writer import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for run in runs:
            if not run.complete:
                logger.warning("%s: not written for TensorBoard, it is partial", run.manifest["task"])
            else:
                for name, value in run.metrics.get("figures", {}).items():
                    writer.add_scalar(f"eval/{run.manifest['task']}/{name}", value, step)
