"""VQA scored by soft accuracy: OKVQA, TextVQA (plain and with OCR tokens), VizWiz, VQAv2."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from internvl_chat.errors import DataError
from internvl_chat.eval.score.vqa import PEOPLE, soft_accuracy
from internvl_chat.eval.sources import field_of, find, read_json, unpacked
from internvl_chat.eval.task import Ask, Item, Layout, Record, Task
from internvl_chat.eval.tasks.common import SHORT
from internvl_chat.eval.tasks.short import (
    annotated,
    commonest,
    guide_writer,
    layout,
    lines_of,
    marked,
    row_of,
    row_with,
    short_item,
    vqa_answers,
    with_answers,
    written,
)

VIZWIZ = f"When the provided information is insufficient, respond with 'Unanswerable'. {SHORT}"
OCR = "\nReference OCR token: "
_COCO = "https://visualqa.org/download.html"
_TEXTVQA = "https://textvqa.org/dataset/"
_VIZWIZ = "https://vizwiz.org/tasks-and-datasets/vqa/"
_VIZWIZ_TEST = "data/vizwiz/test/"


def _item(prompt: str) -> Callable[[Record, Ask], Item]:
    plain = short_item(prompt)

    def item(record: Record, ask: Ask) -> Item:
        answers = record.get("answers")
        if answers is not None and len(answers) != PEOPLE:
            raise DataError(
                f"question {record['question_id']!r} has {len(answers)} answers in the annotation file, {PEOPLE} are "
                "needed; download it again"
            )
        return plain(record, ask)

    return item


def _task(
    name: str, title: str, layouts: tuple[Layout, ...], count: int, *, prompt: str = SHORT, scored: bool = True
) -> Task:
    row = row_with("question_id") if name != "vizwiz_test" else _vizwiz_row
    return Task(
        name,
        title,
        layouts,
        _item(prompt),
        marked(
            lambda answer, item: soft_accuracy(answer, item.gold, item.id), "accuracy", lambda mean: [f"{name} {mean}"]
        )
        if scored
        else None,
        max_new_tokens=10,
        count=count,
        files=written(name, row, row_of("question_id") if name == "vqav2_testdev" else None),
    )


def _vizwiz_row(item: Item, answer: str) -> dict[str, Any]:
    return {"image": item.extra["question_id"].removeprefix(_VIZWIZ_TEST), "answer": answer}


def _guide(jsonl: str, annotations: str, pictures: str, source: str) -> Layout:
    return layout(
        "guide",
        (jsonl, annotations),
        annotated(jsonl, annotations),
        source,
        guide_writer(jsonl, pictures, annotations),
    )


def _unscored(jsonl: str, pictures: str, source: str) -> Layout:
    return layout("guide", (jsonl,), lines_of(jsonl), source, guide_writer(jsonl, pictures))


def _coco(folder: str, questions: str, annotations: str, split: str) -> Layout:
    """The official question and annotation files of VQA on COCO's pictures."""
    paths = tuple(f"{folder}/{name}" for name in (questions, annotations) if name)

    def read(root: Path) -> Iterator[Record]:
        # Pictures lie in the folder, by a link in the guide, or where COCO itself is.
        place = folder if (root / folder / split).is_dir() else "coco"
        found = field_of(read_json(root / paths[0]), "questions", paths[0])
        records = (
            {
                "image": f"data/{place}/{split}/COCO_{split}_{int(one['image_id']):012d}.jpg",
                "question": one["question"],
                "question_id": one["question_id"],
            }
            for one in found
        )
        if not annotations:
            yield from records
            return
        for record in with_answers(records, vqa_answers(root / paths[1]), root / paths[1]):
            yield {**record, "answer": commonest(record["answers"])}

    return layout("official", paths, read, _COCO)


def _textvqa_official(tokens: bool) -> Layout:
    questions, ocr = "textvqa/TextVQA_0.5.1_val.json", "textvqa/TextVQA_Rosetta_OCR_v0.2_val.json"

    def read(root: Path) -> Iterator[Record]:
        seen: Mapping[str, list[str]] = {}
        if tokens:
            seen = {one["image_id"]: one["ocr_tokens"] for one in field_of(read_json(root / ocr), "data", ocr)}
        for one in field_of(read_json(root / questions), "data", questions):
            image = f"data/textvqa/train_images/{one['image_id']}.jpg"
            yield _textvqa_record(one, image, seen.get(one["image_id"], []) if tokens else None)

    return layout("official", (questions, ocr) if tokens else (questions,), read, _TEXTVQA)


def _textvqa_parquet(tokens: bool) -> Layout:
    files = ("textvqa/data/validation-*.parquet",)

    def read(root: Path) -> Iterator[Record]:
        for one in unpacked(find(root, files)):
            words = field_of(one, "ocr_tokens", files[0]) if tokens else None
            yield {**_textvqa_record(one, one["image"], words), "file": f"{one['image_id']}.jpg"}

    return layout("lmms-lab", files, read, "https://huggingface.co/datasets/lmms-lab/textvqa")


def _textvqa_record(one: Record, image: str, tokens: list[str] | None) -> Record:
    answers = [str(answer) for answer in one["answers"]]
    question = one["question"] if tokens is None else f"{one['question']}{OCR}{', '.join(tokens)}"
    return {
        "image": image,
        "question": question,
        "question_id": one["question_id"],
        "answer": commonest(answers),
        "answers": answers,
    }


def _vizwiz(split: str) -> Layout:
    path = f"vizwiz/{split}.json"

    def read(root: Path) -> Iterator[Record]:
        found = read_json(root / path)
        if not isinstance(found, list):
            raise DataError(f"{root / path}: a list of questions is expected; is it VizWiz's own file?")
        for number, one in enumerate(found):
            image = f"data/vizwiz/{split}/{one['image']}"
            record = {"image": image, "question": one["question"], "question_id": number}
            if split == "test":
                yield record | {"question_id": image}
                continue
            answers = [str(answer["answer"]) for answer in one["answers"]]
            yield record | {"answer": commonest(answers), "answers": answers}

    return layout("official", (path,), read, _VIZWIZ)


def _textvqa(jsonl: str, tokens: bool) -> tuple[Layout, ...]:
    guide = _guide(f"textvqa/{jsonl}", "textvqa/textvqa_val_annotations.json", "textvqa/train_images", _TEXTVQA)
    return (guide, _textvqa_official(tokens), _textvqa_parquet(tokens))


TASKS = (
    _task(
        "okvqa_val", "OKVQA, validation",
        (
            _guide("okvqa/okvqa_val.jsonl", "okvqa/mscoco_val2014_annotations.json", "okvqa/val2014",
                   "https://okvqa.allenai.org/download.html"),
            _coco("okvqa", "OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json", "val2014"),
        ),
        5046,
    ),
    _task("textvqa_val", "TextVQA, validation", _textvqa("textvqa_val.jsonl", False), 5000),
    _task(
        "textvqa_val_ocr", "TextVQA, validation, with OCR tokens", _textvqa("textvqa_val_llava.jsonl", True), 5000
    ),
    _task(
        "vizwiz_val", "VizWiz, validation",
        (
            _guide("vizwiz/vizwiz_val.jsonl", "vizwiz/vizwiz_val_annotations.json", "vizwiz/val", _VIZWIZ),
            _vizwiz("val"),
        ),
        4319, prompt=VIZWIZ,
    ),
    _task(
        "vizwiz_test", "VizWiz, test",
        (_unscored("vizwiz/vizwiz_test.jsonl", "vizwiz/test", _VIZWIZ), _vizwiz("test")),
        8000, prompt=VIZWIZ, scored=False,
    ),
    _task(
        "vqav2_val", "VQAv2, validation",
        (
            _guide("vqav2/vqav2_val.jsonl", "vqav2/v2_mscoco_val2014_annotations.json", "vqav2/val2014", _COCO),
            _coco("vqav2", "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json",
                  "val2014"),
        ),
        214354,
    ),
    _task(
        "vqav2_testdev", "VQAv2, test-dev",
        (
            _unscored("vqav2/vqav2_testdev.jsonl", "vqav2/test2015", _COCO),
            _coco("vqav2", "v2_OpenEnded_mscoco_test-dev2015_questions.json", "", "test2015"),
        ),
        107394, scored=False,
    ),
)  # fmt: skip
KEYS = {
    "vqa-okvqa-val": ("okvqa_val",),
    "vqa-textvqa-val": ("textvqa_val",),
    "vqa-textvqa-val-ocr": ("textvqa_val_ocr",),
    "vqa-vizwiz-val": ("vizwiz_val",),
    "vqa-vizwiz-test": ("vizwiz_test",),
    "vqa-vqav2-val": ("vqav2_val",),
    "vqa-vqav2-testdev": ("vqav2_testdev",),
    "vqa": ("okvqa_val", "textvqa_val", "vizwiz_val", "ai2diagram_test", "gqa_testdev_llava"),
}
