"""MMMU-Pro: ten options, and questions that are part of the picture."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from internvl_chat.errors import DataError
from internvl_chat.eval.score.mmmu_pro import final_letter
from internvl_chat.eval.sources import field_of, find, picture, unpacked
from internvl_chat.eval.task import Answered, Ask, Item, Layout, Record, Result, Task
from internvl_chat.eval.tasks.common import LETTERS, answers_file, one, option_lines
from internvl_chat.eval.tasks.mmmu import listed
from internvl_chat.infer.pictures import Shown

_DIRECT = "Answer with the option letter from the given choices directly."
_LAST_LINE = (
    "The last line of your response should be of the following format: 'Answer: $LETTER' (without quotes) where LETTER "
    "is one of options."
)
_STEPS = "Think step by step before answering."
# (vision, cot) -> prompt
_PROMPTS = {
    (False, "off"): _DIRECT,
    (False, "on"): f"Answer the preceding multiple choice question. {_LAST_LINE} {_STEPS}",
    (True, "off"): f"{_DIRECT} {_LAST_LINE}",
    (True, "on"): (f"Write out the multiple-choice question in the image and then solve it. {_LAST_LINE} {_STEPS}"),
}
_MARKER = re.compile(r"<image\s+(\d+)>")
_SOURCE = "https://huggingface.co/datasets/MMMU/MMMU_Pro, below MMMU_Pro/"


def _standard(record: Record, ask: Ask) -> Item:
    options = listed(record["options"], record["id"])
    text = f"{record['question']}\n{option_lines(options)}\n{_PROMPTS[False, ask.options['cot']]}"
    numbers = _MARKER.findall(text)
    missing = [number for number in numbers if not record.get(f"image_{number}")]
    if missing:
        raise DataError(f"{record['id']}: <image {missing[0]}> in its text, but no such picture; download it again")
    # A picture that no marker names stands in front.
    shown = tuple(Shown(picture(ask.root, record[f"image_{number}"]), ask.max_tiles) for number in numbers or ["1"])
    return _finished(record, _MARKER.sub("<image>", text), shown, options)


def _vision(record: Record, ask: Ask) -> Item:
    options = listed(record["options"], record["id"])
    shown = one(picture(ask.root, record["image"]), ask)
    return _finished(record, _PROMPTS[True, ask.options["cot"]], shown, options)


def _finished(record: Record, text: str, shown: tuple[Shown, ...], options: list[str]) -> Item:
    lettered = dict(zip(LETTERS, options, strict=False))
    if record["answer"] not in lettered:
        raise DataError(f"{record['id']}: the answer {record['answer']!r} is none of the options; download it again")
    return Item(record["id"], text, shown, record["answer"], {"options": lettered, "subject": record.get("subject")})


def _score(run: Answered) -> Result:
    letters = [final_letter(answer, item.extra["options"]) for item, answer in zip(run.items, run.answers, strict=True)]
    marks = [float(letter == item.gold) for item, letter in zip(run.items, letters, strict=True)]
    figures = {"accuracy": 100 * sum(marks) / len(marks)}
    subjects = sorted({item.extra["subject"] for item in run.items} - {None})
    for subject in subjects:
        own = [mark for item, mark in zip(run.items, marks, strict=True) if item.extra["subject"] == subject]
        figures[subject] = 100 * sum(own) / len(own)
    return Result(figures, "accuracy", marks, {"answers without a letter": letters.count("")})


def _reader(pattern: str) -> Callable[[Path], Iterator[Record]]:
    def read(root: Path) -> Iterator[Record]:
        for record in unpacked(find(root, [pattern])):
            field_of(record, "options", pattern)
            yield record

    return read


def _task(name: str, title: str, folder: str, item: Callable[[Record, Ask], Item]) -> Task:
    pattern = f"MMMU_Pro/{folder}/test-*.parquet"
    return Task(
        name,
        title,
        (Layout("guide", (pattern,), _reader(pattern), _SOURCE),),
        item,
        _score,
        max_new_tokens=4096,
        count=1730,
        files=answers_file(name),
        options={"cot": ("off", "on")},
    )


TASKS = (
    _task("MMMU_Pro_std10", "MMMU-Pro, ten options", "standard (10 options)", _standard),
    _task("MMMU_Pro_vision", "MMMU-Pro, the question in the picture", "vision", _vision),
)
KEYS = {
    "mmmu-pro": ("MMMU_Pro_std10", "MMMU_Pro_vision"),
    "mmmu-pro-std10": ("MMMU_Pro_std10",),
    "mmmu-pro-vision": ("MMMU_Pro_vision",),
}
