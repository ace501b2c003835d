"""DriveLM: points of the stitched picture of six cameras -> points of one camera's picture."""

from __future__ import annotations

import re

# Column and row of each camera in the stitched picture, which is 3 x 2.
_PLACES = {
    "CAM_FRONT_LEFT": (0, 0),
    "CAM_FRONT": (1, 0),
    "CAM_FRONT_RIGHT": (2, 0),
    "CAM_BACK_LEFT": (0, 1),
    "CAM_BACK": (1, 1),
    "CAM_BACK_RIGHT": (2, 1),
}
# Pixels of one camera's picture, its own and within the stitched one.
_WIDTH, _HEIGHT = 1600, 900
_STITCHED_WIDTH, _STITCHED_HEIGHT = 896, 448
# As JSON has them: ".5" and "05" are none.
_NUMBER = r"\s*(-?(?:0|[1-9]\d*)(?:\.\d+)?)\s*"
_OBJECT = re.compile(rf"<(c[^,<>]*),([^,<>]*),\s*\[{_NUMBER},{_NUMBER}\]\s*>")


def own_pixels(answer: str) -> str:
    """``<c1,CAM,[x, y]>`` in thousandths of the stitched picture -> ``<c1,CAM,x,y>`` in pixels of the camera's own.

    Points outside the camera's part are moved to its edge; one decimal is kept. What names no camera stays as it is,
    a name with a blank beside it, too.
    """
    return _OBJECT.sub(_mapped, answer.strip())


def _mapped(found: re.Match[str]) -> str:
    name, camera, x, y = found.groups()
    if camera not in _PLACES:
        return found.group()
    column, row = _PLACES[camera]
    across = _along(x, 3, column, _STITCHED_WIDTH, _WIDTH)
    down = _along(y, 2, row, _STITCHED_HEIGHT, _HEIGHT)
    return f"<{name},{camera},{across},{down}>"


def _along(thousandths: str, parts: int, part: int, stitched: int, pixels: int) -> float:
    """Over the pixels of the stitched picture, as the original goes: ties of the rounding hang on it.

    Both edges are whole numbers, as it writes them.
    """
    place = float(thousandths) / 1000 * (parts * stitched) - part * stitched
    return round(max(0, min(pixels, place / stitched * pixels)), 1)
