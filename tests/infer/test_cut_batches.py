"""Prompts by their lengths -> batches."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.infer.batch import cut_batches


@given(st.dictionaries(st.integers(0, 999), st.integers(1, 500), max_size=60), st.integers(1, 9), st.integers(1, 1500))
def test_every_prompt_once_and_no_batch_too_large(lengths: dict[int, int], size: int, tokens: int) -> None:
    batches = cut_batches(lengths, size, tokens)
    assert sorted(number for batch in batches for number in batch) == sorted(lengths)
    for batch in batches:
        longest = max(lengths[number] for number in batch)
        assert len(batch) <= size
        assert len(batch) == 1 or len(batch) * longest <= tokens
    flat = [lengths[number] for batch in batches for number in batch]
    assert flat == sorted(flat, reverse=True), "the longest first: what runs out of memory does so at once"


def test_by_hand() -> None:
    assert cut_batches({0: 10, 1: 50, 2: 20, 3: 20, 4: 5}, 3, 60) == [[1], [2, 3, 0], [4]]
