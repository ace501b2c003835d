"""POPE: is the object in the picture; counts and ratios for each of the three ways in which objects were chosen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

# The order of the published tables (the original has that of the folder).
CATEGORIES = ("random", "popular", "adversarial")
_NO = {"No", "no", "not"}
_CLEAR = re.compile(r"(?:yes|no|not)\b", re.IGNORECASE)


def yes_or_no(answer: str) -> str:
    """ "no" if No, no or not stand between blanks before the first period, else "yes".

    So "No!", "NO", "isn't" and an empty answer are yes, as in the original.
    """
    words = answer.split(".", 1)[0].replace(",", "").split(" ")
    return "no" if _NO.intersection(words) else "yes"


def unclear(answer: str) -> bool:
    """Whether the answer begins neither with yes nor with no: the rule above guesses."""
    return _CLEAR.match(answer.strip()) is None


def counts(labels: Sequence[str], answers: Sequence[str]) -> dict[str, int]:
    """TP, FP, TN, FN of one category, with yes as positive. ``labels``: "yes" or "no"."""
    found = {"TP": 0, "FP": 0, "TN": 0, "FN": 0}
    for label, answer in zip(labels, answers, strict=True):
        said = yes_or_no(answer)
        found[("T" if said == label else "F") + ("P" if said == "yes" else "N")] += 1
    return found


def ratios(found: Mapping[str, int]) -> dict[str, float]:
    """accuracy, precision, recall, f1 and yes_ratio of the counts of ``counts``; 0 where nothing is to be divided."""
    tp, fp, tn, fn = (found[name] for name in ("TP", "FP", "TN", "FN"))
    precision, recall = _share(tp, tp + fp), _share(tp, tp + fn)
    return {
        "accuracy": _share(tp + tn, tp + fp + tn + fn),
        "precision": precision,
        "recall": recall,
        "f1": _share(2 * precision * recall, precision + recall),
        "yes_ratio": _share(tp + fp, tp + fp + tn + fn),
    }


def overall_f1(found: Iterable[Mapping[str, int]]) -> float:
    """Mean of the categories' F1 x 100."""
    scores = [ratios(one)["f1"] for one in found]
    return 100 * _share(sum(scores), len(scores))


def report_lines(category: str, found: Mapping[str, int]) -> list[str]:
    """What the original prints for a category."""
    share = ratios(found)
    order = ("f1", "accuracy", "precision", "recall", "yes_ratio")
    return [
        f"Category: {category}, # samples: {sum(found.values())}",
        "TP\tFP\tTN\tFN\t",
        "\t".join(str(found[name]) for name in ("TP", "FP", "TN", "FN")),
        f"Accuracy: {share['accuracy']}",
        f"Precision: {share['precision']}",
        f"Recall: {share['recall']}",
        f"F1 score: {share['f1']}",
        f"Yes ratio: {share['yes_ratio']}",
        ", ".join(f"{share[name]:.3f}" for name in order),
        "=" * 36,
    ]


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
