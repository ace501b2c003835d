"""Pictures of the report: small, inside the page, with the boxes of answer and gold drawn in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from internvl_chat.errors import InternVLError
from internvl_chat.eval.score.boxes import SHARES_BELOW
from internvl_chat.eval.sources import picture
from internvl_chat.infer.boxes import draw_boxes
from internvl_chat.infer.pictures import Video, read_picture, read_video
from internvl_chat.page import picture_uri

# Longest side of a thumbnail, and of the picture that boxes are drawn on.
SIDE, DRAWN_SIDE = 220, 480
# Of the pictures of one question, so many are shown.
MOST = 4
_VIDEOS = {".mp4", ".avi", ".mkv", ".webm", ".mov", ".gif", ".m4v"}
_GOLD_COLOUR = "#00c853"
_BARE_BOX = re.compile(r"\[\s*-?[\d.]+\s*(?:,\s*-?[\d.]+\s*){3}\]")


def open_thumbnail(name: str, root: Path | None) -> Image.Image | None:
    """The picture, or the middle frame of the video, that a prediction names; None if it cannot be read."""
    for source in _places(name, root):
        try:
            path = source if isinstance(source, Path) else None
            if path is not None and (path.is_dir() or path.suffix.lower() in _VIDEOS):
                return read_video(Video(path, 1))[0]
            if path is None or path.is_file():
                return read_picture(source)
        except (InternVLError, OSError, ValueError):
            continue
    return None


def _places(name: str, root: Path | None) -> list[Any]:
    places: list[Any] = []
    for folder in (root, Path()):
        if folder is not None:
            try:
                places.append(picture(folder, name))
            except InternVLError:
                continue
    return places


def uri_of(image: Image.Image, answer: str, gold: object) -> str:
    """The picture as a data URI, with boxes: the answer's by name in colours, the gold one in dashed green."""
    boxed = answer if "<box>" in answer else _as_boxes(answer) if gold_box(gold) is not None else ""
    corners = gold_box(gold)
    if "<box>" not in boxed and corners is None:
        return picture_uri(image, SIDE)
    width, height = image.size
    small = image.copy()
    small.thumbnail((DRAWN_SIDE, DRAWN_SIDE), Image.Resampling.LANCZOS)
    drawn = draw_boxes(small, boxed, 1.0 if _fractions(boxed) else 1000.0) if boxed else small
    if corners is not None:
        across, down = small.width / width, small.height / height
        _dashed(drawn, (corners[0] * across, corners[1] * down, corners[2] * across, corners[3] * down))
    return picture_uri(drawn, DRAWN_SIDE)


def _as_boxes(answer: str) -> str:
    """The first bare list of four numbers in an answer, in the form of a box."""
    found = _BARE_BOX.search(answer)
    return f"<box>[{found[0]}]</box>" if found else ""


def _fractions(answer: str) -> bool:
    """Whether a box is given in shares of the picture, as the scorers take it: by the sum of its numbers."""
    found = _BARE_BOX.search(answer)
    numbers = re.findall(r"-?\d+(?:\.\d+)?", found[0]) if found else []
    return bool(numbers) and sum(map(float, numbers)) < SHARES_BELOW


def gold_box(gold: object) -> tuple[float, float, float, float] | None:
    """(x1, y1, x2, y2) in pixels, if the right answer is a box."""
    value = next((gold[key] for key in ("bbox", "box") if key in gold), None) if isinstance(gold, Mapping) else gold
    if isinstance(value, (list, tuple)) and len(value) == 4 and all(type(one) in (int, float) for one in value):
        x1, y1, x2, y2 = map(float, value)
        return x1, y1, x2, y2
    return None


def _dashed(image: Image.Image, box: tuple[float, float, float, float], dash: int = 8) -> None:
    canvas = ImageDraw.Draw(image)
    left, right = sorted((box[0], box[2]))
    top, bottom = sorted((box[1], box[3]))
    left, top = max(left, 0.0), max(top, 0.0)
    right, bottom = min(right, image.width - 1.0), min(bottom, image.height - 1.0)
    for start in range(int(left), int(right), 2 * dash):
        end = min(start + dash, right)
        canvas.line((start, top, end, top), fill=_GOLD_COLOUR, width=3)
        canvas.line((start, bottom, end, bottom), fill=_GOLD_COLOUR, width=3)
    for start in range(int(top), int(bottom), 2 * dash):
        end = min(start + dash, bottom)
        canvas.line((left, start, left, end), fill=_GOLD_COLOUR, width=3)
        canvas.line((right, start, right, end), fill=_GOLD_COLOUR, width=3)
