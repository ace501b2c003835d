"""Which frames are used: the original's choices to the last index; clips and counts by hand."""

from __future__ import annotations

import json
import random
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.data.faults import Fault, FaultCode
from internvl_chat.data.frames import (
    check_method,
    clip_range,
    draw_count,
    inference_indices,
    pick_frames,
    seed_bench_indices,
)
from internvl_chat.errors import ConfigError
from tests.data.helpers import load_json, properties

GOLDEN = load_json("video_indices.json")
SAMPLER = GOLDEN["get_frame_indices"]


def no_choice(start: int, stop: int) -> int:
    raise AssertionError("this method draws nothing")


def original_choice(seed: int | None, num_frames: int, length: int) -> Callable[[int, int], int]:
    """It draws from each interval with ``random``, and a set with numpy where an interval holds a single frame."""
    if seed is None:
        return no_choice
    if length < 2 * min(num_frames, length):
        state = np.random.RandomState(seed)
        return lambda start, stop: int(state.randint(start, stop))
    return random.Random(seed).randrange


def shortened(indices: list[int]) -> Any:
    if len(indices) <= 64:
        return indices
    crc = zlib.crc32(json.dumps(indices).encode())
    return {"count": len(indices), "start": indices[:16], "end": indices[-8:], "crc32": crc}


@pytest.mark.parametrize("kind", ["middle", "rand", "fps"])
def test_frames_are_those_of_the_original(kind: str) -> None:
    rows = [row for row in SAMPLER if row[2].startswith(kind)]
    assert len(rows) >= 80
    for num_frames, length, method, fps, most, seed, expected in rows:
        choose = original_choice(seed, num_frames, length)
        picked = pick_frames(num_frames, length, method, fps, choose, most)
        if expected:
            assert shortened(picked) == expected, (num_frames, length, method, fps, most, seed)
        else:  # too short for one interval: the original has no frame, and fails later
            assert picked == [(length - 1) // 2]


def test_unknown_methods_are_refused_and_the_legal_ones_named() -> None:
    bad = [row for row in SAMPLER if row[6] == "ValueError"]
    assert bad
    for num_frames, length, method, *_ in bad:
        with pytest.raises(ConfigError, match="'rand', 'middle', or 'fps' with a number"):
            pick_frames(num_frames, length, method, 1.0, no_choice)
    for method in ("", "fps", "fps0", "fps-1", "fpsx", "fpsnan", "fpsinf", "fps1e9", "Rand", "middle "):
        with pytest.raises(ConfigError, match="no way to sample frames"):
            check_method(method)
    for method in ("rand", "middle", "fps1", "fps0.5", "fps1e-3"):
        assert check_method(method) == method


@given(
    st.integers(1, 64), st.integers(1, 300), st.sampled_from(["rand", "middle", "fps1", "fps7.5"]), st.floats(0.1, 90)
)
@properties(300)
def test_indices_lie_in_the_video_in_order(num_frames: int, length: int, method: str, fps: float) -> None:
    rng = np.random.default_rng([num_frames, length])
    picked = pick_frames(num_frames, length, method, fps, lambda start, stop: int(rng.integers(start, stop)), 20)
    assert picked == sorted(picked)
    assert picked[0] >= 0
    assert picked[-1] < length
    assert len(picked) == num_frames if not method.startswith("fps") else 1 <= len(picked) <= 20


def test_every_frame_set_can_be_drawn_where_intervals_are_short() -> None:
    rng = np.random.default_rng(0)
    seen = Counter(tuple(pick_frames(2, 3, "rand", 1, lambda a, b: int(rng.integers(a, b)))) for _ in range(300))
    assert set(seen) == {(0, 1), (0, 2), (1, 2)}
    assert min(seen.values()) > 60


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf"), 1e-9])
def test_a_frame_rate_that_cannot_be_is_a_fault_where_it_matters(fps: float) -> None:
    with pytest.raises(Fault, match="which cannot be; sample with 'rand'") as fault:
        pick_frames(8, 100, "fps1", fps, no_choice)
    assert fault.value.code is FaultCode.BROKEN_VIDEO
    assert len(pick_frames(8, 100, "middle", fps, no_choice)) == 8
    with pytest.raises(Fault, match="has no frames"):
        pick_frames(8, 0, "middle", 1.0, no_choice)


def test_inference_takes_the_frames_of_the_model_cards() -> None:
    rows = GOLDEN["mvbench_get_index"]
    assert len(rows) == 270
    for bound, fps, last, first, segments, expected in rows:
        assert inference_indices(bound, fps, last, first, segments) == expected
    assert any(max(row[5]) > row[2] for row in rows), "a bound behind the video gives frames that do not exist"


def test_seed_bench_frames() -> None:
    for frames, segments, expected in GOLDEN["seed_bench_get_index"]:
        assert seed_bench_indices(frames, segments) == expected


@pytest.mark.parametrize(
    ("clip", "fps", "length", "expected"),
    [
        ([0, 4], 10, 40, (0, 40)),
        ([1.0, 2.5], 10, 40, (10, 25)),
        ([0.3, 0.7], 10, 40, (3, 7)),
        ((1, 3), 29.97, 300, (29, 89)),
        ([1.02, 1.04], 10, 40, (10, 11)),
        ([3.95, 4.9], 10, 40, (39, 40)),
        ([0, 5], 10, 40, (0, 40)),
        ([2, 3], 1, 3, (2, 3)),
    ],
)
def test_clips_by_hand(clip: Any, fps: float, length: int, expected: tuple[int, int]) -> None:
    """A frame belongs to a clip from its own time on; an end up to a second too late is the video's end."""
    assert clip_range(clip, fps, length) == expected


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        ([1], "not two numbers"),
        ("12", "not two numbers"),
        ([1, "2"], "not two numbers"),
        ([True, 2], "not two numbers"),
        ([0, float("nan")], "not two numbers"),
        ([0, float("inf")], "not two numbers"),
        ([0, 10**400], "not two numbers"),
        ({"start": 1, "end": 2}, "not two numbers"),
        (None, "not two numbers"),
        ([-1, 2], "goes from -1 to 2"),
        ([2, 2], "goes from 2 to 2"),
        ([3, 1], "goes from 3 to 1"),
        ([4.0, 4.5], "the video lasts 4.00 s"),
        ([1, 5.1], "the video lasts 4.00 s"),
    ],
)
def test_bad_clips_say_what_is_wrong(clip: Any, message: str) -> None:
    with pytest.raises(Fault, match=message) as fault:
        clip_range(clip, 10.0, 40)
    assert fault.value.code is FaultCode.CLIP


@pytest.mark.parametrize("fps", [0.0, float("nan"), float("inf")])
def test_a_clip_needs_a_frame_rate(fps: float) -> None:
    with pytest.raises(Fault, match="without a frame rate"):
        clip_range([0, 1], fps, 40)


@given(st.floats(0, 20), st.floats(0.001, 20), st.floats(0.2, 120), st.integers(1, 2000))
@properties(300)
def test_a_clip_is_never_empty_and_never_outside(start: float, seconds: float, fps: float, length: int) -> None:
    try:
        first, stop = clip_range([start, start + seconds], fps, length)
    except Fault as fault:
        assert fault.code is FaultCode.CLIP
        return
    assert 0 <= first < stop <= length


def test_the_number_of_frames_follows_from_the_line_and_all_are_as_likely() -> None:
    lines = [f'{{"id": {number}, "video": "a.mp4"}}'.encode() for number in range(5000)]
    counts = Counter(draw_count(line, 8, 32) for line in lines)
    assert set(counts) == set(range(8, 33))
    assert max(counts.values()) < 1.4 * min(counts.values())
    assert draw_count(lines[7], 8, 32) == draw_count(bytes(lines[7]), 8, 32)
    assert draw_count(b"any", 5, 5) == 5
    with pytest.raises(ConfigError, match="exchange --min_num_frame"):
        draw_count(b"any", 9, 8)
