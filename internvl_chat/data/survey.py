"""A whole data set looked at, its index and its lines -> what training would make of it, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from internvl_chat.data.corpus import held_out_lines
from internvl_chat.data.faults import Cut, FaultCode
from internvl_chat.data.fit import Limits
from internvl_chat.data.index import LineIndex, explain_line, usable_lines
from internvl_chat.data.lint import WARNINGS
from internvl_chat.data.manifest import DatasetSpec
from internvl_chat.data.sample import SampleMaker
from internvl_chat.data.survey_long import Relief, look_at_long
from internvl_chat.data.survey_pass import SHOWN, Example, FaultTally, Progress, Seen, Tally, look_at_lines

# Boxes that reach this far, and no farther, may be meant in thousandths.
_THOUSANDTHS = (500, 1000)


@dataclass(frozen=True)
class Spread:
    """A size over all usable lines."""

    sum: int = 0
    mean: float = 0.0
    p50: int = 0
    p95: int = 0
    max: int = 0

    @classmethod
    def of(cls, values: np.ndarray) -> Spread:
        if not len(values):
            return cls()
        p50, p95 = np.percentile(values, (50, 95), method="inverted_cdf")
        return cls(int(values.sum(dtype=np.int64)), float(values.mean()), int(p50), int(p95), int(values.max()))


@dataclass(frozen=True)
class Survey:
    """What there is to say about a data set.

    ``faults``: by FaultCode, from the index; ``load_faults``: those that only decoding shows; ``cut``: usable lines
    made to fit, by Cut; ``relief``: of lines too large, by FaultCode; ``supervised``: tokens;
    ``longest``, ``most_tiles``: of all lines, those too large included, whole;
    ``content`` (lines,): hash of each usable line, 0 elsewhere; ``unloadable``: lines of ``load_faults``, from 0.
    """

    spec: DatasetSpec
    lines: int
    usable: int
    held_out: int
    faults: Mapping[str, FaultTally]
    load_faults: Mapping[str, FaultTally]
    cut: Mapping[str, Tally]
    relief: Mapping[str, Relief]
    tokens: Spread
    tiles: Spread
    supervised: int
    longest: int
    most_tiles: int
    answers: int
    repetitive: int
    warnings: Mapping[str, Tally]
    content: np.ndarray = field(repr=False, compare=False)
    unloadable: np.ndarray = field(repr=False, compare=False)

    @property
    def left_out(self) -> int:
        return self.lines - self.usable


def survey_dataset(
    spec: DatasetSpec,
    index: LineIndex,
    maker: SampleMaker,
    *,
    workers: int = 1,
    decode: bool = False,
    progress: Progress | None = None,
) -> Survey:
    """Look at a data set whose index is open. ``decode``: every sample is loaded, too. Raises DataError."""
    usable = usable_lines(index, maker.limits)
    table = index.table
    good = table[usable]
    seen = look_at_lines(spec, index, maker, usable, workers, decode, progress)
    warnings = {**_seen_warnings(seen), **_whole_file_warnings(spec, index, good, seen.hashes)}
    long = look_at_long(index, spec, maker, fault_codes(index, maker.limits))
    return Survey(
        spec=spec,
        lines=len(table),
        usable=int(usable.sum()),
        held_out=int((usable & held_out_lines(spec, len(table))).sum()),
        faults=tally_faults(index, spec, maker),
        load_faults=seen.load_faults,
        cut=long.cut,
        relief=long.relief,
        tokens=Spread.of(good["tokens"]),
        tiles=Spread.of(good["tiles"]),
        supervised=int(good["supervised"].sum(dtype=np.int64)),
        longest=int(table["tokens"].max(initial=long.longest)),
        most_tiles=int(table["tiles"].max(initial=long.most_tiles)),
        answers=seen.answers,
        repetitive=seen.repetitive,
        warnings={kind: warnings[kind] for kind in WARNINGS if kind in warnings},
        content=seen.hashes[:, 0],
        unloadable=seen.unloadable,
    )


def fault_codes(index: LineIndex, limits: Limits) -> np.ndarray:
    """uint8 (lines,): FaultCode of each line under these limits, 0 for usable ones."""
    table = index.table
    codes = np.where(table["code"] < min(Cut), table["code"], 0).astype(np.uint8)
    codes[(codes == 0) & (table["tokens"] > limits.max_tokens)] = FaultCode.TOO_LONG
    codes[(codes == 0) & (table["tiles"] > limits.max_tiles)] = FaultCode.TOO_MANY_TILES
    return codes


def tally_faults(index: LineIndex, spec: DatasetSpec, maker: SampleMaker) -> dict[str, FaultTally]:
    """Lines that cannot be used, by FaultCode, the most frequent first; SHOWN of each are explained."""
    codes = fault_codes(index, maker.limits)
    tallies = {}
    for code, count in sorted(Counter(codes[codes > 0].tolist()).items(), key=lambda item: (-item[1], item[0])):
        first = [explain_line(index, spec, maker, int(n)) for n in np.flatnonzero(codes == code)[:SHOWN]]
        tallies[FaultCode(code).name] = FaultTally(count, tuple(first))
    return tallies


# -- what only all lines together show -------------------------------------------------------------------------------


def earlier_lines(hashes: np.ndarray) -> np.ndarray:
    """int64 (N,): position of the first entry with the same hash, if it is an earlier one; else -1. 0 is no hash."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    earlier = first[inverse].astype(np.int64)
    earlier[(hashes == 0) | (earlier == np.arange(len(hashes)))] = -1
    return earlier


def _seen_warnings(seen: Seen) -> dict[str, Tally]:
    """What was seen in lines; boxes that leave their pictures but never 1000 are most likely thousandths."""
    clipped = seen.warnings.get("box_clipped")
    low, high = _THOUSANDTHS
    if clipped is None or not low < seen.reach <= high:
        return seen.warnings
    note = f"; no box of the data set goes beyond {high}: looks like 0-1000"
    first = tuple(replace(example, text=example.text + note) for example in clipped.first)
    return {**seen.warnings, "box_clipped": replace(clipped, first=first)}


def _whole_file_warnings(spec: DatasetSpec, index: LineIndex, good: np.ndarray, hashes: np.ndarray) -> dict[str, Tally]:
    lines = len(index)
    content, loose, ids = (earlier_lines(hashes[:, column]) for column in range(3))
    loose[content >= 0] = -1
    found = {
        kind: _tally([(int(n), f"as line {earlier[n] + 1}") for n in np.flatnonzero(earlier >= 0)])
        for kind, earlier in (("duplicate", content), ("near_duplicate", loose), ("same_id", ids))
        if (earlier >= 0).any()
    }
    if index.kind == "jsonl" and _is_table(index.line(0)):
        found["no_jsonl"] = Tally(1, (Example(1, "this is no JSONL: it looks like CSV"),))
    if spec.length is not None and spec.length != lines:
        found["length"] = Tally(1, (Example(lines, f"the manifest says {spec.length}, there are {lines} lines"),))
    if len(good) and not good["supervised"].any():
        found["unsupervised"] = Tally(1, (Example(1, "no supervised token in any usable line"),))
    return found


def _is_table(line: bytes) -> bool:
    """Whether the first line of a file is that of a table: names or values between commas or tabs."""
    return line.lstrip()[:1] not in (b"{", b"[", b"") and (b"," in line or b"\t" in line)


def _tally(lines: Sequence[tuple[int, str]]) -> Tally:
    return Tally(len(lines), tuple(Example(number + 1, text) for number, text in lines[:SHOWN]))


def add_shared_lines(surveys: Sequence[Survey]) -> list[Survey]:
    """The surveys with the warning "elsewhere" for lines whose content is in an earlier data set, too."""
    if len(surveys) < 2:
        return list(surveys)
    starts = np.cumsum([0, *(len(one.content) for one in surveys)])
    owner = np.repeat(np.arange(len(surveys)), np.diff(starts))
    earlier = earlier_lines(np.concatenate([one.content for one in surveys]))
    shared = np.flatnonzero((earlier >= 0) & (owner[earlier] != owner))
    result = []
    for number, one in enumerate(surveys):
        mine = shared[owner[shared] == number]
        texts = [(int(n - starts[number]), _place(surveys, starts, int(earlier[n]))) for n in mine]
        more = {**one.warnings, **({"elsewhere": _tally(texts)} if texts else {})}
        result.append(replace(one, warnings={kind: more[kind] for kind in WARNINGS if kind in more}))
    return result


def _place(surveys: Sequence[Survey], starts: np.ndarray, position: int) -> str:
    number = int(np.searchsorted(starts, position, side="right")) - 1
    return f"as line {position - starts[number] + 1} of data set {surveys[number].spec.name!r}"
