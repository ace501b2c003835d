"""A line of an annotation, in any format -> Record, checked and typed. Every way it can be wrong has a sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal

from internvl_chat.constants import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from internvl_chat.data.boxes import Objects, fill_in_boxes, read_objects
from internvl_chat.data.faults import Fault, FaultCode, check_text, show
from internvl_chat.data.formats.table import to_internvl

Role = Literal["system", "human", "gpt"]
ROLES: tuple[Role, ...] = ("system", "human", "gpt")
_SHAPE = "a list of {'from': 'human'|'gpt', 'value': text}"
# What other tools write instead.
_ALIASES = {"from": ("role", "From", "speaker"), "value": ("text", "content", "Value", "message")}
_ROLE_ALIASES = {"user": "human", "assistant": "gpt", "human": "human", "gpt": "gpt", "system": "system"}
_PREFERENCE = ("question", "chosen", "rejected")
_MEDIA_TAGS = re.compile(f"{re.escape(IMAGE_PLACEHOLDER)}|{re.escape(VIDEO_PLACEHOLDER)}")


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. Pictures and videos stand in human turns as ``<image>`` and ``<video>``, in order.

    ``supervised``: whether an answer is trained on.
    """

    role: Role
    text: str
    supervised: bool = True


@dataclass(frozen=True, slots=True)
class Video:
    """A video file, GIF or folder of frames; ``clip``: the part of it, (start, end) in seconds, as the line says."""

    name: str
    clip: Any = None


@dataclass(frozen=True, slots=True)
class Record:
    """What a line says: an optional system turn, then human and gpt in turn, ending with gpt.

    ``sizes``: (width, height) of each picture in pixels, where the line gives them.
    """

    turns: tuple[Turn, ...]
    images: tuple[str, ...] = ()
    videos: tuple[Video, ...] = ()
    objects: Objects | None = None
    sizes: tuple[tuple[int, int], ...] | None = None

    def media(self) -> list[str]:
        """``<image>`` and ``<video>`` in reading order."""
        return [tag for turn in self.turns if turn.role == "human" for tag in _MEDIA_TAGS.findall(turn.text)]


def parse_record(
    line: bytes | str | dict[str, Any], format: str | None = None, columns: Mapping[str, str] | None = None
) -> Record:
    """Record of one line, or of an item that is parsed already. ``format`` None: recognised from its keys.

    Raises Fault with the reason and the mend.
    """
    data = to_internvl(line if isinstance(line, dict) else parse_json(line), format, columns)
    _refuse_preference(data)
    images, videos = _read_paths(data, "image"), _read_videos(data)
    turns = _read_turns(data)
    for tag, key, media in ((IMAGE_PLACEHOLDER, "image", images), (VIDEO_PLACEHOLDER, "video", videos)):
        alone = isinstance(data.get(key), str) and len(images) + len(videos) == 1
        if media and alone and not _count(turns, tag):
            turns = _put_first(turns, tag)
        if _count(turns, tag) != len(media):
            raise Fault(
                FaultCode.PLACEHOLDERS,
                f"{_count(turns, tag)} {tag} in the human turns but {len(media)} "
                f"{'pictures' if key == 'image' else 'videos'} in {key!r}",
                f"write {tag} once per {'picture' if key == 'image' else 'video'}, in human turns",
            )
    objects = read_objects(data["objects"]) if data.get("objects") else None
    return Record(turns, images, videos, objects, _read_sizes(data, len(images)))


def resolve_boxes(record: Record, sizes: Sequence[tuple[int, int]]) -> Record:
    """The record with its boxes written into the turns. ``sizes``: (width, height) of each picture. Raises Fault."""
    if record.objects is None:
        return record
    texts = fill_in_boxes([turn.text for turn in record.turns], record.objects, sizes)
    turns = tuple(replace(turn, text=text) for turn, text in zip(record.turns, texts, strict=True))
    return replace(record, turns=turns, objects=None)


def expand_videos(turns: Sequence[Turn], frames: Sequence[int]) -> tuple[Turn, ...]:
    """Turns in which each ``<video>`` is as many labelled ``<image>`` lines as ``frames`` says, in order.

    The labels are the series': ``Frame-1: <image>`` and so on, a line each; the line break behind the tag is theirs.
    """
    counts = iter(frames)

    def lines(_: re.Match[str]) -> str:
        return "".join(f"Frame-{number}: {IMAGE_PLACEHOLDER}\n" for number in range(1, next(counts) + 1))

    pattern = re.compile(re.escape(VIDEO_PLACEHOLDER) + "\n?")
    return tuple(replace(t, text=pattern.sub(lines, t.text)) if t.role == "human" else t for t in turns)


def parse_json(line: bytes | str) -> dict[str, Any]:
    """The object that a line holds. Raises Fault."""
    try:
        text = line.decode("utf-8") if isinstance(line, bytes) else line
        data = json.loads(text)
    except UnicodeDecodeError as error:
        raise Fault(FaultCode.NOT_JSON, f"not UTF-8 ({error.reason})", "save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:  # plain ValueError: a number of thousands of digits
        what = "blank line" if not text.strip() else f"not JSON ({error})"
        mend = "write one JSON object per line (JSONL), no line breaks in it"
        raise Fault(FaultCode.NOT_JSON, what, mend) from error
    if not isinstance(data, dict):
        raise Fault(
            FaultCode.NOT_JSON, f"a JSON {type(data).__name__}, not an object", "write one JSON object per line (JSONL)"
        )
    return data


def is_preference(data: Mapping[str, Any]) -> bool:
    """Whether a canonical item is a pair of answers to prefer between."""
    return all(key in data for key in _PREFERENCE)


def _refuse_preference(data: Mapping[str, Any]) -> None:
    if is_preference(data):
        raise Fault(
            FaultCode.UNSUPPORTED,
            "a preference pair (question, chosen, rejected)",
            "preference training is not available in this version yet; keep such lines in a file of their own",
        )


def _read_paths(data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = data.get(key)
    if value is None or value == "":
        return ()
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise Fault(FaultCode.CONVERSATIONS, f"key {key!r} holds {show(value)}", "give a path or a list of paths")
    for path in paths:
        check_text(f"key {key!r}", path)
    return tuple(paths)


def _read_videos(data: Mapping[str, Any]) -> tuple[Video, ...]:
    names, clip = _read_paths(data, "video"), data.get("clip")
    if clip is None or not names:
        return tuple(Video(name) for name in names)
    clips = clip if len(names) > 1 else [clip]
    if not isinstance(clips, list) or len(clips) != len(names):
        what = f"key 'clip' holds {show(clip)} for {len(names)} videos"
        raise Fault(FaultCode.CLIP, what, "give a [start, end] in seconds for each")
    return tuple(Video(name, part) for name, part in zip(names, clips, strict=True))


def _read_sizes(data: Mapping[str, Any], images: int) -> tuple[tuple[int, int], ...] | None:
    """The declared picture sizes, if there is a sane one for every picture; else they come from the pictures."""
    widths, heights = data.get("width_list", data.get("width")), data.get("height_list", data.get("height"))
    if not isinstance(widths, list) and not isinstance(heights, list):
        widths, heights = [widths], [heights]
    if not isinstance(widths, list) or not isinstance(heights, list) or not len(widths) == len(heights) == images > 0:
        return None
    if not all(type(side) is int and 0 < side < 2**31 for side in (*widths, *heights)):
        return None
    return tuple(zip(widths, heights, strict=True))


def _read_turns(data: Mapping[str, Any]) -> tuple[Turn, ...]:
    if "conversations" not in data:
        like = get_close_matches("conversations", data, n=1)
        mend = f"rename {like[0]!r} to it" if like else f"add it, {_SHAPE}"
        raise Fault(FaultCode.CONVERSATIONS, "key 'conversations' is missing", mend)
    conversations = data["conversations"]
    if not isinstance(conversations, list) or not conversations:
        raise Fault(FaultCode.CONVERSATIONS, "key 'conversations' holds no turns", f"make it {_SHAPE}")
    turns = tuple(_read_turn(number, turn) for number, turn in enumerate(conversations))
    _check_order(turns)
    if not any(turn.supervised for turn in turns if turn.role == "gpt"):
        what = "'loss' is off for every answer, so there is nothing to learn"
        raise Fault(FaultCode.NOTHING_SUPERVISED, what, "switch it on for one, or remove the line")
    return turns


def _read_turn(number: int, turn: Any) -> Turn:
    where = f"conversations[{number}]"
    if not isinstance(turn, dict):
        raise Fault(FaultCode.TURN, f"{where} is not an object", "write {'from': 'human'|'gpt', 'value': text}")
    for key in ("from", "value"):
        if key not in turn:
            other = next((name for name in _ALIASES[key] if name in turn), None)
            mend = f"rename {other!r} to {key!r}" if other else f"add {key!r}"
            raise Fault(FaultCode.TURN, f"{where} has no key {key!r}", mend)
    if not isinstance(turn["value"], str):
        raise Fault(FaultCode.TURN, f"{where}['value'] is {show(turn['value'])}, not a text", "give a text in quotes")
    if turn["from"] not in ROLES:
        alias = _ROLE_ALIASES.get(str(turn["from"]).lower())
        mend = f"write {alias!r}" if alias else f"use one of {', '.join(ROLES)}"
        raise Fault(FaultCode.TURN, f"{where}['from'] is {show(turn['from'])}", mend)
    loss = turn.get("loss", turn.get("weight"))  # OpenAI's name for it
    if loss not in (None, True, False) or (loss and turn["from"] != "gpt"):
        mend = "give true or false, in gpt turns"
        raise Fault(FaultCode.TURN, f"{where}['loss'] is {show(loss)} in a {turn['from']} turn", mend)
    check_text(f"{where}['value']", turn["value"])
    return Turn(turn["from"], turn["value"], loss is None or bool(loss))


def _check_order(turns: tuple[Turn, ...]) -> None:
    start = 1 if turns[0].role == "system" else 0
    for number, turn in enumerate(turns[start:], start):
        expected = "human" if (number - start) % 2 == 0 else "gpt"
        if turn.role != expected:
            raise Fault(
                FaultCode.TURN_ORDER,
                f"conversations[{number}] is a {turn.role} turn where {expected} is due",
                "let human and gpt alternate, human first, one system turn at most, at the start",
            )
        if turn.role == "gpt" and not turn.text.strip():
            where = f"conversations[{number}]"
            raise Fault(FaultCode.EMPTY_ANSWER, f"{where} is an empty answer", "write one or remove the turns")
    if turns[-1].role != "gpt":
        raise Fault(FaultCode.TURN_ORDER, "the conversation does not end with a gpt turn", "add the answer")


def _count(turns: Sequence[Turn], tag: str) -> int:
    return sum(turn.text.count(tag) for turn in turns if turn.role == "human")


def _put_first(turns: tuple[Turn, ...], tag: str) -> tuple[Turn, ...]:
    """A single picture or video without a tag stands before the first question (never inside a system turn)."""
    first = next(number for number, turn in enumerate(turns) if turn.role == "human")
    return (*turns[:first], Turn("human", f"{tag}\n{turns[first].text}"), *turns[first + 1 :])
