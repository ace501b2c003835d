"""Which frames of a video are used: arithmetic only, equal to the original's to the last frame."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from internvl_chat.data.faults import Fault, FaultCode
from internvl_chat.errors import ConfigError

# Draws an integer uniformly from range(start, stop).
Choose = Callable[[int, int], int]

# A rate beyond it is a slip; with a broken header it would ask for frames without end.
MAX_RATE = 1000.0
MAX_FRAMES_ASKED = 1_000_000
# Seconds by which a clip may end behind the video: annotations round, and containers count the last frame or not.
CLIP_SLACK = 1.0


def check_method(method: str) -> str:
    """``method`` if it is one. Raises ConfigError."""
    if method not in ("rand", "middle"):
        _rate_of(method)
    return method


def pick_frames(
    num_frames: int, length: int, method: str, fps: float, choose: Choose, max_frames: int = -1
) -> list[int]:
    """Frame numbers, ascending, out of ``length`` frames that follow each other at ``fps`` per second.

    "middle" and "rand": ``num_frames`` of them, one from each of as many equal intervals: its middle, or one drawn (its
    last is never drawn, as in the original). Where an interval is too short to draw from, a random set of that many
    frames. A video of fewer frames is padded with its last one.

    "fpsX": the frame in the middle of each 1/X seconds, at most ``max_frames`` if that is positive. At least one frame
    (the original gives none for a video shorter than half of that time).

    Raises ConfigError (method) and Fault (BROKEN_VIDEO: no frames, or a frame rate that makes no sense).
    """
    if length < 1:
        raise Fault(FaultCode.BROKEN_VIDEO, "video has no frames", "replace the file")
    if method in ("rand", "middle"):
        return _spread(num_frames, length, choose if method == "rand" else None)
    picked = _at_rate(_rate_of(method), length, fps)
    return picked[:max_frames] if max_frames > 0 else picked


def clip_range(clip: Any, fps: float, length: int) -> tuple[int, int]:
    """(first frame, frame behind the last) of ``clip``, [start, end] in seconds; never empty.

    A frame belongs to a clip from its own time on: first = floor(start x fps), stop = floor(end x fps), at least one
    frame. An end up to a second behind the video is the video's end. Raises Fault CLIP; the original hands such clips
    to its decoder, which fails, and trains on another line.
    """
    numbers = isinstance(clip, Sequence) and len(clip) == 2 and all(type(x) in (int, float) for x in clip)
    if not numbers or not all(abs(x) < 1e9 for x in clip):  # not so for NaN
        mend = "give [start, end] in seconds"
        raise Fault(FaultCode.CLIP, f"'clip' holds {str(clip)[:80]}, not two numbers", mend)
    start, end = clip
    if start < 0 or end <= start:
        mend = "give [start, end] in seconds, 0 <= start < end"
        raise Fault(FaultCode.CLIP, f"'clip' goes from {start} to {end}", mend)
    if not 0 < fps < math.inf:
        raise Fault(FaultCode.CLIP, "'clip' is given for a video without a frame rate", "cut the video itself")
    duration = length / fps
    # 1e-6: 0.3 x 10 is a bit less than 3, and frame 3 begins at 0.3.
    first = math.floor(start * fps + 1e-6)
    if first >= length or end > duration + CLIP_SLACK:
        what = f"'clip' goes from {start} to {end}, the video lasts {duration:.2f} s"
        raise Fault(FaultCode.CLIP, what, "correct the clip, or check that it is this video's")
    return first, min(length, max(first + 1, math.floor(end * fps + 1e-6)))


def draw_count(content: bytes, low: int, high: int) -> int:
    """Number of frames of a line, low..high with equal chances, drawn from the line's own bytes.

    So the index knows it, whatever the run's seed and the epoch (the original draws anew at every visit).
    """
    if low > high:
        raise ConfigError(f"at least {low} and at most {high} frames: exchange --min_num_frame and --max_num_frame")
    return low + zlib.crc32(content) % (high - low + 1)


def inference_indices(
    bound: tuple[float, float] | None, fps: float, max_frame: int, first_idx: int, num_segments: int
) -> list[int]:
    """Frame numbers as the model cards choose them: the middles of equal segments, rounded as there.

    ``max_frame`` is the number of the last frame, ``bound`` a range in seconds. Exact, hence for a bound that lies
    behind the video descending, and beyond it: clip to first_idx..max_frame before reading (the original crashes).
    """
    start, end = (round(bound[0] * fps), round(bound[1] * fps)) if bound else (first_idx, max_frame)
    first = max(first_idx, start)
    segment = (min(end, max_frame) - first) / num_segments
    return [int(first + segment / 2 + np.round(segment * number)) for number in range(num_segments)]


def seed_bench_indices(num_frames: int, num_segments: int) -> list[int]:
    """Frame numbers as the original's SEED-Bench code chooses them; all frames if there are fewer than asked for."""
    if num_segments > num_frames:
        return list(range(num_frames))
    segment = (num_frames - 1) / num_segments
    return [int(segment / 2) + int(np.round(segment * number)) for number in range(num_segments)]


def _rate_of(method: str) -> float:
    try:
        rate = float(method.removeprefix("fps")) if method.startswith("fps") else math.nan
    except ValueError:
        rate = math.nan
    if not 0 < rate <= MAX_RATE:
        raise ConfigError(
            f"{method!r} is no way to sample frames; use 'rand', 'middle', or 'fps' with a number up to "
            f"{MAX_RATE:g}, like 'fps2' or 'fps0.5'"
        )
    return rate


def _spread(num_frames: int, length: int, choose: Choose | None) -> list[int]:
    count = min(num_frames, length)
    edges = [int(edge) for edge in np.linspace(0, length, count + 1)]
    intervals = list(pairwise(edges))
    if choose is None:
        picked = [(start + stop - 1) // 2 for start, stop in intervals]
    elif all(stop - start > 1 for start, stop in intervals):
        picked = [choose(start, stop - 1) for start, stop in intervals]
    else:
        picked = sorted(_shuffled(length, choose)[:count])
    return picked + picked[-1:] * (num_frames - count)


def _shuffled(length: int, choose: Choose) -> list[int]:
    """range(length) in random order, by as many draws as numpy's legacy permutation makes, in its order."""
    order = list(range(length))
    for last in range(length - 1, 0, -1):
        other = choose(0, last + 1)
        order[last], order[other] = order[other], order[last]
    return order


def _at_rate(rate: float, length: int, fps: float) -> list[int]:
    if not 0 < fps < math.inf or length / fps * rate > MAX_FRAMES_ASKED:
        what = f"video of {length} frames has a frame rate of {fps:g}, which cannot be"
        raise Fault(FaultCode.BROKEN_VIDEO, what, "sample with 'rand' or 'middle', or encode the video anew")
    step = 1 / rate
    seconds = np.arange(step / 2, length / fps + step / 2, step)
    numbers = np.around(seconds * fps).astype(int)
    return [int(number) for number in numbers if number < length] or [(length - 1) // 2]
