"""OpenAI ``messages``, and ms-swift's items of that shape, -> items of the InternVL format.

Pictures are either parts of a content (each becomes ``<image>`` and a line break at its place) or a list beside the
messages, taken by ``<image>`` tags in the texts, which stay where they are. A list without any tag goes before the
LAST question, as ms-swift does it. Parts without a source ({"type": "image"}) take from the list, in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from internvl_chat.data.faults import show
from internvl_chat.data.formats.fields import (
    BREAKS,
    TAGS,
    Fields,
    Turn,
    as_text,
    conversation_item,
    is_empty,
    media_path,
    preference_item,
    put_tags_last,
    read_turn,
    wrong,
)

# What columns may rename -> the usual key.
NAMES = {
    "messages": "messages",
    "system": "system",
    "images": "images",
    "videos": "videos",
    "objects": "objects",
    "rejected_response": "rejected_response",
}
ROLES = {"user": "human", "assistant": "gpt", "system": "system", "developer": "system"}
# Type of a part -> kind, and the keys that may hold it.
_PARTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "text": ("text", ("text",)),
    "input_text": ("text", ("text",)),
    "output_text": ("text", ("text",)),
    "image": ("image", ("image", "url", "path", "image_url")),
    "image_url": ("image", ("image_url", "url")),
    "input_image": ("image", ("image_url",)),
    "video": ("video", ("video", "url", "path", "video_url")),
    "video_url": ("video", ("video_url", "url")),
}
# How finely to look or sample is set for the whole run here.
_HINTS = (
    "type", "index", "detail", "uuid", "format", "cache_control", "min_pixels", "max_pixels", "total_pixels",
    "resized_height", "resized_width", "fps", "nframes", "min_frames", "max_frames",
)  # fmt: skip


class _Parts:
    """Media of the parts in order, None where the list beside the messages is meant; and tags written as text."""

    def __init__(self) -> None:
        self.media: dict[str, list[str | None]] = {kind: [] for kind in TAGS}
        self.written: dict[str, bool] = dict.fromkeys(TAGS, False)


def openai(item: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """InternVL item of ``{"messages": [{"role", "content"}, ..], "images": [..], "videos": [..]}``. Raises Fault.

    With ms-swift's ``rejected_response`` it is a preference pair, whose chosen answer is the last message.
    """
    fields, parts = Fields(item, NAMES, columns), _Parts()
    fields.refuse_what_has_no_place()
    key = fields.key("messages")
    messages = fields.take("messages")
    if not isinstance(messages, list) or not messages:
        shape = "a list of {'role': 'user'|'assistant', 'content': text}"
        raise wrong(f"key {key!r} holds {show(messages)}, no messages", f"make it {shape}")
    turns = [_turn(message, f"{key}[{number}]", parts) for number, message in enumerate(messages)]
    turns = with_system(turns, fields)
    media = {kind: _match(kind, parts, fields.media(kind)) for kind in TAGS}
    turns = put_tags_last(turns, media)
    if not fields.has("rejected_response"):
        return conversation_item(fields, turns, media)
    rejected = fields.text("rejected_response")
    if turns[-1]["from"] != "gpt":
        raise wrong("the messages do not end with the chosen answer", "add it, or remove 'rejected_response'")
    return preference_item(fields, turns[:-1], (turns[-1]["value"], rejected), media)


def with_system(turns: list[Turn], fields: Fields) -> list[Turn]:
    """The turns behind the system message that stands beside them, if there is one. Raises Fault if there are two."""
    system = fields.optional_text("system")
    if not system:  # an empty one is no message; the template's own is meant
        return turns
    if turns and turns[0]["from"] == "system":
        if turns[0]["value"] != system:
            raise wrong(f"two system messages, one of them under key {fields.key('system')!r}", "keep one of them")
        return turns
    return [{"from": "system", "value": system}, *turns]


def _turn(message: Any, where: str, parts: _Parts) -> Turn:
    if not isinstance(message, dict):
        raise wrong(f"{where} is {show(message)}, not an object", "write {'role': 'user'|'assistant', 'content': text}")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        why = "no key 'role'" if role is None else f"the role {show(role)}"
        raise wrong(f"{where} has {why}", f"use one of {', '.join(ROLES)}; tools have no place in the InternVL format")
    content = message.get("content")
    if content is None:
        raise wrong(f"{where} has no content (a call of a tool?)", "give a text, or leave the item out")
    if isinstance(content, list):
        text = _join(content, f"{where}['content']", ROLES[role], parts)
    else:
        text = as_text(content, f"{where}['content']")
        _note_tags(text, ROLES[role], parts)
    return read_turn(ROLES[role], text, message, ("role", "content"), where)


def _note_tags(text: str, role: str, parts: _Parts) -> None:
    if role == "human":  # elsewhere a tag is a word
        for kind, tag in TAGS.items():
            parts.written[kind] |= tag in text


def _join(content: list[Any], where: str, role: str, parts: _Parts) -> str:
    """Texts one after the other; a tag and a line break for each picture or video, unless a line break follows."""
    pieces: list[tuple[str, str]] = []
    for number, part in enumerate(content):
        kind, value = _read_part(part, f"{where}[{number}]", parts)
        if kind == "text":
            _note_tags(value, role, parts)
        elif role != "human":
            raise wrong(
                f"{where}[{number}], a part with {kind}, is outside a question", f"put {kind}s into user messages"
            )
        if kind != "text" or value:
            pieces.append((kind, value))
    texts = [value if kind == "text" else TAGS[kind] for kind, value in pieces]
    return "".join(
        text if kind == "text" or after.startswith(BREAKS) else f"{text}\n"
        for (kind, _), text, after in zip(pieces, texts, [*texts[1:], ""], strict=False)
    )


def _read_part(part: Any, where: str, parts: _Parts) -> tuple[str, str]:
    """(kind, text); media are noted in ``parts``."""
    if isinstance(part, str):
        return "text", part
    if not isinstance(part, dict):
        raise wrong(f"{where} is {show(part)}", "write {'type': 'text', 'text': text} or {'type': 'image_url', ..}")
    part = {key: value for key, value in part.items() if value is not None}
    named = part.get("type", next((key for key in part if key in _PARTS), None))
    if not isinstance(named, str) or named not in _PARTS:
        mend = "parts can be text, image, image_url, video and video_url; leave items with others out"
        raise wrong(f"{where} is of type {show(named)}", mend)
    kind, keys = _PARTS[named]
    told = [key for key in keys if key in part]
    strange = [key for key in part if key not in (*told, *_HINTS)]
    if strange or len(told) > 1:
        what = f"key {strange[0]!r}" if strange else f"both {told[0]!r} and {told[1]!r}"
        raise wrong(
            f"{where}, a part of type {named!r}, has {what}", "remove it; it has no place in the InternVL format"
        )
    if kind == "text":
        return kind, as_text(part.get("text"), f"{where}['text']")
    media = parts.media[kind]
    if not told and part.get("index", len(media)) != len(media):
        raise wrong(f"{where} has the index {show(part['index'])}, out of order", f"list the {kind}s in reading order")
    media.append(media_path(part[told[0]], f"{where}[{told[0]!r}]") if told else None)
    return kind, ""


def _match(kind: str, parts: _Parts, listed: list[str]) -> list[str]:
    """Paths of a kind in reading order, from the parts or from the list beside the messages."""
    own = parts.media[kind]
    if not own:
        return listed
    if parts.written[kind]:
        what = f"{TAGS[kind]} is written in a question while {kind}s come as parts of the content"
        raise wrong(what, "remove the tag from the text")
    paths = [path for path in own if path is not None]
    if len(paths) == len(own) and is_empty(listed):
        return paths
    if paths or len(listed) != len(own):
        what = f"parts with {kind}: {len(own)}, {len(paths)} of them with a path; paths in '{kind}s': {len(listed)}"
        raise wrong(what, f"name each {kind} once: all in the parts, or all in '{kind}s'")
    return listed
