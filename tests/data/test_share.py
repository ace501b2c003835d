"""Entries by arithmetic: the usable lines, over and over, in any order of asking."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.data.share import Lines, Share
from tests.data.helpers import properties

masks = st.lists(st.booleans(), max_size=60).map(lambda values: np.array(values, bool))


@properties(200)
@given(masks)
def test_lines_are_those_that_were_chosen(chosen: np.ndarray) -> None:
    lines, expected = Lines.of(chosen), np.flatnonzero(chosen)
    assert len(lines) == len(expected)
    assert lines.take(np.arange(len(lines))).tolist() == expected.tolist()
    assert lines.take(np.arange(len(lines))[::-1]).tolist() == expected[::-1].tolist()
    for line in range(len(chosen) + 2):
        assert lines.before(line) == (expected < line).sum()
    left_out = np.flatnonzero(~chosen).tolist()
    assert lines.left_out(60) == left_out
    assert lines.left_out(len(left_out) - 1) == []
    assert len(lines.numbers) <= len(chosen) / 2, "the shorter list is kept"


@properties(150)
@given(masks.filter(lambda mask: mask.any()), st.integers(0, 200), st.booleans())
def test_every_line_is_seen_equally_often_and_each_visit_has_its_number(
    chosen: np.ndarray, count: int, drawn: bool
) -> None:
    share = Share("notes", Lines.of(chosen), count, drawn)
    epochs = 3
    seen: list[tuple[int, int]] = []
    for epoch in range(epochs):
        lines, visits = share.locate(np.arange(count), epoch)
        seen += zip(lines.tolist(), visits.tolist(), strict=True)
        backwards = share.locate(np.arange(count)[::-1], epoch)
        assert [part.tolist()[::-1] for part in backwards] == [lines.tolist(), visits.tolist()]
    assert len(set(seen)) == len(seen) == epochs * count
    often = Counter(line for line, _ in seen)
    spread = max(often[line] for line in np.flatnonzero(chosen)) - min(often[line] for line in np.flatnonzero(chosen))
    # By weight over all epochs; otherwise each epoch begins with the first line again.
    assert spread <= (1 if drawn else epochs)


def test_an_epoch_that_takes_half_by_weight_takes_the_other_half_next() -> None:
    share = Share("notes", Lines.of(np.ones(100, bool)), 50, drawn=True)
    one, two = (set(share.locate(np.arange(50), epoch)[0].tolist()) for epoch in range(2))
    assert one | two == set(range(100))
    assert one != set(range(50))
    three = set(share.locate(np.arange(50), 2)[0].tolist())
    assert three not in (one, two), "drawn anew for each round"


def test_many_rounds_of_few_lines_cost_no_more_than_few_of_many() -> None:
    """Each round has an order of its own; looked at one by one, 50,000 of them took half a minute."""
    share = Share("notes", Lines.of(np.ones(10, bool)), 500_000, drawn=True)
    started = time.process_time()
    lines, visits = share.locate(np.arange(500_000), 0)
    assert time.process_time() - started < 5
    assert np.bincount(lines).tolist() == [50_000] * 10
    assert len(set(zip(lines.tolist(), visits.tolist(), strict=True))) == 500_000
    orders = {tuple(lines[start : start + 10].tolist()) for start in range(0, 10_000, 10)}
    assert len(orders) > 900
