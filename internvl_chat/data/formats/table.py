"""The formats by name, and which of them an item is in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from internvl_chat.data.faults import show
from internvl_chat.data.formats import llama_factory, messages, swift
from internvl_chat.data.formats.fields import is_empty, wrong
from internvl_chat.errors import ConfigError, nearest

Adapter = Callable[[Mapping[str, Any], Mapping[str, str]], dict[str, Any]]
_INTERNVL_NAMES = {
    key: key
    for key in ("conversations", "image", "video", "clip", "objects", "question", "chosen", "rejected", "system")
}


def internvl(item: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The item as it is (LLaVA's are the same), keys renamed as ``columns`` says. Raises Fault."""
    wanted = {user: name for name, user in columns.items() if user in item}
    for user, name in wanted.items():
        if user != name and name in item and name not in columns:
            raise wrong(f"key {name!r} is there beside {user!r}, which 'columns' gives that name", "remove one of them")
    renamed = {wanted.get(key, key): value for key, value in item.items()}
    if "conversations" in renamed:
        for key in ("system", "tools", "audios"):
            if not is_empty(renamed.get(key)):
                raise wrong(f"key {key!r} is not read in the InternVL format", "put it into the turns, or remove it")
    for key in ("image", "video"):
        if is_empty(renamed.get(key)) and not is_empty(renamed.get(f"{key}s")):
            raise wrong(f"key '{key}s' is not read in the InternVL format", f"rename it to {key!r}")
    return renamed


# Name -> adapter (item, columns) -> InternVL item.
FORMATS: Mapping[str, Adapter] = {
    "internvl": internvl,
    "openai": messages.openai,
    "swift": swift.swift,
    "sharegpt": llama_factory.sharegpt,
    "alpaca": llama_factory.alpaca,
}
# Format -> what ``columns`` may name, and the key that it has otherwise.
COLUMNS: Mapping[str, Mapping[str, str]] = {
    "internvl": _INTERNVL_NAMES,
    "openai": messages.NAMES,
    "swift": swift.NAMES,
    "sharegpt": llama_factory.SHAREGPT_NAMES,
    "alpaca": llama_factory.ALPACA_NAMES,
}
# Beside ``conversations`` they say that it is not the InternVL format, which would not read them.
_SHAREGPT_MARKS = ("images", "videos", "audios", "system", "tools", "chosen", "rejected", "kto_tag")
_STYLES = {"from": "from", "role": "role", "value": "from", "content": "role"}
_KNOWN = (
    "messages", "conversations", "query", "response", "instruction", "output", "question", "chosen", "rejected",
    "image", "images",
)  # fmt: skip


def to_internvl(
    item: dict[str, Any], format: str | None = None, columns: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The item in the InternVL format; the one given is not changed. ``format`` None: recognised from its keys.

    Raises Fault for an item that cannot be converted without loss, ConfigError for an unknown format or column.
    """
    if format is not None or columns:
        check_format(format, columns)
    return FORMATS[recognise(item) if format is None else format](item, columns or {})


def check_format(format: str | None, columns: Mapping[str, str] | None = None) -> None:
    """Raise ConfigError unless the format is known (or None, without columns) and the columns are names that it has."""
    if format is None:
        if columns:
            raise ConfigError(f"columns without a format; name the format they belong to: {', '.join(FORMATS)}")
        return
    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}{nearest(format, FORMATS)}; formats: {', '.join(FORMATS)}")
    for name, key in (columns or {}).items():
        if name not in COLUMNS[format]:
            legal = ", ".join(COLUMNS[format])
            raise ConfigError(
                f"format {format!r} has no column {name!r}{nearest(name, COLUMNS[format])}; columns: {legal}"
            )
        if not isinstance(key, str) or not key:
            raise ConfigError(f"column {name!r} must be the key that holds it, a text, not {key!r}")


def recognise(item: Mapping[str, Any]) -> str:
    """Name of the format an item is in. A key that holds null counts as absent. Raises Fault if no format has its keys.

    Where keys of several formats are there, the first of these wins:

    1. ``messages``: openai; with ``from``/``value`` turns, or ``chosen`` and ``rejected`` beside them, sharegpt.
    2. ``conversations``: internvl, the format of the house; sharegpt with ``role``/``content`` turns or a key that only
       that format reads (``images``, ``system``, ..). Lists of turns say more than single texts, which are often a
       remark on the item, so 1 and 2 go before the rest.
    3. ``question``, ``chosen`` and ``rejected``: internvl, a preference pair (in 5, ``question`` is an alias).
    4. ``instruction`` with ``output``, or with ``chosen``: alpaca. ms-swift, too, reads such items as alpaca.
    5. ``query`` or ``response``, or an alias of each: swift.
    6. ``image``, ``video``, ``chosen`` or ``rejected`` alone, or ``conversations`` or ``messages`` that hold null: the
       format of that key, whose checks say what is missing.
    """
    there = {key for key, value in item.items() if value is not None}
    if "messages" in there:
        return "sharegpt" if {"chosen", "rejected"} <= there or _style(item["messages"]) == "from" else "openai"
    if "conversations" in there:
        marks = any(not is_empty(item.get(key)) for key in _SHAREGPT_MARKS)
        return "sharegpt" if marks or _style(item["conversations"]) == "role" else "internvl"
    if {"question", "chosen", "rejected"} <= there:
        return "internvl"
    if "instruction" in there and there & {"output", "chosen"}:
        return "alpaca"
    if there & {"query", "response"} or all(there & set(swift.ALIASES[name]) for name in ("query", "response")):
        return "swift"
    if there & {"image", "video", "chosen", "rejected"} or "conversations" in item:
        return "internvl"
    if "messages" in item:
        return "openai"
    raise _unknown(item)


def _style(turns: Any) -> str | None:
    """Whether the first turn is written with "role" (and content) or "from" (and value); None if that is open."""
    first = turns[0] if isinstance(turns, list) and turns else None
    if not isinstance(first, dict):
        return None
    return next((style for key, style in _STYLES.items() if key in first), None)


def _unknown(item: Mapping[str, Any]) -> Exception:
    keys = f"the keys {show(sorted(item))}" if item else "no keys"
    near = next(
        ((key, like[0]) for key in sorted(item) if (like := get_close_matches(key, _KNOWN, n=1)) and like[0] != key),
        None,
    )
    mend = f"rename {show(near[0])} to {near[1]!r}" if near else "write it in one of these"
    return wrong(f"an item with {keys} is of no known format", f"{mend}; formats: {', '.join(FORMATS)}")
