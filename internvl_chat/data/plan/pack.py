"""Sizes -> packs that keep two budgets (tokens, tiles). Whole samples, never split, never lost."""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np

WINDOW = 4096
# A pack below this share of both budgets is opened again in the next window.
_FULL = 0.95


def pack_samples(
    tokens: np.ndarray, tiles: np.ndarray, order: np.ndarray, max_tokens: int, max_tiles: int, window: int = WINDOW
) -> list[np.ndarray]:
    """Best fit, largest first, within windows of ``order``; packs in order of emission, each an array of entries.

    Packs that are not full at the end of a window are dissolved into the next one, so that only the last window leaves
    loose ends. Every entry of ``order`` is in exactly one pack. Raises ValueError if one exceeds a budget alone.
    """
    if len(order) and (tokens[order].max() > max_tokens or tiles[order].max() > max_tiles):
        raise ValueError("a sample exceeds the pack's budget; it should have been a fault of the index")
    packs: list[np.ndarray] = []
    carried = np.empty(0, np.int64)
    for start in range(0, len(order), window):
        batch = np.concatenate([carried, order[start : start + window]]).astype(np.int64)
        made = _best_fit(tokens, tiles, batch, max_tokens, max_tiles)
        if start + window >= len(order):
            packs.extend(made)
            break
        loose = []
        for pack in made:
            fill = max(tokens[pack].sum() / max_tokens, tiles[pack].sum() / max_tiles)
            (packs if fill >= _FULL else loose).append(pack)
        carried = np.concatenate(loose) if loose else np.empty(0, np.int64)
    return packs


def _best_fit(
    tokens: np.ndarray, tiles: np.ndarray, batch: np.ndarray, max_tokens: int, max_tiles: int
) -> list[np.ndarray]:
    size = np.maximum(tokens[batch] / max_tokens, tiles[batch] / max_tiles)
    bins: list[list[int]] = []
    room_tiles: list[int] = []
    open_bins: list[tuple[int, int]] = []  # (tokens left, bin), sorted: the first that fits is the tightest
    for entry in batch[np.argsort(-size, kind="stable")].tolist():
        need, need_tiles = int(tokens[entry]), int(tiles[entry])
        at = bisect_left(open_bins, (need, -1))
        while at < len(open_bins) and room_tiles[open_bins[at][1]] < need_tiles:
            at += 1
        if at < len(open_bins):
            left, number = open_bins.pop(at)
            bins[number].append(entry)
            room_tiles[number] -= need_tiles
        else:
            left, number = max_tokens, len(bins)
            bins.append([entry])
            room_tiles.append(max_tiles - need_tiles)
        insort(open_bins, (left - need, number))
    return [np.array(entries, np.int64) for entries in bins]
