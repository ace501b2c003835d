"""What a model sees of pictures and videos: the tiles themselves, laid out as they were cut, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from internvl_chat.data.tiles import choose_grid
from internvl_chat.infer.demo.session import sort_files
from internvl_chat.infer.loaded import Loaded
from internvl_chat.infer.pictures import Shown, Video, cut_shown, picture_size, show_pictures

# Side of a tile on the page, the gap between tiles, and between them and the thumbnail, in pixels.
TILE_SIDE, GAP, LARGE_GAP = 160, 4, 20
FRAMES_IN_A_ROW = 4


@dataclass(frozen=True, eq=False)
class Seen:
    """The tiles of a picture or video as one picture on transparent ground, and a line about them."""

    image: Image.Image
    text: str


def what_is_seen(files: Sequence[str | Path], loaded: Loaded, num_segments: int) -> list[Seen]:
    """One entry per file of a question. Tiles come from the function that cuts them for the model. Raises DataError."""
    pictures, video = sort_files(files)
    tokens = loaded.model.config.num_image_token
    seen = []
    for shown in show_pictures(pictures, loaded.tiles):
        tiles = cut_shown([shown], loaded.tiles).pixels
        size = picture_size(shown.source)  # type: ignore[arg-type]
        grid = choose_grid(*size, replace(loaded.tiles, max_tiles=shown.max_tiles))
        seen.append(
            Seen(lay_out(tiles, *grid), _picture_text(shown, size, grid, len(tiles), loaded.tiles.size, tokens))
        )
    if video is not None:
        tiles = cut_shown([Shown(Video(video, num_segments), 1)], loaded.tiles).pixels
        rows = -(-len(tiles) // FRAMES_IN_A_ROW)
        text = f"{video.name}: {len(tiles)} frames of {loaded.tiles.size} x {loaded.tiles.size} pixels"
        layout = lay_out(tiles, min(FRAMES_IN_A_ROW, len(tiles)), rows)
        seen.append(Seen(layout, f"{text}, {_tokens(len(tiles), tokens)}"))
    return seen


def lay_out(tiles: Tensor, columns: int, rows: int) -> Image.Image:
    """uint8 tiles (N, 3, S, S) in a grid with gaps, those beyond it (the thumbnail) to the right: an RGBA picture."""
    grid = columns * rows
    beyond = max(0, len(tiles) - grid)
    step = TILE_SIDE + GAP
    width, height = columns * step - GAP, rows * step - GAP
    image = Image.new("RGBA", (width + beyond * (LARGE_GAP + TILE_SIDE), height))
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        x, y = (column * step, row * step) if number < grid else (width + LARGE_GAP, (height - TILE_SIDE) // 2)
        image.paste(_as_image(tile).resize((TILE_SIDE, TILE_SIDE)), (x, y))
    return image


def _as_image(tile: Tensor) -> Image.Image:
    return Image.fromarray(tile.permute(1, 2, 0).to(torch.uint8).contiguous().numpy())


def _picture_text(
    shown: Shown, size: tuple[int, int], grid: tuple[int, int], tiles: int, side: int, tokens: int
) -> str:
    name = Path(str(shown.source)).name
    columns, rows = grid
    cut = f"{columns} x {rows} tile{'s' * (columns * rows > 1)} of {side} x {side}"
    thumbnail = " and the thumbnail" if tiles > columns * rows else ""
    return f"{name}: {size[0]} x {size[1]} pixels, {cut}{thumbnail}, {_tokens(tiles, tokens)}"


def _tokens(tiles: int, each: int) -> str:
    return f"{tiles} x {each} = {tiles * each} image tokens"
