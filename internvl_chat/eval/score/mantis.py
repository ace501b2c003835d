"""Mantis-Eval: several pictures; options by letter, and short answers."""

from __future__ import annotations

from collections.abc import Sequence

MULTI_CHOICE = "multi-choice"


def is_right(answer: str, kind: str, gold: str, options: Sequence[str]) -> bool:
    """Whether the answer is right.

    ``kind``: "multi-choice" (the letter, "(letter)" or the whole option, which is found by the letter's place in the
    alphabet; case counts), or "short-answer" (equality, case ignored). An empty answer is right where the gold is.
    """
    if kind != MULTI_CHOICE:
        return answer.lower() == gold.lower()
    place = ord(gold) - ord("A") if len(gold) == 1 else -1
    whole = options[place : place + 1] if place >= 0 else []
    return answer in (gold, f"({gold})", *whole)
