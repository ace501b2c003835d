"""Lines too large or made to fit: how large they are whole, what was cut, and what each way of cutting would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from internvl_chat.data.faults import Cut, Fault, FaultCode
from internvl_chat.data.fit import Footprint, LongSamples
from internvl_chat.data.index import LineIndex
from internvl_chat.data.manifest import DatasetSpec
from internvl_chat.data.sample import SampleMaker
from internvl_chat.data.survey_pass import SAMPLED, SHOWN, Example, Tally

TOO_LARGE = (FaultCode.TOO_LONG, FaultCode.TOO_MANY_TILES)
CUTTING: tuple[LongSamples, ...] = ("fewer_tiles", "truncate")


@dataclass(frozen=True)
class Relief:
    """Of ``tried`` lines that are too large, how many each way of cutting makes fit. The way that is set has no entry:
    it has failed for all of them."""

    tried: int
    fits: Mapping[str, int]


@dataclass(frozen=True)
class LongLines:
    """``longest``, ``most_tiles``: of lines left out, whole; ``relief``: by FaultCode; ``cut``: by Cut."""

    longest: int
    most_tiles: int
    relief: Mapping[str, Relief]
    cut: Mapping[str, Tally]


def look_at_long(index: LineIndex, spec: DatasetSpec, maker: SampleMaker, codes: np.ndarray) -> LongLines:
    """``codes`` uint8 (lines,): FaultCode of each line under the maker's limits."""
    whole, found = _with(maker, "drop"), []
    # The index has the sizes of lines that are too large, but for those that a cut was tried on.
    if maker.limits.cuts:
        sizes = (_measure(whole, index.line(int(n)), spec) for n in np.flatnonzero(np.isin(codes, TOO_LARGE)))
        found = [size for size in sizes if size is not None]
    relief = {}
    for code in TOO_LARGE:
        lines = np.flatnonzero(codes == code)
        if len(lines):
            some = lines[np.linspace(0, len(lines) - 1, min(SAMPLED, len(lines))).astype(int)]
            ways = [_with(maker, way) for way in CUTTING if way != maker.limits.too_long]
            fits: dict[str, int] = {
                way.limits.too_long: sum(_fits(way, index.line(int(n)), spec) for n in some) for way in ways
            }
            relief[code.name] = Relief(len(some), fits)
    cut = {}
    for kind in Cut:
        lines = np.flatnonzero(index.table["code"] == kind)
        first = (Example(int(n) + 1, _what_was_cut(index, spec, whole, int(n))) for n in lines[:SHOWN])
        if len(lines):
            cut[kind.name] = Tally(len(lines), tuple(first))
    longest, most = (max((getattr(size, name) for size in found), default=0) for name in ("tokens", "tiles"))
    return LongLines(longest, most, relief, cut)


def _with(maker: SampleMaker, way: LongSamples) -> SampleMaker:
    return replace(maker, limits=replace(maker.limits, too_long=way))


def _measure(maker: SampleMaker, line: bytes, spec: DatasetSpec) -> Footprint | None:
    try:
        return maker.measure(line, spec)[0]
    except Fault:  # its media are gone since; the index is asked again in the next run
        return None


def _fits(maker: SampleMaker, line: bytes, spec: DatasetSpec) -> bool:
    return _measure(maker, line, spec) is not None


def _what_was_cut(index: LineIndex, spec: DatasetSpec, whole: SampleMaker, number: int) -> str:
    kept, size = index.footprint(number), _measure(whole, index.line(number), spec)
    if size is None:
        return f"{kept.tokens} tokens and {kept.tiles} tiles are left"
    return f"{kept.tokens} of {size.tokens} tokens and {kept.tiles} of {size.tiles} tiles are left"
