"""Documents scored by ANLS: DocVQA and InfographicVQA."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from internvl_chat.errors import DataError
from internvl_chat.eval.score.anls import anls
from internvl_chat.eval.sources import field_of, find, read_json, read_records, unpacked
from internvl_chat.eval.task import Answered, Layout, Record, Result, Task
from internvl_chat.eval.tasks.short import (
    golds_of,
    guide_writer,
    layout,
    lines_of,
    marked,
    numbered,
    row_of,
    row_with,
    short_item,
    with_answers,
    written,
)

_SITE = "https://rrc.cvc.uab.es/?ch=17&com=downloads"
_PARQUET = "https://huggingface.co/datasets/lmms-lab/DocVQA"


def anls_score() -> Callable[[Answered], Result]:
    """The scorer of all sets with ANLS."""
    return marked(
        lambda answer, item: anls(answer, golds_of(item)),
        "anls",
        lambda mean: [f"Overall ANLS: {mean:.4f}"],
        empty=True,
    )


def _guide(jsonl: str, annotations: str, pictures: str) -> Layout:
    """The guide's questions, with the answers of the official file beside them."""

    def read(root: Path) -> Iterator[Record]:
        records = list(numbered(read_records(root / jsonl)))
        questions = field_of(read_json(root / annotations), "data", annotations)
        answers = {str(one["questionId"]): one["answers"] for one in questions}
        found = list(with_answers(records, answers, root / annotations))
        if left := answers.keys() - {str(one["question_id"]) for one in found}:
            raise DataError(
                f"{root / annotations}: {len(left)} questions that {jsonl} does not have, {min(left)!r} for example; "
                "take both of one release"
            )
        yield from found

    def document(records: Sequence[Record]) -> dict[str, Any]:
        data = [
            {"questionId": one["question_id"], "question": one["question"], "answers": one["answers"]}
            for one in records
        ]
        return {"dataset_name": jsonl.split("/")[0], "data": data}

    return layout("guide", (jsonl, annotations), read, _SITE, guide_writer(jsonl, pictures, annotations, document))


def _unscored(jsonl: str, pictures: str) -> Layout:
    return layout("guide", (jsonl,), lines_of(jsonl), _SITE, guide_writer(jsonl, pictures))


def _official(path: str, pictures: str, image: str) -> Layout:
    """The file of the Robust Reading Competition. ``image``: the field with the picture's name below ``pictures``."""

    def read(root: Path) -> Iterator[Record]:
        for one in field_of(read_json(root / path), "data", path):
            yield _record(one, f"data/{pictures}/{field_of(one, image, path)}")

    return layout("official", (path,), read, _SITE)


def _parquet(files: str) -> Layout:
    def read(root: Path) -> Iterator[Record]:
        for one in unpacked(find(root, [files])):
            yield _record(one, one["image"])

    return layout("lmms-lab", (files,), read, _PARQUET)


def _record(one: Record, image: str) -> Record:
    record = {"image": image, "question": one["question"], "question_id": int(one["questionId"])}
    return record | {"answer": one["answers"], "answers": one["answers"]} if one.get("answers") else record


def _task(name: str, title: str, layouts: tuple[Layout, ...], count: int, max_tiles: int) -> Task:
    plain = row_with("questionId", "annotation")
    test = name.endswith("_test")
    return Task(
        name,
        title,
        layouts,
        short_item(),
        None if test else anls_score(),
        max_new_tokens=100,
        max_tiles=max_tiles,
        count=count,
        files=written(name, row_of("questionId"))
        if name == "docvqa_test"
        # The original escapes what is not ASCII in the files of the test sets only.
        else written(name, plain, row_of("questionId") if test else None, escaped=test),
    )


_INFO = "infographicsvqa/infographicsvqa_images"
_INFO_VAL = "infographicsvqa/infographicsVQA_val_v1.0_withQT.json"
TASKS = (
    _task(
        "docvqa_val", "DocVQA, validation",
        (
            _guide("docvqa/val.jsonl", "docvqa/val/val_v1.0.json", "docvqa/val/documents"),
            _official("docvqa/val/val_v1.0.json", "docvqa/val", "image"),
            _parquet("docvqa/DocVQA/validation-*.parquet"),
        ),
        5349, 18,
    ),
    _task(
        "docvqa_test", "DocVQA, test",
        (
            _unscored("docvqa/test.jsonl", "docvqa/test/documents"),
            _official("docvqa/test/test_v1.0.json", "docvqa/test", "image"),
            _parquet("docvqa/DocVQA/test-*.parquet"),
        ),
        5188, 18,
    ),
    _task(
        "infographicsvqa_val", "InfographicVQA, validation",
        (
            _guide("infographicsvqa/val.jsonl", _INFO_VAL, _INFO),
            _official(_INFO_VAL, _INFO, "image_local_name"),
            _parquet("infographicsvqa/InfographicVQA/validation-*.parquet"),
            _parquet("docvqa/InfographicVQA/validation-*.parquet"),
        ),
        2801, 24,
    ),
    _task(
        "infographicsvqa_test", "InfographicVQA, test",
        (
            _unscored("infographicsvqa/test.jsonl", _INFO),
            _official("infographicsvqa/infographicsVQA_test_v1.0.json", _INFO, "image_local_name"),
            _parquet("infographicsvqa/InfographicVQA/test-*.parquet"),
            _parquet("docvqa/InfographicVQA/test-*.parquet"),
        ),
        3288, 24,
    ),
)  # fmt: skip
KEYS = {
    "vqa-docvqa-val": ("docvqa_val",),
    "vqa-docvqa-test": ("docvqa_test",),
    "vqa-infovqa-val": ("infographicsvqa_val",),
    "vqa-infovqa-test": ("infographicsvqa_test",),
}
