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


def is_on(flags: dict[str, Any], name: str) -> bool:
    """Whether the flag is given with a value that asks for something."""
    return str(flags.get(name, "")).lower() not in ("", "false", "no", "0", "none")
