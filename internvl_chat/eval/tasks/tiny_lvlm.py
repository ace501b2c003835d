"""Tiny LVLM: five abilities; a gold that occurs in the answer as whole words is right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from internvl_chat.eval.score.tiny_lvlm import contains_gold, shares
from internvl_chat.eval.sources import DATA, picture, read_records
from internvl_chat.eval.task import Answered, Ask, Item, Layout, OutputFile, Record, Result, Task
from internvl_chat.eval.tasks.common import SHORT, json_file, one

_FOLDER = "tiny_lvlm/updated_datasets"
_ABILITIES = (
    "Visual_Reasoning", "Visual_Perception", "Visual_Knowledge_Acquisition", "Visual_Commonsense",
    "Object_Hallucination",
)  # fmt: skip
_FILES = {ability: f"{_FOLDER}/{ability}/dataset.json" for ability in _ABILITIES}


def _item(record: Record, ask: Ask) -> Item:
    path = f"{_FOLDER}/{record['ability']}/{record['image_path']}"
    return Item(
        f"{record['ability']}/{record['number']}",
        f"{record['question']} {SHORT}",
        one(picture(ask.root, path), ask),
        record["gt_answers"],
        {"ability": record["ability"], "image": f"{DATA}{path}"},
    )


def _score(run: Answered) -> Result:
    hits = [contains_gold(answer, item.gold) for item, answer in zip(run.items, run.answers, strict=True)]
    figures = shares((item.extra["ability"], hit) for item, hit in zip(run.items, hits, strict=True))
    lines = [f"{name}: {value}" for name, value in figures.items()]
    return Result(figures, "Overall", [float(hit) for hit in hits], lines=lines)


def _files(run: Answered) -> list[OutputFile]:
    records = [
        {
            "question": item.text,
            "answer": answer,
            "gt_answers": item.gold,
            "image_path": item.extra["image"],
            "task_type": item.extra["ability"],
        }
        for item, answer in zip(run.items, run.answers, strict=True)
    ]
    return [json_file("updated_datasets.json", records)]


def _read(root: Path) -> Iterator[Record]:
    for ability, file in _FILES.items():
        for number, record in enumerate(read_records(root / file), 1):
            yield {**record, "ability": ability, "number": number}


TASKS = (
    Task(
        "updated_datasets",
        "Tiny LVLM, five abilities",
        (
            Layout(
                "guide",
                tuple(_FILES.values()),
                _read,
                "https://github.com/OpenGVLab/Multi-Modality-Arena/tree/main/tiny_lvlm_evaluation",
            ),
        ),
        _item,
        _score,
        max_new_tokens=30,
        files=_files,
    ),
)
KEYS = {"tiny_lvlm": ("updated_datasets",)}
