"""The report of ``internvl check`` as lines of text: a table, then what was found per data set, then the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from internvl_chat.data.lint import WARNINGS

if TYPE_CHECKING:
    from internvl_chat.data.survey import Survey
    from internvl_chat.data.survey_pass import FaultTally, Tally
    from internvl_chat.tools.check import Report
    from internvl_chat.tools.check_run import Outlook

_HEAD = (
    "data set", "lines", "usable", "left out", "cut", "held out", "epoch",
    "tokens", "mean", "p50", "p95", "max", "tiles", "mean", "max", "supervised",
)  # fmt: skip
_BROKEN = "broken"  # the last column, where there are any
_WIDEST_NAME = 32


def report_lines(report: Report) -> Iterator[str]:
    """Everything, in order: table, data sets, hints, verdict."""
    rows = [_HEAD, *(_row(report, one) for one in report.surveys.values())]
    if len(rows) > 2:
        rows.append(_total(report))
    broken = [_broken(one) for one in report.surveys.values()]
    if any(broken):
        cells = [_BROKEN, *map(_number, broken), _number(sum(broken))]
        rows = [(*row, cell) for row, cell in zip(rows, cells, strict=False)]
    if report.specs:
        yield from table(rows)
    of_data = report.reasons[len(report.problems) :]
    if report.epoch is None and of_data:
        first, *more = of_data
        others = f" (and {len(more)} more, see below)" if more else ""
        yield f"epoch -: training would stop: {_plain(first.splitlines()[0])}{others}"
    for spec in report.specs:
        if spec.name in report.errors:
            yield ""
            yield f"{spec.name}: cannot be opened"
            yield from (f"  {line}" for line in report.errors[spec.name].splitlines())
        else:
            yield from _findings(report.surveys[spec.name])
    if report.hints:
        yield ""
        yield from (f"hint: {hint}" for hint in report.hints)
    yield ""
    yield from _verdict(report)


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns in line: the first to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip()


def _row(report: Report, one: Survey) -> tuple[str, ...]:
    name = one.spec.name if len(one.spec.name) <= _WIDEST_NAME else f"{one.spec.name[: _WIDEST_NAME - 3]}..."
    samples = "-" if report.epoch is None else _number(report.epoch.of[one.spec.name])
    counts = (one.lines, one.usable, one.left_out, _cut(one), one.held_out)
    tokens, tiles = one.tokens, one.tiles
    return (
        name,
        *map(_number, counts),
        samples,
        *map(_number, (tokens.sum, round(tokens.mean), tokens.p50, tokens.p95, tokens.max)),
        _number(tiles.sum),
        f"{tiles.mean:.1f}",
        _number(tiles.max),
        _share(one.supervised, tokens.sum),
    )


def _total(report: Report) -> tuple[str, ...]:
    surveys = list(report.surveys.values())
    usable = sum(one.usable for one in surveys)
    tokens, tiles = sum(one.tokens.sum for one in surveys), sum(one.tiles.sum for one in surveys)
    counts = (
        sum(one.lines for one in surveys),
        usable,
        sum(one.left_out for one in surveys),
        sum(map(_cut, surveys)),
        sum(one.held_out for one in surveys),
    )
    return (
        "total",
        *map(_number, counts),
        "-" if report.epoch is None else _number(report.epoch.samples),
        _number(tokens),
        _number(round(tokens / max(1, usable))),
        "",
        "",
        _number(max((one.tokens.max for one in surveys), default=0)),
        _number(tiles),
        f"{tiles / max(1, usable):.1f}",
        _number(max((one.tiles.max for one in surveys), default=0)),
        _share(sum(one.supervised for one in surveys), tokens),
    )


def _cut(one: Survey) -> int:
    return sum(tally.count for tally in one.cut.values())


def _broken(one: Survey) -> int:
    return sum(tally.count for tally in one.load_faults.values())


def _number(value: int) -> str:
    return f"{value:,}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f} %"


def _findings(one: Survey) -> Iterator[str]:
    if not (one.faults or one.load_faults or one.warnings or one.cut):
        return
    yield ""
    yield f"{one.spec.name} ({one.spec.annotation})"
    yield from _faults("left out", one.faults)
    yield from _faults("fails to load", one.load_faults)
    for name, tally in one.cut.items():
        yield f"  cut to fit: {_number(tally.count)} x {name}"
        yield from _examples(one, tally)
    for kind, tally in one.warnings.items():
        what, mend = WARNINGS[kind]
        share = f", {_share(one.repetitive, one.answers)} of the answers" if kind == "repetition" else ""
        yield f"  warning: {_number(tally.count)} x {kind}{share}: {what}; {mend}"
        yield from _examples(one, tally)


def _examples(one: Survey, tally: Tally) -> Iterator[str]:
    yield from (f"    {one.spec.annotation}:{example.line}: {_plain(example.text)}" for example in tally.first)
    yield from _more(tally.count, len(tally.first))


def _faults(what: str, faults: Mapping[str, FaultTally]) -> Iterator[str]:
    for code, tally in faults.items():
        yield f"  {what}: {_number(tally.count)} x {code}"
        yield from (f"    {_plain(str(record))}" for record in tally.first)
        yield from _more(tally.count, len(tally.first))


def _more(count: int, shown: int) -> Iterator[str]:
    if count > shown:
        yield f"    ... and {_number(count - shown)} more"


def _plain(text: str) -> str:
    """One line that cannot steer a terminal, whatever the data hold."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _verdict(report: Report) -> Iterator[str]:
    surveys = report.surveys.values()
    left_out, lines = sum(one.left_out for one in surveys), sum(one.lines for one in surveys)
    broken = sum(map(_broken, surveys))
    warned = sum(tally.count for one in surveys for tally in one.warnings.values())
    parts = [f"{_number(left_out)} of {_number(lines)} lines left out", f"{_number(warned)} warnings"]
    parts += [f"{_number(broken)} fail to load"] if broken else []
    parts += [f"{len(report.errors)} of {len(report.specs)} data sets cannot be opened"] if report.errors else []
    if report.specs:
        yield ", ".join(parts)
    if not report.reasons and report.epoch is not None:
        epoch = report.epoch
        outlook = report.outlook
        told = outlook is not None and (outlook.world, outlook.steps) == (1, epoch.steps)
        alone = f"; with one process {_number(epoch.steps)} steps of {epoch.step}"
        yield (
            f"training would run: an epoch of {_number(epoch.samples)} samples, {_number(epoch.tokens)} tokens, "
            f"{_number(epoch.tiles)} tiles{'' if told else alone}"
        )
        yield from _run_line(report.outlook)
    else:
        yield "training would stop:"
        yield from (f"  {problem.area}: {_plain(problem.text)}" for problem in report.problems)
        of_data = report.reasons[len(report.problems) :]
        yield from (f"  {line}" for reason in of_data for line in reason.splitlines())
    if not report.decoded and any(one.tiles.sum for one in surveys):
        yield "pictures and videos were measured, not decoded; --decode looks inside"


def _run_line(outlook: Outlook | None) -> Iterator[str]:
    if outlook is None:
        return
    ranks = "1 process" if outlook.world == 1 else f"{outlook.world} processes"
    length = f"{_number(outlook.steps)} steps of {outlook.step} with {ranks}"
    if outlook.done is None:
        yield f"the run would train: {length}"
    else:
        yield f"the run would resume after step {_number(outlook.done)}: {length}"
