"""A line of a file of questions -> what is asked: a question with its pictures, or a conversation to go on with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from stat import S_ISREG
from typing import Any

from internvl_chat.constants import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from internvl_chat.data.faults import Fault, show
from internvl_chat.data.formats.table import to_internvl
from internvl_chat.data.media import read_image_size
from internvl_chat.data.record import Record, Turn, expand_videos, parse_json, parse_record, resolve_boxes
from internvl_chat.data.storage import locate_medium
from internvl_chat.data.tiles import TileSettings
from internvl_chat.errors import DataError
from internvl_chat.infer.pictures import NUM_SEGMENTS, Picture, Shown, Video
from internvl_chat.infer.questions import Question, question_of

# What is easily written for a key; without this the question would be asked without its pictures.
_MEANT = {"images": "image", "img": "image", "image_path": "image", "videos": "video", "video_path": "video"}
_REFERENCES = ("reference", "answer", "response", "output")


@dataclass(frozen=True, eq=False)
class Asked:
    """``text``: the question as the line has it; ``reference``: the answer that the line has, if any."""

    question: Question
    text: str
    reference: str | None = None


@dataclass(frozen=True)
class Reading:
    """How lines are read: under which root paths lie, how pictures are cut, frames of a video, system message."""

    tiles: TileSettings
    root: str = ""
    num_segments: int = NUM_SEGMENTS
    system: str | None = None


def ask_line(line: bytes | str | dict[str, Any], reading: Reading) -> Asked:
    """What a line asks: ``{"question", "image", "video", "system", "history"}``, or an item of any training format.

    Of the latter the last human turn is asked, and a gpt turn behind it is the reference. Raises DataError.
    """
    try:
        data = line if isinstance(line, dict) else parse_json(line)
        if _is_question(data):
            return _ask_question(data, reading)
        return _ask_conversation(data, reading)
    except Fault as fault:
        raise DataError(str(fault)) from fault


def media_sizes(line: bytes, root: str = "") -> list[int]:
    """Sizes in bytes of the picture and video files on this machine that a line names; none is opened.

    What lies in an archive, is no file or cannot be found is left out, as is all of a line that cannot be asked.
    """
    try:
        data = parse_json(line)
        item = data if _is_question(data) else to_internvl(data)
        return [size for key in ("image", "video") for name in _listed(item.get(key)) if (size := _bytes(name, root))]
    except Fault:
        return []


def _listed(value: Any) -> list[str]:
    return [name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str)]


def _bytes(name: str, root: str) -> int | None:
    medium = locate_medium(root, name)
    try:
        status = None if medium.local is None else medium.local.stat()
    except (OSError, ValueError):
        return None
    return status.st_size if status is not None and S_ISREG(status.st_mode) else None


def _is_question(data: Mapping[str, Any]) -> bool:
    return "question" in data and not {"conversations", "messages", "chosen"} & set(data)


# -- {"question": ...} ------------------------------------------------------------------------------------------------


def _ask_question(data: Mapping[str, Any], reading: Reading) -> Asked:
    for wrong, key in _MEANT.items():
        if wrong in data and key not in data:
            raise DataError(f"key {wrong!r} is not read beside 'question'; rename it to {key!r}")
    text = _text_of(data, "question")
    pictures = [_picture(name, reading) for name in _names(data, "image")]
    videos = [_video_path(name, reading) for name in _names(data, "video")]
    frames = _frames_of(data, reading, len(videos))
    films = list(zip(videos, frames, _clips(data, len(videos)), strict=True))
    system = _text_of(data, "system") if data.get("system") is not None else reading.system
    before: Question | None = None
    rounds: list[tuple[str, str | None]] = [*_history(data), (text, None)]
    for said, answer in rounds:
        last = answer is None
        taken = len(pictures) if last else said.count(IMAGE_PLACEHOLDER)
        images, pictures = pictures[:taken], pictures[taken:]
        taken = len(films) if last else said.count(VIDEO_PLACEHOLDER)
        film, films = films[:taken], films[taken:]
        if len(film) > 1:
            raise DataError(f"{len(film)} videos with one question; one video can be asked about at once")
        path, number, clip = film[0] if film else (None, reading.num_segments, None)
        before = question_of(said, images, path, reading.tiles, before, system, number, clip)
        if answer is not None:
            before = before.answered(answer)
    assert before is not None
    reference = next((data[key] for key in _REFERENCES if isinstance(data.get(key), str)), None)
    return Asked(before, text, reference)


def _text_of(data: Mapping[str, Any], key: str) -> str:
    value = data[key]
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"key {key!r} holds {show(value)}, not a text")
    return value


def _names(data: Mapping[str, Any], key: str) -> list[str]:
    value = data.get(key) or []
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"key {key!r} holds {show(value)}; give a path or a list of paths")
    return names


def _clips(data: Mapping[str, Any], videos: int) -> list[Any]:
    clip = data.get("clip")
    if clip is None:
        return [None] * videos
    clips = clip if videos > 1 else [clip]
    if not isinstance(clips, list) or len(clips) != videos:
        raise DataError(f"key 'clip' holds {show(clip)}, videos: {videos}; give a [start, end] in seconds for each")
    return clips


def _history(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = data.get("history") or []
    good = isinstance(pairs, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in pairs
    )
    if not good:
        raise DataError(f"key 'history' holds {show(pairs)}; make it a list of [question, answer]")
    return [(question, answer) for question, answer in pairs]


# -- the formats of training ------------------------------------------------------------------------------------------


def _ask_conversation(data: dict[str, Any], reading: Reading) -> Asked:
    record, answered = _read_record(data)
    if record.objects is not None:
        record = resolve_boxes(record, [_size(name, reading) for name in record.images])
    reference = record.turns[-1].text if answered else None
    turns = list(record.turns[:-1])
    if turns[0].role != "system" and reading.system is not None:
        turns.insert(0, Turn("system", reading.system))
    frames = _frames_of(data, reading, len(record.videos))
    # As in training, all pictures of a conversation share the tile limit.
    most = reading.tiles.shared_among(len(record.images)).max_tiles
    stills = iter([Shown(_picture(name, reading), most) for name in record.images])
    videos = zip(record.videos, frames, strict=True)
    films = iter([Shown(Video(_video_path(video.name, reading), number, video.clip), 1) for video, number in videos])
    shown = tuple(next(stills if tag == IMAGE_PLACEHOLDER else films) for tag in record.media())
    return Asked(Question(expand_videos(turns, frames), shown), turns[-1].text, reference)


def _read_record(data: dict[str, Any]) -> tuple[Record, bool]:
    """The record, and whether the line ends with an answer; else one is put there, which no one sees."""
    item = to_internvl(data)
    turns = item.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return parse_record(item, "internvl"), True  # says what is wrong
    turns = [{key: value for key, value in turn.items() if key not in ("loss", "weight")} for turn in turns]
    answered = not turns or turns[-1].get("from") != "human"
    if not answered:
        turns.append({"from": "gpt", "value": "-"})
    return parse_record({**item, "conversations": turns}, "internvl"), answered


# -- media ------------------------------------------------------------------------------------------------------------


def _frames_of(data: Mapping[str, Any], reading: Reading, videos: int) -> list[int]:
    """Frames of each video: one number for all, or a list of numbers."""
    said = data.get("num_segments", reading.num_segments)
    frames = said if isinstance(said, list) else [said] * videos
    if len(frames) != videos or not all(type(number) is int and number > 0 for number in frames):
        raise DataError(f"key 'num_segments' holds {show(said)}; give a number of frames, or one for each video")
    return frames


def _picture(name: str, reading: Reading) -> Picture:
    """Where it lies. It is read when its batch is due: a window of opened pictures would fill the memory."""
    medium = locate_medium(reading.root, name)
    return medium.local or medium


def _size(name: str, reading: Reading) -> tuple[int, int]:
    return read_image_size(locate_medium(reading.root, name))


def _video_path(name: str, reading: Reading) -> Any:
    medium = locate_medium(reading.root, name)
    if medium.local is None:
        raise DataError(f"video {medium.name!r} lies in an archive; unpack it to ask about it")
    return medium.local
