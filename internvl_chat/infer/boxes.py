"""Boxes of an answer, drawn on the picture that it speaks of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from internvl_chat.data.boxes import Grounding, parse_boxes, to_pixels
from internvl_chat.infer.pictures import read_picture

__all__ = ["Grounding", "draw_boxes", "legend", "parse_boxes"]

# Far apart in hue, and seen on dark and on light pictures.
COLOURS = ("#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#42d4f4", "#f032e6", "#bfef45", "#911eb4", "#ffd8b1")
# The font and the lines grow with the longer side of a picture; below these many pixels they cannot be made out.
_FONT_SHARE, _SMALLEST_FONT = 1 / 36, 11
_LINE_SHARE, _THINNEST_LINE = 1 / 240, 2
_LONGEST_NAME = 80
_NO_CHARACTER = "\uffff"  # every font shows its sign for "I have no such character"


@dataclass(frozen=True)
class _Mark:
    """One name of an answer: what is written at its boxes, and in which colour."""

    label: str
    colour: str
    grounding: Grounding


def draw_boxes(image: Image.Image, answer: str, whole: float = 1000.0) -> Image.Image:
    """RGB copy of ``image`` with the boxes of an answer, each name in a colour of its own and written at its boxes.

    ``whole``: the value that stands for the picture's whole width and height. What leaves the picture is cut off.
    Boxes without a name get their number, and so do names that Pillow's own font cannot write (``legend`` has them).
    Without boxes: an unchanged copy. Raises DataError for pictures that hold floats.
    """
    font = _font(image.size)
    marks = list(_marks(answer, font))
    if not marks:
        return image.copy()
    drawn = read_picture(image)
    canvas = ImageDraw.Draw(drawn)
    placed = [
        (mark, inside)
        for mark in marks
        for box in mark.grounding.boxes
        if (inside := _inside(to_pixels(box, *drawn.size, whole), *drawn.size)) is not None
    ]
    line = max(_THINNEST_LINE, round(max(drawn.size) * _LINE_SHARE))
    for mark, box in placed:
        canvas.rectangle(box, outline=mark.colour, width=line)
    for mark, box in placed:  # last, so that no line crosses a name
        _write(canvas, mark, box, font, line)
    return drawn


def legend(answer: str) -> tuple[str, ...]:
    """``2 = name`` for each name of an answer that ``draw_boxes`` writes as a number."""
    marks = _marks(answer, _font((1, 1)))
    return tuple(f"{mark.label} = {name}" for mark in marks if (name := _name(mark.grounding)) not in ("", mark.label))


def _marks(answer: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Iterator[_Mark]:
    numbers: dict[str | int, int] = {}
    for place, grounding in enumerate(parse_boxes(answer)):
        name = _name(grounding)
        number = numbers.setdefault(name or place, len(numbers))  # a name that comes twice has one colour
        label = name if name and _can_write(font, name) else str(number + 1)
        yield _Mark(label, COLOURS[number % len(COLOURS)], grounding)


def _name(grounding: Grounding) -> str:
    return " ".join((grounding.ref or "").split())


def _font(size: tuple[int, int]) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(max(_SMALLEST_FONT, round(min(max(size) * _FONT_SHARE, min(size) / 3))))


def _can_write(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> bool:
    missing = bytes(font.getmask(_NO_CHARACTER))
    return all(character == " " or bytes(font.getmask(character)) not in (missing, b"") for character in text)


def _inside(
    box: tuple[float, float, float, float], width: int, height: int
) -> tuple[float, float, float, float] | None:
    """The part of a box within the picture, at least a pixel; None if there is no such part."""
    left, right = sorted((box[0], box[2]))
    top, bottom = sorted((box[1], box[3]))
    if left >= width or top >= height or right < 0 or bottom < 0:
        return None
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return left, top, max(left, min(right, width - 1)), max(top, min(bottom, height - 1))


def _write(
    canvas: ImageDraw.ImageDraw,
    mark: _Mark,
    box: tuple[float, float, float, float],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    line: int,
) -> None:
    """The label on a plate of the box's colour: above the box, or within where there is no room; never cut off."""
    width, height = canvas.im.size
    pad = line
    label = _shortened(mark.label, canvas, font, max(box[2] - box[0], width / 2) - 2 * pad)
    _, top, _, bottom = canvas.textbbox((0, 0), "Ag", font)
    wide, high = canvas.textlength(label, font) + 2 * pad, bottom - top + 2 * pad
    x = max(0.0, min(box[0], width - wide))
    y = box[1] - high if box[1] >= high else min(box[1], max(0.0, height - high))
    canvas.rectangle((x, y, x + wide, y + high), fill=mark.colour)
    red, green, blue = (int(mark.colour[at : at + 2], 16) for at in (1, 3, 5))
    ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
    canvas.text((x + pad, y + pad - top), label, fill=ink, font=font)


def _shortened(
    name: str, canvas: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float
) -> str:
    if len(name) <= _LONGEST_NAME and canvas.textlength(name, font) <= room:
        return name
    kept = name[:_LONGEST_NAME]
    while len(kept) > 1 and canvas.textlength(kept + "...", font) > room:
        kept = kept[:-1]
    return kept.rstrip() + "..."
