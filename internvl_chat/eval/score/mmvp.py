"""MMVP: two pictures that look alike to CLIP, the same question; both answers have to be right."""

from __future__ import annotations

from collections.abc import Sequence


def pair_accuracy(numbers: Sequence[int], marks: Sequence[bool]) -> float:
    """Share of pairs with both right. ``numbers``: of the questions, from 1; 2k - 1 and 2k are a pair.

    A question without its partner is left out; 0 without any pair.
    """
    right = dict(zip(numbers, marks, strict=True))
    pairs = whole_pairs(numbers)
    return sum(right[number] and right[number + 1] for number in pairs) / len(pairs) if pairs else 0.0


def whole_pairs(numbers: Sequence[int]) -> list[int]:
    """The odd numbers of which the next one is there, too."""
    known = set(numbers)
    return [number for number in numbers if number % 2 and number + 1 in known]
