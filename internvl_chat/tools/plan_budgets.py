"""Which budgets of a pack would fill best: the planner itself, on a part of the data, for some pairs of budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from internvl_chat.data.plan.epoch import PlanSettings, plan_epoch
from internvl_chat.data.plan.report import balanced_tiles
from internvl_chat.data.plan.sizes import ArraySizes

# Samples that are packed to try a pair out.
SAMPLE = 2**14
TOKEN_BUDGETS = (8192, 16384, 32768)
# Tile budgets that are tried, as parts of the one at which both budgets would be full if samples were sand.
_AROUND = (1.0, 1.02, 1.04, 1.07, 1.1, 1.15, 1.25, 1.4, 1.7, 2.5)
# Packs within this part of the fewest are as good.
_AS_GOOD = 0.01
# What is said is worth a change: so many fewer packs, or so much smaller a tile budget.
_WORTH = 0.02
_WORTH_TILES = 0.1


@dataclass(frozen=True)
class Pair:
    """Budgets and what becomes of them; ``packs`` and ``steps`` of an epoch, from a part of it.

    ``given``: those of the flags. ``best``: the fewest packs that so many tokens can make, with the fewest tiles.
    """

    max_tokens: int
    max_tiles: int
    packs: int
    steps: int
    token_fill: float
    tile_fill: float
    given: bool = False
    best: bool = False


def try_pairs(
    tokens: np.ndarray, tiles: np.ndarray, settings: PlanSettings, given: tuple[int, int] | None
) -> list[Pair]:
    """The given pair (tokens, tiles), and for its tokens and some others the tiles that fill best. Sizes: (N,) each.

    ``settings`` say seed, cost and packs per step. Token budgets below the longest sample are left out.
    """
    count, longest, most = len(tokens), int(tokens.max()), int(tiles.max())
    chosen = np.arange(count)
    if count > SAMPLE:
        chosen = np.random.default_rng(settings.seed).choice(count, SAMPLE, replace=False)
    sample, scale = ArraySizes(tokens[chosen], tiles[chosen]), count / len(chosen)
    pairs = []
    budgets = {*TOKEN_BUDGETS, *(given or ())[:1]}
    if longest > max(TOKEN_BUDGETS):
        budgets.add(1 << longest.bit_length())
    for budget in sorted(one for one in budgets if one >= longest):
        even = balanced_tiles(int(tokens.sum(dtype=np.int64)), int(tiles.sum(dtype=np.int64)), budget)
        tried = {max(1, most, round(even * part)) for part in _AROUND} if most or given is None else {given[1]}
        if given is not None and budget == given[0]:
            tried.add(given[1])
        found = [_try(sample, replace(settings, max_tokens=budget, max_tiles=one), scale) for one in sorted(tried)]
        fewest = min(pair.packs for pair in found)
        best = next(pair for pair in found if pair.packs <= fewest * (1 + _AS_GOOD))
        for pair in found:
            is_given = (pair.max_tokens, pair.max_tiles) == given
            if is_given or pair is best:
                pairs.append(replace(pair, given=is_given, best=pair is best))
    return pairs


def _try(sample: ArraySizes, settings: PlanSettings, scale: float) -> Pair:
    """Packed alone: a step's worth of packs would weigh too much in a small part of the data."""
    packed = replace(settings, packed=True, packs_per_step=1, batch_size=1, by_length=False)
    packs = len(plan_epoch(sample, packed, 0).starts) - 1
    all_packs = round(packs * scale)
    return Pair(
        settings.max_tokens,
        settings.max_tiles,
        all_packs,
        -(-all_packs // settings.packs_per_step),
        float(sample.tokens.sum(dtype=np.int64) / (packs * settings.max_tokens)),
        float(sample.tiles.sum(dtype=np.int64) / (packs * settings.max_tiles)),
    )


def advice(pairs: Sequence[Pair]) -> str | None:
    """What to change, if another tile budget does clearly better with as many tokens. None: nothing."""
    given = next((pair for pair in pairs if pair.given), None)
    best = next((pair for pair in pairs if pair.best and given and pair.max_tokens == given.max_tokens), None)
    if given is None or best is None or not best.tile_fill:
        return None
    change = f"--num_images_expected {best.max_tiles:,} instead of {given.max_tiles:,}"
    fill = f"{100 * best.token_fill:.1f} % of the tokens and {100 * best.tile_fill:.1f} % of the tiles"
    if best.packs < given.packs * (1 - _WORTH):
        return f"{change} fills {fill}: about {best.packs:,} packs an epoch, not {given.packs:,}"
    if best.max_tiles < given.max_tiles * (1 - _WORTH_TILES):
        return f"{change} fills {fill} with as many packs: less memory for the pack with most tiles"
    return None
