"""What a rule over the flags is, and how rules read them: as given, which may be nonsense."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rule = Callable[[dict[str, Any]], "str | None"]


def value_of(flags: dict[str, Any], name: str, default: float) -> float:
    try:
        return float(flags.get(name, default))
    except (TypeError, ValueError):
        return default  # the number rule reports it


def is_true(flags: dict[str, Any], name: str) -> bool:
    return str(flags.get(name, False)).lower() in ("true", "1", "yes", "t", "y")


def is_off(value: Any) -> bool:
    """Whether a value asks for nothing: a word for no, zero, or nothing at all."""
    text = str(value).strip().lower()
    if text in ("", "false", "f", "no", "n", "none", "[]", "{}"):
        return True
    try:
        return float(text) == 0
    except ValueError:
        return False


def is_on(flags: dict[str, Any], name: str) -> bool:
    """Whether the flag is given with a value that asks for something."""
    return not is_off(flags.get(name, ""))


def names_of(value: Any) -> list[str]:
    """The names in a list, or in a text with commas between them."""
    words = value if isinstance(value, list) else str(value).split(",")
    return [name for word in words if (name := str(word).strip())]
