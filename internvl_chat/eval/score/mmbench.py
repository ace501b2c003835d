"""MMBench and CCBench: a question comes in several rotations of its options, and all have to be right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from internvl_chat.eval.score.matching import match_option

# Rotation k of question i has the index i + k x this.
ROTATION = 1_000_000


def named_option(prediction: str, options: Mapping[str, str]) -> str | None:
    """The option that a cleaned answer (``letters.mcq_letter``) names by VLMEvalKit's rule, or None."""
    found = match_option(prediction, options) if prediction else None
    return found if found in options else None


def circular(indices: Sequence[int], hits: Sequence[bool]) -> dict[int, bool]:
    """Index of each question's first row -> whether all its rows are right; questions without that row are left out."""
    found: dict[int, bool] = {}
    for index, hit in zip(indices, hits, strict=True):
        base = index % ROTATION
        found[base] = found.get(base, True) and hit
    known = set(indices)
    return {base: hit for base, hit in found.items() if base in known}


def shares(
    indices: Sequence[int], hits: Sequence[bool], groups: Mapping[str, Sequence[str | None]]
) -> dict[str, float]:
    """Per cent: ``circular``, ``vanilla`` (first rows alone), ``all rows``; and circular by group.

    ``groups``: name of a column -> its values; figures are called ``column/value``.
    """
    whole = circular(indices, hits)
    place = {index: k for k, index in enumerate(indices)}
    figures = {
        "circular": _per_cent(list(whole.values())),
        "vanilla": _per_cent([hits[place[index]] for index in whole]),
        "all rows": _per_cent(hits),
    }
    for column, values in groups.items():
        found: dict[str, list[bool]] = {}
        for index, hit in whole.items():
            value = values[place[index]]
            if value is not None:
                found.setdefault(f"{column}/{value}", []).append(hit)
        figures |= {name: _per_cent(found[name]) for name in sorted(found)}
    return figures


def _per_cent(hits: Sequence[bool]) -> float:
    return 100 * sum(hits) / len(hits) if hits else 0.0
