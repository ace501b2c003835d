"""Captions: COCO (Karpathy's test split), Flickr30k (likewise), nocaps (validation)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from internvl_chat.errors import DataError
from internvl_chat.eval.score.captions import average_length, check_java_metrics, java_metrics, score_captions
from internvl_chat.eval.sources import DATA, field_of, picture, read_json
from internvl_chat.eval.task import Answered, Ask, Item, Layout, OutputFile, Record, Result, Task
from internvl_chat.eval.tasks.common import json_file, one
from internvl_chat.eval.tasks.short import kept, layout, write_document

PROMPT = "Provide a one-sentence caption for the provided image."
# The order of COCO's table.
_METRICS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "SPICE")
_NUMBER = re.compile(r"(\d+)$")
_COCO = "coco/annotations/coco_karpathy_test.json"
_COCO_GOLDS = "coco/annotations/coco_karpathy_test_gt.json"
_FLICKR = "flickr30k/flickr30k_test_karpathy.json"
_KARPATHY = "https://cs.stanford.edu/people/karpathy/deepimagesent/"


def _item(record: Record, ask: Ask) -> Item:
    if ask.options["metrics"] != "plain":
        check_java_metrics(ask.options["metrics"])  # before the model has written captions for nothing
    if not record["captions"]:
        raise DataError(f"picture {record['image_id']!r} has no reference caption; download the annotation file again")
    return Item(
        f"{record['image_id']}",
        PROMPT,
        one(picture(ask.root, record["image"]), ask),
        list(record["captions"]),
        {"image_id": record["image_id"]},
    )


def _score(run: Answered) -> Result:
    references = [item.gold for item in run.items]
    found = score_captions(run.answers, references)
    if run.options["metrics"] != "plain":
        found |= java_metrics(run.answers, references, run.options["metrics"])
    figures = {name: found[name] for name in _METRICS if name in found}
    lines = [f"Average caption length: {average_length(run.answers)}"]
    lines += [f"{name}: {value:.3f}" for name, value in figures.items()]
    return Result(figures, "CIDEr", [None] * len(run.items), {}, lines)


def _files(name: str) -> Callable[[Answered], list[OutputFile]]:
    def files(run: Answered) -> list[OutputFile]:
        pairs = zip(run.items, run.answers, strict=True)
        return [
            json_file(f"{name}.json", [{"image_id": item.extra["image_id"], "caption": text} for item, text in pairs])
        ]

    return files


def _captions(document: Any, path: str) -> dict[Any, list[str]]:
    """Picture id -> captions, of a file in COCO's layout."""
    found: dict[Any, list[str]] = {}
    for record in field_of(document, "annotations", path):
        found.setdefault(record["image_id"], []).append(record["caption"])
    return found


def _coco_id(image: str) -> int:
    """The number at the end of a COCO picture's name."""
    found = _NUMBER.search(PurePosixPath(image).stem)
    if found is None:
        raise DataError(f"{_COCO}: picture {image!r} has no number at its end, which is its id; is it the right file?")
    return int(found[1])


def _read_coco(root: Path) -> Iterator[Record]:
    captions = _captions(read_json(root / _COCO_GOLDS), _COCO_GOLDS)
    for record in read_json(root / _COCO):
        name = _coco_id(record["image"])
        yield {"image": f"{DATA}coco/{record['image']}", "image_id": name, "captions": captions.get(name, [])}


def _write_coco(root: Path, records: Iterable[Record]) -> None:
    rows = list(records)
    images = [kept(root, row, "coco/val2014").removeprefix(f"{DATA}coco/") for row in rows]
    write_document(
        root / _COCO, [{"image": name, "caption": row["captions"]} for name, row in zip(images, rows, strict=True)]
    )
    write_document(root / _COCO_GOLDS, _document(rows, {}))


def _document(rows: Iterable[Record], names: Mapping[Any, str]) -> dict[str, Any]:
    """Captions in COCO's layout. ``names``: picture id -> its file."""
    rows = list(rows)
    images = [{"id": row["image_id"], **({"file_name": names[row["image_id"]]} if names else {})} for row in rows]
    texts = [(row["image_id"], text) for row in rows for text in row["captions"]]
    captions = [{"id": number, "image_id": name, "caption": text} for number, (name, text) in enumerate(texts)]
    return {"images": images, "annotations": captions}


def _in_coco_layout(path: str, folder: str) -> Callable[[Path], Iterator[Record]]:
    """Reader of one file with pictures and captions; pictures lie below ``folder``."""

    def read(root: Path) -> Iterator[Record]:
        document = read_json(root / path)
        captions = _captions(document, path)
        for image in field_of(document, "images", path):
            name = image["file_name"] if "file_name" in image else image["image"]
            place = name if name.startswith(DATA) else f"{DATA}{folder}/{name}"
            yield {"image": place, "image_id": image["id"], "captions": captions.get(image["id"], [])}

    return read


def _write_flickr(root: Path, records: Iterable[Record]) -> None:
    rows = list(records)
    names = {row["image_id"]: kept(root, row, "flickr30k/Images").removeprefix(f"{DATA}flickr30k/") for row in rows}
    write_document(root / _FLICKR, _document(rows, names))


def _karpathy(path: str, place: Callable[[Path, Record], tuple[str, int]]) -> Layout:
    """Karpathy's own file, of which the test split is read. ``place``: data root, picture -> where it lies, its id."""

    def read(root: Path) -> Iterator[Record]:
        for record in field_of(read_json(root / path), "images", path):
            if record["split"] == "test":
                image, name = place(root, record)
                captions = [sentence["raw"] for sentence in record["sentences"]]
                yield {"image": image, "image_id": name, "captions": captions}

    return layout("Karpathy", (path,), read, _KARPATHY)


def _coco_place(root: Path, record: Record) -> tuple[str, int]:
    return f"{DATA}coco/{record['filepath']}/{record['filename']}", record["cocoid"]


def _flickr_place(root: Path, record: Record) -> tuple[str, int]:
    folder = "flickr30k-images" if (root / "flickr30k/flickr30k-images").is_dir() else "Images"
    return f"{DATA}flickr30k/{folder}/{record['filename']}", record["imgid"]


def _task(name: str, title: str, layouts: tuple[Layout, ...], count: int) -> Task:
    return Task(
        name,
        title,
        layouts,
        _item,
        _score,
        max_new_tokens=30,
        min_new_tokens=8,
        count=count,
        files=_files(name),
        options={"metrics": ("plain", "meteor", "all")},
    )


_NOCAPS = "nocaps/nocaps_val_4500_captions.json"
TASKS = (
    _task(
        "coco", "COCO captions, Karpathy's test split",
        (
            layout("guide", (_COCO, _COCO_GOLDS), _read_coco, "https://cocodataset.org/#download", _write_coco),
            _karpathy("coco/dataset_coco.json", _coco_place),
        ),
        5000,
    ),
    _task(
        "flickr30k", "Flickr30k captions, Karpathy's test split",
        (
            layout("guide", (_FLICKR,), _in_coco_layout(_FLICKR, "flickr30k"),
                   "https://shannon.cs.illinois.edu/DenotationGraph/", _write_flickr),
            _karpathy("flickr30k/dataset_flickr30k.json", _flickr_place),
        ),
        1000,
    ),
    _task(
        "nocaps", "nocaps, validation",
        (layout("guide", (_NOCAPS,), _in_coco_layout(_NOCAPS, "nocaps/images"), "https://nocaps.org/download"),),
        4500,
    ),
)  # fmt: skip
KEYS = {
    "caption": ("coco", "flickr30k", "nocaps"),
    "caption-coco": ("coco",),
    "caption-flickr30k": ("flickr30k",),
    "caption-nocaps": ("nocaps",),
}
