"""Errors that a user can cause. Each ends in one message that says where, what and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InternVLError(Exception):
    """Base of all errors meant for a user: the command line prints them without a traceback."""


class ConfigError(InternVLError):
    """A flag, a manifest key or a model folder that cannot be used."""


class DataError(InternVLError):
    """The data set as a whole cannot be used (too many faults, missing file, stale index)."""


class CheckpointError(InternVLError):
    """A model folder or checkpoint that is incomplete, of another flavour or does not fit."""


class LaunchError(InternVLError):
    """The processes of a run did not find each other."""


def nearest(word: str, legal: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the closest legal word, or an empty string."""
    match = difflib.get_close_matches(word, list(legal), n=1, cutoff=0.6)
    return f"; did you mean {match[0]!r}?" if match else ""


def first_line(error: BaseException) -> str:
    """What a library's error says, without the pages that may follow; its class, if it says nothing."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text.removeprefix(f"[Errno {error.errno}] ") if isinstance(error, OSError) else text
