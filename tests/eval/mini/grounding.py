"""Miniature RefCOCO and DIOR-RSVG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from tests.eval.mini.common import jsonl, picture

NAMES = (
    "refcoco_val", "refcoco_testA", "refcoco_testB", "refcoco+_val", "refcoco+_testA", "refcoco+_testB",
    "refcocog_val", "refcocog_test",
)  # fmt: skip
SIZE = (200, 100)
BOXES = ([20, 10, 60, 50], [100, 0, 200, 100], [0, 0, 10, 10])


def _writer(path: str, folder: str, real: bool = False) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        first = root / folder / "p1.png"
        if real:
            from skimage import data

            first.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(data.astronaut()[: SIZE[1], : SIZE[0]]).save(first)
        else:
            picture(first, 1, SIZE)
        picture(root / folder / "p2.png", 2, SIZE)
        jsonl(
            root / path,
            [
                {
                    "image": f"data/{folder}/p{1 + number % 2}.png",
                    "sent": f"box {number}",
                    "bbox": box,
                    "width": SIZE[0],
                    "height": SIZE[1],
                }
                for number, box in enumerate(BOXES)
            ],
        )

    return write


# Name of a task -> what writes its data below the data root.
WRITERS = {
    **{name: _writer(f"refcoco/{name}.jsonl", "coco/train2014", name == "refcoco_val") for name in NAMES},
    "dior_rsvg": _writer("dior_rsvg/test.jsonl", "dior_rsvg/images"),
}
