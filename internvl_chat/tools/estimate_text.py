"""The report of ``internvl estimate`` as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from internvl_chat.model.memory import GIB, PHASES, ROWS
from internvl_chat.tools.check_text import table
from internvl_chat.tools.estimate import PER_NODE, stage_name
from internvl_chat.tools.estimate_json import dtype_of, parts_of
from internvl_chat.tools.preview_look import visible

if TYPE_CHECKING:
    from internvl_chat.tools.estimate import Estimate

Row = tuple[str, ...]


def report_lines(found: Estimate) -> Iterator[str]:
    """Everything, in order."""
    subject = found.subject
    cards = f"{found.gpus} x {found.gpu}" if found.gpu else f"{found.gpus} GPUs (--gpu names a card)"
    yield f"{visible(subject.name)} on {cards}, --deepspeed {stage_name(subject.zero)}"
    yield from (f"note: {note}" for note in subject.notes)
    for rows in (parameter_rows(found), memory_rows(found)):
        yield ""
        yield from table(rows)
    yield from peak_lines(found)
    for rows in (fit_rows(found), batch_rows(found)):
        yield ""
        yield from table(rows)
        if rows[0][0] == "GPUs":
            yield from host_lines(found)
    yield ""
    yield from run_lines(found)
    yield f"advice: {found.advice}"


def parameter_rows(found: Estimate) -> list[Row]:
    """What there is, and what trains."""
    head: Row = ("part", "parameters", "trainable", "share")
    rows = [head]
    for part, one in parts_of(found.subject).items():
        share = one["trainable"] / max(1, one["parameters"])
        rows.append((part, f"{one['parameters']:,}", f"{one['trainable']:,}", f"{100 * share:.1f} %"))
    return rows


def memory_rows(found: Estimate) -> list[Row]:
    """GiB by row, a column per phase; empty rows are left out."""
    phases = found.memory.phases
    rows: list[Row] = [("GiB per GPU", *PHASES)]
    for name in ROWS:
        values = [phases[phase][name] for phase in PHASES]
        if any(values):
            rows.append((name, *(gib(value) for value in values)))
    rows.append(("sum", *(gib(sum(phases[phase].values())) for phase in PHASES)))
    return rows


def peak_lines(found: Estimate) -> Iterator[str]:
    """The highest moment, and whether the card holds it."""
    memory, load = found.memory, found.subject.load
    source = "as the data give it" if found.subject.measured else "assumed full"
    yield (
        f"largest micro-batch ({source}): {load.tokens:,} tokens, {load.tiles:,} tiles; what trains is "
        f"{dtype_of(found.subject)}"
    )
    verdict = ""
    if found.usable is not None:
        word = "fits into" if memory.peak <= found.usable else "does NOT fit into"
        verdict = f": {word} {gib(found.usable)} GiB"
    yield f"peak {gib(memory.peak)} GiB ({memory.highest}; most of it {memory.largest}){verdict}"
    if memory.host:
        node = min(PER_NODE, found.gpus)
        parts = ", ".join(f"{name} {gib(size * node)}" for name, size in memory.host.items())
        yield f"on the host, per node of {node} processes: {parts} GiB"


def fit_rows(found: Estimate) -> list[Row]:
    """GiB by number of GPUs and stage."""
    stages = list(dict.fromkeys(one.stage for one in found.fits))
    rows: list[Row] = [("GPUs", *stages)]
    for count in dict.fromkeys(one.gpus for one in found.fits):
        cells = {one.stage: one for one in found.fits if one.gpus == count}
        rows.append(
            (f"{count:,}", *(_cell(cells[stage].peak, cells[stage].fits, cells[stage].given) for stage in stages))
        )
    return rows


def host_lines(found: Estimate) -> Iterator[str]:
    """What a way to run it takes of the machines, which no card shows."""
    for stage in dict.fromkeys(one.stage for one in found.fits if one.host_per_node):
        amounts = ", ".join(f"{gib(one.host_per_node)} with {one.gpus}" for one in found.fits if one.stage == stage)
        yield f"{stage} also takes of each machine's own memory, in GiB by number of GPUs: {amounts}"


def batch_rows(found: Estimate) -> list[Row]:
    """GiB by size of the micro-batch."""
    rows: list[Row] = [("micro-batch", "tokens", "tiles", "GiB")]
    for one in found.batches:
        rows.append(
            (f"x {one.factor:g}", f"{one.tokens:,}", f"{one.tiles:,}", _cell(one.peak, one.fits, one.factor == 1))
        )
    return rows


def run_lines(found: Estimate) -> Iterator[str]:
    """Steps, FLOPs, hours, money."""
    run = found.run
    about = "" if found.subject.measured else "at most "
    steps = "steps: not known" if run.steps is None else f"{run.steps:,} steps"
    yield (
        f"{steps}; a step: {about}{run.tokens:,.0f} tokens, {run.tiles:,.0f} tiles, {run.flops / 1e15:,.1f} PFLOP "
        f"({run.flops_done / 1e15:,.1f} with what is computed again)"
    )
    if run.hours is not None and run.gpu_hours is not None:
        cost = "" if run.cost is None else f", cost {run.cost:,.0f}"
        yield (
            f"about {run.hours:,.1f} hours, {run.gpu_hours:,.0f} GPU-hours{cost}, at an MFU of {100 * run.mfu:.0f} % "
            "(--mfu changes it; a first run logs its own)"
        )


def gib(size: float) -> str:
    """Bytes as GiB."""
    return f"{size / GIB:,.1f}"


def _cell(peak: float, fits: bool | None, given: bool) -> str:
    mark = "" if fits is None else " ok" if fits else " -"
    return f"{'* ' if given else ''}{gib(peak)}{mark}"
