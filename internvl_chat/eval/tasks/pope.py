"""POPE: is there such an object in the picture; objects chosen at random, by frequency, and to mislead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from internvl_chat.errors import DataError
from internvl_chat.eval.score.pope import CATEGORIES, counts, overall_f1, ratios, report_lines, unclear, yes_or_no
from internvl_chat.eval.score.thought import final_answer, thoughtful
from internvl_chat.eval.sources import field_of, find, keep_picture, picture, read_records, unpacked, write_records
from internvl_chat.eval.task import Answered, Ask, Item, Layout, OutputFile, Record, Result, Task
from internvl_chat.eval.tasks.common import SHORT, json_file, one

_QUESTIONS = "pope/llava_pope_test.jsonl"
_LABELS = tuple(f"pope/coco/coco_pope_{category}.json" for category in CATEGORIES)
_PICTURES = "pope/val2014"
_PARQUET = "pope/data/test-*.parquet"
# What a question asks for; releases differ in the words around it.
_OBJECT = re.compile(r"^is there an? (.+?) in the im", re.IGNORECASE)


def _item(record: Record, ask: Ask) -> Item:
    text = record["text"]
    if SHORT not in text:
        raise DataError(f"question {record['question_id']}: {SHORT!r} is not in its text; is it LLaVA's file?")
    if record["category"] not in CATEGORIES:
        raise DataError(f"question {record['question_id']}: category {record['category']!r}, not {CATEGORIES}")
    return Item(
        str(record["question_id"]),
        text if ask.options["cot"] == "off" else thoughtful(text.replace(SHORT, "").strip()),
        one(picture(ask.root, record["image"], _PICTURES), ask),
        record["label"],
        {"category": record["category"], "question_id": record["question_id"]},
    )


def _cleaned(run: Answered) -> list[str]:
    clean = final_answer if run.options["cot"] == "on" else str
    return [clean(answer).strip() for answer in run.answers]


def _score(run: Answered) -> Result:
    answers = _cleaned(run)
    found = {}
    for category in CATEGORIES:
        rows = [
            (item.gold, answer)
            for item, answer in zip(run.items, answers, strict=True)
            if item.extra["category"] == category
        ]
        if rows:
            found[category] = counts([label for label, _ in rows], [answer for _, answer in rows])
    overall = overall_f1(found.values())
    figures = {"overall_f1": overall}
    for category, table in found.items():
        figures |= {f"{category}/{name}": value for name, value in (table | ratios(table)).items()}
    marks = [float(yes_or_no(answer) == item.gold) for item, answer in zip(run.items, answers, strict=True)]
    notes = {
        "answers without a clear yes or no": sum(unclear(answer) for answer in answers),
        "empty answers, which count as yes": sum(not answer for answer in answers),
    }
    lines = [line for category, table in found.items() for line in report_lines(category, table)]
    missing = [category for category in CATEGORIES if category not in found]
    return Result(figures, "overall_f1", marks, notes, [*lines, f"Overall F1: {overall:.2f}"], missing)


def _files(run: Answered) -> list[OutputFile]:
    rows = zip(run.items, _cleaned(run), run.answers, strict=True)
    records = [
        {
            "question_id": item.extra["question_id"],
            "text": answer,
            "text_orig": raw,
            "model_id": run.model,
            "metadata": {},
        }
        for item, answer, raw in rows
    ]
    return [json_file("pope.json", records)]


def _guide(root: Path) -> Iterator[Record]:
    """Question k of a category belongs to line k of its labels; picture and question have to agree."""
    labels = {category: list(read_records(root / path)) for category, path in zip(CATEGORIES, _LABELS, strict=True)}
    used = dict.fromkeys(CATEGORIES, 0)
    for record in read_records(root / _QUESTIONS):
        category = field_of(record, "category", _QUESTIONS)
        place, rows = used.get(category, 0), labels.get(category, [])
        if place >= len(rows):
            raise DataError(
                f"{_QUESTIONS}: more questions of category {category!r} than labels ({len(rows)}); take the labels of "
                "the commit that the guide names"
            )
        used[category] = place + 1
        yield {**record, "label": _label(rows[place], record, category, place)}
    left = {category: len(labels[category]) - number for category, number in used.items() if number}
    if any(left.values()):
        raise DataError(
            f"{_QUESTIONS}: labels without a question: {left}; take the labels of the commit that the guide names"
        )


def _label(row: Record, record: Record, category: str, place: int) -> str:
    name, image, text = (field_of(record, field, _QUESTIONS) for field in ("question_id", "image", "text"))
    objects = [_OBJECT.search(str(one)) for one in (row.get("text", text), text)]
    same = row.get("image", image) == image
    same &= not all(objects) or len({found[1] for found in objects if found}) == 1
    label = row.get("label")
    if not same or label not in ("yes", "no"):
        raise DataError(
            f"coco_pope_{category}.json:{place + 1}: not the label of question {name} ({image}); take questions and "
            "labels of one release"
        )
    return str(label)


def _release(root: Path) -> Iterator[Record]:
    """The questions of the label files; numbered through all categories."""
    number = 0
    for category, path in zip(CATEGORIES, _LABELS, strict=True):
        for row in read_records(root / path):
            text = f"{field_of(row, 'text', path)}\n{SHORT}"
            yield {**row, "question_id": number, "text": text, "category": category}
            number += 1


def _parquet(root: Path) -> Iterator[Record]:
    for number, row in enumerate(unpacked(find(root, [_PARQUET]))):
        fields = ("image", "question", "category", "answer", "image_source")
        image, question, category, answer, name = (str(field_of(row, field, _PARQUET)) for field in fields)
        yield {
            "question_id": number,
            "image": image,
            "text": f"{question}\n{SHORT}",
            "category": category,
            "label": answer.lower(),
            "name": f"{name}.jpg",
        }


def _write(root: Path, records: Iterable[Record]) -> None:
    questions: list[Record] = []
    labels: dict[str, list[Record]] = {category: [] for category in CATEGORIES}
    for record in records:
        name = str(record.get("name", record["image"]))
        if "name" in record:  # a picture that was in a parquet file
            keep_picture(record["image"], root / _PICTURES / name)
        question = {key: record[key] for key in ("question_id", "text", "category")}
        questions.append({**question, "image": name})
        rows = labels[record["category"]]
        text = record["text"].replace(SHORT, "").strip()
        rows.append({"question_id": len(rows) + 1, "image": name, "text": text, "label": record["label"]})
    for category, path in zip(CATEGORIES, _LABELS, strict=True):
        if not (root / path).exists():
            write_records(root / path, labels[category])
    write_records(root / _QUESTIONS, questions)


TASKS = (
    Task(
        "pope",
        "POPE, objects that are not there",
        (
            Layout(
                "guide",
                (_QUESTIONS, *_LABELS),
                _guide,
                "https://github.com/haotian-liu/LLaVA/blob/main/docs/Evaluation.md and "
                "https://github.com/AoiDragon/POPE",
                write=_write,
            ),
            Layout("release", _LABELS, _release, "https://github.com/AoiDragon/POPE"),
            Layout("parquet", (_PARQUET,), _parquet, "https://huggingface.co/datasets/lmms-lab/POPE, below pope/"),
        ),
        _item,
        _score,
        max_new_tokens=100,
        count=8910,
        files=_files,
        options={"cot": ("off", "on")},
    ),
)
KEYS = {"pope": ("pope",)}
