"""Pictures and videos of a question -> tiles, by the very code that cuts them in training; and their features."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from PIL import Image
from torch import Tensor

from internvl_chat.constants import IMAGE_PLACEHOLDER
from internvl_chat.data.faults import Fault, FaultCode
from internvl_chat.data.frames import clip_range, inference_indices
from internvl_chat.data.media import read_image, read_image_size, to_rgb
from internvl_chat.data.storage import Medium
from internvl_chat.data.tiles import TileSettings, count_tiles, cut_tiles
from internvl_chat.data.video import read_frames, read_video_info
from internvl_chat.errors import ConfigError, DataError, InternVLError, first_line

if TYPE_CHECKING:
    from internvl_chat.model.chat import InternVLChatModel

# A Medium: a picture in an archive or a data URL, read when it is due.
Picture = Path | str | Image.Image | Medium
NUM_SEGMENTS = 8  # frames of a video, as the model cards take them
# Tiles that go through the vision tower at once: enough to fill a GPU, few enough for a laptop.
TILES_AT_ONCE = 32
_Result = TypeVar("_Result")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.I)


@dataclass(frozen=True)
class Video:
    """A video file, animated picture or folder of frames, of which ``num_segments`` frames are seen.

    They are the middles of equal parts, as the model cards choose them; ``bound``: of (start, end) in seconds. A folder
    of frames says nothing of time: ``fps`` does. ``first``: the number that the first frame has in the rounding.
    ``lenient``: a ``bound`` that is empty or reaches beyond the video gives its nearest frames instead of an error.
    """

    source: Path | str
    num_segments: int = NUM_SEGMENTS
    bound: tuple[float, float] | None = None
    fps: float | None = None
    first: int = 0
    lenient: bool = False

    def __post_init__(self) -> None:
        if self.num_segments < 1:
            raise ConfigError(f"num_segments {self.num_segments}: at least one frame of a video")


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture, or the frames of a video, and the most tiles that each may be cut into.

    ``enlarge``: a picture is made so many times as wide and high before (bilinear).
    """

    source: Picture | Video | Joined
    max_tiles: int
    enlarge: int = 1


@dataclass(frozen=True, eq=False)
class Joined:
    """Several pictures at one tag: their tiles follow each other as if they were of one."""

    parts: tuple[Shown, ...]


@dataclass(frozen=True, eq=False)
class Tiles:
    """``pixels`` uint8 (N, 3, S, S) of all pictures of a question in order; ``counts``: tiles of each picture."""

    pixels: Tensor
    counts: tuple[int, ...]


def read_picture(source: Picture) -> Image.Image:
    """RGB picture of a path or of an opened picture. Raises DataError (missing, broken, too large, holds floats)."""
    try:
        return to_rgb(source) if isinstance(source, Image.Image) else read_image(_file_of(source))
    except InternVLError:
        raise
    except Fault as fault:
        raise _as_user_error(fault) from fault
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise DataError(f"picture cannot be decoded ({first_line(error)})") from error


def picture_size(source: Picture) -> tuple[int, int]:
    """(width, height) of a picture, no pixel decoded. Raises DataError."""
    return source.size if isinstance(source, Image.Image) else _told(lambda: read_image_size(_file_of(source)))


def read_video(video: Video) -> list[Image.Image]:
    """The RGB frames of a video that are seen. Raises DataError."""

    def read() -> list[Image.Image]:
        path = Path(video.source).expanduser()
        info = read_video_info(path)
        fps = info.fps if video.fps is None else video.fps
        if video.bound is not None and not video.lenient:
            clip_range(video.bound, fps, info.frames)
        last = video.first + info.frames - 1
        numbers = inference_indices(video.bound, fps, last, video.first, video.num_segments)
        return read_frames(path, [min(max(number - video.first, 0), info.frames - 1) for number in numbers])

    return _told(read)


def show_pictures(pictures: Sequence[Picture], settings: TileSettings) -> tuple[Shown, ...]:
    """The pictures of one question, which share the tile limit as in training."""
    limit = settings.shared_among(len(pictures)).max_tiles
    return tuple(Shown(picture, limit) for picture in pictures)


def cut_shown(shown: Sequence[Shown], settings: TileSettings) -> Tiles:
    """Tiles of all that is shown, in order. Raises DataError."""
    cut = []
    for one in shown:
        own = replace(settings, max_tiles=one.max_tiles)
        if isinstance(one.source, Joined):
            cut.append(cut_shown(one.source.parts, settings).pixels)
            continue
        pictures = read_video(one.source) if isinstance(one.source, Video) else [read_picture(one.source)]
        cut += [cut_tiles(_enlarged(picture, one.enlarge), own) for picture in pictures]
    empty = torch.zeros((0, 3, settings.size, settings.size), dtype=torch.uint8)
    return Tiles(torch.cat(cut) if cut else empty, tuple(len(tiles) for tiles in cut))


def count_shown(shown: Sequence[Shown], settings: TileSettings) -> tuple[int, ...]:
    """Tiles that ``cut_shown`` will give for each picture and frame, from the files' heads alone. Raises DataError."""
    counts: list[int] = []
    for one in shown:
        own = replace(settings, max_tiles=one.max_tiles)
        source = one.source
        if isinstance(source, Joined):
            counts.append(sum(count_shown(source.parts, settings)))
        elif isinstance(source, Video):
            video = Path(source.source).expanduser()
            info = _told(lambda path=video: read_video_info(path))  # type: ignore[misc]
            counts += [count_tiles(info.width, info.height, own)] * source.num_segments
        else:
            width, height = picture_size(source)
            counts.append(count_tiles(width * one.enlarge, height * one.enlarge, own))
    return tuple(counts)


def cut_pictures(pictures: Sequence[Picture], settings: TileSettings) -> Tiles:
    """Tiles of all pictures of one question, which share the tile limit. Raises DataError."""
    return cut_shown(show_pictures(pictures, settings), settings)


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
    """Features (N, num_image_token, hidden_size) of tiles (N, 3, S, S), on the model's device.

    ``pixels``: uint8, or floats that are normalised already.
    """
    if not len(pixels):
        shape = (0, model.config.num_image_token, model.config.llm_config.hidden_size)
        return torch.zeros(shape, dtype=model.dtype, device=model.device)
    return torch.cat([model.extract_feature(part.to(model.device)) for part in pixels.split(TILES_AT_ONCE)])


def _enlarged(picture: Image.Image, times: int) -> Image.Image:
    if times == 1:
        return picture
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.BILINEAR)


def _file_of(source: Path | str | Medium) -> Path | Medium:
    if isinstance(source, str) and _ADDRESS.match(source):
        raise DataError(f"{source[:200]!r} is an address, and none is opened here; download it and give the file")
    if not isinstance(source, (str, Path, Medium)):
        raise DataError(f"a picture is a path or a PIL.Image, not {type(source).__name__}; Image.fromarray makes one")
    return source if isinstance(source, Medium) else Path(source).expanduser()


def _told(action: Callable[[], _Result]) -> _Result:
    try:
        return action()
    except Fault as fault:
        raise _as_user_error(fault) from fault


def _as_user_error(fault: Fault) -> DataError:
    # The mend of what is missing speaks of the manifest, which chat does not have.
    missing = fault.code in (FaultCode.MISSING_IMAGE, FaultCode.MISSING_VIDEO)
    return DataError(f"{fault.reason}; check the path" if missing else str(fault))
