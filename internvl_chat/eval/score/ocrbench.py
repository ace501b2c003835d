"""OCRBench: a point for every answer that contains a right one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

FORMULAS = "Handwritten Mathematical Expression Recognition"
_RECOGNITION = "Text Recognition"
GROUPS: Mapping[str, tuple[str, ...]] = {
    _RECOGNITION: (
        "Regular Text Recognition",
        "Irregular Text Recognition",
        "Artistic Text Recognition",
        "Handwriting Recognition",
        "Digit String Recognition",
        "Non-Semantic Text Recognition",
    ),
    "Scene Text-centric VQA": ("Scene Text-centric VQA",),
    "Doc-oriented VQA": ("Doc-oriented VQA",),
    "Key Information Extraction": ("Key Information Extraction",),
    FORMULAS: (FORMULAS,),
}


def contains_gold(answer: str, golds: Iterable[str], category: str) -> bool:
    """Whether a gold is in the answer. Of formulas case counts and blanks do not; of all else it is the other way.

    An empty answer contains nothing.
    """
    if not answer.strip():
        return False
    if category == FORMULAS:
        plain = _bare(answer)
        return any(_bare(gold) in plain for gold in golds)
    plain = _flat(answer)
    return any(_flat(gold) in plain for gold in golds)


def group_of(category: str) -> str | None:
    """Group of a category; None for one that OCRBench does not have."""
    return next((group for group, members in GROUPS.items() if category in members), None)


def totals(points: Sequence[tuple[str, int]]) -> dict[str, float]:
    """(category, point) of each item -> points of each group, "Final Score", and "Final Score Norm", a tenth of it."""
    found: dict[str, float] = dict.fromkeys(GROUPS, 0)
    for category, point in points:
        group = group_of(category)
        if group is not None:
            found[group] += point
    return with_final(found)


def with_final(groups: Mapping[str, float]) -> dict[str, float]:
    """The points of the groups with their sum."""
    final = sum(groups.values())
    return {**groups, "Final Score": final, "Final Score Norm": final / 10}


def _flat(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _bare(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")
