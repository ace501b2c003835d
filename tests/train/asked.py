"""Training runs whose benchmark tells answers apart: its figure is a number made of all of them, in order."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

from internvl_chat.eval.items import load_items
from internvl_chat.eval.registry import resolve
from internvl_chat.eval.task import Answered, Ask, Item, Result, Task

ACCURACY, TOLD = "eval_sqa_test/accuracy", "eval_sqa_test/told"


def told(texts: Iterable[str]) -> float:
    """A whole number for these texts in this order."""
    return float(zlib.crc32("\0".join(texts).encode()))


def _score(run: Answered) -> Result:
    (task,) = resolve(["scienceqa"])
    assert task.score is not None
    found = task.score(run)
    return replace(found, figures={**found.figures, "told": told(run.answers)})


def telling() -> Task:
    """ScienceQA with short answers, and the number."""
    (task,) = resolve(["scienceqa"])
    return replace(task, score=_score, max_new_tokens=12)


def items_of(root: Path) -> list[Item]:
    """All items below a data folder."""
    task = telling()
    return load_items(task, Ask(root, task.max_tiles, True, {"cot": "off"}))


def train_asked(words: Sequence[str]) -> None:
    """``internvl train`` with it in place of ScienceQA."""
    from internvl_chat.train.main import train

    with mock.patch("internvl_chat.train.benchmarks.resolve", lambda names: [telling()]):
        train(list(words))
