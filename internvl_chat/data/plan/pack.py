"""Sizes -> packs that keep two budgets (tokens, tiles). Whole samples, never split, never lost."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

WINDOW = 16384
NO_LIMIT = 2**62
# A pack below this share of both budgets is opened again in the next window.
_FULL = 0.95
# Samples whose sizes differ by less than this part of a budget count as equally large, where an order says so.
_CLASSES = 64


@dataclass(frozen=True)
class Budgets:
    """Most tokens and tiles of a pack."""

    tokens: int
    tiles: int


def pack_samples(
    tokens: np.ndarray, tiles: np.ndarray, order: np.ndarray, max_tokens: int, max_tiles: int, window: int = WINDOW
) -> list[np.ndarray]:
    """Packs, each an array of entries; every entry of ``order`` is in exactly one. See ``pack_run``."""
    budgets = Budgets(max_tokens, max_tiles)
    packs, loose = pack_run(tokens[order], tiles[order], budgets, window)
    last, _ = pack_run(tokens[order[loose]], tiles[order[loose]], budgets, max(1, len(loose)), keep_all=True)
    return [order[pack] for pack in packs] + [order[loose[pack]] for pack in last]


def pack_run(
    tokens: np.ndarray, tiles: np.ndarray, budgets: Budgets, window: int = WINDOW, keep_all: bool = False
) -> tuple[list[np.ndarray], np.ndarray]:
    """Best fit, largest first, in windows of samples as they come: the packs, and what is left over.

    Both are positions in ``tokens`` and ``tiles`` (N,). Packs that are not full at the end of a window are dissolved
    into the next, the emptiest first, up to a quarter of a window (sizes that never fill a pack must not pile up).
    Those of the last window are left over, unless ``keep_all``. Which order counts as "largest first" is tried out on
    the first window. Raises ValueError if a sample exceeds a budget alone.
    """
    if len(tokens) and (tokens.max() > budgets.tokens or tiles.max() > budgets.tiles):
        raise ValueError("a sample exceeds the pack's budget; it should have been a fault of the index")
    packs: list[np.ndarray] = []
    loose = np.empty(0, np.int64)
    orders: tuple[_Order, ...] = _ORDERS
    for start in range(0, len(tokens), window):
        batch = np.concatenate([loose, np.arange(start, min(start + window, len(tokens)))])
        found = [(order, _best_fit(tokens, tiles, batch, budgets, order)) for order in orders]
        order, bins = min(found, key=lambda one: len(one[1]))
        orders = (order,)
        last = start + window >= len(tokens)
        opened = {} if last and keep_all else _choose_loose(bins, budgets, window // 4)
        packs.extend(np.array(one.entries, np.int64) for number, one in enumerate(bins) if number not in opened)
        loose = np.array([entry for number in opened for entry in bins[number].entries], np.int64)
    return packs, loose


@dataclass(slots=True)
class _Bin:
    """A pack in the making, and what still fits in."""

    entries: list[int]
    tokens_left: int
    tiles_left: int


# Share of the token budget (N,), share of the tile budget (N,) -> what to sort by, largest first.
_Order = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _by_larger_share(tokens: np.ndarray, tiles: np.ndarray) -> np.ndarray:
    return np.maximum(tokens, tiles)


def _by_class_of_share(tokens: np.ndarray, tiles: np.ndarray) -> np.ndarray:
    """Large before small, but at random among the nearly equal: else those with much text all meet in one pack."""
    return np.ceil(_CLASSES * np.maximum(tokens, tiles))


def _by_scarce_share(tokens: np.ndarray, tiles: np.ndarray) -> np.ndarray:
    """By the budget that runs out first. Samples have few different numbers of tiles, so their text is well mixed."""
    return tiles if tiles.sum() > tokens.sum() else tokens


def _by_rough_class_of_share(tokens: np.ndarray, tiles: np.ndarray) -> np.ndarray:
    """The few that take much of a pack first, the rest as they come: text and tiles mixed, where both are scarce."""
    return np.ceil(4 * np.maximum(tokens, tiles))


_ORDERS: tuple[_Order, ...] = (_by_larger_share, _by_class_of_share, _by_scarce_share, _by_rough_class_of_share)


def _choose_loose(bins: list[_Bin], budgets: Budgets, room: int) -> dict[int, None]:
    """Numbers of the bins to dissolve, emptiest first: less than full, not more than ``room`` entries together."""
    fill = [max(1 - one.tokens_left / budgets.tokens, 1 - one.tiles_left / budgets.tiles) for one in bins]
    loose: dict[int, None] = {}
    for number in sorted(range(len(bins)), key=fill.__getitem__):
        room -= len(bins[number].entries)
        if fill[number] >= _FULL or room < 0:
            break
        loose[number] = None
    return loose


def _best_fit(tokens: np.ndarray, tiles: np.ndarray, batch: np.ndarray, budgets: Budgets, order: _Order) -> list[_Bin]:
    """Each sample into the bin with the fewest tiles left that takes it, then the fewest tokens left."""
    size = order(tokens[batch] / budgets.tokens, tiles[batch] / budgets.tiles)
    bins: list[_Bin] = []
    # Tiles left -> (tokens left, bin), sorted: in each list the first that fits is the tightest. One list per number of
    # tiles, because a single one would be searched in vain wherever tiles, not tokens, fill the packs.
    open_bins: dict[int, list[tuple[int, int]]] = {}
    rooms: list[int] = []  # its keys, sorted
    for entry in batch[np.argsort(-size, kind="stable")].tolist():
        need, need_tiles = int(tokens[entry]), int(tiles[entry])
        for place in range(bisect_left(rooms, need_tiles), len(rooms)):
            room = rooms[place]
            candidates = open_bins[room]
            if candidates[-1][0] >= need:
                _, number = candidates.pop(bisect_left(candidates, (need, -1)))
                if not candidates:
                    del open_bins[room], rooms[place]
                break
        else:
            number = len(bins)
            bins.append(_Bin([], budgets.tokens, budgets.tiles))
        one = bins[number]
        one.entries.append(entry)
        one.tokens_left -= need
        one.tiles_left -= need_tiles
        if one.tiles_left not in open_bins:
            open_bins[one.tiles_left] = []
            insort(rooms, one.tiles_left)
        insort(open_bins[one.tiles_left], (one.tokens_left, number))
    return bins
