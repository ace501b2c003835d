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
# Pixels of one camera's picture. The stitched one holds it at 896 x 448, which cancels out.
_WIDTH, _HEIGHT = 1600, 900
_NUMBER = r"\s*(-?\d*\.?\d+)\s*"
_OBJECT = re.compile(rf"<(c[^,<>]*),\s*([^,<>]*?)\s*,\s*\[{_NUMBER},{_NUMBER}\]\s*>")


def own_pixels(answer: str) -> str:
    """``<c1,CAM,[x, y]>`` in thousandths of the stitched picture -> ``<c1,CAM,x,y>`` in pixels of the camera's own.

    Points outside the camera's part are moved to its edge. What names no camera stays as it is.
    """
    return _OBJECT.sub(_mapped, answer.strip())


def _mapped(found: re.Match[str]) -> str:
    name, camera, x, y = found.groups()
    if camera not in _PLACES:
        return found.group()
    column, row = _PLACES[camera]
    return f"<{name},{camera},{_along(x, 3, column, _WIDTH)},{_along(y, 2, row, _HEIGHT)}>"


def _along(thousandths: str, parts: int, part: int, pixels: int) -> float:
    """Both edges are whole numbers, as the original writes them."""
    place = (float(thousandths) * parts * pixels / 100 - 10 * part * pixels) / 10
    return max(0, min(pixels, place))
