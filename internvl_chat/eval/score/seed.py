"""SEED-Bench: first letter of the answer, per cent for each type of question, for pictures and for videos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# Names of the types 1 to 12 in version 1 of the data. The figures of types 3 and 4 fit the counts that the paper has
# for each other's name; here they are called as in the file.
TYPES = (
    "Scene Understanding", "Instance Identity", "Instance Location", "Instance Attributes", "Instances Counting",
    "Spatial Relation", "Instance Interaction", "Visual Reasoning", "Text Understanding", "Action Recognition",
    "Action Prediction", "Procedure Understanding",
)  # fmt: skip
LAST_OF_PICTURES = 9


def first_letter_is(answer: str, gold: str) -> bool:
    """Whether the answer begins with the right letter; "An apple" is A, "a" is nothing."""
    return bool(answer) and answer[0] == gold


def shares(
    types: Sequence[int | None], marks: Sequence[bool], names: Mapping[int, str] | None = None
) -> dict[str, float]:
    """Per cent for each type that is there, then ``Total accuracy``, ``Image accuracy``, ``Video accuracy``.

    ``types``: of each question; None where the data do not say. ``names``: of the types, by number. A group without
    questions is left out.
    """
    names = names or dict(enumerate(TYPES, 1))
    pairs = list(zip(types, marks, strict=True))
    found = {}
    for number in sorted({kind for kind, _ in pairs if kind is not None}):
        found[names.get(number, f"type {number}")] = [mark for kind, mark in pairs if kind == number]
    found["Total accuracy"] = [mark for _, mark in pairs]
    found["Image accuracy"] = [mark for kind, mark in pairs if kind is not None and kind <= LAST_OF_PICTURES]
    found["Video accuracy"] = [mark for kind, mark in pairs if kind is not None and kind > LAST_OF_PICTURES]
    return {name: 100 * sum(hits) / len(hits) for name, hits in found.items() if hits}


def report_lines(figures: Mapping[str, float], exact: float, length: int) -> list[str]:
    """What the original prints. ``exact``: share of answers that are the letter and nothing else."""
    totals = ("Total accuracy", "Image accuracy", "Video accuracy")
    lines = [f"Acc@1: {exact}", f"length: {length}", "Accuracy for each data type:"]
    lines += [f"Data type {name}: {value:.2f}%" for name, value in figures.items() if name not in totals]
    return lines + [f"{name}: {figures[name]:.2f}%" for name in totals if name in figures]
