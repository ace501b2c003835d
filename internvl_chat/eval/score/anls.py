"""ANLS: average normalised Levenshtein similarity of answers to questions on documents."""

from __future__ import annotations

from collections.abc import Sequence

from internvl_chat.errors import DataError

# Less likeness than this counts nothing.
_LEAST = 0.5


def levenshtein(first: str, second: str) -> int:
    """Least number of characters to insert, delete or replace to make one text of the other."""
    if len(first) < len(second):
        first, second = second, first
    row = list(range(len(second) + 1))
    for i, own in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (own != other))
    return row[-1]


def anls(answer: str, golds: Sequence[str]) -> float:
    """Likeness of an answer to the gold next to it, 0 to 1; 0 below one half.

    The distance is that of cleaned texts, its divisor the length of the raw ones, as in the original. Raises DataError
    without golds, and for an answer that is no text.
    """
    if not isinstance(answer, str):
        raise DataError(f"answer {str(answer)[:40]!r}: a single text is expected")
    if not golds:
        raise DataError("a question without any right answer; check the annotation file")
    likeness = 1 - min(_ratio(answer, gold) for gold in golds)
    return likeness if likeness >= _LEAST else 0.0


def _ratio(answer: str, gold: str) -> float:
    longest = max(len(gold.upper()), len(answer.upper()))
    return levenshtein(_clean(gold), _clean(answer)) / longest if longest else 0.0


def _clean(text: str) -> str:
    return " ".join(text.strip().lower().split())
