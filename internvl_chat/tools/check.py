"""``internvl check``: all that is wrong with the data of a manifest, and what training would make of them.

``--json`` writes one object:

    manifest, decoded (bool: with --decode), would_train (bool), reasons [text: why training would stop], hints [text]
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvl_chat.errors import ConfigError, InternVLError
from internvl_chat.tools.data_view import View, add_meta, read_own, read_view

if TYPE_CHECKING:
    from internvl_chat.data.corpus import Corpus
    from internvl_chat.data.manifest import DatasetSpec
    from internvl_chat.data.survey import Survey
    from internvl_chat.data.survey_pass import Tally


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

    ``decoded``: whether all media were, not only measured.
    """

    manifest: Path
    specs: tuple[DatasetSpec, ...]
    surveys: Mapping[str, Survey]
    errors: Mapping[str, str]
    reasons: tuple[str, ...]
    epoch: Epoch | None
    hints: tuple[str, ...]
    decoded: bool = False

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command ``internvl check``."""
    add_meta(parser, add_own)


def run(args: argparse.Namespace) -> int:
    """Check and print. Returns 0 if training would run (with --strict: if nothing was found), else 1."""
    from internvl_chat.tools.check_text import report_lines

    own, flags = read_own(args, "check", add_own)
    if own.json is not None and own.json != "-" and Path(own.json).is_dir():
        raise ConfigError(f"--json {own.json}: is a folder; give a file, or - for stdout")
    report = check(read_view(own.meta, flags), own.decode, show_progress=sys.stderr.isatty(), flags=flags)
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


def check(view: View, decode: bool = False, show_progress: bool = False, flags: Sequence[str] = ()) -> Report:
    """Look at every data set. A data set that cannot be opened does not keep the others from being looked at.

    ``flags``: those that made the view, to be named in a hint.
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
        epoch, reasons = _would_train(view, found, errors)
    hints = tuple(_hints(view, found, reasons, decode, flags))
    return Report(view.manifest, view.specs, found, errors, reasons, epoch, hints, decode)


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
) -> tuple[Epoch | None, tuple[str, ...]]:
    """One epoch, or all reasons for which a run would stop."""
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
        return None, tuple(reasons)
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
            return None, (f"{what}, more than --max_fault_share {limit:g}",)
        return _epoch(view, corpus), ()
    except InternVLError as error:
        return None, (str(error),)


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


# -- JSON -------------------------------------------------------------------------------------------------------------


def to_json(report: Report) -> dict[str, Any]:
    """The report as plain values; the module says which."""
    epoch, surveys = report.epoch, list(report.surveys.values())
    keys = ("samples", "tokens", "tiles", "supervised", "steps")
    return {
        "manifest": str(report.manifest),
        "decoded": report.decoded,
        "would_train": not report.reasons,
        "reasons": list(report.reasons),
        "hints": list(report.hints),
        "epoch": None if epoch is None else {key: getattr(epoch, key) for key in keys},
        "totals": {
            "data_sets": len(report.specs),
            "lines": sum(one.lines for one in surveys),
            "usable": sum(one.usable for one in surveys),
            "left_out": sum(one.left_out for one in surveys),
            "warnings": sum(tally.count for one in surveys for tally in one.warnings.values()),
        },
        "data_sets": [_dataset_json(report, spec) for spec in report.specs],
    }


def _dataset_json(report: Report, spec: DatasetSpec) -> dict[str, Any]:
    from internvl_chat.data.lint import WARNINGS

    head = {"name": spec.name, "annotation": str(spec.annotation), "error": report.errors.get(spec.name)}
    if spec.name not in report.surveys:
        return head
    one = report.surveys[spec.name]
    faults = {
        group: {
            code: {
                "lines": tally.count,
                "first": [{k: getattr(r, k) for k in ("file", "line", "reason", "mend")} for r in tally.first],
            }
            for code, tally in getattr(one, group).items()
        }
        for group in ("faults", "load_faults")
    }
    warnings = {
        kind: {"what": WARNINGS[kind][0], "mend": WARNINGS[kind][1], **_tally_json(tally)}
        for kind, tally in one.warnings.items()
    }
    return {
        **head,
        **{key: getattr(one, key) for key in ("lines", "usable", "held_out", "longest", "most_tiles")},
        "samples": None if report.epoch is None else report.epoch.of[spec.name],
        "cut": {kind: _tally_json(tally) for kind, tally in one.cut.items()},
        "supervised": {"tokens": one.supervised, "share": one.supervised / max(1, one.tokens.sum)},
        "answers": {"count": one.answers, "repetitive": one.repetitive, "share": one.repetitive / max(1, one.answers)},
        "tokens": asdict(one.tokens),
        "tiles": asdict(one.tiles),
        **faults,
        "warnings": warnings,
    }


def _tally_json(tally: Tally) -> dict[str, Any]:
    return {
        "lines": tally.count,
        "first": [{"line": example.line, "detail": example.text} for example in tally.first],
    }
