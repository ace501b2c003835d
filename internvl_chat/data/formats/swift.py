"""ms-swift's ``query``/``response`` items -> items of the InternVL format.

A line break follows each tag, as ms-swift writes it. Media without any tag go before the last question. ``objects`` and
their tags in the text are passed on as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from internvl_chat.data.faults import show
from internvl_chat.data.formats.fields import (
    TAGS,
    Fields,
    Turn,
    as_text,
    break_after_tags,
    conversation_item,
    count_tags,
    media_path,
    preference_item,
    put_tags_last,
    wrong,
)
from internvl_chat.data.formats.messages import with_system

NAMES = {
    "query": "query",
    "response": "response",
    "history": "history",
    "system": "system",
    "images": "images",
    "videos": "videos",
    "objects": "objects",
    "rejected_response": "rejected_response",
}
# Other keys that ms-swift reads as these.
ALIASES = {
    "query": ("prompt", "input", "instruction", "question", "problem"),
    "response": (
        "answer", "output", "targets", "target", "answer_key", "answers", "solution", "text", "completion", "content",
    ),
    "system": ("system_prompt",),
}  # fmt: skip
_BOTH_WAYS = "pictures are given both as <img>path</img> and in a list or with <image>"
_PATH_TAG = re.compile(r"<img>((?:(?!<img>).)*?)</img>", re.S)


def swift(item: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """InternVL item of ``{"query", "response", "history": [[query, response], ..], "images", ..}``. Raises Fault.

    With ``rejected_response`` it is a preference pair.
    """
    fields = Fields(item, NAMES, {**find_aliases(item, columns), **columns})
    fields.refuse_what_has_no_place()
    query, response, rejected = fields.text("query"), fields.text("response"), fields.optional_text("rejected_response")
    turns = pairs_to_turns(fields, [*read_history(fields), (query, response)])
    media = {kind: fields.media(kind) for kind in TAGS}
    turns, inline = _take_path_tags(turns)
    if inline and media["image"]:
        raise wrong(_BOTH_WAYS, "use one of the two ways")
    media["image"] = media["image"] or inline
    turns = put_tags_last([_with_breaks(turn, media) for turn in turns], media)
    if rejected is None:
        return conversation_item(fields, turns, media)
    return preference_item(fields, turns[:-1], (response, rejected), media)


def find_aliases(item: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """name -> the one other key of the item that stands for it; nothing where the usual key, or ``columns``, is there.

    Raises Fault if several keys could be meant.
    """
    found = {}
    for name, aliases in ALIASES.items():
        if name in columns or item.get(name) is not None:
            continue
        there = [key for key in aliases if item.get(key) is not None]
        if len(there) > 1:
            what = f"keys {', '.join(map(repr, there))} can all be the {name}"
            raise wrong(what, f"rename the right one to {name!r}, or name it in 'columns'")
        if there:
            found[name] = there[0]
    return found


def read_history(fields: Fields) -> list[tuple[str, str]]:
    """Earlier (question, answer) pairs: a list of lists of two texts, or that as a JSON string. Raises Fault."""
    key, history = fields.key("history"), fields.take("history")
    if isinstance(history, str) and history:
        try:
            history = json.loads(history)
        except (ValueError, RecursionError) as error:
            raise wrong(
                f"key {key!r} is a text, but not JSON ({error})", "make it a list of [query, response]"
            ) from error
    pairs = history or []
    if not isinstance(pairs, list):
        raise wrong(f"key {key!r} holds {show(pairs)}", "make it a list of [query, response]")
    for number, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise wrong(f"{key}[{number}] is {show(pair)}", "write [query, response]")
        for text in pair:
            as_text(text, f"{key}[{number}]")
    return [(query, response) for query, response in pairs]


def pairs_to_turns(fields: Fields, pairs: Sequence[tuple[str, str]]) -> list[Turn]:
    """The system message, if there is one, and a human and a gpt turn for each (question, answer). Raises Fault."""
    roles = ("human", "gpt")
    turns = [{"from": role, "value": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]
    return with_system(turns, fields)


def _take_path_tags(turns: Sequence[Turn]) -> tuple[list[Turn], list[str]]:
    """Turns with ``<image>`` for each ``<img>path</img>`` of the questions, and the paths in reading order."""
    paths: list[str] = []
    changed: list[Turn] = []
    for turn in turns:
        found = _PATH_TAG.findall(turn["value"])
        if found and turn["from"] != "human":
            raise wrong(f"<img>{show(found[0])}</img> stands outside a question", "put pictures into questions")
        paths += [media_path(path.strip(), "<img>") for path in found]
        changed.append({**turn, "value": _PATH_TAG.sub(TAGS["image"], turn["value"])} if found else turn)
    if paths and count_tags(turns, TAGS["image"]):
        raise wrong(_BOTH_WAYS, "use one of the two ways")
    return changed, paths


def _with_breaks(turn: Turn, media: Mapping[str, Sequence[str]]) -> Turn:
    text = turn["value"]
    for kind, paths in media.items():
        if paths and turn["from"] == "human":
            text = break_after_tags(text, TAGS[kind])
    return {**turn, "value": text}
