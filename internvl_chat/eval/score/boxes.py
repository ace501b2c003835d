"""Boxes of answers against the right ones: RefCOCO and DIOR-RSVG, each with its own reading and overlap."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

Box = Sequence[float]
# The first four fields between brackets, whatever they are.
_REFCOCO = re.compile(r"\[+(.*?),(.*?),(.*?),(.*?)\]")
_DOUBLE = re.compile(r"\[\[([^\[\]]*)\]\]")
# A box whose values add up to less is taken for shares of the picture, not for thousandths.
SHARES_BELOW = 4
_WHOLE = 1000
_RIGHT = 0.5


def refcoco_box(answer: str) -> tuple[float, float, float, float] | None:
    """The first box of an answer, as written; None without one, or where it is not of four numbers."""
    found = _REFCOCO.search(answer)
    return None if found is None else _four(found.groups())


def _four(fields: Sequence[str]) -> tuple[float, float, float, float] | None:
    try:
        x1, y1, x2, y2 = (float(field) for field in fields)
    except ValueError:
        return None
    return x1, y1, x2, y2


def refcoco_iou(answer: str, gold: Box, width: float, height: float) -> float:
    """Overlap (0 to 1) of an answer's box with ``gold`` (x1, y1, x2, y2 in pixels of a picture of that size).

    Values are thousandths of the picture, or its shares if they add up to less than ``SHARES_BELOW``. No box, or
    corners in the wrong order: 0. In 32-bit floats like the original, so that boxes at the very limit fall on the same
    side.
    """
    written = refcoco_box(answer)
    if written is None:
        return 0.0
    with np.errstate(all="ignore"):
        box = np.array(written, np.float32)
        if box.sum() >= SHARES_BELOW:
            box = box / np.float32(_WHOLE)
        box = box * np.array([width, height, width, height], np.float32)
        due = np.array(gold, np.float32)
        sides = np.clip(np.minimum(box[2:], due[2:]) - np.maximum(box[:2], due[:2]), 0, None)
        shared = sides[0] * sides[1]
        areas = (box[2] - box[0]) * (box[3] - box[1]), (due[2] - due[0]) * (due[3] - due[1])
        iou = float(shared / (areas[0] + areas[1] - shared))
    return iou if math.isfinite(iou) else 0.0


def refcoco_right(iou: float) -> bool:
    """Half an overlap is enough."""
    return iou >= _RIGHT


def rsvg_box(answer: str, width: float, height: float) -> tuple[float, float, float, float] | None:
    """The first box in double brackets, in thousandths -> pixels within the picture; None without one of numbers."""
    found = _DOUBLE.search(answer)
    fields = found[1].split(",") if found else []
    box = _four(fields) if len(fields) == 4 else None
    if box is None or not all(map(math.isfinite, box)):
        return None
    sizes = (width, height, width, height)
    x1, y1, x2, y2 = (min(max(value / _WHOLE * size, 0), size) for value, size in zip(box, sizes, strict=True))
    return x1, y1, x2, y2


def rsvg_iou(box: Box, gold: Box) -> float:
    """Overlap of two boxes of pixels (x1, y1, x2, y2), both ends counted in."""
    wide = min(box[2], gold[2]) - max(box[0], gold[0]) + 1
    high = min(box[3], gold[3]) - max(box[1], gold[1]) + 1
    shared = max(0.0, wide) * max(0.0, high)
    areas = sum((one[2] - one[0] + 1) * (one[3] - one[1] + 1) for one in (box, gold))
    union = areas - shared
    return shared / union if union > 0 else 0.0


def rsvg_right(answer: str, gold: Box, width: float, height: float) -> float:
    """1 if the answer's box overlaps ``gold`` by more than half, else 0; unlike RefCOCO, half is too little."""
    box = rsvg_box(answer, width, height)
    return float(box is not None and rsvg_iou(box, gold) > _RIGHT)
