"""A random order of n things that needs no memory: entry ``i`` of it is computed, not looked up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_ROUNDS = 6


def shuffled(positions: np.ndarray, count: int, key: Sequence[int], rounds: np.ndarray | None = None) -> np.ndarray:
    """The numbers at ``positions`` (N,) of a permutation of ``range(count)`` that ``key`` chooses, int64 (N,).

    With ``rounds`` (N,) each number of it has a permutation of its own. A Feistel network (Luby and Rackoff, 1988) over
    the next power of two; what falls outside the range is sent through it again until it falls inside ("cycle walking",
    Black and Rogaway, 2002), so that it stays a permutation. The same in every version of numpy.
    """
    seeds = np.random.SeedSequence(list(key))
    keys = seeds.generate_state(_ROUNDS, np.uint64)
    bits = max(2, (count - 1).bit_length())
    salt = np.zeros(len(positions), np.uint64) if rounds is None else _hash(rounds.astype(np.uint64))
    numbers = _feistel(positions.astype(np.uint64), bits, keys, salt)
    while len(outside := np.flatnonzero(numbers >= count)):
        numbers[outside] = _feistel(numbers[outside], bits, keys, salt[outside])
    return numbers.astype(np.int64)


def _feistel(numbers: np.ndarray, bits: int, keys: np.ndarray, salt: np.ndarray) -> np.ndarray:
    """``numbers`` (N,) uint64 below ``2**bits`` -> others of that range, one to one for each ``salt`` (N,)."""
    low_bits = bits // 2
    for key in keys:
        high_bits = bits - low_bits
        low = numbers & np.uint64((1 << low_bits) - 1)
        mixed = (numbers >> np.uint64(low_bits)) ^ (_hash(low ^ key ^ salt) & np.uint64((1 << high_bits) - 1))
        numbers = (low << np.uint64(high_bits)) | mixed
        low_bits = high_bits
    return numbers


def _hash(values: np.ndarray) -> np.ndarray:
    """Bit mixer with the constants of splitmix64 (Steele, Lea and Flood, 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
