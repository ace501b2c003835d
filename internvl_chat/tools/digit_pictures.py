"""Real handwritten digits (scikit-learn's 8x8 scans) split into two stocks, and drawn side by side into pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from internvl_chat.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

SCAN_SIDE = 8
# Margin in scan pixels, so that the bicubic filter of the affine map fades out instead of meeting the border.
SCAN_BORDER = 2
# Longest side of a picture; with four digits it bounds the height.
LONGEST_SIDE = 700
# Width of a digit's cell over its height, at most.
WIDEST_CELL = 1.06
SINGLE_HEIGHTS = (56, 74)


@dataclass(frozen=True)
class Scans:
    """The scans: ``pixels`` uint8 [count, 8, 8] with ink 0..255, and ``labels`` [count] with the digit of each."""

    pixels: np.ndarray
    labels: np.ndarray


def load_scans() -> Scans:
    """All 1797 scans that come with scikit-learn (no download)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError("the digits are scans that come with scikit-learn: pip install scikit-learn") from error
    data = load_digits()
    # The scans count ink from 0 to 16.
    return Scans((data.images * (255 / 16)).round().astype("uint8"), data.target.astype("int64"))


def split_scans(labels: np.ndarray, share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Indices of ``labels`` as (train, test), sorted: ``share`` of each digit's scans are kept for test."""
    import numpy as np

    test: list[np.ndarray] = []
    for digit in range(10):
        own = rng.permutation(np.flatnonzero(labels == digit))
        count = round(len(own) * share)
        if not 0 < count < len(own):
            raise ConfigError(f"held_out_scans is {share}: it must leave scans of every digit on both sides; try 0.2")
        test.append(own[:count])
    held_out = np.sort(np.concatenate(test))
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


class Deck:
    """Deals scan indices in shuffled rounds, so that every scan of a stock is used about equally often."""

    def __init__(self, stock: np.ndarray, rng: np.random.Generator) -> None:
        self._stock, self._rng, self._left = stock, rng, list[int]()

    def deal(self, count: int) -> list[int]:
        """The next ``count`` scan indices."""
        dealt: list[int] = []
        while len(dealt) < count:
            if not self._left:
                self._left = self._rng.permutation(self._stock).tolist()
            dealt.append(self._left.pop())
        return dealt


@dataclass(frozen=True)
class Hand:
    """How much the writing varies: degrees of slant, shear, and share of stretching, each to both sides."""

    degrees: float = 7.0
    shear: float = 0.0
    stretch: float = 0.0


STEADY = Hand()
# For training: fewer than 1,800 scans exist, and what is not varied is learnt by heart.
SHAKY = Hand(degrees=10.0, shear=0.12, stretch=0.1)


def _stamp(scan: np.ndarray, side: int, rng: np.random.Generator, hand: Hand) -> Image.Image:
    """One scan with its border, turned, sheared and stretched, enlarged to a square of ``side`` pixels (ink 0..255)."""
    import math

    import numpy as np
    from PIL import Image

    bordered = Image.fromarray(np.pad(scan, SCAN_BORDER))
    # Turned at a small size, then enlarged: an affine map of the full size costs ten times as much.
    small = 5 * bordered.width
    angle = math.radians(rng.uniform(-hand.degrees, hand.degrees))
    cos, sin = math.cos(angle) / 5, math.sin(angle) / 5
    shear = rng.uniform(-hand.shear, hand.shear) / 5
    wide, high = 1 + rng.uniform(-hand.stretch, hand.stretch, size=2)
    a, b, c, d = cos / wide, shear - sin, sin, cos / high
    middle, half = bordered.width / 2, small / 2
    matrix = (a, b, middle - (a + b) * half, c, d, middle - (c + d) * half)
    turned = bordered.transform((small, small), Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC)
    return turned.resize((side, side), Image.Resampling.BILINEAR)


def _ink(scans: list[np.ndarray], size: tuple[int, int], rng: np.random.Generator, hand: Hand) -> Image.Image:
    """Grey picture (ink 0..255) of the scans written side by side, each near the middle of its own cell."""
    from PIL import Image, ImageChops

    width, height = size
    sheet = Image.new("L", size)
    for place, scan in enumerate(scans):
        glyph = height * rng.uniform(0.72, 0.9)
        side = round(glyph * (SCAN_SIDE + 2 * SCAN_BORDER) / SCAN_SIDE)
        left = round(width / len(scans) * (place + 0.5) + height * rng.uniform(-0.05, 0.05) - side / 2)
        top = round(height / 2 + (height - glyph) * rng.uniform(-0.3, 0.3) - side / 2)
        below = sheet.crop((left, top, left + side, top + side))
        # Neighbouring squares overlap; the darker of the two wins, as on paper.
        sheet.paste(ImageChops.lighter(below, _stamp(scan, side, rng, hand)), (left, top))
    return sheet


def _tint(shade: Image.Image, paper: np.ndarray, pen: np.ndarray) -> Image.Image:
    """RGB picture of ``shade``: 0 becomes the colour of the pen, 255 that of the paper, linear between."""
    import numpy as np
    from PIL import Image

    ramp = np.linspace(pen, paper, 256).clip(0, 255).astype(np.uint8)
    return Image.merge("RGB", [shade.point(ramp[:, channel].tolist()) for channel in range(3)])


def draw_number(
    scans: list[np.ndarray], rng: np.random.Generator, heights: tuple[int, int], hand: Hand = STEADY
) -> Image.Image:
    """RGB picture of the scans side by side, about as many times as wide as there are scans.

    The cells are nearly square on purpose: dynamic tiling by aspect ratio then gives each digit about one tile. A
    single digit is a small picture (``SINGLE_HEIGHTS``), since a large square would be cut into four.
    """
    import numpy as np
    from PIL import Image

    count = len(scans)
    lowest, highest = heights if count > 1 else SINGLE_HEIGHTS
    highest = max(lowest, min(highest, int(LONGEST_SIDE / (WIDEST_CELL * count))))
    height = int(rng.integers(lowest, highest + 1))
    width = round(height * count * rng.uniform(0.92, WIDEST_CELL))
    # Steeper than the blurred enlargement: the faint grey of the scanner goes, the strokes keep their own greys.
    bright = 240 - 225 * (np.linspace(-0.1, 0.9, 256, dtype=np.float32) / np.float32(0.8)).clip(0, 1)
    shade = bright.take(np.asarray(_ink(scans, (width, height), rng, hand)))
    # Light falls from one side, as under a lamp; the grain is coarser than a pixel, as in a scan that was enlarged.
    slope_x, slope_y = rng.uniform(-12, 12, size=2)
    shade += np.linspace(-slope_x, slope_x, width, dtype=np.float32)
    shade += np.linspace(-slope_y, slope_y, height, dtype=np.float32)[:, None]
    grain = rng.standard_normal((height // 2 + 1, width // 2 + 1), dtype=np.float32) * np.float32(rng.uniform(0.5, 3))
    shade += grain.repeat(2, 0)[:height].repeat(2, 1)[:, :width]
    paper = rng.uniform(205, 255) + rng.uniform(-12, 4, size=3)
    pen = rng.uniform(5, 60) + rng.uniform(-10, 45, size=3)
    return _tint(Image.fromarray(shade.clip(0, 255, out=shade).astype(np.uint8)), paper, pen)
