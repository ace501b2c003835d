"""SEED-Bench, version 1: 9 types of questions about pictures, 3 about the middle frame of a video."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from internvl_chat.errors import DataError
from internvl_chat.eval.score.seed import LAST_OF_PICTURES, first_letter_is, report_lines, shares
from internvl_chat.eval.sources import field_of, picture, read_json, read_records, write_records
from internvl_chat.eval.task import Answered, Ask, Item, Layout, OutputFile, Record, Result, Task
from internvl_chat.eval.tasks.common import LETTER, jsonl_file, one, option_lines

_QUESTIONS = "SEED/seed.jsonl"
_TYPES = "SEED/SEED-Bench.json"
_SOURCE = "https://huggingface.co/datasets/AILab-CVC/SEED-Bench"


def _item(record: Record, ask: Ask) -> Item:
    return Item(
        str(record["question_id"]),
        record["text"],
        one(picture(ask.root, record["image"], "SEED"), ask),
        record.get("gold", record["answer"]),
        {
            "question_id": record["question_id"],
            "answer": record["answer"],
            "type": record.get("type"),
            "type_name": record.get("type_name"),
        },
    )


def _score(run: Answered) -> Result:
    marks = [first_letter_is(answer, item.gold) for item, answer in zip(run.items, run.answers, strict=True)]
    types = [item.extra["type"] for item in run.items]
    names = {item.extra["type"]: item.extra["type_name"] for item in run.items if item.extra["type"] is not None}
    figures = shares(types, marks, names)
    whole = [answer == item.extra["answer"] for item, answer in zip(run.items, run.answers, strict=True)]
    notes = {
        "answers without a letter": sum(answer[:1] not in ("A", "B", "C", "D") for answer in run.answers),
    }
    if None in types:
        notes[f"questions of unknown type ({_TYPES} is not there)"] = types.count(None)
    lines = report_lines(figures, sum(whole) / len(whole), len(whole))
    return Result(figures, "Total accuracy", [float(mark) for mark in marks], notes, lines)


def _files(run: Answered) -> list[OutputFile]:
    records = [
        {
            "question_id": item.extra["question_id"],
            "question": item.text,
            "prediction": answer,
            "answer": item.extra["answer"],
        }
        for item, answer in zip(run.items, run.answers, strict=True)
    ]
    return [jsonl_file("SEEDv1.jsonl", records)]


def _table(root: Path) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """The questions of SEED-Bench.json, and the names of its types."""
    table = read_json(root / _TYPES)
    if not isinstance(table, dict) or not {"questions", "question_type"} <= table.keys():
        raise DataError(f"{root / _TYPES}: no 'questions' and 'question_type' in it; take version 1 from {_SOURCE}")
    for number, question in enumerate(table["questions"], 1):
        for name in ("question_id", "question_type_id", "answer"):
            field_of(question, name, f"{root / _TYPES}: question {number}")
    return table["questions"], {number: name for name, number in table["question_type"].items()}


def _guide(root: Path) -> Iterator[Record]:
    questions, names = _table(root)
    known = {str(question["question_id"]): question for question in questions}
    for record in read_records(root / _QUESTIONS):
        name = str(field_of(record, "question_id", _QUESTIONS))
        if name not in known:
            raise DataError(f"{_QUESTIONS}: question {name} is not in {_TYPES}; take version 1 of both")
        kind = known[name]["question_type_id"]
        yield {**record, "gold": known[name]["answer"], "type": kind, "type_name": names.get(kind, f"type {kind}")}


def _release(root: Path) -> Iterator[Record]:
    """The questions about pictures; frames of videos are not published with it."""
    questions, names = _table(root)
    for question in questions:
        kind = question["question_type_id"]
        if kind > LAST_OF_PICTURES:
            continue
        where = f"{_TYPES}: question {question['question_id']}"
        options = [field_of(question, f"choice_{letter}", where) for letter in "abcd"]
        yield {
            "question_id": question["question_id"],
            "image": f"SEED-Bench-image/{field_of(question, 'data_id', where)}",
            "text": f"{field_of(question, 'question', where)}\n{option_lines(options)}\n{LETTER}",
            "answer": question["answer"],
            "type": kind,
            "type_name": names.get(kind, f"type {kind}"),
        }


def _alone(root: Path) -> Iterator[Record]:
    yield from read_records(root / _QUESTIONS)


def _write(root: Path, records: Iterable[Record]) -> None:
    fields = ("image", "text", "question_id", "answer")
    write_records(root / _QUESTIONS, ({name: record[name] for name in fields} for record in records))


TASKS = (
    Task(
        "SEEDv1",
        "SEED-Bench, version 1",
        (
            Layout(
                "guide", (_QUESTIONS, _TYPES), _guide, f"{_SOURCE} and the InternVL project's seed.jsonl", {}, _write
            ),
            Layout("release", (_TYPES,), _release, f"{_SOURCE}, below SEED/; questions about pictures only"),
            Layout("questions alone", (_QUESTIONS,), _alone, f"seed.jsonl without {_TYPES}: no table of types"),
        ),
        _item,
        _score,
        max_new_tokens=100,
        count=17990,
        files=_files,
    ),
)
KEYS = {"seed": ("SEEDv1",)}
