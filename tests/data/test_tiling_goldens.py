"""The grid of a picture: all sizes and settings of the original, and the order in which grids are tried."""

from __future__ import annotations

import pytest

from internvl_chat.data.tiles import TileSettings, candidate_grids, choose_grid, count_tiles
from tests.data.helpers import load_json

GOLDEN = load_json("tiling.json")
RANGES = sorted(GOLDEN["results"])


def bounds(text: str) -> tuple[int, int]:
    low, high = text.split("-")
    return int(low), int(high)


@pytest.mark.parametrize("limits", RANGES)
def test_grids_are_tried_in_the_originals_order(limits: str) -> None:
    """It sorts a set by area, so equal areas come in the order of the set; ties between grids depend on it."""
    assert [list(grid) for grid in candidate_grids(*bounds(limits))] == GOLDEN["candidate_order"][limits]


@pytest.mark.parametrize("limits", RANGES)
def test_grid_and_number_of_tiles_of_150_sizes(limits: str) -> None:
    low, high = bounds(limits)
    plain = TileSettings(size=GOLDEN["image_size"], min_tiles=low, max_tiles=high, thumbnail=False)
    thumbnail = TileSettings(size=GOLDEN["image_size"], min_tiles=low, max_tiles=high, thumbnail=True)
    assert len(GOLDEN["sizes"]) == len(GOLDEN["results"][limits]) == 150
    for (width, height), expected in zip(GOLDEN["sizes"], GOLDEN["results"][limits], strict=True):
        columns, rows = choose_grid(width, height, plain)
        ours = [columns, rows, count_tiles(width, height, plain), count_tiles(width, height, thumbnail)]
        assert ours == expected, (width, height)


def test_without_tiling_there_is_one_tile_whatever_the_size() -> None:
    settings = TileSettings(dynamic=False, min_tiles=2, max_tiles=12, thumbnail=True)
    assert {count_tiles(width, height, settings) for width, height in GOLDEN["sizes"]} == {1}


@pytest.mark.parametrize(("images", "limit"), [(1, 12), (2, 6), (3, 4), (5, 2), (12, 1), (40, 1)])
def test_the_limit_is_shared_among_pictures_and_never_below_one(images: int, limit: int) -> None:
    assert TileSettings(max_tiles=12).shared_among(images).max_tiles == limit


def test_a_share_below_the_minimum_is_the_share() -> None:
    """Six pictures with at most twelve and at least three tiles get two each, not none."""
    shared = TileSettings(min_tiles=3, max_tiles=12, thumbnail=False).shared_among(6)
    assert count_tiles(1000, 500, shared) == 2
