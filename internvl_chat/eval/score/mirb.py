"""MIRB: multi-image questions of eleven tasks in four groups; each task has its own comparison."""

from __future__ import annotations

import re
from collections.abc import Mapping

GROUPS = {
    "Knowledge": ("food", "sightseeing"),
    "Reasoning": ("codeu", "plot_code", "analogy", "3d_scene"),
    "Perception": ("image_jigsaw", "count", "attribute"),
    "Multi-Hop": ("visual_chain", "arxiv"),
}
_YES_NO = ("analogy", "attribute")
_INSIDE = ("sightseeing",)
_NUMBERS = ("count", "visual_chain", "3d_scene", "image_needles")
_WORDS = "zero one two three four five six seven eight nine ten"
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth"
_NUMBER_OF = {word: str(number) for number, word in enumerate(_WORDS.split())}
_NUMBER_OF |= {word: str(number) for number, word in enumerate(_ORDINALS.split(), 1)}


def is_right(task: str, answer: str, gold: str) -> bool:
    """Whether an answer is right by the rule of its task (the name of its file); case is ignored.

    Only its first line counts, else what stands before its first period. ``analogy`` and ``attribute``: "yes" in it or
    not; ``sightseeing``: the gold in it (yes and no as before); tasks that count: its first digits, or a number word
    that is the whole answer; others: equality. An empty answer says "no": whoever counts has to leave it out.
    """
    said, gold = _first_part(answer).lower(), str(gold).lower()
    if task in _YES_NO or (task in _INSIDE and gold in ("yes", "no")):
        return gold in ("yes", "no") and ("yes" in said) == (gold == "yes")
    if task in _INSIDE:
        return gold in said
    if task.startswith(_NUMBERS):
        digits = re.search(r"\d+", said)
        said = digits.group() if digits else _NUMBER_OF.get(said, "")
    return said == gold


def group_means(shares: Mapping[str, float]) -> dict[str, float]:
    """Mean of the tasks of each group, and ``Mean`` of the groups; tasks and groups that are not there are left out.

    ``shares``: task -> share of right answers. Variants (``count_concat``, ``arxiv_text``, ...) belong to no group.
    """
    means = {}
    for group, tasks in GROUPS.items():
        found = [shares[task] for task in tasks if task in shares]
        if found:
            means[group] = sum(found) / len(found)
    return means | ({"Mean": sum(means.values()) / len(means)} if means else {})


def _first_part(answer: str) -> str:
    """Cut at the first line break, else at the first period, but not where that is the first character."""
    text = answer.strip()
    end = text.find("\n")
    if end <= 0:
        end = text.find(".")
    return text[:end] if end > 0 else text
