"""Benchmarks while training: a few items of each, asked of the model as it stands in memory, scored as `internvl eval`.

All that can be wrong with their data is found before the model is loaded.
"""

from __future__ import annotations

import hashlib
import math
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl_chat.config.data import DataArguments
from internvl_chat.data.tiles import ImageBackend, TileSettings
from internvl_chat.errors import ConfigError, DataError, InternVLError
from internvl_chat.eval.items import digest_of, question_of_item
from internvl_chat.eval.plan import Job, Wishes, plan_job
from internvl_chat.eval.registry import resolve
from internvl_chat.eval.run import SCORER_STUMBLES
from internvl_chat.eval.task import Answered, Item, NoScore, Result, Task
from internvl_chat.infer.batch import answers
from internvl_chat.infer.load import assemble
from internvl_chat.infer.loaded import Loaded
from internvl_chat.infer.pictures import count_shown
from internvl_chat.infer.questions import Question
from internvl_chat.log import get_logger
from internvl_chat.model.chat import InternVLChatModel
from internvl_chat.model.config import InternVLChatConfig
from internvl_chat.train import dist

log = get_logger(__name__)


@dataclass(frozen=True, eq=False)
class Chosen:
    """The items of a task that are asked, in data order, as questions. ``job``: with all items of the data set."""

    job: Job
    items: tuple[Item, ...]
    questions: tuple[Question, ...]

    @property
    def task(self) -> Task:
        return self.job.task

    @property
    def said(self) -> str:
        """How many items are asked."""
        return f"{len(self.items)} of {len(self.job.items)} items"

    def score(self, texts: Sequence[str]) -> Result:
        """Raises DataError where so few items cannot be scored."""
        assert self.task.score is not None, "refused by _chosen"
        try:
            return self.task.score(Answered(self.items, texts, self.job.ask.options))
        except SCORER_STUMBLES as error:
            part = len(self.items) < len(self.job.items)
            raise DataError(
                f"--eval_tasks: {self.task.name} cannot be scored on {self.said} ({type(error).__name__}: {error}); "
                + "raise --eval_task_items (0: all), or leave it out" * part
                + "leave it out" * (not part)
            ) from error

    def metrics(self, texts: Sequence[str]) -> dict[str, float]:
        """``eval_TASK/FIGURE`` -> figure, those that are numbers: NaN is no JSON.

        Empty where the scorer stumbles over an answer, which is said: a run must not end because of it.
        """
        try:
            result = self.score(texts)
        except InternVLError as error:
            log.error("%s: no figures at this evaluation", error)
            return {}
        found = {f"eval_{self.task.name}/{name}": float(figure) for name, figure in result.figures.items()}
        return {name: figure for name, figure in found.items() if math.isfinite(figure)}


class Benchmarks:
    """Asks and scores; what it yields is a dict of numbers, equal on all ranks. ``names``: of the figures."""

    def __init__(self, chosen: Sequence[Chosen], tokenizer: Any, backend: ImageBackend, batch_size: int) -> None:
        self.chosen = tuple(chosen)
        self.tokenizer, self.backend, self.batch_size = tokenizer, backend, batch_size
        # Nothing answered is scored, too: whether it can be is known before hours of training.
        silent = [(one, one.score([""] * len(one.items))) for one in self.chosen]
        self.mains = {one.task.name: f"eval_{one.task.name}/{result.main}" for one, result in silent}
        self.names = [f"eval_{one.task.name}/{name}" for one, result in silent for name in result.figures]

    def run(self, model: InternVLChatModel, together: bool) -> dict[str, float]:
        """All figures of all tasks; ``eval_tasks_failed``: items that could not be asked, ``eval_tasks_seconds``.

        Collective, the model in eval mode afterwards. ``together``: every rank answers every item, for no rank has the
        weights whole (ZeRO-3) and each makes the same calls; else each rank answers its share.
        """
        started = time.perf_counter()
        loaded = assemble(model, self.tokenizer, self.backend)
        metrics: dict[str, float] = {}
        failures = 0
        for one in self.chosen:
            texts, failed = self._answers(loaded, one, together)
            failures += failed
            metrics |= dist.decide_on_main(lambda one=one, texts=texts: one.metrics(texts))  # type: ignore[misc]
        seconds = round(time.perf_counter() - started, 3)
        return {**metrics, "eval_tasks_failed": float(failures), "eval_tasks_seconds": seconds}

    def describe(self, metrics: Mapping[str, float]) -> str:
        """What a person wants to see: of each task the figure that stands for it, and of how many items."""
        parts = [
            f"{name.removeprefix('eval_')} {metrics[name]:.4g} ({one.said})"
            for one in self.chosen
            if (name := self.mains[one.task.name]) in metrics
        ]
        parts = parts or ["no figures of benchmarks"]
        failed = metrics["eval_tasks_failed"]
        return (
            f"{', '.join(parts)}{f', {failed:.0f} not asked' if failed else ''}, {metrics['eval_tasks_seconds']:.1f} s"
        )

    def _answers(self, loaded: Loaded, one: Chosen, together: bool) -> tuple[list[str], int]:
        """The answers of all ranks in data order, "" where there is none; and how many items could not be asked."""
        count = len(one.questions)
        mine = range(count) if together else range(dist.rank(), count, dist.world_size())
        texts, failed = [""] * count, 0
        for place, found in answers(
            loaded, [one.questions[number] for number in mine], self.batch_size, **_generation(one.job, together)
        ):
            if isinstance(found, DataError):
                failed += 1
                log.warning("%s, item %r: not asked (%s)", one.task.name, one.items[mine[place]].id, found)
            else:
                texts[mine[place]] = found.text
        if together:
            return texts, failed
        for rank, (theirs, missed) in enumerate(dist.gather(([texts[number] for number in mine], failed))):
            texts[rank :: dist.world_size()] = theirs
            failed += missed if rank != dist.rank() else 0
        return texts, failed


def _generation(job: Job, together: bool) -> dict[str, Any]:
    # A rank that has its answers goes on calling the model for those that do not have theirs.
    return {**job.generation, "do_sample": False, **({"synced_gpus": dist.world_size() > 1} if together else {})}


def build_benchmarks(
    config: InternVLChatConfig, tokenizer: Any, data: DataArguments, batch_size: int, seed: int
) -> Benchmarks | None:
    """What ``--eval_tasks`` names, None without. Needs no weights.

    Raises ConfigError or DataError with all that is wrong, a line each.
    """
    names = [name.strip() for name in (data.eval_tasks or "").split(",") if name.strip()]
    if not names:
        return None
    tiles = TileSettings.from_config(config, data.image_backend)
    chosen, problems = [], list[InternVLError]()
    for task in resolve(names):
        try:
            chosen.append(_chosen(task, config, tiles, data, seed))
        except (ConfigError, DataError) as error:
            problems.append(error)
    if problems:
        raise type(problems[0])("\n".join(map(str, problems)))
    digests = "".join(digest_of(item) for one in chosen for item in one.items)
    found = Benchmarks(chosen, tokenizer, data.image_backend, batch_size)
    dist.check_agreement(
        "items of --eval_tasks", zlib.crc32(digests.encode()), "is --eval_data_root visible on every node?"
    )
    log.info("asked at each evaluation: %s", ", ".join(f"{one.task.name} ({one.said})" for one in chosen))
    return found


def _chosen(task: Task, config: InternVLChatConfig, tiles: TileSettings, data: DataArguments, seed: int) -> Chosen:
    """Items of a task that are there and can be asked. Raises ConfigError, DataError."""
    mend = "take it out, and run `internvl eval` on the checkpoints"
    if task.score is None or task.judged == "needed":
        why = "has no public answers" if task.score is None else "asks another model for its score"
        raise ConfigError(f"--eval_tasks: {task.name} {why}; {mend}")
    job = plan_job(task, Wishes(Path(data.eval_data_root)), bool(config.dynamic_image_size))
    taken = tuple(choose(job.items, data.eval_task_items, seed, task.neighbours))
    questions = tuple(map(question_of_item, taken))
    problems = list(_unreadable(task, taken, questions, tiles))
    if problems:
        raise DataError("\n".join(problems))
    chosen = Chosen(job, taken, questions)
    try:
        chosen.score(["A"] * len(taken))
    except NoScore as error:
        why = "asks another model for its score" if task.judged == "optional" else f"has no score here ({error})"
        raise ConfigError(f"--eval_tasks: {task.name} {why}; {mend}") from error
    return chosen


def _unreadable(task: Task, items: Sequence[Item], questions: Sequence[Question], tiles: TileSettings) -> Iterator[str]:
    for item, question in zip(items, questions, strict=True):
        try:
            count_shown(question.shown, tiles)
        except DataError as error:
            yield f"--eval_tasks: {task.name}, item {item.id!r}: {error}"


def choose(items: Sequence[Item], count: int, seed: int, block: int = 1) -> list[Item]:
    """``count`` items in data order (0: all): those that the seed draws by their ids, whatever else is in the file.

    Of a ``block`` of neighbours all are taken, or none; by the id of the first.
    """
    if not count or len(items) <= count:
        return list(items)

    def drawn(start: int) -> bytes:
        return hashlib.sha256(f"{seed}/{items[start].id}".encode()).digest()

    starts = sorted(range(0, len(items), block), key=drawn)[: max(1, count // block)]
    return [item for start in sorted(starts) for item in items[start : start + block]]
