"""A task with canned answers: read, asked, scored, written, but without a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl_chat.eval.items import load_items, options_of, question_of_item
from internvl_chat.eval.registry import resolve
from internvl_chat.eval.task import Answered, Ask, Item, Judge, NoScore, OutputFile, Result, Task
from internvl_chat.infer.questions import Question


@dataclass(frozen=True)
class Asked:
    """What was asked, and what came of it. ``files``: name -> content."""

    items: Sequence[Item]
    questions: Sequence[Question]
    result: Result | None
    files: Mapping[str, OutputFile]

    @property
    def prompts(self) -> list[str]:
        """As the original's test double sees them: without the ``<image>`` line that is put in front."""
        return [item.text for item in self.items]


def ask(
    key: str,
    root: Path,
    answers: Sequence[str] | Callable[[Item], str],
    *,
    dynamic: bool = True,
    max_tiles: int | None = None,
    judge: Judge | None = None,
    model: str = "Fake",
    **options: str,
) -> Asked:
    """Ask the one task of a key."""
    (task,) = resolve([key])
    settings = options_of(task, options)
    items = load_items(task, Ask(root, max_tiles or task.max_tiles, dynamic, settings))
    texts = [answers(item) for item in items] if callable(answers) else list(answers)
    run = Answered(items, texts, settings, model, judge)
    result = _scored(task, run)
    files = {file.name: file for file in (task.files(run) if task.files else ())}
    return Asked(items, [question_of_item(item) for item in items], result, files)


def _scored(task: Task, run: Answered) -> Result | None:
    """As the engine does it: what needs a judge has no score without one."""
    if task.score is None or (task.judged == "needed" and run.judge is None):
        return None
    try:
        return task.score(run)
    except NoScore:
        return None


def format_cases(*datasets: str) -> list[dict[str, Any]]:
    """Output files of the original, driven end to end with a fake model (``_formats`` of cases.json)."""
    from tests.eval.cases import all_cases

    return [case for case in all_cases()["_formats"] if case["dataset"] in datasets]
