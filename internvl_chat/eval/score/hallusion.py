"""HallusionBench: right answers, right figures, right questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

NAMES = ("aAcc", "fAcc", "qAcc")


def ratings(rows: Sequence[Mapping[str, object]]) -> dict[str, tuple[float, float, float]]:
    """ "Overall", VD, VS and each subcategory -> (aAcc, fAcc, qAcc) in percent.

    ``rows``: ``l2_category`` ("VD_figure", ...), ``set_id``, ``figure_id``, ``question_id``, ``score`` (1 = right),
    ``category`` unless the subcategory begins with it. A figure is right if all its answers are, a question likewise;
    both belong to a subcategory and a set.
    """
    groups: dict[str, list[Mapping[str, object]]] = {"Overall": list(rows)}
    subcategories = dict.fromkeys(str(row["l2_category"]) for row in rows)
    for category in ("VD", "VS"):
        groups[category] = [row for row in rows if _category(row) == category]
    groups |= {name: [row for row in rows if row["l2_category"] == name] for name in sorted(subcategories)}
    return {name: _rating(members) for name, members in groups.items() if members}


def final_figure(rating: Sequence[float]) -> float:
    """Mean of the three."""
    return sum(rating) / len(rating)


def _category(row: Mapping[str, object]) -> str:
    return str(row.get("category") or row["l2_category"]).split("_")[0]


def _rating(rows: Sequence[Mapping[str, object]]) -> tuple[float, float, float]:
    answers = sum(float(str(row["score"])) == 1 for row in rows) / len(rows)
    return 100 * answers, _whole_groups(rows, "figure_id"), _whole_groups(rows, "question_id")


def _whole_groups(rows: Sequence[Mapping[str, object]], column: str) -> float:
    """Percentage of groups of which every answer is right."""
    whole: dict[tuple[object, ...], bool] = {}
    for row in rows:
        key = (row["l2_category"], str(row["set_id"]), str(row[column]))
        whole[key] = whole.get(key, True) and float(str(row["score"])) == 1
    return 100 * sum(whole.values()) / len(whole)
