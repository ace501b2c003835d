"""``internvl check``: all that would stop a run with these flags, and what training would make of its data.

``--json`` writes one object:

    manifest, decoded (bool: with --decode), would_train (bool), reasons [text: why training would stop], hints [text]
    problems: [{area, text}]: the reasons that are not in the data; area is flags, manifest, model, trains, deepspeed,
        output, eval or resume
    run: null or {world, steps, step (text: what one is made of), done (null or steps of the checkpoint to go on from)}
    epoch: null or {samples, tokens, tiles, supervised, steps}: of one epoch, steps for one process
    totals: {data_sets, lines, usable, left_out, warnings (lines, a line once per kind)}
    data_sets: [{name, annotation, error: null or text (then nothing else is there),
        lines, usable, held_out, samples (null or in an epoch), longest and most_tiles (of all lines),
        cut {Cut: {lines, first [{line, detail}]}}, supervised {tokens, share}, answers {count, repetitive, share},
        tokens and tiles {sum, mean, p50, p95, max} of usable lines,
        faults and load_faults {FaultCode: {lines, first [{file, line, reason, mend}]}},
        warnings {kind: {lines, what, mend, first [{line, detail}]}}}]

Lines count from 1. ``load_faults`` come up only with ``--decode``.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from internvl_chat.errors import ConfigError, InternVLError
from internvl_chat.tools.check_json import to_json
from internvl_chat.tools.check_run import Outlook, Problem, RunLook, look_at_data, look_at_run
from internvl_chat.tools.data_view import View, add_meta, read_own

if TYPE_CHECKING:
    from internvl_chat.data.corpus import Corpus
    from internvl_chat.data.manifest import DatasetSpec
    from internvl_chat.data.survey import Survey


# Above this share of lost lines, what is wrong is to be mended, not left out.
_MOST_LOST = 0.5


@dataclass(frozen=True)
class Epoch:
    """What one epoch of training would be; ``of``: samples by data set; ``step``: what one is made of."""

    samples: int
    tokens: int
    tiles: int
    supervised: int
    steps: int
    step: str
    of: Mapping[str, int]


@dataclass(frozen=True)
class Report:
    """All that was found. ``errors``: data set -> why it cannot be opened; ``reasons``: why training would stop.

    ``decoded``: whether all media were, not only measured. ``problems``: those reasons that are not in the data.
    """

    manifest: Path
    specs: tuple[DatasetSpec, ...]
    surveys: Mapping[str, Survey]
    errors: Mapping[str, str]
    reasons: tuple[str, ...]
    epoch: Epoch | None
    hints: tuple[str, ...]
    decoded: bool = False
    problems: tuple[Problem, ...] = ()
    outlook: Outlook | None = None

    @property
    def clean(self) -> bool:
        """Nothing left out and no warning."""
        return not self.errors and all(
            not (one.left_out or one.load_faults or one.warnings) for one in self.surveys.values()
        )


def add_own(parser: argparse.ArgumentParser) -> None:
    """Flags of the tool itself."""
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON to a file; - is stdout")
    parser.add_argument("--strict", action="store_true", help="exit status 1 for any fault or warning")
    parser.add_argument("--decode", action="store_true", help="load every sample whole: finds truncated pictures")
    parser.add_argument("--world_size", metavar="N", type=int, default=1, help="processes (GPUs) of the run (1)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command ``internvl check``."""
    add_meta(parser)


def run(args: argparse.Namespace) -> int:
    """Check and print. Returns 0 if training would run (with --strict: if nothing was found), else 1."""
    own, flags = read_own(args, "check", add_own)
    from internvl_chat.tools.check_text import report_lines

    if own.json is not None and own.json != "-" and Path(own.json).is_dir():
        raise ConfigError(f"--json {own.json}: is a folder; give a file, or - for stdout")
    if own.world_size < 1:
        raise ConfigError(f"--world_size {own.world_size}: must be a whole number of at least 1")
    report = check_all(flags, own.meta, own.world_size, own.decode, show_progress=sys.stderr.isatty())
    if own.json is not None:
        text = json.dumps(to_json(report), indent=2, ensure_ascii=False)
        if own.json == "-":
            print(text)
        else:
            Path(own.json).parent.mkdir(parents=True, exist_ok=True)
            Path(own.json).write_text(f"{text}\n", encoding="utf-8", errors="backslashreplace")
    if own.json != "-":
        print("\n".join(report_lines(report)))
    return 1 if report.reasons or (own.strict and not report.clean) else 0


def check_all(
    flags: Sequence[str], meta: str | None = None, world: int = 1, decode: bool = False, show_progress: bool = False
) -> Report:
    """The whole run: flags, model, DeepSpeed, output folder, evaluation and data. None of them hides another."""
    look = look_at_run(flags, meta, world)
    if look.view is not None:
        return check(look.view, decode, show_progress, flags, look)
    look_at_data(look, None)
    named = meta or (look.arguments[1].meta_path if look.arguments else None)
    problems = tuple(look.problems)
    reasons = tuple(problem.text for problem in problems)
    return Report(Path(named or ""), (), {}, {}, reasons, None, tuple(look.hints), decode, problems)


def check(
    view: View,
    decode: bool = False,
    show_progress: bool = False,
    flags: Sequence[str] = (),
    look: RunLook | None = None,
) -> Report:
    """Look at every data set. A data set that cannot be opened does not keep the others from being looked at.

    ``flags``: those that made the view, to be named in a hint. ``look``: what was found of the run itself.
    """
    from internvl_chat.data.survey import add_shared_lines, survey_dataset

    progress = _progress if show_progress else None
    surveys, errors = [], {}
    with _quiet():
        for spec in view.specs:
            if show_progress:
                print(f"{spec.name}: opening\033[K", end="\r", file=sys.stderr, flush=True)
            try:
                index = view.open(spec)
                one = survey_dataset(spec, index, view.maker, workers=view.workers, decode=decode, progress=progress)
            except InternVLError as error:
                errors[spec.name] = str(error)
            else:
                surveys.append(one)
        found = {one.spec.name: one for one in add_shared_lines(surveys)}
        corpus, epoch, reasons = _would_train(view, found, errors)
        if look is not None:
            look_at_data(look, corpus)
    hints = tuple(_hints(view, found, reasons, decode, flags))
    if look is None:
        return Report(view.manifest, view.specs, found, errors, reasons, epoch, hints, decode)
    problems = tuple(look.problems)
    reasons = (*(problem.text for problem in problems), *reasons)
    hints = (*look.hints, *hints)
    return Report(view.manifest, view.specs, found, errors, reasons, epoch, hints, decode, problems, look.outlook)


def _progress(name: str, done: int, lines: int) -> None:
    end = "\r" if done < lines else "\033[K\r"
    print(f"{name}: {done} of {lines} lines\033[K", end=end, file=sys.stderr, flush=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """What is logged when data sets are opened is in the report, too."""
    loggers = [logging.getLogger(f"internvl_chat.data.{name}") for name in ("corpus", "index_build")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _would_train(
    view: View, surveys: Mapping[str, Survey], errors: Mapping[str, str]
) -> tuple[Corpus | None, Epoch | None, tuple[str, ...]]:
    """The opened data and one epoch, or all reasons for which a run would stop."""
    from internvl_chat.data.corpus import open_corpus

    limit, reasons = view.data.max_fault_share, list(errors.values())
    for name, one in surveys.items():
        long = sum(one.faults[code].count for code in ("TOO_LONG", "TOO_MANY_TILES") if code in one.faults)
        if long and view.maker.limits.too_long == "fail":
            reasons.append(f"data set {name!r}: {long} samples are too long, and --long_samples is fail")
        if one.left_out > limit * one.lines:
            share = f"{one.left_out} of {one.lines} lines cannot be used"
            reasons.append(f"data set {name!r}: {share}, more than --max_fault_share {limit:g}")
    if reasons:
        return None, None, tuple(reasons)
    try:
        corpus = open_corpus(
            view.specs,
            view.maker,
            view.index_dir,
            workers=view.workers,
            look_again=False,
            max_fault_share=limit,
            resample=view.data.use_data_resampling,
        )
        broken = _visits_to_broken(corpus, surveys)
        if broken > int(limit * len(corpus)):
            what = f"{broken} of {len(corpus)} samples of an epoch fail to load"
            return corpus, None, (f"{what}, more than --max_fault_share {limit:g}",)
        return corpus, _epoch(view, corpus), ()
    except InternVLError as error:
        return None, None, (str(error),)


def _visits_to_broken(corpus: Corpus, surveys: Mapping[str, Survey]) -> int:
    import numpy as np

    places = corpus.places()
    return sum(
        int(np.isin(places.line[places.dataset == number], surveys[spec.name].unloadable).sum())
        for number, spec in enumerate(corpus.specs)
    )


def _epoch(view: View, corpus: Corpus) -> Epoch:
    from internvl_chat.train.setup import build_schedule

    schedule = build_schedule(corpus, view.config, view.data, view.train, trains=view.trains)
    tokens, tiles, supervised = (int(corpus.column(name).sum()) for name in ("tokens", "tiles", "supervised"))
    of = {share.name: share.count for share in corpus.shares}
    return Epoch(len(corpus), tokens, tiles, supervised, schedule.steps_in(1), schedule.describe(), of)


def _hints(
    view: View, surveys: Mapping[str, Survey], reasons: tuple[str, ...], decode: bool, flags: Sequence[str]
) -> Iterator[str]:
    """Which flag, or which tool, mends what."""
    codes = {code for one in surveys.values() for code in (*one.faults, *one.load_faults)}
    longest = max((one.longest for one in surveys.values() if "TOO_LONG" in one.faults), default=0)
    if longest:
        packs = " (and as much of --max_packed_tokens)" if view.data.use_packed_ds else ""
        yield _long_hint(surveys, "TOO_LONG", f"--max_seq_length {longest}{packs}")
    tiles = max((one.most_tiles for one in surveys.values() if "TOO_MANY_TILES" in one.faults), default=0)
    if tiles:
        yield _long_hint(surveys, "TOO_MANY_TILES", f"--num_images_expected {tiles}")
    if "REMOTE" in codes:
        yield "REMOTE: --remote_media True reads pictures and videos over the network"
    for name, one in surveys.items():
        missing = sum(one.faults[code].count for code in ("MISSING_IMAGE", "MISSING_VIDEO") if code in one.faults)
        if missing > one.lines / 2:
            yield f"data set {name!r}: most media are missing; is 'root' right? It is {one.spec.root!r}"
    if "STALE" in codes:
        yield "STALE: --rebuild_index True measures pictures that were replaced since the index was built"
    shares = {name: (one.left_out + len(one.unloadable)) / one.lines for name, one in surveys.items() if one.lines}
    most = max(shares, key=lambda name: shares[name], default="")
    if any("--max_fault_share" in reason for reason in reasons) and shares:
        if shares[most] > _MOST_LOST:
            yield f"data set {most!r}: most of it is lost, so mend what is wrong before anything is trained on the rest"
        else:
            yield f"to train without the unusable lines: --max_fault_share {_rounded_up(shares[most]):g}"
    if any(shares.values()) and min(shares.values()) < 1:
        out = f"{view.manifest.stem}_repaired"
        words = ["internvl", "repair", str(view.manifest), out, *(["--decode"] if decode else []), *flags]
        yield f"the same data without these lines: {shlex.join(words)}"


def _long_hint(surveys: Mapping[str, Survey], code: str, takes_all: str) -> str:
    """What takes the lines that are too large. Only ways of cutting that are not set already have been tried."""
    found = [one.relief[code] for one in surveys.values() if code in one.relief]
    tried, ways = sum(one.tried for one in found), dict.fromkeys(way for one in found for way in one.fits)
    parts = [f"{code}: {takes_all} takes them all"]
    fits = {way: sum(one.fits[way] for one in found) for way in ways}
    for way, what in (("fewer_tiles", "fewer tiles and frames"), ("truncate", "fewer rounds")):
        if fits.get(way):
            parts.append(f"--long_samples {way} ({what}) makes {fits[way]} of {tried} fit")
    if fits.get("truncate", 0) < tried:
        parts.append("where one round alone is too long, truncate does not help")
    return "; ".join(parts)


def _rounded_up(share: float) -> float:
    return min(1.0, int(share * 100 + 1) / 100)
