"""Exact match: AI2D and OCR-VQA, and GQA with its own clean-up."""

from __future__ import annotations

from collections.abc import Sequence


def exact(answer: str, golds: Sequence[str]) -> float:
    """1 if the answer is one of the golds but for case and blanks at both ends, else 0."""
    return float(answer.strip().lower() in [gold.strip().lower() for gold in golds])


def gqa_answer(answer: str) -> str:
    """An answer as GQA's own scorer gets it: lower case, without periods at its end; blanks stay."""
    return answer.rstrip(".").lower()


def gqa(answer: str, gold: str) -> float:
    """1 if the cleaned answer equals the gold exactly, else 0."""
    return float(gqa_answer(answer) == gold)
