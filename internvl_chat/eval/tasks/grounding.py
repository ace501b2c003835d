"""Boxes of what a sentence describes: RefCOCO, RefCOCO+, RefCOCOg, and DIOR-RSVG for pictures from above."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from internvl_chat.data.faults import Fault
from internvl_chat.data.media import read_image_size
from internvl_chat.errors import DataError
from internvl_chat.eval.score.boxes import refcoco_box, refcoco_iou, refcoco_right, rsvg_box, rsvg_right
from internvl_chat.eval.sources import find, picture, read_records, unpacked, write_records
from internvl_chat.eval.task import Answered, Ask, Item, OutputFile, Record, Result, Task
from internvl_chat.eval.tasks.common import BOX, json_file, one
from internvl_chat.eval.tasks.short import kept, layout, lines_of

# The code of the original asks in the singular, its documents print the plural.
_PROMPTS = {"singular": BOX, "plural": BOX.replace("coordinate", "coordinates")}
_CORNERS = 4


def _item(record: Record, ask: Ask) -> Item:
    box = [*record["bbox"]]
    if len(box) != _CORNERS or not all(isinstance(value, (int, float)) for value in box):
        raise DataError(f"bbox {box!r}: x1, y1, x2, y2 in pixels are expected")
    return Item(
        f"{record['number']}",
        record.get("asked") or _PROMPTS[ask.options["prompt"]].format(question=record["sent"]),
        one(picture(ask.root, record["image"], record.get("folder", "")), ask),
        box,
        {"sent": record["sent"], "hw": [record["height"], record["width"]]},
    )


def _size(item: Item) -> tuple[float, float]:
    height, width = item.extra["hw"]
    return width, height


def _result(marks: Sequence[float], without: int, line: str) -> Result:
    """``line``: what the original prints, with the share as ``{}``."""
    share = sum(marks) / len(marks)
    notes = {"answers without a box": without}
    return Result({"precision": share}, "precision", marks, notes, [line.format(share)])


def _refcoco_score(run: Answered) -> Result:
    pairs = list(zip(run.items, run.answers, strict=True))
    marks = [float(refcoco_right(refcoco_iou(answer, item.gold, *_size(item)))) for item, answer in pairs]
    return _result(marks, sum(refcoco_box(answer) is None for _, answer in pairs), "Precision @ 1: {} ")


def _rsvg_score(run: Answered) -> Result:
    pairs = list(zip(run.items, run.answers, strict=True))
    marks = [rsvg_right(answer, item.gold, *_size(item)) for item, answer in pairs]
    return _result(marks, sum(rsvg_box(answer, *_size(item)) is None for item, answer in pairs), "Acc@0.5: {}")


def _files(name: str) -> Callable[[Answered], list[OutputFile]]:
    def files(run: Answered) -> list[OutputFile]:
        pairs = zip(run.items, run.answers, strict=True)
        rows: list[dict[str, Any]] = [
            {"answer": answer, "gt_bbox": item.gold, "hw": item.extra["hw"]} for item, answer in pairs
        ]
        return [json_file(f"{name}.json", rows)]

    return files


def _refcoco(name: str, title: str, count: int) -> Task:
    path = f"refcoco/{name}.jsonl"
    return Task(
        name,
        title,
        (
            layout(
                "guide", (path,), lines_of(path), "https://github.com/QwenLM/Qwen-VL/blob/master/eval_mm/EVALUATION.md"
            ),
        ),
        _item,
        _refcoco_score,
        max_new_tokens=100,
        count=count,
        files=_files(name),
        options={"prompt": tuple(_PROMPTS)},
    )


_RSVG = "dior_rsvg/test.jsonl"
_DOMAIN = "InternVL-Domain-Adaptation-Data"
_RSVG_DOMAIN = f"{_DOMAIN}/val/dior_rsvg_test.json"
_RSVG_PARQUET = ("dior_rsvg/data/test-*.parquet",)


def _read_domain(root: Path) -> Iterator[Record]:
    """The original's list, which has questions of its own; ``size``: width, height."""
    for number, row in enumerate(read_records(root / _RSVG_DOMAIN)):
        width, height = row["size"]
        record = {
            "number": number,
            "image": row["image"],
            "folder": _DOMAIN,
            "sent": row["prompt"],
            "bbox": row["bbox"],
        }
        yield record | {"asked": f"Detect {row['prompt']}", "width": width, "height": height}


def _read_rsvg(root: Path) -> Iterator[Record]:
    """A record for each sentence of the release, which has a picture with several boxes and sentences a row."""
    number = 0
    for row in unpacked(find(root, _RSVG_PARQUET)):
        width, height = _picture_size(row["image"])
        objects = row["objects"]
        for box, sentence in zip(objects["bbox"], objects["captions"], strict=True):
            x1, y1, x2, y2 = box
            if not (x1 <= x2 and y1 <= y2):
                raise DataError(f"{row['image']}: box {box!r} is no x1, y1, x2, y2; is it the right file?")
            record = {"number": number, "image": row["image"], "sent": sentence, "bbox": box}
            yield record | {"width": width, "height": height}
            number += 1


def _picture_size(path: str) -> tuple[int, int]:
    try:
        return read_image_size(Path(path))
    except Fault as fault:
        raise DataError(str(fault)) from fault


def _write_rsvg(root: Path, records: Iterable[Record]) -> None:
    names = ("sent", "bbox", "width", "height")
    rows = [{"image": kept(root, row, "dior_rsvg/images"), **{name: row[name] for name in names}} for row in records]
    write_records(root / _RSVG, rows)


def mean(*figures: float) -> float:
    """The plain mean of the splits, as tables of models print it."""
    return sum(figures) / len(figures)


_SPLITS = (
    _refcoco("refcoco_val", "RefCOCO, validation", 10834),
    _refcoco("refcoco_testA", "RefCOCO, test A", 5657),
    _refcoco("refcoco_testB", "RefCOCO, test B", 5095),
    _refcoco("refcoco+_val", "RefCOCO+, validation", 10758),
    _refcoco("refcoco+_testA", "RefCOCO+, test A", 5726),
    _refcoco("refcoco+_testB", "RefCOCO+, test B", 4889),
    _refcoco("refcocog_val", "RefCOCOg, validation", 4896),
    _refcoco("refcocog_test", "RefCOCOg, test", 9602),
)
TASKS = (
    *_SPLITS,
    Task(
        "dior_rsvg",
        "DIOR-RSVG, test",
        (
            layout("guide", (_RSVG,), lines_of(_RSVG), "https://github.com/ZhanYang-nwpu/RSVG-pytorch", _write_rsvg),
            layout(
                "domain adaptation",
                (_RSVG_DOMAIN,),
                _read_domain,
                "https://huggingface.co/datasets/OpenGVLab/InternVL-Domain-Adaptation-Data",
            ),
            layout("parquet", _RSVG_PARQUET, _read_rsvg, "https://huggingface.co/datasets/danielz01/DIOR-RSVG"),
        ),
        _item,
        _rsvg_score,
        max_new_tokens=200,
        count=7500,
        files=_files("dior_rsvg"),
        options={"prompt": tuple(_PROMPTS)},
    ),
)
KEYS = {
    "refcoco": tuple(task.name for task in _SPLITS),
    **{task.name.replace("_", "-"): (task.name,) for task in _SPLITS},
    "dior-rsvg": ("dior_rsvg",),
}
# Name of a figure made of several tasks -> the tasks, and what makes it of their main figures.
COMBINED = {"RefCOCO": (tuple(task.name for task in _SPLITS), mean)}
