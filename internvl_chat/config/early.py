"""Flags that are needed before all flags are parsed and checked; imports nothing that takes time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

_LONGEST_S = 1e8


def flag_of(argv: Sequence[str], name: str) -> str | None:
    """Last value of a flag among the words of a command line, or in the JSON file of flags that it begins with.

    For what is needed before all flags are parsed and checked; None if it is not given, or cannot be read.
    """
    found: str | None = None
    if argv and argv[0].endswith(".json"):
        try:
            value = json.loads(Path(argv[0]).read_text(encoding="utf-8-sig")).get(name)
        except (OSError, ValueError, AttributeError):
            value = None  # the parser will say what is wrong with it
        found = None if value is None or value == "" else str(value)
    for word, following in pairwise([*argv, ""]):
        flag, equals, value = word.partition("=")
        if flag.replace("-", "_") == f"__{name}":
            found = value if equals else following
    return found


def seconds_of(argv: Sequence[str], name: str, default: float) -> float:
    """A flag in seconds, before all flags are checked; the rules report what is no number."""
    try:
        found = float(flag_of(argv, name) or default)
    except ValueError:
        return default
    return found if 0 < found < _LONGEST_S else default
