"""MME: yes or no in pairs of questions about a picture; points per subtask, perception and cognition."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
# What is replaced, in this order: the longer Chinese no before the yes that it ends with.
_CHINESE = (("不是", "No"), ("是", "Yes"), ("否", "No"))
_IDEOGRAPHS = re.compile("[\u4e00-\u9fff]")
# Of an answer only so many characters count.
_HEAD = 4


def clean_answer(answer: str) -> str:
    """The answer as the fourth field of the original's files, on one line and without tabs, which part the fields.

    "true" becomes "yes" and "false" "no" even inside words ("untrue" is "unyes"), as in the original.
    """
    text = answer.replace("\n", "").replace("\r", "").replace("\t", " ")
    for chinese, english in _CHINESE:
        text = text.replace(chinese, english)
    return _IDEOGRAPHS.sub("", text.lower().replace("true", "yes").replace("false", "no"))


def parse_answer(answer: str) -> str:
    """ "yes", "no" or "other", told by the first four characters: "not" and "now" are no, "it is yes" is other."""
    head = answer.lower()[:_HEAD]
    if "yes" in head:
        return "yes"
    return "no" if "no" in head else "other"


def subtask_score(golds: Sequence[str], answers: Sequence[str]) -> float:
    """Points of a subtask, 0..200: share of right answers x 100 plus share of pairs with both right x 100.

    Answers 2k and 2k + 1 are a pair; one without its partner counts as a pair that is wrong.
    """
    hits = marks(golds, answers)
    if not hits:
        return 0.0
    pairs = [hits[start : start + 2] for start in range(0, len(hits), 2)]
    both = sum(len(pair) == 2 and all(pair) for pair in pairs)
    return 100.0 * sum(hits) / len(hits) + 100.0 * both / len(pairs)


def marks(golds: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """Whether each answer is right. ``golds``: "Yes" or "No"."""
    cleaned = [parse_answer(clean_answer(answer)) for answer in answers]
    return [answer == gold.lower() for gold, answer in zip(golds, cleaned, strict=True)]


def totals(scores: Mapping[str, float]) -> dict[str, float]:
    """``perception`` (at most 2000), ``cognition`` (800) and their ``total``, of the subtasks that are there."""
    perception = sum(scores.get(name, 0.0) for name in PERCEPTION)
    cognition = sum(scores.get(name, 0.0) for name in COGNITION)
    return {"perception": perception, "cognition": cognition, "total": perception + cognition}


def report_lines(scores: Mapping[str, float]) -> list[str]:
    """What the original prints: a header for each group, its sum, its subtasks."""
    lines = []
    for title, group in (("Perception", PERCEPTION), ("Cognition", COGNITION)):
        total = sum(scores.get(name, 0.0) for name in group)
        lines += [f"=========== {title} ===========", f"total score: {total} ", ""]
        lines += [f"\t {name}  score: {scores[name]}" for name in group if name in scores]
        lines.append("")
    return lines
