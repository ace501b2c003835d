"""Tiny LVLM: whole words of the gold in the answer, shares by ability and their sum."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from internvl_chat.eval.score.vqa import normalise_punctuation, normalise_words


def contains_gold(answer: str, golds: str | Sequence[str]) -> bool:
    """Whether a gold occurs in the answer as whole words, both normalised; an empty gold never does.

    A gold of articles alone becomes empty and lies in every answer that has a word, as in the original.
    """
    said = _normalised(answer)
    wanted = [str(gold) for gold in ([golds] if isinstance(golds, str) else golds)]
    return any(gold.strip() and _inside(_normalised(gold), said) for gold in wanted)


def shares(marks: Iterable[tuple[str, bool]]) -> dict[str, float]:
    """Share of right answers of each ability, in order of appearance, and ``Overall``, their SUM (at most 5)."""
    hits: dict[str, list[bool]] = {}
    for ability, hit in marks:
        hits.setdefault(ability, []).append(hit)
    found = {ability: sum(own) / len(own) for ability, own in hits.items()}
    return found | {"Overall": sum(found.values())}


def _normalised(text: str) -> str:
    return normalise_words(normalise_punctuation(text.replace("\n", " ").replace("\t", " ").strip()))


def _inside(words: str, text: str) -> bool:
    return re.search(rf"\b{re.escape(words)}\b", text) is not None
