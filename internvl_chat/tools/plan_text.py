"""The report of ``internvl plan`` as lines of text, and the tables that its page shows, too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from internvl_chat.data.plan.report import PERCENTILES, Spread
from internvl_chat.tools.check_text import table
from internvl_chat.tools.plan import shares_of
from internvl_chat.tools.preview_look import visible

if TYPE_CHECKING:
    from internvl_chat.data.plan.report import PlanNumbers
    from internvl_chat.tools.plan import Outlook, Report

Row = tuple[str, ...]
_WIDEST_NAME = 32


def report_lines(report: Report) -> Iterator[str]:
    """Everything, in order."""
    if report.outlook is not None:
        found = report.outlook
        yield epoch_line(found.numbers)
        yield run_line(found)
        for rows in (spread_rows(found), shape_rows(found), budget_rows(found), dataset_rows(found)):
            yield ""
            yield from table(rows)
        yield from left_out_lines(found)
    if report.hints:
        yield ""
        yield from (f"hint: {hint}" for hint in report.hints)
    if report.reasons:
        yield ""
        rest = ", and this is the plan of what would be left" if report.outlook is not None else ""
        yield f"training would stop{rest}:"
        yield from (f"  {line}" for reason in report.reasons for line in reason.splitlines())


def noun_of(numbers: PlanNumbers) -> str:
    """What a plan is made of."""
    return "pack" if numbers.settings.packed else "batch"


def epoch_line(numbers: PlanNumbers) -> str:
    """Packs and their fill, or batches and their padding."""
    settings, samples = numbers.settings, int(numbers.samples.sum())
    fills = [
        f"{share(fill)} of {number(budget)} {name}"
        for fill, budget, name in (
            (numbers.token_fill, settings.max_tokens, "tokens"),
            (numbers.tile_fill, settings.max_tiles, "tiles"),
        )
        if fill is not None
    ]
    full = f", filled to {' and '.join(fills)}" if fills else ""
    if settings.packed:
        least = f"; fewer than {number(numbers.fewest_packs)} cannot be"
        return f"{number(samples)} samples an epoch in {number(numbers.packs)} packs{full}{least}"
    how = "grouped by length" if settings.by_length else "at random"
    return (
        f"{number(samples)} samples an epoch in {number(numbers.packs)} padded batches of up to {settings.batch_size}, "
        f"{how}: {share(numbers.padding)} padding{full}"
    )


def run_line(found: Outlook) -> str:
    """Steps of an epoch and of the run."""
    numbers, per_step = found.numbers, found.numbers.settings.packs_per_step
    about = "" if found.run.exact else "about "
    what = "packs" if numbers.settings.packed else "batches"
    return (
        f"{number(numbers.steps)} steps an epoch of {number(per_step)} {what} ({found.world} processes, accumulation "
        f"{found.accumulation}); the run: {about}{number(found.run.steps)} steps, {found.run.epochs:.2f} epochs"
    )


def spread_rows(found: Outlook) -> list[Row]:
    """Sizes of samples and packs."""
    numbers, noun = found.numbers, noun_of(found.numbers)
    rows: list[Row] = [("", "mean", *(f"p{cut}" for cut in PERCENTILES), "max")]
    for name, values in (
        ("tokens of a sample", found.tokens),
        ("tiles of a sample", found.tiles),
        (f"samples of a {noun}", numbers.samples),
        (f"tokens of a {noun}", numbers.tokens),
        (f"tiles of a {noun}", numbers.tiles),
    ):
        one = Spread.of(values)
        cuts = (getattr(one, f"p{cut}") for cut in PERCENTILES)
        rows.append((name, f"{one.mean:,.1f}", *map(number, cuts), number(one.max)))
    return rows


def shape_rows(found: Outlook) -> list[Row]:
    """Numbers of processes, and how long they would wait."""
    head = ("processes", "accumulation", f"{_plural(found)} a step", "steps", "idle", "idle (ZeRO-3)", "useful")
    return [head] + [
        (
            *map(number, (one.ranks, one.accumulation, one.packs_per_step, one.steps)),
            *map(share, (one.idle, one.idle_micro, one.useful)),
        )
        for one in found.shapes
    ]


def budget_rows(found: Outlook) -> list[Row]:
    """Pairs of budgets."""
    of = "packs of" if found.numbers.settings.packed else "if packed"
    head = (of, "tokens", "tiles", "packs needed", "steps", "tokens filled", "tiles filled")
    names = {(True, False): "as given", (False, True): "best", (True, True): "as given, best"}
    return [head] + [
        (
            names[one.given, one.best],
            *map(number, (one.max_tokens, one.max_tiles, one.packs, one.steps)),
            *map(share, (one.token_fill, one.tile_fill)),
        )
        for one in found.pairs
    ]


def dataset_rows(found: Outlook) -> list[Row]:
    """What each data set is of an epoch."""
    head = ("data set", "lines", "left out", "held out", "samples", "tokens", "tiles", "of samples", "of tokens")
    rows: list[Row] = [head]
    for part in found.parts:
        name = visible(part.name)
        name = name if len(name) <= _WIDEST_NAME else f"{name[: _WIDEST_NAME - 3]}..."
        shares = shares_of(found, part)
        counts = (part.lines, part.lines - part.usable, part.held_out, part.samples, part.tokens, part.tiles)
        rows.append((name, *map(number, counts), *(share(shares[f"share_of_{of}"]) for of in ("samples", "tokens"))))
    return rows


def left_out_lines(found: Outlook) -> Iterator[str]:
    """What is lost, and why."""
    for part in found.parts:
        for what, counts in (("left out", part.left_out), ("cut to fit", part.cut)):
            if counts:
                reasons = ", ".join(f"{number(lines)} {code}" for code, lines in counts.items())
                yield f"{visible(part.name)}: {what}: {reasons}"


def _plural(found: Outlook) -> str:
    return "packs" if found.numbers.settings.packed else "batches"


def number(value: int) -> str:
    """With thousands apart."""
    return f"{value:,}"


def share(value: float) -> str:
    """0..1 as percent."""
    return f"{100 * value:.1f} %"
