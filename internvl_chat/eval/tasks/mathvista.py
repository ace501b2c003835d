"""MathVista as the original asks and scores it: testmini, and test, whose right answers are not public."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from internvl_chat.eval.judge import JudgeError, each
from internvl_chat.eval.score.mathvista import Extraction, extract, settled
from internvl_chat.eval.score.thought import thoughtful
from internvl_chat.eval.sources import find, picture, read_json, unpacked
from internvl_chat.eval.task import Answered, Ask, Item, Layout, OutputFile, Record, Result, Task
from internvl_chat.eval.tasks.common import json_file, one

_FOLDER = "MathVista"
_SOURCE = "https://huggingface.co/datasets/AI4Math/MathVista"
_FIELDS = ("question", "choices", "unit", "precision", "answer", "question_type", "answer_type", "metadata", "query")
# The table of the original, in its order.
_OWN = ("question_type", "answer_type")
_META = ("language", "source", "category", "task", "context", "grade", "skills")


def _parquet(split: str) -> Callable[[Path], Iterator[Record]]:
    def read(root: Path) -> Iterator[Record]:
        for record in unpacked(find(root, [_pattern(split)])):
            yield {**record, "image": record["decoded_image"]}

    return read


def _pattern(split: str) -> str:
    return f"{_FOLDER}/**/{split}-*.parquet"


def _annotations(root: Path) -> Iterator[Record]:
    """The release's JSON, with its pictures beside it."""
    for pid, record in read_json(root / f"{_FOLDER}/annot_testmini.json").items():
        yield {"pid": pid, **record}


def _item(record: Record, ask: Ask) -> Item:
    facts: dict[str, Any] = {name: record.get(name) for name in _FIELDS}
    query = record["query"]
    if facts["question_type"] == "multi_choice" and not facts["choices"]:
        raise ValueError("a question with options that has none")
    shown = one(picture(ask.root, record["image"], _FOLDER), ask)
    text = query if ask.options["cot"] == "off" else thoughtful(query)
    return Item(str(record["pid"]), text, shown, facts["answer"] or None, facts)


def _extracted(run: Answered) -> list[Extraction]:
    quick = run.options["cot"] == "on"
    pairs = list(zip(run.items, run.answers, strict=True))
    return each(lambda pair: extract(pair[1].strip(), pair[0].extra, quick, run.judge), pairs)


def _marks(run: Answered, found: Sequence[Extraction]) -> list[float]:
    return [float(_right(item, value)) for item, value in zip(run.items, found, strict=True)]


def _table(items: Sequence[Item], marks: Sequence[float]) -> dict[tuple[str, str], list[float]]:
    """(column, value) -> the marks of its items; columns in the original's order, values in the alphabet's."""
    groups: dict[tuple[str, str], list[float]] = {}
    for item, mark in zip(items, marks, strict=True):
        for group in _groups(item):
            groups.setdefault(group, []).append(mark)
    columns = (*_OWN, *_META)
    return {group: groups[group] for group in sorted(groups, key=lambda group: (columns.index(group[0]), group[1]))}


def _score(run: Answered) -> Result:
    found = _extracted(run)
    marks = _marks(run, found)
    figures = {"average": 100 * sum(marks) / len(marks)}
    for (column, value), own in _table(run.items, marks).items():
        figures[f"{column}: {value}"] = 100 * sum(own) / len(own)
    whole = _counted(marks)
    line = f"Correct: {whole['correct']}, Total: {whole['total']}, Accuracy: {whole['accuracy']}%"
    if run.judge is None:
        notes = {
            "values that only a judge could take from answers, hence wrong": sum(one.text is None for one in found)
        }
    else:
        notes = {"values that the judge took from answers": sum(one.judged and bool(one.text) for one in found)}
    return Result(figures, "average", marks, notes, [line])


def _counted(marks: Sequence[float]) -> dict[str, Any]:
    """An entry of the file of scores: per cent with two decimals, as text."""
    correct = int(sum(marks))
    return {"accuracy": str(round(100 * correct / len(marks), 2)), "correct": correct, "total": len(marks)}


def _right(item: Item, value: Extraction) -> bool:
    return bool(value.text) and _settled(item, value) == item.gold


def _settled(item: Item, value: Extraction) -> str | None:
    return settled(value.text, item.extra) if value.text else None


def _groups(item: Item) -> Iterator[tuple[str, str]]:
    """Column and value of each group that an item is in; skills are several."""
    for column in (*_OWN, *_META):
        value = item.extra[column] if column in _OWN else (item.extra["metadata"] or {}).get(column)
        values: Sequence[Any] = value if isinstance(value, list) else [value]
        yield from ((column, str(one)) for one in values if one is not None)


def _files(name: str, scored: bool) -> Callable[[Answered], list[OutputFile]]:
    def files(run: Answered) -> list[OutputFile]:
        records: dict[str, dict[str, Any]] = {
            item.id: {"pid": item.id, **item.extra, "response": answer}
            for item, answer in zip(run.items, run.answers, strict=True)
        }
        if not scored:
            return [json_file(f"{name}.json", records)]
        try:
            found = _extracted(run)  # a judge's replies are kept: what the score has asked is not asked again
        except JudgeError:  # there is no score either
            return [json_file(f"{name}.json", records)]
        marks = _marks(run, found)
        for item, value, mark in zip(run.items, found, marks, strict=True):
            prediction = _settled(item, value)
            records[item.id] |= {"extraction": value.text, "prediction": prediction, "true_false": mark == 1}
        scores: dict[str, Any] = {"average": _counted(marks)}
        for (column, name_of), own in _table(run.items, marks).items():
            scores.setdefault(column, {})[name_of] = _counted(own)
        return [json_file(f"{name}.json", records), json_file(f"{name}_score.json", scores)]

    return files


def _task(split: str, count: int, others: tuple[Layout, ...], score: Callable[[Answered], Result] | None) -> Task:
    name = f"MathVista_{split}"
    return Task(
        name,
        f"MathVista, {split}",
        (Layout("guide", (_pattern(split),), _parquet(split), _SOURCE), *others),
        _item,
        score,
        max_new_tokens=4096,
        count=count,
        files=_files(name, score is not None),
        options={"cot": ("off", "on")},
        judged="no" if score is None else "optional",
    )


_ANNOTATIONS = Layout(
    "annotations", (f"{_FOLDER}/annot_testmini.json", f"{_FOLDER}/images/1.jpg"), _annotations, _SOURCE
)
TASKS = (_task("testmini", 1000, (_ANNOTATIONS,), _score), _task("test", 5141, (), None))
KEYS = {"mathvista-testmini": ("MathVista_testmini",), "mathvista-test": ("MathVista_test",)}
