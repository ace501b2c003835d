"""A conversation as it is saved: a line of the training format, or a page to read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl_chat.infer.pictures import Video


@dataclass(frozen=True)
class Round:
    """A question as it was asked, with its tags, what was shown with it, and the answer."""

    question: str
    images: tuple[str, ...]
    video: Video | None
    answer: str


def to_line(rounds: Sequence[Round], system: str | None = None) -> str:
    """The conversation as a line of the training format, paths absolute."""
    images = [_absolute(image) for one in rounds for image in one.images]
    videos = [one.video for one in rounds if one.video]
    turns = [{"from": "system", "value": system}] if system is not None else []
    for one in rounds:
        turns += [{"from": "human", "value": one.question}, {"from": "gpt", "value": one.answer}]
    record: dict[str, Any] = {"image": images} if images else {}
    if videos:
        record["video"] = [_absolute(video.source) for video in videos]
        record["num_segments"] = [video.num_segments for video in videos]
    return json.dumps({**record, "conversations": turns}, ensure_ascii=False) + "\n"


def to_markdown(rounds: Sequence[Round], system: str | None = None) -> str:
    """The conversation for a reader."""
    parts = [f"*{system}*"] if system else []
    for one in rounds:
        parts += [f"![picture](<{_absolute(image)}>)" for image in one.images]
        parts += [f"[video](<{_absolute(one.video.source)}>)"] if one.video else []
        parts += [f"**Question:** {_plain(one.question)}", f"**Answer:** {one.answer}"]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    return text.replace("<", "\\<")  # tags are no HTML


def _absolute(path: Any) -> str:
    return str(Path(path).expanduser().resolve())
