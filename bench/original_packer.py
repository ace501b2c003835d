"""A replay of how the original packs, from lengths alone; written from its description, to compare plans with.

Each worker of each rank reads every n-th sample of every data set, draws data sets in proportion to their length, and
packs what comes: a sample goes into the first open pack that has room in both budgets, open packs being sorted by
tiles, most first. A pack leaves when its tiles or its tokens are full, or, when more than ``buffer`` are open, because
it has the most tiles. A rank gets the packs of its workers in turn. Samples beyond the tile budget are dropped.

What is not said of the end of a stream is taken in the original's favour: open packs are all handed out then.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest

import numpy as np

WORKERS, BUFFER = 4, 20


@dataclass(slots=True)
class Open:
    """A pack in the making."""

    tiles: int = 0
    tokens: int = 0
    samples: list[int] = field(default_factory=list)


def pack_stream(
    stream: Sequence[int], tokens: np.ndarray, tiles: np.ndarray, max_tokens: int, max_tiles: int, buffer: int = BUFFER
) -> list[list[int]]:
    """The packs of one worker, in the order in which they leave."""
    left: list[list[int]] = []
    buffered: list[Open] = []
    for sample in stream:
        need, need_tiles = int(tokens[sample]), int(tiles[sample])
        if need_tiles > max_tiles or need > max_tokens:
            continue
        place = next(
            (
                number
                for number, one in enumerate(buffered)
                if one.tiles + need_tiles <= max_tiles and one.tokens + need <= max_tokens
            ),
            None,
        )
        one = Open() if place is None else buffered.pop(place)
        one.tiles, one.tokens = one.tiles + need_tiles, one.tokens + need
        one.samples.append(sample)
        if one.tiles == max_tiles or one.tokens == max_tokens:
            left.append(one.samples)
            continue
        insort(buffered, one, key=lambda pack: -pack.tiles)
        if len(buffered) > buffer:
            left.append(buffered.pop(0).samples)
    return left + [one.samples for one in buffered]


def stream_of(datasets: Sequence[np.ndarray], worker: int, workers: int, seed: int) -> list[int]:
    """What one worker reads: its share of each data set, mixed by drawing data sets until all are used up."""
    rng = np.random.default_rng([seed, worker])
    shares = [iter(one[worker::workers].tolist()) for one in datasets]
    weights = np.array([float(len(one)) for one in datasets])
    stream: list[int] = []
    while weights.any():
        chances = weights / weights.sum()
        for number in rng.choice(len(datasets), 256, p=chances).tolist():
            if weights[number]:
                sample = next(shares[number], None)
                if sample is None:
                    weights[number] = 0.0  # the others are drawn in the same proportions as before
                else:
                    stream.append(sample)
    return stream


def replay(
    datasets: Sequence[np.ndarray],
    tokens: np.ndarray,
    tiles: np.ndarray,
    ranks: int,
    max_tokens: int,
    max_tiles: int,
    seed: int = 0,
) -> list[list[list[int]]]:
    """Rank -> its packs in order, each a list of samples. ``datasets``: the samples of each, in any order."""
    mixed = [np.random.default_rng([seed, 1, number]).permutation(one) for number, one in enumerate(datasets)]
    workers = ranks * WORKERS
    result = []
    for rank in range(ranks):
        own = [
            pack_stream(stream_of(mixed, rank * WORKERS + worker, workers, seed), tokens, tiles, max_tokens, max_tiles)
            for worker in range(WORKERS)
        ]
        in_turn = chain.from_iterable(zip_longest(*own))
        result.append([pack for pack in in_turn if pack is not None])
    return result
