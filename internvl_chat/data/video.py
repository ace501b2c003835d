"""Videos -> what they are (frames, rate, size) and frames by their number; of three kinds of source.

- A video file, through PyAV (``data/pyav.py``). decord can be asked for; it is not chosen by itself, because it gives
  wrong frames for MPEG-4 part 2, MPEG-1 and AVI with B-frames and for transport streams, does not know AV1, and some
  damaged files make it abort the process.
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
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar, cast

from PIL import Image

from internvl_chat.constants import MAX_COUNTED_FRAMES, MAX_IMAGE_PIXELS, MAX_PICTURE_BYTES, MAX_VIDEO_BYTES
from internvl_chat.data.faults import Fault, FaultCode
from internvl_chat.data.media import open_picture, read_image, read_image_size, to_rgb
from internvl_chat.data.storage import Medium, as_medium
from internvl_chat.errors import ConfigError, first_line

Result = TypeVar("Result")

READERS = ("auto", "av", "decord")
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


def check_reader(reader: str) -> str:
    """The reader that will be used: "av" or "decord". Raises ConfigError (unknown, not installed)."""
    if reader not in READERS:
        raise ConfigError(f"{reader!r} is no video reader; use one of {', '.join(READERS)}")
    wanted = ("av", "decord") if reader == "auto" else (reader,)
    for name in wanted:
        if find_spec(name):
            return name
    package = "av" if "av" in wanted else "decord2"
    raise ConfigError(f"videos need the package {' or '.join(wanted)}, which is not installed; pip install {package}")


def read_video_info(source: Path | Medium, reader: str = "auto") -> VideoInfo:
    """What a video is; of mp4 and mov from the header alone.

    Raises Fault (MISSING_VIDEO, BROKEN_VIDEO, IMAGE_SIZE, UNREADABLE) and ConfigError.
    """
    medium = as_medium(source)
    return _reading(medium, lambda: _info(medium, reader))


def read_frames(source: Path | Medium, indices: Sequence[int], reader: str = "auto") -> list[Image.Image]:
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
    found = _reading(medium, lambda: _frames(medium, numbers, reader))
    lost = [number for number in numbers if number not in found]
    if lost:
        raise _broken(medium, f"gives no frame {lost[0]}: it is cut short or damaged")
    return [found[number] for number in indices]


def _info(medium: Medium, reader: str) -> VideoInfo:
    if medium.is_folder():
        files = _frame_files(medium)
        info = VideoInfo(len(files), 1.0, *read_image_size(files[0]))
    elif _is_animation(medium):
        info = medium.attempt(lambda file: _animation_info(medium, file), MAX_PICTURE_BYTES)
    elif check_reader(reader) == "av":
        from internvl_chat.data import pyav

        info = VideoInfo(*medium.attempt(lambda file: pyav.describe(file, medium.name), MAX_VIDEO_BYTES))
    else:
        video = _decord(medium)
        info = VideoInfo(len(video), float(video.get_avg_fps()), *reversed(video[0].shape[:2]))
    if info.width * info.height > MAX_IMAGE_PIXELS:
        what = f"video {medium.name!r} has frames of more than {MAX_IMAGE_PIXELS} pixels"
        raise Fault(FaultCode.IMAGE_SIZE, what, "scale it down")
    if info.frames < 1 or info.width < 1 or info.height < 1:
        raise _broken(medium, "has no frames")
    return info


def _frames(medium: Medium, numbers: list[int], reader: str) -> dict[int, Image.Image]:
    if medium.is_folder():
        files = _frame_files(medium)
        return {number: read_image(files[number]) for number in numbers if number < len(files)}
    if _is_animation(medium):
        content = medium.read(MAX_PICTURE_BYTES)
        with open_picture(medium.name, BytesIO(content)) as image:
            return _animation_frames(image, numbers)
    if check_reader(reader) == "av":
        from internvl_chat.data import pyav

        def decode(file: BinaryIO) -> dict[int, Image.Image]:
            return pyav.decode(file, medium.name, numbers)

        def copy_and_decode(file: BinaryIO) -> dict[int, Image.Image]:
            with tempfile.TemporaryFile() as copy:
                _copy(medium, file, copy)
                return decode(cast(BinaryIO, copy))

        # Decoding goes back and forth, which archives and networks do badly.
        return medium.attempt(decode if medium.local is not None else copy_and_decode, MAX_VIDEO_BYTES)
    video = _decord(medium)
    there = [number for number in numbers if number < len(video)]
    pixels = video.get_batch(there).asnumpy() if there else []
    return {number: Image.fromarray(frame) for number, frame in zip(there, pixels, strict=True)}


def _copy(medium: Medium, file: BinaryIO, copy: Any) -> None:
    """The file's bytes, at most MAX_VIDEO_BYTES: an archive may say less than it holds."""
    left = MAX_VIDEO_BYTES
    while piece := file.read(_PIECE):
        left -= len(piece)
        if left < 0:
            what = f"video {medium.name!r} has more than {MAX_VIDEO_BYTES} bytes"
            raise Fault(FaultCode.IMAGE_SIZE, what, "cut it into pieces")
        copy.write(piece)
    copy.seek(0)


def _decord(medium: Medium) -> Any:
    import decord

    if medium.local is not None and not medium.local.exists():
        raise FileNotFoundError(medium.name)
    where = BytesIO(medium.read(MAX_VIDEO_BYTES)) if medium.local is None else str(medium.local)
    return decord.VideoReader(where, num_threads=1)


# -- animated pictures ----------------------------------------------------------------------------------------------


def _is_animation(medium: Medium) -> bool:
    return medium.url.startswith("data:image/") or medium.name.partition("?")[0].lower().endswith(ANIMATIONS)


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
    place = str(medium.local) if medium.local is not None else medium.member or medium.url
    return PurePosixPath(place).name


def _frame_order(name: str) -> tuple[int, str]:
    numbers = re.findall(r"[0-9]{1,18}", PurePosixPath(name).stem)
    return (int(numbers[-1]) if numbers else -1, name)


# -- errors ---------------------------------------------------------------------------------------------------------


def _reading(medium: Medium, action: Callable[[], Result]) -> Result:
    """``action``, with every error of data as a Fault."""
    try:
        return action()
    except (Fault, ConfigError):
        raise
    except FileNotFoundError as error:
        what = f"video {medium.name!r} does not exist"
        raise Fault(FaultCode.MISSING_VIDEO, what, "check 'video' and the manifest's 'root'") from error
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise _broken(medium, f"cannot be read ({first_line(error)})") from error


def _broken(medium: Medium, what: str) -> Fault:
    return Fault(FaultCode.BROKEN_VIDEO, f"video {medium.name!r} {what}", "replace the file")
