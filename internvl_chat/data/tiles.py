"""Picture -> tiles: the grid from width and height alone, then uint8 tiles cut from the resized picture.

The grid rule is that of the original's dynamic preprocessing (spec: closest aspect ratio; on an exact tie the later,
larger grid wins if the picture's area exceeds half of the grid's). Training, chat and evaluation all come through here.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from internvl_chat.constants import IMAGE_STATISTICS

ImageBackend = Literal["torch", "pillow"]
JPEG_QUALITIES = (75, 100)
_JPEG_MAX_SIDE = 65_500


@dataclass(frozen=True)
class TileSettings:
    """How a picture is cut. ``size`` is the side of a tile in pixels; ``max_tiles`` does not count the thumbnail."""

    size: int = 448
    dynamic: bool = True
    min_tiles: int = 1
    max_tiles: int = 12
    thumbnail: bool = True
    pad2square: bool = False
    backend: ImageBackend = "torch"
    mean: tuple[float, float, float] = IMAGE_STATISTICS["imagenet"][0]

    @classmethod
    def from_config(cls, config: Any, backend: ImageBackend = "torch") -> TileSettings:
        """How the pictures of a checkpoint are cut, the same in training, chat and evaluation.

        ``config``: any object with the published keys as attributes: image_size, dynamic_image_size,
        min_dynamic_patch, max_dynamic_patch, use_thumbnail, pad2square (None = no), normalize_type.
        """
        return cls(
            size=config.image_size,
            dynamic=config.dynamic_image_size,
            min_tiles=config.min_dynamic_patch,
            max_tiles=config.max_dynamic_patch,
            thumbnail=config.use_thumbnail,
            pad2square=bool(config.pad2square),
            backend=backend,
            mean=IMAGE_STATISTICS[config.normalize_type][0],
        )

    def shared_among(self, images: int) -> TileSettings:
        """The tile limit of one of several pictures: floor(limit / pictures), at least 1."""
        return self if images <= 1 else replace(self, max_tiles=max(1, self.max_tiles // images))


@cache
def candidate_grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """All (columns, rows) with ``min <= columns * rows <= max``, by area, then in the original's order of discovery."""
    grids = [
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(max(1, -(-min_tiles // columns)), max_tiles // columns + 1)
    ]
    # The original finds a grid at the first number of tiles that is no less than its sides. Of one area it keeps the
    # order of a set, which depends on the order in which that was filled.
    found = {grid for grid in sorted(grids, key=lambda grid: (max(*grid, min_tiles), *grid))}  # noqa: C416
    return tuple(sorted(found, key=lambda grid: grid[0] * grid[1]))


def choose_grid(width: int, height: int, settings: TileSettings) -> tuple[int, int]:
    """(columns, rows) for a picture of the given size in pixels."""
    if not settings.dynamic:
        return 1, 1
    ratio, area = width / height, width * height
    best, best_difference = (1, 1), float("inf")
    for columns, rows in candidate_grids(min(settings.min_tiles, settings.max_tiles), settings.max_tiles):
        difference = abs(ratio - columns / rows)
        if difference < best_difference:
            best, best_difference = (columns, rows), difference
        elif difference == best_difference and area > 0.5 * settings.size**2 * columns * rows:
            best = (columns, rows)
    return best


def count_tiles(width: int, height: int, settings: TileSettings) -> int:
    """Number of tiles, thumbnail included."""
    columns, rows = choose_grid(width, height, settings)
    return columns * rows + int(settings.thumbnail and columns * rows > 1)


def cut_tiles(image: Image.Image, settings: TileSettings, rng: np.random.Generator | None = None) -> torch.Tensor:
    """Tiles of an RGB picture, row by row, whole-picture thumbnail last: uint8 (N, 3, S, S), channels last in memory.

    ``rng`` switches the training augmentation on: each tile, or the untiled picture, goes through JPEG at a quality
    drawn from 75..100.
    """
    if not settings.dynamic and rng is not None:
        image = _recompress(image, rng)
    elif not settings.dynamic and settings.pad2square:
        image = _pad_to_square(image, settings.mean)
    columns, rows = choose_grid(*image.size, settings)
    grid, size = columns * rows, settings.size
    # Channels last in memory, where torch's uint8 resize is several times faster and a tile's rows are copied whole.
    pixels = torch.from_numpy(np.array(image))[None]
    tiles = torch.empty((grid + int(settings.thumbnail and grid > 1), size, size, 3), dtype=torch.uint8)
    whole = _resize(pixels, columns * size, rows * size, settings.backend)
    tiles[:grid].view(rows, columns, size, size, 3).copy_(whole.view(rows, size, columns, size, 3).transpose(1, 2))
    if len(tiles) > grid:
        tiles[grid] = _resize(pixels, size, size, settings.backend)[0]
    if settings.dynamic and rng is not None:
        pictures = [_recompress(Image.fromarray(tile.numpy()), rng) for tile in tiles]
        tiles = torch.from_numpy(np.stack([np.array(picture) for picture in pictures]))
    return tiles.permute(0, 3, 1, 2)


def _resize(pixels: torch.Tensor, width: int, height: int, backend: ImageBackend) -> torch.Tensor:
    """uint8 (1, H, W, 3) -> (1, height, width, 3), bicubic with antialiasing; ``pillow`` is the original's to the bit.

    torch resizes rows, then columns, and so did Pillow up to 12, which the published checkpoints saw. Pillow 13 often
    takes the columns first where height shrinks: at hard edges the two are then up to 27/255 apart.
    """
    if pixels.shape[1:3] == (height, width):
        return pixels
    if backend == "pillow":
        image = Image.fromarray(pixels[0].numpy()).resize((width, height), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(image))[None]
    resized = torch.nn.functional.interpolate(
        pixels.permute(0, 3, 1, 2), (height, width), mode="bicubic", antialias=True
    )
    return resized.permute(0, 2, 3, 1).contiguous()


def _pad_to_square(image: Image.Image, mean: tuple[float, float, float]) -> Image.Image:
    width, height = image.size
    side = max(width, height)
    if width == height:
        return image
    square = Image.new("RGB", (side, side), tuple(int(channel * 255) for channel in mean))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def _recompress(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    if max(image.size) > _JPEG_MAX_SIDE:
        return image
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=int(rng.integers(JPEG_QUALITIES[0], JPEG_QUALITIES[1] + 1)))
    return Image.open(buffer).convert("RGB")
