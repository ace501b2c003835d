"""``internvl plan``: what an epoch is made of, before it is trained: packs, steps, waiting, better budgets.

``--json`` writes one object; shares are 0..1, ``Spread`` is {mean, p5, p25, p50, p75, p95, p99, max}:

    manifest, would_train (bool), reasons [text: why training would stop], hints [text]
    plan: null (if nothing can be planned) or {packed (bool), max_tokens, max_tiles (0: no limit), batch_size,
        by_length (bool), world, accumulation, packs_per_step (padded batches count as packs), samples, tokens, tiles,
        packs, fewest_packs (null for padded batches), steps, token_fill, tile_fill (null: no budget), padding,
        samples_per_pack, tokens_per_pack, tiles_per_pack (Spread)}
    samples: null or {tokens, tiles (Spread)}
    run: null or {steps, epochs, exact (bool)}: with --num_train_epochs or --max_steps as given
    padding: null or {random, group_by_length}: shares of padding, for padded batches
    shapes: [{ranks, accumulation, packs_per_step, steps, idle, idle_micro, useful, without_pack}]
    budgets: [{max_tokens, max_tiles, packs, steps, token_fill, tile_fill, given, best}]
    data_sets: [{name, annotation, lines, usable, held_out, left_out {FaultCode: lines}, cut {Cut: lines},
        samples, tokens, tiles, share_of_samples, share_of_tokens, share_of_tiles}]: the last six of an epoch
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvl_chat.errors import ConfigError, InternVLError
from internvl_chat.tools.data_view import View, add_meta, read_own, read_view

if TYPE_CHECKING:
    import numpy as np

    from internvl_chat.data.corpus import Corpus
    from internvl_chat.data.plan.epoch import EpochPlan, PlanSettings
    from internvl_chat.data.plan.report import PlanNumbers, Shape
    from internvl_chat.data.plan.sizes import Sizes
    from internvl_chat.tools.plan_budgets import Pair

# A machine of eight cards.
WORLD = 8
# A step that has more places without a pack than this share of them is worth a word.
_FEW_SAMPLES = 0.02


@dataclass(frozen=True)
class Part:
    """One data set: its lines, and what it gives to an epoch (``samples``, ``tokens``, ``tiles``)."""

    name: str
    annotation: Path
    lines: int
    usable: int
    held_out: int
    left_out: Mapping[str, int]
    cut: Mapping[str, int]
    samples: int
    tokens: int
    tiles: int


@dataclass(frozen=True)
class Run:
    """Steps and epochs of a run; not ``exact`` where later epochs are taken to be like the first."""

    steps: int
    epochs: float
    exact: bool


@dataclass(frozen=True, eq=False)
class Outlook:
    """What can be planned. ``tokens``, ``tiles`` (N,): of each sample of an epoch.

    ``padding``: share of padding by way of sampling, for padded batches only.
    """

    world: int
    accumulation: int
    numbers: PlanNumbers
    tokens: np.ndarray
    tiles: np.ndarray
    run: Run
    shapes: tuple[Shape, ...]
    pairs: tuple[Pair, ...]
    parts: tuple[Part, ...]
    padding: Mapping[str, float] | None


@dataclass(frozen=True, eq=False)
class Report:
    """``reasons``: why training would stop; then the plan, if there is one, is of what would be left."""

    manifest: Path
    reasons: tuple[str, ...]
    hints: tuple[str, ...]
    outlook: Outlook | None


def add_own(parser: argparse.ArgumentParser) -> None:
    """Flags of the tool itself."""
    parser.add_argument("--world", metavar="N", type=int, default=WORLD, help=f"processes (GPUs) of the run ({WORLD})")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON to a file; - is stdout")
    parser.add_argument("--html", metavar="FILE", help="write a page with histograms")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command ``internvl plan``."""
    add_meta(parser)


def run(args: argparse.Namespace) -> int:
    """Plan and print. Returns 0 if training would run, else 1."""
    own, flags = read_own(args, "plan", add_own)
    from internvl_chat.tools.plan_text import report_lines

    for name in ("json", "html"):
        path = getattr(own, name)
        if path is not None and path != "-" and Path(path).is_dir():
            raise ConfigError(f"--{name} {path}: is a folder; give a file")
    if own.world < 1:
        raise ConfigError(f"--world {own.world}: must be a whole number of at least 1")
    report = look_ahead(read_view(own.meta, flags), own.world)
    if own.json != "-":
        print("\n".join(report_lines(report)))
    if own.json is not None:
        text = json.dumps(to_json(report), indent=2, ensure_ascii=False)
        _write(own.json, f"{text}\n", own.json != "-")
    if own.html is not None:
        from internvl_chat.tools.plan_page import report_page

        _write(own.html, report_page(report), own.json != "-")
    return 1 if report.reasons else 0


def _write(name: str, text: str, say: bool) -> None:
    if name == "-":
        print(text, end="")
        return
    try:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"{name} cannot be written: {error.strerror}; name another file") from error
    if say:
        print(f"wrote {name}")


def look_ahead(view: View, world: int) -> Report:
    """Index the data and plan. Lines that would stop a run do not keep the rest from being planned."""
    from internvl_chat.data.faults import TooManyFaults

    reasons: tuple[str, ...] = ()
    try:
        try:
            corpus = _open(view, view.data.max_fault_share)
        except TooManyFaults as error:
            reasons = (str(error),)
            corpus = _open(view, 1.0)
    except InternVLError as error:
        return Report(view.manifest, reasons or (str(error),), (), None)
    outlook = _outlook(view, corpus, world)
    return Report(view.manifest, reasons, tuple(_hints(outlook)), outlook)


def _open(view: View, max_fault_share: float) -> Corpus:
    from internvl_chat.data.corpus import open_corpus

    return open_corpus(
        view.specs,
        view.maker,
        view.index_dir,
        workers=view.workers,
        rebuild=view.data.rebuild_index,
        max_fault_share=max_fault_share,
        resample=view.data.use_data_resampling,
    )


def _outlook(view: View, corpus: Corpus, world: int) -> Outlook:
    from internvl_chat.data.plan.epoch import plan_epoch
    from internvl_chat.data.plan.report import all_sizes, numbers_of, rank_counts, shape_of, shape_settings
    from internvl_chat.tools.plan_budgets import try_pairs
    from internvl_chat.train.setup import pack_cost, plan_settings

    accumulation = view.train.gradient_accumulation_steps
    cost = pack_cost(view.config, view.trains, corpus.supervised_share)
    settings = plan_settings(view.config, view.data, view.train, world * accumulation, cost)

    def numbers(wanted: PlanSettings) -> PlanNumbers:
        return numbers_of(plan_epoch(corpus, wanted, 0, view.workers), corpus, wanted)

    first = numbers(settings)
    shapes = []
    for ranks in rank_counts(world):
        wanted, turns = shape_settings(settings, world, ranks, accumulation)
        shapes.append(shape_of(first if wanted == settings else numbers(wanted), ranks, turns))
    tokens, tiles = all_sizes(corpus)
    padding = None
    if not settings.packed:
        other = numbers(replace(settings, by_length=not settings.by_length)).padding
        both = (first.padding, other) if settings.by_length else (other, first.padding)
        padding = dict(zip(("group_by_length", "random"), both, strict=True))
    given = (settings.max_tokens, settings.max_tiles) if settings.packed else None
    return Outlook(
        world,
        accumulation,
        first,
        tokens,
        tiles,
        _run(view, corpus, first),
        tuple(shapes),
        tuple(try_pairs(tokens, tiles, settings, given)),
        tuple(_parts(view, corpus, tokens, tiles)),
        padding,
    )


def _run(view: View, corpus: Corpus, first: PlanNumbers) -> Run:
    """Later epochs are planned, too, as far as a run itself counts exactly."""
    from internvl_chat.data.plan.epoch import plan_epoch
    from internvl_chat.data.plan.schedule import EXACT_EPOCHS, EXACT_SAMPLES, Schedule

    def planner(sizes: Sizes, settings: PlanSettings, epoch: int, name: str) -> EpochPlan:
        return plan_epoch(sizes, settings, epoch, view.workers) if epoch else first.plan

    schedule = Schedule(corpus, first.settings, planner=planner)
    max_steps, epochs = view.train.max_steps, view.train.num_train_epochs
    about = max_steps / first.steps if max_steps > 0 else epochs
    exact = about <= 1 or about * len(corpus) <= EXACT_SAMPLES
    if max_steps > 0:
        return Run(max_steps, schedule.about_epochs(max_steps), exact and about <= EXACT_EPOCHS)
    return Run(schedule.steps_in(epochs) if exact else round(epochs * first.steps), epochs, exact)


def _parts(view: View, corpus: Corpus, tokens: np.ndarray, tiles: np.ndarray) -> Iterator[Part]:
    import numpy as np

    from internvl_chat.data.corpus import held_out_lines
    from internvl_chat.data.faults import Cut, FaultCode
    from internvl_chat.data.survey import fault_codes

    for number, (spec, index) in enumerate(zip(corpus.specs, corpus.indexes, strict=True)):
        codes, table = fault_codes(index, view.maker.limits), index.table
        usable = codes == 0
        left_out = {code.name: int((codes == code).sum()) for code in FaultCode if code}
        cut = {code.name: int((table["code"][usable] == code).sum()) for code in Cut}
        own = slice(int(corpus.starts[number]), int(corpus.starts[number + 1]))
        yield Part(
            spec.name,
            spec.annotation,
            len(index),
            int(usable.sum()),
            int((usable & held_out_lines(spec, len(index))).sum()),
            {name: lines for name, lines in left_out.items() if lines},
            {name: lines for name, lines in cut.items() if lines},
            own.stop - own.start,
            int(tokens[own].sum(dtype=np.int64)),
            int(tiles[own].sum(dtype=np.int64)),
        )


def _hints(outlook: Outlook) -> Iterator[str]:
    from internvl_chat.tools.plan_budgets import advice

    numbers = outlook.numbers
    if advised := advice(outlook.pairs):
        yield advised
    places = numbers.steps * numbers.settings.packs_per_step
    empty = next(shape.without_pack for shape in outlook.shapes if shape.ranks == outlook.world)
    if empty > _FEW_SAMPLES * places:
        yield (
            f"{empty:,} of {places:,} places in the steps have no pack: the data are few for {outlook.world} processes "
            f"with --gradient_accumulation_steps {outlook.accumulation}; take fewer of one of them"
        )
    if outlook.padding and not numbers.settings.by_length:
        random, grouped = outlook.padding["random"], outlook.padding["group_by_length"]
        if random - grouped < 0.01:
            return
        yield (
            f"{100 * random:.1f} % of all positions are padding; --group_by_length True makes that "
            f"{100 * grouped:.1f} %, --use_packed_ds True none"
        )


# -- JSON -------------------------------------------------------------------------------------------------------------


def to_json(report: Report) -> dict[str, Any]:
    """The report as plain values; the module says which."""
    head = {"manifest": str(report.manifest), "would_train": not report.reasons}
    head |= {"reasons": list(report.reasons), "hints": list(report.hints)}
    found = report.outlook
    if found is None:
        empty = dict.fromkeys(("plan", "samples", "run", "padding"))
        return {**head, **empty, "shapes": [], "budgets": [], "data_sets": []}
    return {
        **head,
        "plan": _plan_json(found),
        "samples": {name: _spread(getattr(found, name)) for name in ("tokens", "tiles")},
        "run": asdict(found.run),
        "padding": found.padding,
        "shapes": [asdict(shape) for shape in found.shapes],
        "budgets": [asdict(pair) for pair in found.pairs],
        "data_sets": [_part_json(found, part) for part in found.parts],
    }


def _spread(values: np.ndarray) -> dict[str, Any]:
    from internvl_chat.data.plan.report import Spread

    return asdict(Spread.of(values))


def _plan_json(found: Outlook) -> dict[str, Any]:
    numbers, settings = found.numbers, found.numbers.settings
    kept = ("packed", "max_tokens", "max_tiles", "batch_size", "by_length", "packs_per_step")
    return {
        **{name: getattr(settings, name) for name in kept},
        "world": found.world,
        "accumulation": found.accumulation,
        "samples": len(found.tokens),
        "tokens": int(numbers.tokens.sum()),
        "tiles": int(numbers.tiles.sum()),
        "fewest_packs": numbers.fewest_packs if settings.packed else None,
        **{name: getattr(numbers, name) for name in ("packs", "steps", "token_fill", "tile_fill", "padding")},
        **{f"{name}_per_pack": _spread(getattr(numbers, name)) for name in ("samples", "tokens", "tiles")},
    }


def _part_json(found: Outlook, part: Part) -> dict[str, Any]:
    return {**asdict(part), "annotation": str(part.annotation), **shares_of(found, part)}


def shares_of(found: Outlook, part: Part) -> dict[str, float]:
    """What a data set is of an epoch (0..1): of its samples, tokens and tiles."""
    whole = {name: sum(getattr(one, name) for one in found.parts) for name in ("samples", "tokens", "tiles")}
    return {f"share_of_{name}": getattr(part, name) / max(1, total) for name, total in whole.items()}
