"""MVBench: which option an answer names, and the share of right answers for each task."""

from __future__ import annotations

from collections.abc import Iterable

_MARKER = "Answer: "


def option_matches(answer: str, gold: str) -> bool:
    """Whether the answer's first word names the option of ``gold``, "(A) text".

    Case and periods do not count; the word may lie inside "(a)" or around it. Where nothing of a word is left ("", a
    lone bracket) the answer is wrong; in the original it is right, whatever the gold.
    """
    word = _first_word(answer.replace(_MARKER, "")).replace(".", "")
    option = _first_word(gold)
    return any(sign.isalnum() for sign in word) and (word in option or option in word)


def task_shares(marks: Iterable[tuple[str, bool]]) -> dict[str, float]:
    """Per cent of right answers of each task, in order of appearance, and ``Avg`` over all videos.

    ``marks``: task and whether the answer is right, an entry for each video.
    """
    hits: dict[str, list[bool]] = {}
    for task, hit in marks:
        hits.setdefault(task, []).append(hit)
    every = [hit for found in hits.values() for hit in found]
    shares = {task: sum(found) / len(found) * 100 for task, found in hits.items()}
    return shares | {"Avg": sum(every) / len(every) * 100 if every else 0.0}


def _first_word(text: str) -> str:
    return text.strip().lower().split(" ", 1)[0]
