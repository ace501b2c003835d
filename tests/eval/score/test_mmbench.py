"""MMBench: circular and vanilla."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.eval.score.mmbench import circular, named_option, shares
from tests.eval.cases import cases


@pytest.mark.parametrize("case", cases("mmbench_circular"))
def test_circular(case: dict[str, Any]) -> None:
    rows = case["prediction"]
    hits = [named_option(row["prediction"], {k: row[k] for k in "AB"}) == row["answer"] for row in rows]
    found = circular([row["index"] for row in rows], hits)
    assert {str(index): int(hit) for index, hit in found.items()} == case["expected"]["hit"]
    assert shares([row["index"] for row in rows], hits, {})["circular"] == 100 * case["expected"]["overall"]


@pytest.mark.parametrize("case", cases("mmbench_vanilla"))
def test_vanilla(case: dict[str, Any]) -> None:
    rows = case["prediction"]
    figures = shares([row["index"] for row in rows], [row["prediction"] == row["answer"] for row in rows], {})
    assert [figures[name] / 100 for name in ("circular", "vanilla", "all rows")] == list(case["expected"].values())


def test_groups_and_rotations_without_their_first_row() -> None:
    figures = shares([1, 2, 1000003], [True, False, True], {"category": ["x", "y", "y"]})
    assert figures == {
        "circular": 50.0, "vanilla": 50.0, "all rows": pytest.approx(200 / 3), "category/x": 100.0, "category/y": 0.0,
    }  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), unique_by=lambda row: row[:2]))
def test_circular_is_never_more_than_vanilla(rows: list[tuple[int, int, bool]]) -> None:
    figures = shares([base + turn * 1000000 for base, turn, _ in rows], [hit for _, _, hit in rows], {})
    assert figures["circular"] <= figures["vanilla"]
