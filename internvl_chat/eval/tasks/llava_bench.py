"""LLaVA-Bench (in the wild): free answers, which a judge compares with a reference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from internvl_chat.errors import DataError
from internvl_chat.eval.score.llava_bench import summary, summary_lines
from internvl_chat.eval.sources import picture, read_records
from internvl_chat.eval.task import Answered, Ask, Item, Layout, OutputFile, Record, Result, Task
from internvl_chat.eval.tasks.common import jsonl_file, one
from internvl_chat.eval.tasks.vlm_judged import UNREADABLE, marks_of, reviews

_NAME = "llava_bench"
_FOLDER = "llava-bench-in-the-wild"
_DETAIL = "Please give a detailed answer."


def _read(root: Path) -> Iterator[Record]:
    """Questions with the description of their picture and the reference; told by picture and id, not by line."""
    folder = root / _FOLDER
    captions = {record["image"]: record["caption"] for record in read_records(folder / "context.jsonl")}
    references = {record["question_id"]: record["text"] for record in read_records(folder / "answers_gpt4.jsonl")}
    for record in read_records(folder / "questions.jsonl"):
        name, number = record["image"], record["question_id"]
        if name not in captions or number not in references:
            what = f"caption of {name!r}" if name not in captions else f"reference to question {number!r}"
            raise DataError(f"{folder / 'questions.jsonl'}: there is no {what}; download the three files again")
        yield {**record, "caption": captions[name], "reference": references[number]}


def _item(record: Record, ask: Ask) -> Item:
    shown = one(picture(ask.root, record["image"], f"{_FOLDER}/images"), ask)
    extra = {
        "question_id": record["question_id"],
        "question": record["text"],
        "context": record["caption"],
        "category": f"{_NAME}_{record['category']}",
    }
    return Item(str(record["question_id"]), f"{record['text']} {_DETAIL}", shown, record["reference"], extra)


def _score(run: Answered) -> Result:
    found = reviews(run, _NAME)
    pairs = [(item.extra["category"], pair) for item, pair in zip(run.items, found, strict=True) if pair is not None]
    figures: dict[str, float] = {}
    for name, (_, relative, reference, model) in summary(pairs).items():
        figures |= {name: relative, f"{name} reference": reference, f"{name} model": model}
    return Result(figures, "all", marks_of(found), {UNREADABLE: found.count(None)}, summary_lines(pairs))


def _files(run: Answered) -> list[OutputFile]:
    # The original has the last two parts of the checkpoint's path, which its guide keeps in pretrained/.
    records = [
        {
            "question_id": item.extra["question_id"],
            "text": answer,
            "model_id": f"pretrained_{run.model}",
            "metadata": {},
        }
        for item, answer in zip(run.items, run.answers, strict=True)
    ]
    return [jsonl_file(f"{_NAME}_results.jsonl", records)]


TASKS = (
    Task(
        _NAME,
        "LLaVA-Bench (in the wild)",
        (
            Layout(
                "guide",
                tuple(f"{_FOLDER}/{name}.jsonl" for name in ("questions", "context", "answers_gpt4")),
                _read,
                "https://huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild",
            ),
        ),
        _item,
        _score,
        max_new_tokens=1000,
        count=60,
        files=_files,
        judged="needed",
    ),
)
KEYS = {"llava-bench": (_NAME,)}
