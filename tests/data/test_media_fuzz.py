"""Damaged pictures and videos: each ends as pixels or as a Fault. In a process of its own, for decoders are C.

INTERNVL_HUNT=N tries N times as many, at random.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from internvl_chat.data.faults import Fault
from internvl_chat.data.media import read_image, read_image_size
from internvl_chat.data.video import read_frames, read_video_info

ROOT = Path(__file__).parents[2]
HUNT = int(os.environ.get("INTERNVL_HUNT", "0"))
# file name -> how many damaged copies; 500 in all
COPIES = {
    "a.jpg": 60,
    "progressive.jpg": 30,
    "a.png": 60,
    "a.gif": 40,
    "a.webp": 40,
    "a.tif": 50,
    "a.bmp": 20,
    "h264.mp4": 60,
    "mpeg4.mp4": 40,
    "h264.mkv": 30,
    "h264.ts": 30,
    "film.gif": 40,
}


def write_originals(folder: Path) -> None:
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(12)]
    images = [Image.fromarray(frame) for frame in frames]
    for name in COPIES:
        if name.startswith(("h264", "mpeg4")):
            write_video(folder / name, "libx264" if name.startswith("h264") else "mpeg4", frames)
        elif name == "film.gif":
            images[0].save(folder / name, save_all=True, append_images=images[1:], duration=50)
        else:
            images[0].save(folder / name, **({"progressive": True} if name.startswith("progressive") else {}))


def write_video(path: Path, encoder: str, frames: list[np.ndarray]) -> None:
    import av

    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream(encoder, rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.codec_context.max_b_frames, stream.codec_context.gop_size = 2, 5
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())


def damage(content: bytes, rng: random.Random) -> bytes:
    """Cut short, bytes changed, numbers made large, a part blanked, taken out, put in or doubled; up to three of it."""
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind, size = rng.randrange(8), len(damaged)
        # Headers are small, and where it hurts: every second blow goes to the first or the last 600 bytes.
        at = rng.choice((rng.randrange(size), rng.randrange(size), rng.randrange(min(size, 600)), -rng.randint(1, 600)))
        at = max(0, at % size)
        length = rng.randint(1, 100)
        if kind == 0:
            del damaged[max(1, at) :]
        elif kind == 1:
            for _ in range(rng.choice((1, 5, 30))):
                damaged[rng.randrange(size)] = rng.randrange(256)
        elif kind == 2:
            damaged[at : at + 4] = rng.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4), b"\0\0\0\1"))
        elif kind == 3:
            damaged[at : at + length] = bytes(len(damaged[at : at + length]))
        elif kind == 4 and size > 200:
            del damaged[at : at + length]
        elif kind == 5:
            damaged[at:at] = rng.randbytes(length)
        elif kind == 6:
            damaged[at:at] = damaged[at : at + length]
        else:
            damaged[at] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def look(path: Path) -> None:
    """Read as the training does: the header first, then all of it. Raises Fault."""
    if path.name.startswith(("h264", "mpeg4", "film")):
        info = read_video_info(path)
        assert info.frames >= 1
        numbers = [info.frames - 1, 0, info.frames // 2]
        for image in read_frames(path, numbers):
            assert image.mode == "RGB"
    else:
        size = read_image_size(path)
        image = read_image(path)
        assert image.mode == "RGB"
        assert image.size == size


def hunt(folder: Path, seed: int, times: int) -> dict[str, Any]:
    """Damage and look at copies; how each kind of file ended, and what ended otherwise."""
    faulthandler.enable()
    warnings.simplefilter("ignore")
    ends: dict[str, Counter[str]] = {}
    wrong: list[str] = []
    slowest = 0.0
    for name, copies in COPIES.items():
        content = (folder / name).read_bytes()
        ends[name] = Counter()
        for number in range(copies * times):
            path = folder / f"{Path(name).stem}-damaged{Path(name).suffix}"
            path.write_bytes(damage(content, random.Random(f"{seed} {name} {number}")))
            start = time.perf_counter()
            end = outcome(lambda path=path: look(path))
            slowest = max(slowest, time.perf_counter() - start)
            ends[name][end] += 1
            if not end.isupper():
                wrong.append(f"seed {seed}, {name}, number {number}: {end}")
    return {"ends": ends, "wrong": wrong, "slowest": slowest}


def outcome(action: Callable[[], None]) -> str:
    """OK, the fault's code, or in small letters what must not be."""
    try:
        action()
    except Fault as fault:
        return fault.code.name if "-damaged" in str(fault) else f"fault does not name the file: {fault}"
    except Exception as error:  # noqa: BLE001 - reported
        return f"raised {error!r}"
    return "OK"


def test_every_damaged_file_ends_as_pixels_or_as_a_fault(tmp_path: Path) -> None:
    pytest.importorskip("av")
    write_originals(tmp_path)
    seed, times = (random.SystemRandom().randrange(10**9), HUNT) if HUNT else (0, 1)
    code = (
        "import json, pathlib, sys; from tests.data.test_media_fuzz import hunt; "
        "print(json.dumps(hunt(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(seed), str(times)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90 * times,
        check=False,
    )
    assert done.returncode == 0, f"seed {seed}: the process ended with {done.returncode}\n{done.stderr[-3000:]}"
    result = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(result["ends"]), f"slowest {result['slowest']:.2f} s, seed {seed}")
    assert not result["wrong"], result["wrong"][:10]
    assert sum(sum(ends.values()) for ends in result["ends"].values()) == 500 * times
    for name, ends in result["ends"].items():
        assert ends.get("OK", 0) > 0, f"{name}: damage that never leaves a file readable finds nothing"
        assert len(ends) > 1, f"{name}: damage that no one notices finds nothing"
