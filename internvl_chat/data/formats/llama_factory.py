"""LLaMA-Factory's two shapes, sharegpt and alpaca, -> items of the InternVL format.

``columns`` are the ``columns`` and ``tags`` of its dataset_info.json in one mapping. What it does not name is looked
for under the usual keys, pictures too: LLaMA-Factory would not read them, which nobody means. Tags stay where they
stand, without a line break; that there are as many as media is checked with the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from internvl_chat.data.faults import show
from internvl_chat.data.formats.fields import (
    TAGS,
    Fields,
    Turn,
    as_text,
    conversation_item,
    is_empty,
    preference_item,
    read_turn,
    refuse_tags_elsewhere,
    wrong,
)
from internvl_chat.data.formats.messages import with_system
from internvl_chat.data.formats.swift import pairs_to_turns, read_history

# LLaMA-Factory's name of a column or tag -> what it is without ``columns``.
_COMMON = {
    "system": "system",
    "tools": "tools",
    "images": "images",
    "videos": "videos",
    "audios": "audios",
    "chosen": "chosen",
    "rejected": "rejected",
    "kto_tag": "kto_tag",
}
TAG_NAMES = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "system_tag": "system",
    "observation_tag": "observation",
    "function_tag": "function_call",
}
SHAREGPT_NAMES = {"messages": "conversations", **_COMMON, **TAG_NAMES}
ALPACA_NAMES = {"prompt": "instruction", "query": "input", "response": "output", "history": "history", **_COMMON}
# Without a tag in ``columns``, what others call the same is understood, too.
_ALSO = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
_TOOLS = ("observation_tag", "function_tag")


def sharegpt(item: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """InternVL item of ``{"conversations": [{"from", "value"}, ..], "system", "images", "videos"}``. Raises Fault.

    With ``chosen`` and ``rejected``, a message each, it is a preference pair.
    """
    names = dict(SHAREGPT_NAMES)
    if item.get("conversations") is None and item.get("messages") is not None:
        names["messages"] = "messages"
    fields = Fields(item, names, columns)
    fields.refuse_what_has_no_place()
    key = fields.key("messages")
    messages = fields.take("messages")
    if not isinstance(messages, list) or not messages:
        what = f"key {key!r} holds {show(messages)}, no turns"
        raise wrong(what, "make it a list of {'from': 'human'|'gpt', 'value': text}, or name its key in 'columns'")
    turns = [_turn(message, f"{key}[{number}]", columns) for number, message in enumerate(messages)]
    turns = with_system(turns, fields)
    answers = [
        _turn(value, f"key {fields.key(name)!r}", columns)["value"] if isinstance(value, dict) else value
        for name in ("chosen", "rejected")
        if not is_empty(value := fields.take(name))
    ]
    return _finish(fields, turns, answers)


def alpaca(item: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """InternVL item of ``{"instruction", "input", "output", "system", "history", "images"}``. Raises Fault.

    The question is the instruction, a line break and the input, without the break if one of them is empty. With
    ``chosen`` and ``rejected`` in the place of ``output`` it is a preference pair.
    """
    fields = Fields(item, ALPACA_NAMES, columns)
    fields.refuse_what_has_no_place()
    question = "\n".join(text for text in (fields.text("prompt"), fields.optional_text("query")) if text)
    answers = [value for name in ("chosen", "rejected") if not is_empty(value := fields.take(name))]
    history = read_history(fields)
    if answers:
        response = fields.optional_text("response")
        if response:
            raise wrong(f"both {fields.key('response')!r} and two answers to choose from", "keep one of the two")
        turns = pairs_to_turns(fields, [*history, (question, "")])[:-1]
    else:
        turns = pairs_to_turns(fields, [*history, (question, fields.text("response"))])
    return _finish(fields, turns, answers)


def _finish(fields: Fields, turns: list[Turn], answers: list[Any]) -> dict[str, Any]:
    """The InternVL item; ``answers``: none, or chosen and rejected."""
    media = {kind: fields.media(kind) for kind in TAGS}
    refuse_tags_elsewhere(turns, media)
    if not answers:
        return conversation_item(fields, turns, media)
    names = fields.key("chosen"), fields.key("rejected")
    if len(answers) != 2:
        raise wrong(f"only one of {names[0]!r} and {names[1]!r} is there", "give both, or none")
    chosen, rejected = (as_text(text, f"key {name!r}") for text, name in zip(answers, names, strict=True))
    return preference_item(fields, turns, (chosen, rejected), media)


def _turn(message: Any, where: str, columns: Mapping[str, str]) -> Turn:
    if not isinstance(message, dict):
        raise wrong(f"{where} is {show(message)}, not an object", "write {'from': 'human'|'gpt', 'value': text}")
    keys = _key("role_tag", message, columns), _key("content_tag", message, columns)
    for key in keys:
        if message.get(key) is None:
            raise wrong(
                f"{where} has no key {key!r}", "add it, or name what stands for it in 'columns' (role_tag, content_tag)"
            )
    role = _role(message[keys[0]], where, columns)
    content = message[keys[1]]
    if isinstance(content, list):
        raise wrong(
            f"{where}[{keys[1]!r}] is a list", "contents in parts are read by format 'openai', under 'messages'"
        )
    return read_turn(role, as_text(content, f"{where}[{keys[1]!r}]"), message, keys, where)


def _key(tag: str, message: Mapping[str, Any], columns: Mapping[str, str]) -> str:
    usual = columns.get(tag, TAG_NAMES[tag])
    return usual if tag in columns or usual in message else _ALSO[tag] if _ALSO[tag] in message else usual


def _role(value: Any, where: str, columns: Mapping[str, str]) -> str:
    roles: dict[str, str] = {}
    for tag, role in (("user_tag", "human"), ("assistant_tag", "gpt"), ("system_tag", "system")):
        words = [columns[tag]] if tag in columns else [TAG_NAMES[tag], *([_ALSO[tag]] if tag in _ALSO else [])]
        roles |= dict.fromkeys(words, role)
    if isinstance(value, str) and value in roles:
        return roles[value]
    tools = [columns.get(tag, TAG_NAMES[tag]) for tag in _TOOLS]
    why = ", a call of a tool" if value in (*tools, "tool", "function") else ""
    mend = (
        "leave the item out" if why else f"use one of {', '.join(roles)}, or name the roles in 'columns' (user_tag, ..)"
    )
    raise wrong(f"{where} has the role {show(value)}{why}", mend)
