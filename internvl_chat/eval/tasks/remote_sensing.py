"""RSVQA: short questions on satellite (LR) and aerial (HR) pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from internvl_chat.eval.score.remote import BUCKETED, bucket, rsvqa, shares
from internvl_chat.eval.sources import field_of, picture, read_json
from internvl_chat.eval.task import Answered, Ask, Item, OutputFile, Record, Result, Task
from internvl_chat.eval.tasks.common import SHORT, json_file, one
from internvl_chat.eval.tasks.short import layout


def _item(record: Record, ask: Ask) -> Item:
    return Item(
        f"{record['question_id']}",
        f"{record['question']}\n{SHORT}",
        one(picture(ask.root, record["image"]), ask),
        record["answer"],
        {"question": record["question"], "question_id": record["question_id"], "type": record["type"]},
    )


def _score(run: Answered) -> Result:
    pairs = list(zip(run.items, run.answers, strict=True))
    kinds = [item.extra["type"] for item in run.items]
    marks = [rsvqa(item.extra["type"], answer, item.gold) if answer else 0.0 for item, answer in pairs]
    figures = shares(kinds, marks)
    strange = sum(kind in BUCKETED and bucket(answer) is None for kind, answer in zip(kinds, run.answers, strict=True))
    lines = [f"{name}: {value:.4f}" for name, value in figures.items()]
    main = "useful" if "useful" in figures else "total"
    return Result(figures, main, marks, {"counts and areas that are no whole number": strange}, lines)


def _files(name: str) -> Callable[[Answered], list[OutputFile]]:
    def files(run: Answered) -> list[OutputFile]:
        rows: list[dict[str, Any]] = [
            {
                "question": item.extra["question"],
                "response": answer,
                "gt_answer": item.gold,
                "index": item.extra["question_id"],
                "question_type": item.extra["type"],
            }
            for item, answer in zip(run.items, run.answers, strict=True)
        ]
        return [json_file(f"{name}.json", rows, indent=4)]

    return files


def _task(name: str, title: str, stem: str, pictures: str, source: str, count: int | None) -> Task:
    """``stem``: what the official files' names begin with, below the data root; ``pictures``: their folder."""
    files = (f"{stem}_questions.json", f"{stem}_answers.json")

    def read(root: Path) -> Iterator[Record]:
        found = field_of(read_json(root / files[1]), "answers", files[1])
        answers = {one["id"]: one["answer"] for one in found if one.get("active")}
        for question in field_of(read_json(root / files[0]), "questions", files[0]):
            if question.get("active"):
                yield {
                    "image": f"data/{pictures}/{question['img_id']}.tif",
                    "question": question["question"],
                    "question_id": question["id"],
                    "type": question["type"],
                    "answer": str(answers[question["answers_ids"][0]]),
                }

    return Task(
        name,
        title,
        (layout("official", files, read, source),),
        _item,
        _score,
        max_new_tokens=50,
        count=count,
        files=_files(name),
    )


_LR, _HR = "https://zenodo.org/records/6344334", "https://zenodo.org/records/6344367"
TASKS = (
    _task("rsvqa_lr", "RSVQA, low resolution, test", "rsvqa/lr/LR_split_test", "rsvqa/lr/Images_LR", _LR, 10004),
    _task("rsvqa_hr_test1", "RSVQA, high resolution, test 1", "rsvqa/hr/USGS_split_test", "rsvqa/hr/Data", _HR, None),
    _task(
        "rsvqa_hr_test2", "RSVQA, high resolution, test 2", "rsvqa/hr/USGS_split_test_phili", "rsvqa/hr/Data", _HR, None
    ),
)
KEYS = {"rsvqa-lr": ("rsvqa_lr",), "rsvqa-hr-test1": ("rsvqa_hr_test1",), "rsvqa-hr-test2": ("rsvqa_hr_test2",)}
