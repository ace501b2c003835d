"""RSVQA: counts and areas in buckets, all else by equality."""

from __future__ import annotations

from collections.abc import Sequence

# Types of questions that are compared by bucket, and left out of the "useful" total.
BUCKETED = ("count", "area")
_LAST_OF_BUCKET = (0, 100, 1000)
_UNIT = "m2"


def rsvqa(kind: str, answer: str, gold: str) -> float:
    """1 if right, else 0. ``kind``: type of the question, "count" and "area" among them.

    The gold of an area may have its unit (``30m2``), an answer may not.
    """
    if kind not in BUCKETED:
        return float(answer.lower() == gold.lower())
    if kind == "area":
        # The original takes the unit's characters off the end, and with them every 2 that stands before it: "122m2" is
        # read as 1, "2m2" as nothing. Published figures contain that.
        gold = gold.rstrip(_UNIT)
    own, due = bucket(answer), bucket(gold)
    return float(own is not None and own == due)


def bucket(text: str) -> int | None:
    """Which of 0, 1 to 100, 101 to 1000 and above a whole number is in, from 0 to 3; None for any other text."""
    try:
        number = int(text)
    except ValueError:
        return None
    return None if number < 0 else sum(number > last for last in _LAST_OF_BUCKET)


def shares(kinds: Sequence[str], marks: Sequence[float]) -> dict[str, float]:
    """Share of right answers (0 to 1) of each type in order of appearance, then "useful" and "total"."""
    groups: dict[str, list[float]] = {}
    useful = []
    for kind, mark in zip(kinds, marks, strict=True):
        groups.setdefault(kind, []).append(mark)
        useful += [mark] if kind not in BUCKETED else []
    found = {kind: sum(group) / len(group) for kind, group in groups.items()}
    if useful:
        found["useful"] = sum(useful) / len(useful)
    return found | {"total": sum(marks) / len(marks)}
