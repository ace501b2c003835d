"""Pictures of a question -> tiles, by the very code that cuts them in training; and their features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from internvl_chat.constants import IMAGE_PLACEHOLDER
from internvl_chat.data.faults import Fault, FaultCode
from internvl_chat.data.media import read_image, read_image_size, to_rgb
from internvl_chat.data.tiles import TileSettings, count_tiles, cut_tiles
from internvl_chat.errors import DataError
from internvl_chat.model.chat import InternVLChatModel

Picture = Path | str | Image.Image
# Tiles that go through the vision tower at once: enough to fill a GPU, few enough for a laptop.
TILES_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class Tiles:
    """``pixels`` uint8 (N, 3, S, S) of all pictures of a question in order; ``counts``: tiles of each picture."""

    pixels: Tensor
    counts: tuple[int, ...]


def read_picture(source: Picture) -> Image.Image:
    """RGB picture of a path or of an opened picture. Raises DataError (missing, broken, too large, holds floats)."""
    try:
        return to_rgb(source) if isinstance(source, Image.Image) else read_image(Path(source).expanduser())
    except Fault as fault:
        raise _as_user_error(fault) from fault
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"picture cannot be decoded ({error})") from error


def cut_pictures(pictures: Sequence[Picture], settings: TileSettings) -> Tiles:
    """Tiles of all pictures of one question, which share the tile limit as in training. Raises DataError."""
    shared = settings.shared_among(len(pictures))
    cut = [cut_tiles(read_picture(picture), shared) for picture in pictures]
    empty = torch.zeros((0, 3, settings.size, settings.size), dtype=torch.uint8)
    return Tiles(torch.cat(cut) if cut else empty, tuple(len(tiles) for tiles in cut))


def count_picture_tiles(pictures: Sequence[Picture], settings: TileSettings) -> tuple[int, ...]:
    """Tiles that ``cut_pictures`` will give for each picture, from the files' heads alone. Raises DataError."""
    shared = settings.shared_among(len(pictures))
    try:
        sizes = [p.size if isinstance(p, Image.Image) else read_image_size(Path(p).expanduser()) for p in pictures]
    except Fault as fault:
        raise _as_user_error(fault) from fault
    return tuple(count_tiles(*size, shared) for size in sizes)


def place_pictures(question: str, pictures: int) -> str:
    """The question with one ``<image>`` per picture; without any, a line per picture is put first.

    Raises DataError if the question has tags, but not as many as there are pictures.
    """
    tags = question.count(IMAGE_PLACEHOLDER)
    if tags == pictures:
        return question
    if tags and not pictures:
        raise DataError(f"the question has {tags} {IMAGE_PLACEHOLDER} but no picture is given; add it, or drop the tag")
    if tags:
        raise DataError(
            f"{tags} {IMAGE_PLACEHOLDER} in the question, pictures given: {pictures}; write one tag per picture, or no "
            "tag at all to have the pictures put first"
        )
    if pictures == 1:
        return f"{IMAGE_PLACEHOLDER}\n{question}"
    return "".join(f"Image-{number}: {IMAGE_PLACEHOLDER}\n" for number in range(1, pictures + 1)) + question


@torch.no_grad()
def encode_pictures(model: InternVLChatModel, pixels: Tensor) -> Tensor:
    """Features (N, num_image_token, hidden_size) of uint8 tiles (N, 3, S, S), on the model's device."""
    if not len(pixels):
        shape = (0, model.config.num_image_token, model.config.llm_config.hidden_size)
        return torch.zeros(shape, dtype=model.dtype, device=model.device)
    return torch.cat([model.extract_feature(part.to(model.device)) for part in pixels.split(TILES_AT_ONCE)])


def _as_user_error(fault: Fault) -> DataError:
    # The mend of a missing picture speaks of the manifest, which chat does not have.
    return DataError(f"{fault.reason}; check the path" if fault.code == FaultCode.MISSING_IMAGE else str(fault))
