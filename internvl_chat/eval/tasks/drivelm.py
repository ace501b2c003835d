"""DriveLM, validation: questions on six cameras' pictures stitched into one; their answers are handed in."""

from __future__ import annotations

from internvl_chat.eval.score.drivelm import own_pixels
from internvl_chat.eval.sources import picture, read_records
from internvl_chat.eval.task import Answered, Ask, Item, Layout, OutputFile, Record, Task
from internvl_chat.eval.tasks.common import json_file, one

_NAME = "DriveLM_val"
_FOLDER = "InternVL-Domain-Adaptation-Data"
_FILE = f"{_FOLDER}/val/drivelm_val.jsonl"
_PICTURES = f"{_FOLDER}/images/drivelm/stitch"


def _item(record: Record, ask: Ask) -> Item:
    """Lines of training data, or with the question in a field of its own.

    ``question_old``, where a record has it, is what the file has for its question.
    """
    turns = record.get("conversations")
    question = turns[0]["value"] if turns else record["question"]
    gold = turns[1]["value"] if turns and len(turns) > 1 else record.get("answer")
    name = record["id"] if "id" in record else record["question_id"]
    shown = one(picture(ask.root, record["image"], _PICTURES), ask)
    return Item(
        str(name), question.strip(), shown, gold, {"question": record.get("question_old", question), "id": name}
    )


def _files(run: Answered) -> list[OutputFile]:
    records = [
        {
            "question": item.extra["question"],
            "answer": own_pixels(answer),
            "gt_answers": item.gold,
            "id": item.extra["id"],
        }
        for item, answer in zip(run.items, run.answers, strict=True)
    ]
    return [json_file(f"{_NAME}.json", records, indent=4)]


TASKS = (
    Task(
        _NAME,
        "DriveLM, validation",
        (
            Layout(
                "guide",
                (_FILE,),
                lambda root: read_records(root / _FILE),
                "https://huggingface.co/datasets/OpenGVLab/InternVL-Domain-Adaptation-Data",
            ),
        ),
        _item,
        None,
        max_new_tokens=200,
        max_tiles=12,
        files=_files,
    ),
)
KEYS = {"drivelm": (_NAME,)}
