"""Sizes -> batches of at most B samples by length or at random, for padding, that keep the budgets of packs."""

from __future__ import annotations

import numpy as np

from internvl_chat.data.plan.pack import Budgets

# Samples are sorted by length within this many optimizer steps' worth of them, as length-grouped samplers usually do.
STEPS_PER_WINDOW = 50


def group_samples(
    tokens: np.ndarray, tiles: np.ndarray, batch_size: int, budgets: Budgets, window: int
) -> list[np.ndarray]:
    """Positions in ``tokens`` and ``tiles`` (N,), batch after batch, every one once.

    Sorted by length, longest first, in windows of so many samples; 0: as they come. The tokens of a batch are its rows
    times the longest. Raises ValueError if a sample exceeds a budget alone.
    """
    if len(tokens) and (tokens.max() > budgets.tokens or tiles.max() > budgets.tiles):
        raise ValueError("a sample exceeds the batch's budget; it should have been a fault of the index")
    order = np.arange(len(tokens))
    if window and len(order):
        parts = [order[start : start + window] for start in range(0, len(order), window)]
        order = np.concatenate([part[np.argsort(-tokens[part], kind="stable")] for part in parts])
    ends = []
    start = longest = tile_sum = 0
    for place, (length, count) in enumerate(zip(tokens[order].tolist(), tiles[order].tolist(), strict=True)):
        longest, tile_sum = max(longest, length), tile_sum + count
        rows = place - start + 1
        if rows > batch_size or rows * longest > budgets.tokens or tile_sum > budgets.tiles:
            ends.append(place)
            start, longest, tile_sum = place, length, count
    return np.split(order, ends) if len(order) else []
