"""Packs: nothing lost, nothing twice, no budget broken; good fill; time that grows with the data and no faster."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.data.plan.pack import pack_samples
from tests.data.helpers import load_json, properties


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int, int]:
    """tokens, tiles, order, the two budgets, window: small numbers, so that ties and exact fits are common."""
    max_tokens, max_tiles = draw(st.integers(1, 40)), draw(st.integers(0, 8))
    size = st.tuples(st.integers(0, max_tokens), st.integers(0, max_tiles))
    items = draw(st.lists(size, max_size=80))
    tokens, tiles = (np.array([item[column] for item in items], np.int64) for column in (0, 1))
    order = np.array(draw(st.permutations(range(len(items)))), np.int64)
    return tokens, tiles, order, max_tokens, max(1, max_tiles), draw(st.integers(1, 40))


@properties(300)
@given(mixtures())
def test_every_entry_is_in_one_pack_and_no_budget_is_broken(
    case: tuple[np.ndarray, np.ndarray, np.ndarray, int, int, int],
) -> None:
    tokens, tiles, order, max_tokens, max_tiles, window = case
    packs = pack_samples(tokens, tiles, order, max_tokens, max_tiles, window)
    assert sorted(entry for pack in packs for entry in pack.tolist()) == sorted(order.tolist())
    for pack in packs:
        assert len(pack)
        assert tokens[pack].sum() <= max_tokens
        assert tiles[pack].sum() <= max_tiles
    again = pack_samples(tokens, tiles, order, max_tokens, max_tiles, window)
    assert [pack.tolist() for pack in packs] == [pack.tolist() for pack in again]


@properties(100)
@given(mixtures())
def test_within_a_window_no_pack_would_fit_into_another(
    case: tuple[np.ndarray, np.ndarray, np.ndarray, int, int, int],
) -> None:
    """Best fit opens a pack only for what fits nowhere: of any two packs, the younger's first entry was too big."""
    tokens, tiles, order, max_tokens, max_tiles, _ = case
    packs = pack_samples(tokens, tiles, order, max_tokens, max_tiles, window=1000)
    for number, pack in enumerate(packs):
        for older in packs[:number]:
            over_tokens = tokens[older].sum() + tokens[pack[0]] > max_tokens
            assert over_tokens or tiles[older].sum() + tiles[pack[0]] > max_tiles


def test_a_sample_beyond_a_budget_is_refused() -> None:
    tokens, tiles = np.array([5, 11]), np.array([1, 1])
    with pytest.raises(ValueError, match="exceeds the pack's budget"):
        pack_samples(tokens, tiles, np.arange(2), 10, 4)
    assert len(pack_samples(tokens, tiles, np.arange(1), 10, 4)) == 1


def test_no_entries_make_no_packs() -> None:
    empty = np.empty(0, np.int64)
    assert pack_samples(empty, empty, empty, 10, 4) == []


@pytest.mark.parametrize("run", load_json("packing.json")["runs"], ids=lambda run: run["name"])
def test_fill_is_not_worse_than_the_originals(run: dict[str, float]) -> None:
    """On its own synthetic mixture of 5,000 items, with its budgets (the runs in which it loses nothing)."""
    items = np.array(load_json("packing.json")["items"], np.int64)
    max_tokens, max_tiles = int(run["max_packed_tokens"]), int(run["num_images_expected"])
    tokens, tiles = items[(items[:, 0] <= max_tokens) & (items[:, 1] <= max_tiles)].T
    packs = pack_samples(tokens, tiles, np.random.default_rng(0).permutation(len(tokens)), max_tokens, max_tiles)
    fill = tokens.sum() / len(packs) / max_tokens
    print(f"{run['name']}: {100 * fill:.2f} % of the tokens filled, the original {100 * run['token_fill']:.2f} %")
    assert fill >= run["token_fill"]
    # No packing can have fewer packs than the tighter budget asks for.
    assert len(packs) <= 1.05 * max(tokens.sum() / max_tokens, tiles.sum() / max_tiles) + 1


def seconds_to_pack(count: int, tokens: int, tiles: int) -> float:
    """Of the processor, at best of three, in windows of 512."""
    sizes = np.full(count, tokens), np.full(count, tiles), np.arange(count)
    times = []
    for _ in range(3):
        start = time.process_time()
        pack_samples(*sizes, max_tokens=16384, max_tiles=48, window=512)
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.parametrize(
    ("tokens", "tiles"), [(9900, 0), (2000, 13), (60, 0)], ids=["halves", "tiles-fill-the-packs", "short"]
)
def test_time_to_plan_grows_with_the_data_and_no_faster(tokens: int, tiles: int) -> None:
    """Sizes that never fill a pack once piled up from window to window, and packs full of tiles were searched in vain:
    100,000 samples took minutes. Four times the samples may take eight times as long here, not sixteen."""
    few, many = (seconds_to_pack(count, tokens, tiles) for count in (4096, 16384))
    print(f"{1e6 * few / 4096:.0f} and {1e6 * many / 16384:.0f} us per sample")
    assert many < 8 * few + 0.05
