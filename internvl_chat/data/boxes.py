"""Boxes as data: the ``objects`` of a line -> ``<ref>..</ref><box>[[..]]</box>`` in its text, and back from an answer.

The text form is that of the series: x1, y1, x2, y2 in whole thousandths of the picture's width and height. In the text
of a line ``<ref-object>`` stands where a name is due and ``<bbox>`` where a box is; the k-th of each takes the k-th of
``objects``, counted over all turns.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from internvl_chat.constants import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from internvl_chat.data.faults import Fault, FaultCode, check_text, show

REF_TAG, BOX_TAG = "<ref-object>", "<bbox>"
# Names of a unit -> what the value 1.0 is of the picture's side; None: a pixel.
_UNITS: dict[str, float | None] = {
    "pixel": None, "real": None,
    "0-1": 1.0, "norm_1": 1.0, "norm1": 1.0,
    "0-1000": 1000.0, "norm_1000": 1000.0, "norm1000": 1000.0,
}  # fmt: skip
_TAGS_OF_TEXT = (IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER)
_LARGEST = 1e9  # no picture has as many pixels on a side
_TAGS = re.compile(f"({re.escape(REF_TAG)}|{re.escape(BOX_TAG)})")
_NUMBER = r"-?\d+(?:\.\d+)?"
_LIST = rf"\[\s*{_NUMBER}(?:\s*,\s*{_NUMBER})*\s*\]"
_GROUNDED = re.compile(
    rf"(?:<ref>((?:(?!</?ref>).)*)</ref>\s*)?<box>\s*(\[\s*{_LIST}(?:\s*,\s*{_LIST})*\s*\]|{_LIST})\s*</box>",
    re.S | re.A,
)


@dataclass(frozen=True, slots=True)
class Box:
    """What one ``<bbox>`` stands for: boxes (x1, y1, x2, y2), or points (x, y), of picture number ``image``."""

    corners: tuple[tuple[float, ...], ...]
    unit: str
    image: int = 0

    @property
    def in_pixels(self) -> bool:
        return _UNITS[self.unit] is None


@dataclass(frozen=True, slots=True)
class Objects:
    """``refs``: names for ``<ref-object>``; ``boxes``: for ``<bbox>``; both in order."""

    refs: tuple[str, ...]
    boxes: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class Grounding:
    """A box list found in an answer: its name, if it has one, and boxes (x1, y1, x2, y2) as written."""

    ref: str | None
    boxes: tuple[tuple[float, float, float, float], ...]


def read_objects(value: Any) -> Objects:
    """The field ``objects`` of a line, in any of the forms in use. Raises Fault.

    A list of ``{"ref" | "caption": name, "bbox": box or boxes, "bbox_type" | "unit": unit, "image" | "image_id": n}``;
    an object of lists ``{"ref": [..], "bbox": [..], "bbox_type" | "unit": unit, "image_id": [..]}``; or either of them
    as a JSON string. Units: pixel (also called real; the default), 0-1 (norm_1), 0-1000 (norm_1000).
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _fault(f"is a string, but not JSON ({error})", "write a list of objects") from error
    if isinstance(value, dict):
        return _read_columns(value)
    if not isinstance(value, list):
        raise _fault(f"holds {show(value)}", "write a list of {'ref': name, 'bbox': [x1, y1, x2, y2], 'unit': unit}")
    refs, boxes = [], []
    for number, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise _fault(f"[{number}] is {show(entry)}", "write {'ref': name, 'bbox': [x1, y1, x2, y2]}")
        ref = entry.get("ref", entry.get("caption"))
        if ref is not None:
            refs.append(_read_ref(number, ref))
        if entry.get("bbox") is not None:
            unit, image = entry.get("unit", entry.get("bbox_type", "pixel")), entry.get("image", entry.get("image_id"))
            boxes.append(_read_box(number, entry["bbox"], unit, image))
    return Objects(tuple(refs), tuple(boxes))


def _read_columns(value: dict[str, Any]) -> Objects:
    refs, boxes, images = (value.get(key) or [] for key in ("ref", "bbox", "image_id"))
    if not all(isinstance(column, list) for column in (refs, boxes, images)):
        raise _fault(f"holds {show(value)}", "make 'ref', 'bbox' and 'image_id' lists")
    if images and len(images) != len(boxes):
        raise _fault(f"has {len(boxes)} boxes but {len(images)} in 'image_id'", "give one picture number per box")
    unit = value.get("unit", value.get("bbox_type", "pixel"))
    units = unit if isinstance(unit, list) else [unit] * len(boxes)
    if len(units) != len(boxes):
        raise _fault(f"has {len(boxes)} boxes but {len(units)} units", "give one unit for all, or one per box")
    numbers = images or [None] * len(boxes)
    columns = zip(boxes, units, numbers, strict=True)
    return Objects(
        tuple(_read_ref(number, ref) for number, ref in enumerate(refs)),
        tuple(_read_box(number, *column) for number, column in enumerate(columns)),
    )


def _read_ref(number: int, ref: Any) -> str:
    if not isinstance(ref, str) or not ref.strip():
        raise _fault(f"[{number}] has the name {show(ref)}", "give a text")
    check_text(f"key 'objects'[{number}]", ref)
    if tag := next((tag for tag in (*_TAGS_OF_TEXT, REF_TAG, BOX_TAG) if tag in ref), None):
        raise _fault(f"[{number}] has a name with {tag} in it", "write the name without it")
    return ref


def _read_box(number: int, box: Any, unit: Any, image: Any) -> Box:
    if not isinstance(unit, str) or unit not in _UNITS:
        raise _fault(f"[{number}] has the unit {show(unit)}", f"use one of {', '.join(_UNITS)}")
    if image is not None and (isinstance(image, bool) or not isinstance(image, int) or image < 0):
        raise _fault(f"[{number}] is of picture {show(image)}", "count pictures from 0")
    many = box if isinstance(box, list) and box and all(isinstance(one, list) for one in box) else [box]
    for one in many:
        legal = isinstance(one, list) and len(one) in (2, 4)
        if not legal or not all(type(v) in (int, float) and abs(v) < _LARGEST for v in one):
            raise _fault(f"[{number}] has the box {show(one)}", "give x1, y1, x2, y2 (or x, y for a point)")
    return Box(tuple(tuple(float(v) for v in one) for one in many), unit, image or 0)


def fill_in_boxes(texts: Sequence[str], objects: Objects, sizes: Sequence[tuple[int, int]]) -> list[str]:
    """The texts of a conversation in order, tags replaced. ``sizes``: (width, height) of each picture. Raises Fault.

    A name becomes ``<ref>name</ref>``, a box ``<box>[[x1, y1, x2, y2]]</box>``. All boxes must be used; names all or
    none.
    """
    tags = [tag for text in texts for tag in _TAGS.findall(text)]
    for tag, values, optional in ((REF_TAG, objects.refs, True), (BOX_TAG, objects.boxes, False)):
        found = tags.count(tag)
        if found != len(values) and not (optional and found == 0):
            raise _fault(
                f"has {len(values)} {'names' if optional else 'boxes'}, the text has {found} {tag}",
                f"write {tag} once for each, or remove 'objects'",
            )
    names, boxes = iter(objects.refs), iter(box_text(box, sizes) for box in objects.boxes)
    return ["".join(_fill_in(text, names, boxes)) for text in texts]


def _fill_in(text: str, names: Iterator[str], boxes: Iterator[str]) -> Iterator[str]:
    for piece in _TAGS.split(text):
        yield f"<ref>{next(names)}</ref>" if piece == REF_TAG else next(boxes) if piece == BOX_TAG else piece


def box_text(box: Box, sizes: Sequence[tuple[int, int]]) -> str:
    """``<box>[[x1, y1, x2, y2], ...]</box>`` in thousandths, clipped to the picture. Raises Fault.

    round(1000 * v / side), as the series' documents have it, but at least one thousandth wide and high. A corner
    outside the picture is moved to its edge; a box with nothing inside, or whose corners are swapped, is a fault: what
    was meant cannot be known.
    """
    scale = _UNITS[box.unit]
    if scale is None and box.image >= len(sizes):
        raise _fault(f"has a box of picture {box.image}, the line has {len(sizes)}", "count pictures from 0")
    width, height = sizes[box.image] if scale is None else (scale, scale)
    return f"<box>{[_thousandths(corners, float(width), float(height)) for corners in box.corners]}</box>"


def _thousandths(corners: tuple[float, ...], width: float, height: float) -> list[int]:
    sides = (width, height) * (len(corners) // 2)
    if len(corners) == 4:
        x1, y1, x2, y2 = corners
        where = f"has the box {_plain(corners)} in a space of {width:g} x {height:g}"
        if x1 >= x2 or y1 >= y2:
            raise _fault(where, "write x1, y1, x2, y2 with x1 < x2 and y1 < y2 (not x, y, width, height)")
        if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
            raise _fault(f"{where}, outside the picture", "check the unit: pixel, 0-1 or 0-1000")
    whole = [round(1000 * min(max(v, 0.0), side) / side) for v, side in zip(corners, sides, strict=True)]
    for low, high in ((0, 2), (1, 3)) if len(whole) == 4 else ():
        if whole[low] == whole[high]:  # thinner than a thousandth: widened to one
            whole[low if whole[high] == 1000 else high] += -1 if whole[high] == 1000 else 1
    return whole


def _plain(corners: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in corners)}]"


def parse_boxes(text: str) -> list[Grounding]:
    """Every well-formed ``<box>..</box>`` of a text with the ``<ref>..</ref>`` before it, coordinates as written.

    Also takes a single pair of brackets and spaces, which models write now and then; points are left out.
    """
    found = []
    for match in _GROUNDED.finditer(text):
        # Not as JSON: a model may write 007, or more digits than a number can have.
        lists = [re.findall(_NUMBER, one, re.A) for one in re.findall(_LIST, match[2], re.A)]
        found.append(Grounding(match[1], tuple((*map(float, one),) for one in lists if len(one) == 4)))  # type: ignore[misc]
    return [one for one in found if one.boxes]


def to_pixels(
    box: Sequence[float], width: int, height: int, whole: float = 1000.0
) -> tuple[float, float, float, float]:
    """A box (x1, y1, x2, y2) in thousandths (``whole`` = 1: in fractions) -> pixels of a picture."""
    x1, y1, x2, y2 = box
    return x1 * width / whole, y1 * height / whole, x2 * width / whole, y2 * height / whole


def box_problems(text: str) -> list[str]:
    """What is wrong with the boxes written in a text: no list of boxes, out of 0..1000, fractions, swapped corners."""
    problems = []
    if text.count("<box>") != text.count("</box>"):
        problems.append("<box> without </box>")
    for body in re.findall(r"<box>((?:(?!<box>).)*?)</box>", text, re.S):
        try:
            boxes = json.loads(body)
            corners = [[float(value) for value in one] for one in boxes]
        except (ValueError, TypeError, RecursionError, OverflowError):
            problems.append(f"box {show(body)} is not a list of [x1, y1, x2, y2]")
            continue
        for one in corners:
            if len(one) != 4:
                problems.append(f"box {_plain(one)} has {len(one)} numbers")
            elif any(not value.is_integer() for value in one if math.isfinite(value)):
                problems.append(f"box {_plain(one)} holds fractions; the series writes whole thousandths")
            elif not all(0 <= value <= 1000 for value in one):
                problems.append(f"box {_plain(one)} leaves 0..1000; pixels?")
            elif one[0] >= one[2] or one[1] >= one[3]:
                problems.append(f"box {_plain(one)} has swapped corners; width and height?")
    return problems


def _fault(what: str, mend: str) -> Fault:
    space = "" if what.startswith("[") else " "
    return Fault(FaultCode.OBJECTS, f"key 'objects'{space}{what}", mend)
