"""Jobs -> answers -> scores: shared by the processes of a launcher, written as they come, gone on with after a stop."""

from __future__ import annotations

import platform
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from internvl_chat.constants import BATCH_TOKENS, READERS
from internvl_chat.data.storage import Medium
from internvl_chat.errors import DataError, InternVLError
from internvl_chat.eval.items import media_of, question_of_item
from internvl_chat.eval.judge import JudgeError, Overheard
from internvl_chat.eval.plan import Job
from internvl_chat.eval.results import (
    MANIFEST,
    METRICS,
    PREDICTIONS,
    SCORED,
    Run,
    read_answers,
    versions,
    write_json,
    write_scores,
    write_whole,
)
from internvl_chat.eval.task import Answered, Item, Judge, NoScore, OutputFile, Result
from internvl_chat.infer.answers_file import AnswersFile, Outcome, Words
from internvl_chat.infer.batch import answers
from internvl_chat.infer.loaded import Loaded
from internvl_chat.infer.progress import Progress
from internvl_chat.infer.questions import Question
from internvl_chat.launch import Launch
from internvl_chat.log import get_logger

logger = get_logger(__name__)

_WORDS = Words("", "--overwrite begins anew, another --out_dir keeps both", ", or give another --out_dir")
_ERRORS_TOLD = 10
# What a scorer, or who makes files, may stumble over in answers that nobody has thought of.
SCORER_STUMBLES = (ArithmeticError, LookupError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True)
class Setup:
    """What all jobs of a run share. ``model``: name of the checkpoint; ``settings``: what its answers depend on (JSON).

    ``run``: ``launch.name_of_run``. ``readers``: threads that cut pictures.
    """

    out_dir: Path
    model: str
    settings: Mapping[str, Any]
    launch: Launch
    run: str
    batch_size: int = 8
    batch_tokens: int = BATCH_TOKENS
    readers: int = READERS
    overwrite: bool = False
    judge: Callable[[Path], Judge | None] = lambda folder: None

    def folder_of(self, job: Job) -> Path:
        """Where a job's files lie."""
        return self.out_dir / self.model / job.folder


def run_job(job: Job, setup: Setup, load: Callable[[], Loaded]) -> Run | None:
    """Answer what is not answered yet of this process's share of a job; who ends last scores, and returns the run.

    ``load`` is called only if something is left to ask. Raises ConfigError, DataError.
    """
    folder = setup.folder_of(job)
    started, clock = datetime.now(timezone.utc), time.monotonic()
    launch = setup.launch
    file = AnswersFile(
        folder / PREDICTIONS,
        dict(job.digests),
        {**setup.settings, **job.settings()},
        rank=launch.rank,
        world_size=launch.world_size,
        run=setup.run,
        overwrite=setup.overwrite,
        words=_WORDS,
    )
    with file:
        if file.todo:
            share = len(range(launch.rank, len(job.items), launch.world_size))
            if len(file.todo) < share:
                logger.info("%s: goes on with %d of %d items", job.task.name, len(file.todo), share)
            for name in (MANIFEST, METRICS, SCORED):
                (folder / name).unlink(missing_ok=True)
            _answer(job, setup, load(), file)
        elif launch.rank == 0:
            logger.info("%s: nothing is left to ask", job.task.name)
        outcome = file.finish()
    if not outcome.whole:
        what = "%s: this process is done, %d of %d items are there; the process that ends last scores"
        logger.info(what, job.task.name, outcome.there, len(job.items))
        return None
    if not outcome.last:
        return None  # another process scores
    return _conclude(job, setup, outcome, started.isoformat(timespec="seconds"), time.monotonic() - clock)


def _answer(job: Job, setup: Setup, loaded: Loaded, file: AnswersFile[str]) -> None:
    loaded = replace(loaded, tiles=replace(loaded.tiles, dynamic=job.ask.dynamic))
    # Sampling hangs on the task, not on what was asked before it.
    torch.manual_seed(zlib.crc32(f"{setup.settings.get('seed', 0)}/{setup.launch.rank}/{job.task.name}".encode()))
    items = {item.id: item for item in job.items}
    asked: list[Item] = []
    progress = Progress(len(file.todo), f"items of {job.task.name}")

    def questions() -> Iterator[Question]:
        for name in file.todo:
            item = items[name]
            try:
                question = question_of_item(item)
            except DataError as error:
                file.add(name, {"error": str(error)})
                progress.add(0, failed=True)
            else:
                asked.append(item)
                yield question

    found = answers(
        loaded, questions(), setup.batch_size, batch_tokens=setup.batch_tokens, readers=setup.readers, **job.generation
    )
    for place, answer in found:
        item = asked[place]
        if isinstance(answer, DataError):
            file.add(item.id, {"question": item.text, "error": str(answer)})
            progress.add(0, failed=True)
            continue
        record = {
            "question": item.text,
            "answer": answer.text,
            "tokens": answer.tokens,
            "finish": answer.finish,
            "gold": item.gold,
            "pictures": [_name_of(source) for source in media_of(item.shown)],
        }
        file.add(item.id, record)
        progress.add(answer.tokens)


def _name_of(source: Any) -> str:
    if isinstance(source, Medium):
        return source.name if source.local is None else str(source.local.absolute())
    return str(Path(source).absolute()) if isinstance(source, (str, Path)) else "picture in memory"


def score_answers(job: Job, answered: Answered) -> Result | None:
    """What the answers are worth; an item without one counts as wrong. None where the task has no score here.

    Raises JudgeError, also for a judge that never says anything.
    """
    if job.task.score is None or (job.task.judged == "needed" and answered.judge is None):
        return None
    judge = None if answered.judge is None else Overheard(answered.judge)
    try:
        result = job.task.score(replace(answered, judge=judge))
        if judge is not None:
            judge.check(job.task.name)
        return result
    except NoScore as error:
        logger.info("%s: no score (%s)", job.task.name, error)
        return None


def answered_of(job: Job, answers_by_id: Mapping[str, str], model: str, judge: Judge | None = None) -> Answered:
    """The items with their answers, in order."""
    texts = [answers_by_id.get(item.id, "") for item in job.items]
    return Answered(job.items, texts, job.ask.options, model, judge)


def _conclude(job: Job, setup: Setup, outcome: Outcome, started: str, seconds: float) -> Run:
    """Score what is answered, and write all of it down."""
    folder = setup.folder_of(job)
    found = read_answers(folder / PREDICTIONS)
    run = write_down(job, setup, found, {"started": started, "seconds": round(seconds, 1)})
    for record in outcome.errors[:_ERRORS_TOLD]:
        logger.warning("%s: item %r: %s", job.task.name, record["id"], record["error"])
    return run


def write_down(job: Job, setup: Setup, found: Mapping[str, str], more: Mapping[str, Any]) -> Run:
    """Score the answers, by id, and leave marks, figures, files and manifest (with ``more`` in it) in the folder.

    The manifest last: a folder with it is one of a finished evaluation. Raises ConfigError.
    """
    folder = setup.folder_of(job)
    judge = setup.judge(folder) if job.task.judged != "no" else None
    answered = answered_of(job, found, setup.model, judge)
    result, unjudged = _scored(job, answered)
    # A scorer that sees the first items only misses more than the data do.
    missing = [] if result is None or len(job.items) < job.there else list(result.missing)
    complete = len(found) == len(job.items) and job.whole and not missing
    write_scores(folder, job, setup.model, complete, result)
    files, files_failed = _files_of(job, answered)
    for file in files:
        write_whole(folder / file.name, file.content)
    ends = {
        "complete": complete,
        "missing": missing,
        "answered": len(found),
        "failed": len(job.items) - len(found),
        "judge": None if judge is None else judge.name,
        "unjudged": unjudged,
        "files": [file.name for file in files],
        "files_failed": files_failed,
    }
    manifest = {**_asked(job, setup), **ends, **more}
    write_json(folder / MANIFEST, manifest)
    if missing:
        logger.warning("%s: the score is partial, the data here are without %s", job.task.name, ", ".join(missing))
    if result is None:
        return Run(folder, manifest)
    for name, times in result.notes.items():
        if times:
            logger.info("%s: %s: %d", job.task.name, name, times)
    return Run(folder, manifest, {"main": result.main, "figures": dict(result.figures), "lines": result.lines})


def _asked(job: Job, setup: Setup) -> dict[str, Any]:
    """What a manifest says of the data, the settings and the machine."""
    return {
        "task": job.task.name,
        "title": job.task.title,
        "style": job.task.style,
        "model": setup.model,
        "checkpoint": setup.settings["checkpoint"],
        "items": len(job.items),
        "limit": job.limit,
        "there": job.there,
        "count": job.task.count,
        "data": {"root": str(job.ask.root.absolute()), "layout": job.layout, "sha256": job.data_hash},
        "settings": {
            **setup.settings,
            **job.settings(),
            "batch_size": setup.batch_size,
            "batch_tokens": setup.batch_tokens,
            "processes": setup.launch.world_size,
        },
        "changed": dict(job.changed),
        "versions": versions(),
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU",
    }


def _scored(job: Job, answered: Answered) -> tuple[Result | None, str | None]:
    """The score, if there is one, or why there is none though there should be: other tasks go on."""
    try:
        return score_answers(job, answered), None
    except JudgeError as error:  # the answers are there, and so are the replies so far
        logger.error("%s: not scored (%s); the same command goes on with the judge", job.task.name, error)
        return None, str(error)
    except (InternVLError, *SCORER_STUMBLES) as error:
        logger.error("%s: not scored (%s: %s)", job.task.name, type(error).__name__, error)
        return None, f"{type(error).__name__}: {error}"


def _files_of(job: Job, answered: Answered) -> tuple[list[OutputFile], str | None]:
    """The original's files and those for servers, or why they cannot be made."""
    try:
        return [] if job.task.files is None else list(job.task.files(answered)), None
    except (InternVLError, *SCORER_STUMBLES) as error:
        logger.error("%s: its files are not written (%s: %s)", job.task.name, type(error).__name__, error)
        return [], f"{type(error).__name__}: {error}"
