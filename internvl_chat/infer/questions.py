"""What is asked: the turns of a conversation up to a question, with its pictures and videos at their tags."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from internvl_chat.constants import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from internvl_chat.data.record import Turn, expand_videos
from internvl_chat.data.tiles import TileSettings
from internvl_chat.errors import DataError
from internvl_chat.infer.pictures import NUM_SEGMENTS, Picture, Shown, Video, place_pictures, show_pictures

__all__ = ["Question", "Shown", "Video", "question_of"]

_TAGS = re.compile(f"{re.escape(IMAGE_PLACEHOLDER)}|{re.escape(VIDEO_PLACEHOLDER)}")


@dataclass(frozen=True, eq=False)
class Question:
    """``turns`` end with the question; ``shown`` are the pictures and videos of all turns in reading order.

    The turns have one ``<image>`` for each picture and for each frame of a video.
    """

    turns: tuple[Turn, ...]
    shown: tuple[Shown, ...] = ()

    def answered(self, answer: str) -> Question:
        """The conversation with an answer, to which ``question_of`` adds the next question."""
        return Question((*self.turns, Turn("gpt", answer)), self.shown)


def question_of(
    text: str,
    images: Sequence[Picture] | Picture,
    video: Path | str | None,
    settings: TileSettings,
    before: Question | None = None,
    system: str | None = None,
    num_segments: int = NUM_SEGMENTS,
    bound: tuple[float, float] | None = None,
) -> Question:
    """A question with pictures and a video, behind what was said ``before`` (its last turn an answer).

    Pictures stand where the text has ``<image>``, a video where it has ``<video>``, else they are put first. Pictures
    of one question share the tile limit; a frame of a video is a tile. ``system``: the system
    message of a new conversation, None = the template's. Raises DataError if nothing is asked or shown, or if tags and
    pictures do not match.
    """
    pictures = images if isinstance(images, Sequence) and not isinstance(images, str) else [images]
    if not text.strip() and not pictures and video is None:
        raise DataError("the question is empty; write one")
    text = _place_video(place_pictures(text, len(pictures)), video is not None)
    stills = iter(show_pictures(pictures, settings))
    films: Iterator[Shown] = iter(())
    if video is not None:
        if not isinstance(video, (str, Path)):
            raise DataError("a video is given by its path, not as an opened picture")
        films = iter([Shown(Video(video, num_segments, bound), 1)])
    shown = [next(stills if tag == IMAGE_PLACEHOLDER else films) for tag in _TAGS.findall(text)]
    turn = expand_videos([Turn("human", text)], [num_segments])[0]
    if before is None:
        return Question((turn,) if system is None else (Turn("system", system), turn), tuple(shown))
    return Question((*before.turns, turn), (*before.shown, *shown))


def _place_video(text: str, given: bool) -> str:
    tags = text.count(VIDEO_PLACEHOLDER)
    if tags == given:
        return text
    if not given:
        raise DataError(f"the question has {tags} {VIDEO_PLACEHOLDER} but no video is given; add it, or drop the tag")
    if tags:
        raise DataError(f"{tags} {VIDEO_PLACEHOLDER} in the question; one video can be asked about at once")
    return f"{VIDEO_PLACEHOLDER}\n{text}"
