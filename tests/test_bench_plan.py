"""The benchmark of plans: its baseline packs as described, its lengths are those published, its goals are reached."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

import numpy as np
import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    """bench/plan.py, imported as a script would be."""
    spec = spec_from_file_location("bench_plan", ROOT / "bench/plan.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["bench_plan"] = module  # dataclasses look there
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(ROOT / "bench"))
        del sys.modules["bench_plan"], sys.modules["original_packer"]


def test_the_original_packs_first_fit_by_tiles_and_lets_the_fullest_go(bench: ModuleType) -> None:
    from original_packer import pack_stream  # type: ignore[import-not-found]

    tiles, tokens = np.array([2, 3, 2, 1, 1, 0, 9]), np.array([10, 10, 10, 10, 10, 85, 10])
    # 0 and 1 have no room together; 2 goes to the pack with most tiles it fits into, that of 0; 3 fills that of 1.
    packs = pack_stream(range(4), tokens, tiles, 100, 4, buffer=20)
    assert packs == [[0, 2], [1, 3]]
    # With room for one open pack, the fuller leaves when there are two.
    assert pack_stream([0, 1], tokens, tiles, 100, 4, buffer=1) == [[1], [0]]
    # The pack with most tiles is asked first, and has too many tokens; 6 is larger than any pack, and dropped.
    assert pack_stream([1, 2, 5, 6], tokens, tiles, 94, 4) == [[1], [2], [5]]
    assert pack_stream([5, 0], tokens, tiles, 95, 4) == [[5, 0]]  # full by tokens


def test_every_sample_is_replayed_once_and_ranks_end_apart(bench: ModuleType) -> None:
    from original_packer import replay

    mix = bench.draw("wide")
    packs = replay(mix.datasets, mix.tokens, mix.tiles, 64, 16384, 48)
    flat = [pack for own in packs for pack in own]
    assert sorted(sample for pack in flat for sample in pack) == list(range(len(mix)))
    assert max(mix.tokens[pack].sum() for pack in flat) <= 16384 and max(mix.tiles[pack].sum() for pack in flat) <= 48
    assert len(packs) == 64 and len({len(own) for own in packs}) > 1


def test_lengths_are_those_published(bench: ModuleType) -> None:
    for name, (samples, tokens) in bench.PUBLISHED.items():
        mix = bench.draw(name)
        assert len(mix) == samples and mix.tokens.sum() / 1e6 == pytest.approx(tokens, rel=0.02)
        assert mix.tokens.max() <= 16384 and mix.tiles.max() <= 48
    ai2d = bench.draw("real").datasets[0]
    assert np.mean(bench.draw("real").tiles[ai2d] == 1) == pytest.approx(0.467, abs=0.002)
    text = bench.draw("real").tokens[ai2d] - 256 * bench.draw("real").tiles[ai2d]
    assert np.percentile(text, [5, 50, 95]) == pytest.approx([41, 52, 75], abs=1)


@pytest.mark.parametrize("name", ["real", "wide"])
@pytest.mark.parametrize("ranks", [8, 64, 512])
def test_the_goals_are_reached(bench: ModuleType, name: str, ranks: int) -> None:
    """Full packs, even ranks; where whole steps need more packs than the data, that is said."""
    mix = bench.draw(name)
    row = bench.facts(bench.planned(mix, ranks), mix, ranks)
    assert row["useful"] >= bench.USEFUL_GOAL[ranks] and row["samples lost"] == row["padding"] == 0
    assert row["steps"][0] == row["steps"][1]
    said = bench.goals(row, ranks)["packs <= 1.005 x least"]
    in_whole_steps = (name, ranks) == ("real", 512)
    assert row["packs / least in whole steps"] <= 1.005 and (said == "yes") is not in_whole_steps
    assert not in_whole_steps or "11.4 steps" in said


def test_useful_work_by_hand(bench: ModuleType) -> None:
    """Two ranks, two steps: 3 and 1, then 2 and 2: 8 of 2 x (3 + 2)."""
    way = bench.Way(np.array([[3.0, 1.0], [2.0, 2.0]]), 8.0, (2, 2), 4)
    assert way.useful == 0.8
