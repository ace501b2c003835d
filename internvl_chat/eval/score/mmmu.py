"""MMMU: letters, open answers with numbers in them, and accuracies by subject and domain."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics", "Energy_and_Power",
        "Materials", "Mechanical_Engineering",
    ),
}  # fmt: skip
# What stands before the answer; in the last line the equals sign, too.
_SIGNS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_NOTHING = set(":,.!?;'")
_COMMAS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+")
_PLAIN = re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d)(?![,\d])")

Golds = str | Sequence[str]


def letter_is(answer: str, gold: Golds) -> bool:
    """Equality with the letter, or with one of several; nothing is parsed here: "b" and "(B)" are not "B"."""
    return answer in ([gold] if isinstance(gold, str) else list(gold))


def open_is(answer: str, gold: Golds) -> bool:
    """Whether a gold lies in a candidate of the answer as text, or equals one as a number."""
    golds = [form for one in ([gold] if isinstance(gold, str) else gold) for form in _forms(one)]
    texts = [form for form in golds if isinstance(form, str)]
    for candidate in candidates(answer):
        if isinstance(candidate, str):
            if candidate and any(text in candidate for text in texts):
                return True
        elif candidate in golds:
            return True
    return False


def candidates(answer: str) -> list[str | float]:
    """What an open answer may mean: of each line what follows "is", "so", ... most closely, and the numbers in it.

    Without such a line the whole answer. Numbers are rounded to two decimals, texts in lower case; a single character
    stands with a blank before or behind it.
    """
    lines = answer.strip().strip(".").lower().split("\n")
    tails = []
    for number, line in enumerate(lines, 1):
        tail = _shortest_tail(line, (*_SIGNS, "=") if number == len(lines) else _SIGNS)
        if tail and tail not in _NOTHING:
            tails.append(tail)
    texts = tails or ["\n".join(lines)]
    parts = texts + [part for text in texts for part in _numbers(text)]
    return list(dict.fromkeys(form for part in parts for form in _forms(part)))


def report(marks: Iterable[tuple[str, bool]]) -> dict[str, dict[str, Any]]:
    """``{"Overall-<domain>": {"num", "acc"}, <subject>: ..., "Overall": ...}`` in the original's order.

    ``marks``: id ("validation_Art_Theory_1") and whether the answer is right. Accuracies are shares with three
    decimals, those of domains weighted by questions; a domain without questions has num 0 and acc 0; a subject that is
    none of the thirty is ignored.
    """
    hits: dict[str, list[bool]] = {}
    for name, hit in marks:
        hits.setdefault(subject_of(name), []).append(hit)
    table: dict[str, dict[str, Any]] = {}
    every: list[bool] = []
    for domain, subjects in DOMAINS.items():
        found = {subject: hits[subject] for subject in subjects if subject in hits}
        together = [hit for one in found.values() for hit in one]
        table[f"Overall-{domain}"] = _row(together)
        table |= {subject: _row(one) for subject, one in found.items()}
        every += together
    return table | {"Overall": _row(every)}


def subject_of(name: str) -> str:
    """``validation_Art_Theory_1`` -> ``Art_Theory``."""
    return "_".join(name.split("_")[1:-1])


def _row(hits: Sequence[bool]) -> dict[str, Any]:
    return {"num": len(hits), "acc": round(sum(hits) / len(hits), 3) if hits else 0}


def _shortest_tail(line: str, signs: Sequence[str]) -> str:
    """What follows a sign, the shortest of all signs; an empty one gives way to that of the next sign."""
    shortest = ""
    for sign in signs:
        if sign in line:
            tail = line.rsplit(sign, 1)[1].strip()
            if not shortest or len(tail) < len(shortest):
                shortest = tail
    return shortest


def _forms(text: str) -> list[str | float]:
    """A number as a float with two decimals, other text in lower case, a single character with a blank beside it."""
    text = str(text).strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        low = text.lower()
        return [f" {low}", f"{low} "] if len(low) == 1 else [low]


def _numbers(text: str) -> list[str]:
    return [found for pattern in (_COMMAS, _SCIENTIFIC, _PLAIN) for found in pattern.findall(text)]
