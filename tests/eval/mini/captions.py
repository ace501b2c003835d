"""Miniature caption sets, in the guide's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.eval.mini.common import json_file, picture

CAPTIONS = {
    42: ["a cat sits on a couch", "a cat is sitting on a sofa", "cat on the couch"],
    73: ["two dogs playing in the grass", "dogs run in a field", "a pair of dogs on grass"],
}


def annotations() -> list[dict[str, Any]]:
    return [{"image_id": name, "caption": text, "id": name} for name, texts in CAPTIONS.items() for text in texts]


def _coco(root: Path) -> None:
    names = {name: f"val2014/COCO_val2014_{name:012d}.jpg" for name in CAPTIONS}
    for number, name in enumerate(names.values()):
        picture(root / "coco" / name, number)
    json_file(root / "coco/annotations/coco_karpathy_test.json", [{"image": name} for name in names.values()])
    json_file(
        root / "coco/annotations/coco_karpathy_test_gt.json",
        {"images": [{"id": name} for name in CAPTIONS], "annotations": annotations()},
    )


def _flickr30k(root: Path) -> None:
    images = [{"id": name, "image": f"Images/{name}.jpg"} for name in CAPTIONS]
    for number, image in enumerate(images):
        picture(root / f"flickr30k/{image['image']}", number)
    document = {"images": images, "annotations": annotations()}
    json_file(root / "flickr30k/flickr30k_test_karpathy.json", document)


def _nocaps(root: Path) -> None:
    images = [{"id": name, "file_name": f"{name}.jpg"} for name in CAPTIONS]
    for number, image in enumerate(images):
        picture(root / f"nocaps/images/{image['file_name']}", number)
    document = {"images": images, "annotations": annotations()}
    json_file(root / "nocaps/nocaps_val_4500_captions.json", document)


# Name of a task -> what writes its data below the data root.
WRITERS = {"coco": _coco, "flickr30k": _flickr30k, "nocaps": _nocaps}
