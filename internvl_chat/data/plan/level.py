"""The last packs of an epoch, spread over so many that every step is whole: equal work instead of idle ranks."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from internvl_chat.data.plan.pack import Budgets

# This many packs are emptied a little for each one that is missing, if there are as many.
_DONORS = 8


def spread_out(
    tokens: np.ndarray, tiles: np.ndarray, work: np.ndarray, wanted: int, budgets: Budgets
) -> list[np.ndarray] | None:
    """Samples (N,) -> ``wanted`` packs of like ``work`` (N,).

    Returns positions in ``tokens``; None if there are too few samples, or no way was found to keep the budgets.
    """
    if len(tokens) < wanted:
        return None
    packs: list[list[int]] = [[] for _ in range(wanted)]
    left = [[budgets.tokens, budgets.tiles] for _ in range(wanted)]
    lightest = [(0.0, number) for number in range(wanted)]
    for sample in np.argsort(-work, kind="stable").tolist():
        need, need_tiles = int(tokens[sample]), int(tiles[sample])
        passed_over = []
        while lightest:
            done, number = heapq.heappop(lightest)
            if left[number][0] >= need and left[number][1] >= need_tiles:
                break
            passed_over.append((done, number))
        else:
            return None
        packs[number].append(sample)
        left[number][0] -= need
        left[number][1] -= need_tiles
        for one in (*passed_over, (done + float(work[sample]), number)):
            heapq.heappush(lightest, one)
    return [np.array(pack, np.int64) for pack in packs]


def donors(packs: int, missing: int) -> int:
    """How many of the last packs give something."""
    return min(packs, _DONORS * missing)


def split_batches(counts: Sequence[int], missing: int) -> list[np.ndarray]:
    """Batches of so many samples, one after the other -> up to ``missing`` more, the largest cut in two each time.

    Returns positions of samples. Batches of one sample stay, so that fewer may come out than wanted.
    """
    ends = np.cumsum(counts).tolist()
    batches = [(count, end - count) for count, end in zip(counts, ends, strict=True)]
    for _ in range(missing):
        number = max(range(len(batches)), key=lambda one: batches[one][0])
        count, start = batches[number]
        if count < 2:
            break
        half = count // 2
        batches[number : number + 1] = [(count - half, start), (half, start + count - half)]
    return [np.arange(start, start + count) for count, start in batches]
