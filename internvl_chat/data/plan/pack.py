"""Sizes -> packs that keep two budgets (tokens, tiles). Whole samples, never split, never lost."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np

WINDOW = 4096
# A pack below this share of both budgets is opened again in the next window.
_FULL = 0.95


def pack_samples(
    tokens: np.ndarray, tiles: np.ndarray, order: np.ndarray, max_tokens: int, max_tiles: int, window: int = WINDOW
) -> list[np.ndarray]:
    """Best fit, largest first, within windows of ``order``; packs in order of emission, each an array of entries.

    Packs that are not full at the end of a window are dissolved into the next one, the emptiest first, up to a quarter
    of a window (sizes that never fill a pack must not pile up). Every entry of ``order`` is in exactly one pack. Raises
    ValueError if one exceeds a budget alone.
    """
    if len(order) and (tokens[order].max() > max_tokens or tiles[order].max() > max_tiles):
        raise ValueError("a sample exceeds the pack's budget; it should have been a fault of the index")
    packs: list[np.ndarray] = []
    carried = np.empty(0, np.int64)
    for start in range(0, len(order), window):
        batch = np.concatenate([carried, order[start : start + window]]).astype(np.int64)
        bins = _best_fit(tokens, tiles, batch, max_tokens, max_tiles)
        last = start + window >= len(order)
        loose = {} if last else _choose_loose(bins, max_tokens, max_tiles, window // 4)
        packs.extend(np.array(one.entries, np.int64) for number, one in enumerate(bins) if number not in loose)
        carried = np.array([entry for number in loose for entry in bins[number].entries], np.int64)
    return packs


@dataclass(slots=True)
class _Bin:
    """A pack in the making, and what still fits in."""

    entries: list[int]
    tokens_left: int
    tiles_left: int


def _choose_loose(bins: list[_Bin], max_tokens: int, max_tiles: int, room: int) -> dict[int, None]:
    """Numbers of the bins to dissolve, emptiest first: less than full, not more than ``room`` entries together."""
    fill = [max(1 - one.tokens_left / max_tokens, 1 - one.tiles_left / max_tiles) for one in bins]
    loose: dict[int, None] = {}
    for number in sorted(range(len(bins)), key=fill.__getitem__):
        room -= len(bins[number].entries)
        if fill[number] >= _FULL or room < 0:
            break
        loose[number] = None
    return loose


def _best_fit(tokens: np.ndarray, tiles: np.ndarray, batch: np.ndarray, max_tokens: int, max_tiles: int) -> list[_Bin]:
    size = np.maximum(tokens[batch] / max_tokens, tiles[batch] / max_tiles)
    bins: list[_Bin] = []
    # Tiles left -> (tokens left, bin), sorted: in each list the first that fits is the tightest. One list per number of
    # tiles, because a single one would be searched in vain wherever tiles, not tokens, fill the packs.
    open_bins: dict[int, list[tuple[int, int]]] = {}
    for entry in batch[np.argsort(-size, kind="stable")].tolist():
        need, need_tiles = int(tokens[entry]), int(tiles[entry])
        tightest: tuple[tuple[int, int], int, int] | None = None  # (tokens left, bin), tiles left, place in the list
        for room, candidates in open_bins.items():
            if room >= need_tiles and candidates and candidates[-1][0] >= need:
                at = bisect_left(candidates, (need, -1))
                if tightest is None or candidates[at] < tightest[0]:
                    tightest = candidates[at], room, at
        if tightest is None:
            number = len(bins)
            bins.append(_Bin([], max_tokens, max_tiles))
        else:
            (_, number), room, at = tightest
            del open_bins[room][at]
        one = bins[number]
        one.entries.append(entry)
        one.tokens_left -= need
        one.tiles_left -= need_tiles
        insort(open_bins.setdefault(one.tiles_left, []), (one.tokens_left, number))
    return bins
