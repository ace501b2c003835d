"""Video files through PyAV: exact frames by number, whatever the container; used through ``data/video.py`` only.

Frame number i is the one with the i-th smallest presentation time among all packets, found by reading the packets
once without decoding. Decoding starts at the last key frame that is not behind a wanted one, and frames are known by
their time, so that a seek that lands elsewhere is noticed; then, and where packets carry no times (raw streams, some
AVI files), decoding starts at the beginning.

A stream's fields must not be touched after its container is closed: PyAV reads freed memory.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, BinaryIO

from PIL import Image

from internvl_chat.constants import MAX_COUNTED_FRAMES, MAX_IMAGE_PIXELS
from internvl_chat.data.faults import Fault, FaultCode
from internvl_chat.errors import first_line

# A day at 120 frames per second; a damaged header can promise packets without end.
MAX_PACKETS = 120 * 86_400
MAX_FPS = 1000.0


@dataclass(frozen=True, slots=True)
class _Packet:
    """``shown`` is False for those that an edit list cuts off: they are decoded for what follows them only."""

    time: int | None
    decode_time: int | None
    key: bool
    shown: bool


def describe(file: BinaryIO, name: str, head_only: bool = False) -> tuple[int, float, int, int]:
    """(frames, frames per second or 0, width, height). Raises Fault BROKEN_VIDEO and the file's OSError.

    ``head_only``: 0 frames where all of the file would have to be read to count them.
    """
    with _opened(file, name) as (container, stream):
        size = stream.codec_context.width, stream.codec_context.height
        fps = next((float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate), 0.0)
        fps = fps if 0 < fps <= MAX_FPS else 0.0
        frames = _frames_in_header(container, stream)
        packets = [] if frames or head_only else _read_packets(container, stream, name)
    if frames or head_only:
        return frames, fps, *size
    if _have_times(packets):
        return sum(packet.shown for packet in packets), fps, *size
    with _opened(file, name) as (container, stream):
        frames = 0
        for _ in _decode_all(container, stream):
            frames += 1
            if frames > MAX_COUNTED_FRAMES:
                raise _broken(name, f"has more than {MAX_COUNTED_FRAMES} frames, and no times")
    return frames, fps, *size


def decode(file: BinaryIO, name: str, numbers: list[int]) -> dict[int, Image.Image]:
    """RGB frames by number; ``numbers`` ascending. Those that the file does not hold are left out.

    Raises Fault (BROKEN_VIDEO, IMAGE_SIZE) and the file's OSError.
    """
    with _opened(file, name) as (container, stream):
        packets = _read_packets(container, stream, name)
        if _have_times(packets):
            order = sorted(int(packet.time or 0) for packet in packets if packet.shown)
            wanted = {order[number]: number for number in numbers if number < len(order)}
            found = _decode_by_seeking(container, stream, packets, sorted(wanted), name)
            if found.keys() == wanted.keys():
                return {wanted[time]: image for time, image in found.items()}
        else:
            wanted = {}
    with _opened(file, name) as (container, stream):
        images: dict[int, Image.Image] = {}
        left = set(numbers)
        for count, frame in enumerate(_decode_all(container, stream)):
            number = wanted.get(frame.pts, -1) if wanted else count
            if number in left:
                images[number] = _to_image(frame, name)
            if len(images) == len(left):
                break
        return images


def _decode_by_seeking(
    container: Any, stream: Any, packets: list[_Packet], times: list[int], name: str
) -> dict[int, Image.Image]:
    """Time -> frame, for those of ``times`` (ascending) that could be found."""
    place = {packet.time: number for number, packet in enumerate(packets)}
    keys = [packet for packet in packets if packet.key]
    # Decoding starts from the last key frame, in order of decoding, that is not behind the wanted frame in time.
    earliest = list(accumulate((int(key.time or 0) for key in reversed(keys)), min))[::-1]
    found: dict[int, Image.Image] = {}
    runs: dict[int, list[int]] = {}
    for time in times:
        runs.setdefault(bisect_right(earliest, time) - 1, []).append(time)
    for number, wanted in runs.items():
        if number < 0:
            return found
        for frame in _decode_from(container, stream, keys[number], place):
            if frame.pts in wanted:
                found[frame.pts] = _to_image(frame, name)
            if frame.pts is None or frame.pts >= wanted[-1]:
                break
    return found


def _decode_from(container: Any, stream: Any, key: _Packet, place: dict[int | None, int]) -> Iterator[Any]:
    """Frames in order of time from a key frame on; none if it cannot be sought."""
    import av

    try:
        container.seek(key.time if key.decode_time is None else key.decode_time, stream=stream, backward=True)
    except av.FFmpegError:
        return
    begun = False
    for packet in container.demux(stream):
        if not begun and packet.size:
            begun = packet.pts == key.time
            if not begun and place.get(packet.pts, math.inf) > place[key.time]:
                return
        if begun:
            yield from packet.decode()


def _decode_all(container: Any, stream: Any) -> Iterator[Any]:
    for packet in container.demux(stream):
        yield from packet.decode()


@contextmanager
def _opened(file: BinaryIO, name: str) -> Iterator[tuple[Any, Any]]:
    """(container, its video stream), closed behind; the file stays open. Errors of PyAV become Faults."""
    import av

    file.seek(0)
    try:
        # No protocol: a list of files that poses as a video must not make the library open them.
        # ``options`` would go to the streams, too, which crashes PyAV 16 where a demuxer finds them late (MPEG-1).
        limits = {"protocol_whitelist": "none"}
        with av.open(_Borrowed(file), metadata_errors="replace", container_options=limits) as container:
            yield container, _video_stream(container, name)
    except av.FFmpegError as error:
        raise _broken(name, f"cannot be decoded ({first_line(error)})") from error


def _video_stream(container: Any, name: str) -> Any:
    import av

    cover = av.stream.Disposition.attached_pic
    stream = next((s for s in container.streams.video if not s.disposition & cover), None)
    if stream is None:
        raise _broken(name, "holds no video")
    # One thread: loaders have workers. Frames that are too large are refused before memory is taken for them.
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"max_pixels": str(MAX_IMAGE_PIXELS)}
    return stream


def _frames_in_header(container: Any, stream: Any) -> int:
    """Number of frames of an mp4 or mov whose header lists them all; else 0."""
    entries = getattr(stream, "index_entries", ())  # PyAV 17 and newer
    if not container.format.name.startswith("mov") or stream.frames != len(entries):
        return 0
    return sum(not entry.is_discard for entry in entries)


def _read_packets(container: Any, stream: Any, name: str) -> list[_Packet]:
    """All packets of the stream in order of decoding, none decoded."""
    packets = []
    for packet in container.demux(stream):
        if packet.size:
            packets.append(_Packet(packet.pts, packet.dts, packet.is_keyframe, not packet.is_discard))
        if len(packets) > MAX_PACKETS:
            raise _broken(name, f"has more than {MAX_PACKETS} packets")
    return packets


def _have_times(packets: list[_Packet]) -> bool:
    """Whether every packet has a presentation time of its own."""
    times = {packet.time for packet in packets}
    return None not in times and len(times) == len(packets)


def _to_image(frame: Any, name: str) -> Image.Image:
    if frame.width * frame.height > MAX_IMAGE_PIXELS:
        what = f"video {name!r} has frames of more than {MAX_IMAGE_PIXELS} pixels"
        raise Fault(FaultCode.IMAGE_SIZE, what, "scale it down")
    if frame.is_corrupt:
        raise _broken(name, "has a damaged frame where one is wanted")
    return Image.fromarray(frame.to_ndarray(format="rgb24"))


def _broken(name: str, what: str) -> Fault:
    return Fault(FaultCode.BROKEN_VIDEO, f"video {name!r} {what}", "replace the file")


class _Borrowed:
    """A file that PyAV reads and does not close."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell
