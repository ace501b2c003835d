"""Mantis-Eval: several pictures; options by letter, and short answers."""

from __future__ import annotations

from collections.abc import Sequence

MULTI_CHOICE = "multi-choice"


def is_right(answer: str, kind: str, gold: str, options: Sequence[str]) -> bool:
    """Whether the answer is right.

    ``kind``: "multi-choice" (the letter, "(letter)" or the whole option, which begins with "(letter)"; case counts), or
    "short-answer" (equality, case ignored). "" is never right.
    """
    if not answer:
        return False
    if kind != MULTI_CHOICE:
        return answer.lower() == gold.lower()
    whole = [option for option in options if option.startswith(f"({gold})")]
    return answer in (gold, f"({gold})", *whole)
