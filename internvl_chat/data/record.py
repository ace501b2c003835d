"""One JSONL line of the InternVL format -> Record, checked and typed. Every way a line can be wrong has a sentence."""

from __future__ import annotations

import json
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from internvl_chat.constants import IMAGE_PLACEHOLDER
from internvl_chat.data.faults import Fault, FaultCode

Role = Literal["system", "human", "gpt"]
ROLES: tuple[Role, ...] = ("system", "human", "gpt")
_SHAPE = "a list of {'from': 'human'|'gpt', 'value': text}"
# What other tools write instead.
_ALIASES = {"from": ("role", "From", "speaker"), "value": ("text", "content", "Value", "message")}
_ROLE_ALIASES = {"user": "human", "assistant": "gpt", "human": "human", "gpt": "gpt", "system": "system"}


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. Pictures stand in human turns as ``<image>``, in the order of ``Record.images``."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Record:
    """What a line says: an optional system turn, then human and gpt in turn, ending with gpt."""

    turns: tuple[Turn, ...]
    images: tuple[str, ...] = ()


def parse_record(line: bytes | str) -> Record:
    """Record of one line. Raises Fault with the reason and the mend."""
    data = _parse_json(line)
    images = _read_images(data)
    turns = _read_turns(data)
    if isinstance(data.get("image"), str) and images and not _count_placeholders(turns):
        turns = _put_placeholder_first(turns)
    tags = _count_placeholders(turns)
    if tags != len(images):
        raise Fault(
            FaultCode.PLACEHOLDERS,
            f"{tags} {IMAGE_PLACEHOLDER} in the human turns but {len(images)} pictures in 'image'",
            f"write {IMAGE_PLACEHOLDER} once per picture, in human turns",
        )
    return Record(turns, images)


def _parse_json(line: bytes | str) -> dict[str, Any]:
    try:
        text = line.decode("utf-8") if isinstance(line, bytes) else line
        data = json.loads(text)
    except UnicodeDecodeError as error:
        raise Fault(FaultCode.NOT_JSON, f"not UTF-8 ({error.reason})", "save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:  # plain ValueError: a number of thousands of digits
        what = "blank line" if not text.strip() else f"not JSON ({error})"
        mend = "write one JSON object per line (JSONL), no array, no line breaks"
        raise Fault(FaultCode.NOT_JSON, what, mend) from error
    if not isinstance(data, dict):
        raise Fault(
            FaultCode.NOT_JSON, f"a JSON {type(data).__name__}, not an object", "write one JSON object per line (JSONL)"
        )
    return data


def _show(value: Any) -> str:
    """A value for a message: its start, if it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _check_text(where: str, text: str) -> None:
    """Raise Fault for half a surrogate pair (an emoji cut in two), which no tokenizer and no file system takes."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            what = f"{where} holds half a character ({text[error.start]!a})"
            raise Fault(FaultCode.TURN, what, "write it whole or remove it") from error


def _read_images(data: dict[str, Any]) -> tuple[str, ...]:
    if data.get("video"):
        raise Fault(FaultCode.UNSUPPORTED, "key 'video' is not read yet", "remove the line, or give frames as 'image'")
    value = data.get("image")
    if value is None or value == "":
        return ()
    images = [value] if isinstance(value, str) else value
    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        raise Fault(FaultCode.CONVERSATIONS, f"key 'image' holds {_show(value)}", "give a path or a list of paths")
    for image in images:
        _check_text("key 'image'", image)
    return tuple(images)


def _read_turns(data: dict[str, Any]) -> tuple[Turn, ...]:
    if "conversations" not in data:
        like = get_close_matches("conversations", data, n=1)
        mend = f"rename {like[0]!r} to it" if like else f"add it, {_SHAPE}"
        raise Fault(FaultCode.CONVERSATIONS, "key 'conversations' is missing", mend)
    conversations = data["conversations"]
    if not isinstance(conversations, list) or not conversations:
        raise Fault(FaultCode.CONVERSATIONS, "key 'conversations' holds no turns", f"make it {_SHAPE}")
    turns = tuple(_read_turn(number, turn) for number, turn in enumerate(conversations))
    _check_order(turns)
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
        raise Fault(FaultCode.TURN, f"{where}['value'] is {_show(turn['value'])}, not a text", "give a text in quotes")
    if turn["from"] not in ROLES:
        alias = _ROLE_ALIASES.get(str(turn["from"]).lower())
        mend = f"write {alias!r}" if alias else f"use one of {', '.join(ROLES)}"
        raise Fault(FaultCode.TURN, f"{where}['from'] is {_show(turn['from'])}", mend)
    _check_text(f"{where}['value']", turn["value"])
    return Turn(turn["from"], turn["value"])


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


def _count_placeholders(turns: tuple[Turn, ...]) -> int:
    return sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns if turn.role == "human")


def _put_placeholder_first(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """A single picture without a tag stands before the first question (never inside a system turn)."""
    first = next(number for number, turn in enumerate(turns) if turn.role == "human")
    tagged = Turn("human", f"{IMAGE_PLACEHOLDER}\n{turns[first].text}")
    return (*turns[:first], tagged, *turns[first + 1 :])
