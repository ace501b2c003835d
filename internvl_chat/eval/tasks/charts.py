"""ChartQA: the two halves of its test set, written by people and by a program, scored by relaxed accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from internvl_chat.errors import DataError
from internvl_chat.eval.score.relaxed import RULES, chartqa_average, relaxed
from internvl_chat.eval.sources import find, read_json, unpacked
from internvl_chat.eval.task import Answered, Item, Layout, Record, Result, Task
from internvl_chat.eval.tasks.short import golds_of, guide_writer, layout, lines_of, short_item, written

_FOLDER = "chartqa/ChartQA Dataset/test"
_SOURCE = "https://github.com/vis-nlp/ChartQA"
_HALVES = ("human", "augmented")


def _score(name: str) -> Callable[[Answered], Result]:
    def score(run: Answered) -> Result:
        rule = run.options["relaxed"]
        (other,) = (one for one in RULES if one != rule)
        marks = _marks(run, rule)
        value, second = sum(marks) / len(marks), _marks(run, other)
        figures = {"relaxed_accuracy": value, f"relaxed_accuracy_{other}": sum(second) / len(second)}
        printed = {"relaxed_accuracy": value}
        lines = [f"{name} {printed}", f"{[name, printed]}"]
        differ = sum(own != else_ for own, else_ in zip(marks, second, strict=True))
        notes = {"answers on which the two rules differ": differ} if differ else {}
        return Result(figures, "relaxed_accuracy", marks, notes, lines)

    return score


def _marks(run: Answered, rule: str) -> list[float]:
    pairs = zip(run.items, run.answers, strict=True)
    return [relaxed(answer, golds_of(item), rule) if answer else 0.0 for item, answer in pairs]


def _row(item: Item, answer: str) -> dict[str, Any]:
    return {"question": item.text, "answer": answer, "annotation": item.extra["answer"]}


def _official(half: str) -> Layout:
    path = f"{_FOLDER}/test_{half}.json"

    def read(root: Path) -> Iterator[Record]:
        found = read_json(root / path)
        if not isinstance(found, list):
            raise DataError(f"{root / path}: a list of questions is expected; is it ChartQA's own file?")
        for number, one in enumerate(found):
            image = f"data/{_FOLDER}/png/{one['imgname']}"
            yield _record(number, image, one["query"], one["label"])

    return layout("official", (path,), read, _SOURCE)


def _parquet(half: str) -> Layout:
    files = ("chartqa/data/test-*.parquet",)

    def read(root: Path) -> Iterator[Record]:
        chosen = (one for one in unpacked(find(root, files)) if _HALVES[int(one["human_or_machine"])] == half)
        for number, one in enumerate(chosen):
            yield _record(number, one["image"], one["query"], one["label"])

    return layout("HuggingFaceM4", files, read, "https://huggingface.co/datasets/HuggingFaceM4/ChartQA")


def _record(number: int, image: str, question: str, label: Any) -> Record:
    answer = label[0] if isinstance(label, list) and len(label) == 1 else label
    return {"number": number, "image": image, "question": question, "question_id": number, "answer": answer}


def _task(half: str, title: str) -> Task:
    name, path = f"chartqa_test_{half}", f"chartqa/test_{half}.jsonl"
    guide = layout("guide", (path,), lines_of(path), _SOURCE, guide_writer(path, f"{_FOLDER}/png"))
    return Task(
        name,
        title,
        (guide, _official(half), _parquet(half)),
        short_item(numbered=True),
        _score(name),
        max_new_tokens=100,
        max_tiles=12,
        count=1250,
        files=written(name, _row),
        options={"relaxed": RULES},
    )


TASKS = (_task("human", "ChartQA, test, by people"), _task("augmented", "ChartQA, test, by a program"))
KEYS = {
    "vqa-chartqa-test": ("chartqa_test_human", "chartqa_test_augmented"),
    "vqa-chartqa-test-human": ("chartqa_test_human",),
    "vqa-chartqa-test-augmented": ("chartqa_test_augmented",),
}
# Name of a figure made of several tasks -> the tasks, and what makes it of their main figures.
COMBINED = {"ChartQA": (("chartqa_test_human", "chartqa_test_augmented"), chartqa_average)}
