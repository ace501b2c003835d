"""Videos -> what they are (frames, rate, size) and frames by their number; of three kinds of source.

- A video file, through PyAV (``data/pyav.py``). Not decord: it gives wrong frames for MPEG-4 part 2, MPEG-1 and AVI
  with B-frames and for transport streams, does not know AV1, and some damaged files make it abort the process.
- An animated picture (GIF, WebP, PNG), through Pillow. The rate is that of its durations on average.
- A folder of frames (its name ends with "/", or it is one): pictures in the order of the last number in their names,
  then of the names. Such a folder says nothing of time: one frame a second is assumed.

Rotation marks are ignored, as with pictures. Everything is opened and closed within one call: an open reader makes the
readers of forked workers hang.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeVar, cast

from PIL import Image

from internvl_chat.constants import MAX_COUNTED_FRAMES, MAX_IMAGE_PIXELS, MAX_PICTURE_BYTES, MAX_VIDEO_BYTES
from internvl_chat.data.faults import Fault, FaultCode
from internvl_chat.data.media import open_picture, read_image, read_image_size, to_rgb
from internvl_chat.data.storage import Medium, as_medium
from internvl_chat.errors import ConfigError, first_line

Result = TypeVar("Result")

ANIMATIONS = (".gif", ".webp", ".png", ".apng")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jp2", ".avif")
# Milliseconds of a frame that says 0, as browsers have it.
_NO_DURATION = 100
_PIECE = 2**20


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """``frames`` that can be asked for (at least 1), frames per second (0: unknown), size of a frame in pixels."""

    frames: int
    fps: float
    width: int
    height: int


def read_video_info(source: Path | Medium) -> VideoInfo:
    """What a video is; of mp4 and mov from the header alone.

    Raises Fault (MISSING_VIDEO, BROKEN_VIDEO, IMAGE_SIZE, UNREADABLE).
    """
    medium = as_medium(source)
    return _reading(medium, lambda: _info(medium))


def read_frames(source: Path | Medium, indices: Sequence[int]) -> list[Image.Image]:
    """RGB frames by their numbers from 0, in the order asked for; a number may come twice.

    Raises as ``read_video_info`` does; BROKEN_VIDEO also for frames that are not there or cannot be decoded. Small
    damage within a frame is concealed by the decoder, as by every player.
    """
    medium = as_medium(source)
    numbers = sorted(set(indices))
    if not numbers:
        return []
    if numbers[0] < 0:
        raise _broken(medium, f"has no frame {numbers[0]}")
    found = _reading(medium, lambda: _frames(medium, numbers))
    lost = [number for number in numbers if number not in found]
    if lost:
        raise _broken(medium, f"gives no frame {lost[0]}: it is cut short or damaged")
    return [found[number] for number in indices]


def _info(medium: Medium) -> VideoInfo:
    if medium.is_folder():
        files = _frame_files(medium)
        info = VideoInfo(len(files), 1.0, *read_image_size(files[0]))
    elif _is_animation(medium):
        info = medium.attempt(lambda file: _animation_info(medium, file), MAX_PICTURE_BYTES)
    else:
        info = _file_info(medium)
    if info.width * info.height > MAX_IMAGE_PIXELS:
        what = f"video {medium.name!r} has frames of more than {MAX_IMAGE_PIXELS} pixels"
        raise Fault(FaultCode.IMAGE_SIZE, what, "scale it down")
    if info.frames < 1 or info.width < 1 or info.height < 1:
        raise _broken(medium, "has no frames")
    return info


def _frames(medium: Medium, numbers: list[int]) -> dict[int, Image.Image]:
    if medium.is_folder():
        files = _frame_files(medium)
        return {number: read_image(files[number]) for number in numbers if number < len(files)}
    if _is_animation(medium):
        content = medium.read(MAX_PICTURE_BYTES)
        with open_picture(medium.name, BytesIO(content)) as image:
            return _animation_frames(image, numbers)
    from internvl_chat.data import pyav

    return _on_this_machine(medium, lambda file: pyav.decode(file, medium.name, numbers))


def _file_info(medium: Medium) -> VideoInfo:
    from internvl_chat.data import pyav

    if medium.local is None:  # it may be far away: only its head, if that will do
        known = medium.attempt(lambda file: pyav.describe(file, medium.name, head_only=True), MAX_VIDEO_BYTES)
        if known[0]:
            return VideoInfo(*known)
    return VideoInfo(*_on_this_machine(medium, lambda file: pyav.describe(file, medium.name)))


def _on_this_machine(medium: Medium, action: Callable[[BinaryIO], Result]) -> Result:
    """``action`` of the file, or of a copy: decoding goes back and forth, which archives and networks do badly."""

    def copy_first(file: BinaryIO) -> Result:
        left = MAX_VIDEO_BYTES
        with tempfile.TemporaryFile() as copy:
            while piece := file.read(_PIECE):
                left -= len(piece)
                if left < 0:  # an archive may say less than it holds
                    what = f"video {medium.name!r} has more than {MAX_VIDEO_BYTES} bytes"
                    raise Fault(FaultCode.IMAGE_SIZE, what, "cut it into pieces")
                copy.write(piece)
            return action(cast(BinaryIO, copy))

    return medium.attempt(action if medium.local is not None else copy_first, MAX_VIDEO_BYTES)


# -- animated pictures ----------------------------------------------------------------------------------------------


def _is_animation(medium: Medium) -> bool:
    return medium.url.startswith("data:image/") or _file_name(medium).lower().endswith(ANIMATIONS)


def _animation_info(medium: Medium, file: BinaryIO) -> VideoInfo:
    with open_picture(medium.name, file) as image:
        size = image.size
        milliseconds, frames = 0.0, 0
        while frames <= MAX_COUNTED_FRAMES and _goes_to(image, frames):
            if image.format == "WEBP":
                image.load()  # says its duration only then
            milliseconds += float(image.info.get("duration") or _NO_DURATION)
            frames += 1
    if frames > MAX_COUNTED_FRAMES:
        raise _broken(medium, f"has more than {MAX_COUNTED_FRAMES} frames")
    return VideoInfo(frames, 1000 * frames / milliseconds, *size)


def _animation_frames(image: Image.Image, numbers: list[int]) -> dict[int, Image.Image]:
    found = {}
    for number in range(numbers[-1] + 1):
        if not _goes_to(image, number):
            break
        if number in numbers:
            found[number] = to_rgb(image)
    return found


def _goes_to(image: Image.Image, number: int) -> bool:
    """To the next frame; False behind the last one."""
    if number == 0:
        return True
    try:
        image.seek(number)
    except EOFError:
        return False
    return True


# -- folders --------------------------------------------------------------------------------------------------------


def _frame_files(medium: Medium) -> list[Medium]:
    files = [(_file_name(child), child) for child in medium.children()]
    pictures = [(name, child) for name, child in files if name[:1] != "." and name.lower().endswith(PICTURES)]
    if not pictures:
        raise _broken(medium, "is a folder without pictures")
    return [child for _, child in sorted(pictures, key=lambda item: _frame_order(item[0]))]


def _file_name(medium: Medium) -> str:
    place = str(medium.local) if medium.local is not None else medium.member or medium.url.partition("?")[0]
    return PurePosixPath(place).name


def _frame_order(name: str) -> tuple[int, str]:
    numbers = re.findall(r"[0-9]{1,18}", PurePosixPath(name).stem)
    return (int(numbers[-1]) if numbers else -1, name)


# -- errors ---------------------------------------------------------------------------------------------------------


def _reading(medium: Medium, action: Callable[[], Result]) -> Result:
    """``action``, with every error of data as a Fault."""
    try:
        return action()
    except (Fault, ConfigError):  # ConfigError: a package for another machine's files is missing
        raise
    except FileNotFoundError as error:
        what = f"video {medium.name!r} does not exist"
        raise Fault(FaultCode.MISSING_VIDEO, what, "check 'video' and the manifest's 'root'") from error
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise _broken(medium, f"cannot be read ({first_line(error)})") from error


def _broken(medium: Medium, what: str) -> Fault:
    return Fault(FaultCode.BROKEN_VIDEO, f"video {medium.name!r} {what}", "replace the file")
