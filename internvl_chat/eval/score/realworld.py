"""MME-RealWorld: the letter of an answer, and the share of right answers by task, subtask and category."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# Ways in which answers begin; their capitals would be read as letters.
_PREFIXES = (
    "The best answer is", "The correct answer is", "The answer is", "The answer", "The best option is",
    "The correct option is", "Best answer:", "Best option:",
)  # fmt: skip
_LETTER = re.compile("[ABCDE]")
# An answer without a letter is compared with the options only if it is short.
_FEW_WORDS = 10


def answer_letter(answer: str, options: Sequence[str]) -> str:
    """The first capital A to E of an answer; without one, that of the first option that contains it; else "".

    ``options``: "(A) text" and so on. An empty text lies in the first option: whoever counts has to leave it out.
    """
    text = answer.strip()
    for prefix in _PREFIXES:
        text = text.replace(prefix, "")
    found = _LETTER.search(text)
    if found:
        return found.group()
    if len(text.split()) > _FEW_WORDS:
        return ""
    return next((option[1] for option in options if text.lower() in option.lower()), "")


def shares(marks: Iterable[tuple[str, str, str, bool]]) -> dict[str, float]:
    """Share of right answers: ``Overall``, each task, each ``task/subtask``, each ``task/subtask/category``.

    ``marks``: task (Perception, Reasoning), subtask, category, and whether the answer is right.
    """
    hits: dict[str, list[bool]] = {}
    tasks: dict[str, None] = {}
    subtasks: dict[str, None] = {}
    categories: dict[str, None] = {}
    for task, subtask, category, hit in marks:
        tasks[task] = subtasks[f"{task}/{subtask}"] = categories[f"{task}/{subtask}/{category}"] = None
        for name in ("Overall", task, f"{task}/{subtask}", f"{task}/{subtask}/{category}"):
            hits.setdefault(name, []).append(hit)
    order = ["Overall", *tasks, *subtasks, *categories]
    return {name: sum(hits[name]) / len(hits[name]) for name in order if name in hits}
