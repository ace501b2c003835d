"""Relaxed accuracy of ChartQA: numbers may be off by 5%."""

from __future__ import annotations

from collections.abc import Sequence

_TOLERANCE = 0.05
# Which of the two numbers the 5% are of: the original exchanges answer and gold.
RULES = ("internvl", "definition")


def relaxed(answer: str, golds: Sequence[str], rule: str = "internvl") -> float:
    """1 if the answer agrees with any gold, else 0.

    ``rule``: "definition": within 5% of the gold, as the metric is published; "internvl": within 5% of the answer, as
    the original computes it. The answer is stripped, the golds are not.
    """
    own = answer.strip()
    pairs = [(own, gold) if rule == "internvl" else (gold, own) for gold in golds]
    return float(any(_agrees(reference, other) for reference, other in pairs))


def _agrees(reference: str, other: str) -> bool:
    due, found = _number(reference), _number(other)
    if due and found is not None:
        return abs(found - due) / abs(due) <= _TOLERANCE
    return reference.lower() == other.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def chartqa_average(human: float, augmented: float) -> float:
    """ChartQA's one figure, 0 to 100, of the relaxed accuracies (0 to 1) of its two halves."""
    return (human + augmented) / 2 * 100
