"""Miniature MVBench: an animated picture, a segment of one, a folder of frames."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tests.eval.mini.common import json_file, picture

OPTIONS = {"candidates": ["left", "right"], "answer": "right"}


def animation(path: Path, frames: int = 20) -> Path:
    """Frame k is of the grey 10 k; ten frames a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = [Image.new("RGB", (32, 24), (10 * k, 10 * k, 10 * k)) for k in range(frames)]
    grey[0].save(path, save_all=True, append_images=grey[1:], duration=100, lossless=True)
    return path


def guide(root: Path) -> None:
    folder = root / "MVBench"
    json_file(folder / "json/action_antonym.json", [{"video": "1.webp", "question": "What?", **OPTIONS}])
    animation(folder / "video/ssv2_video/1.webp")
    json_file(
        folder / "json/action_sequence.json",
        [{"video": "2.webp", "question": "Which?", "start": 0.5, "end": 1.5, **OPTIONS}],
    )
    animation(folder / "video/star/Charades_v1_480/2.webp")
    json_file(
        folder / "json/episodic_reasoning.json",
        [{"video": "show_1", "question": "Why?", "start": 0.0, "end": 2.0, **OPTIONS}],
    )
    for number in range(1, 10):
        picture(folder / f"video/tvqa/frames_fps3_hq/show_1/{number:05d}.jpg", number)


WRITERS = {"mvbench": guide}
