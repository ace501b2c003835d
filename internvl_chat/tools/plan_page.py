"""The report of ``internvl plan`` as one page that needs nothing else: histograms, waiting by processes, tables."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from internvl_chat.tools.plan_text import (
    Row,
    budget_rows,
    dataset_rows,
    epoch_line,
    left_out_lines,
    noun_of,
    run_line,
    shape_rows,
    share,
    spread_rows,
)
from internvl_chat.tools.preview_look import visible
from internvl_chat.tools.preview_overview import STYLE, histogram
from internvl_chat.tools.preview_page import PAGE_END, page_head

if TYPE_CHECKING:
    from internvl_chat.tools.plan import Outlook, Report


def report_page(report: Report) -> str:
    """The whole page. Pure, as all here."""
    parts = [page_head(f"Plan of {report.manifest}").replace("</style>", f"{STYLE}</style>", 1)]
    parts += [_paragraph("fault", f"training would stop: {reason}") for reason in report.reasons]
    if report.outlook is not None:
        parts += _sections(report.outlook)
    if report.hints:
        hints = "".join(_paragraph("", hint) for hint in report.hints)
        parts.append(f"<section><h2>What would do better</h2>{hints}</section>\n")
    return "".join((*parts, PAGE_END))


def _sections(found: Outlook) -> list[str]:
    numbers, noun = found.numbers, noun_of(found.numbers)
    samples = histogram(found.tokens, "tokens of a sample") + histogram(found.tiles, "tiles of a sample")
    plural = "packs" if numbers.settings.packed else "batches"
    packs = "".join(
        histogram(values, f"{name} of a {noun}", plural)
        for name, values in (("samples", numbers.samples), ("tokens", numbers.tokens), ("tiles", numbers.tiles))
    )
    lost = "".join(_paragraph("note", line) for line in left_out_lines(found))
    return [
        f"<section><h2>An epoch</h2>{_paragraph('', epoch_line(numbers))}{_paragraph('', run_line(found))}"
        f"{_table(spread_rows(found))}</section>\n",
        f'<section><h2>Samples</h2><div class="sizes">{samples}</div></section>\n',
        f'<section><h2>{plural.capitalize()}</h2><div class="sizes">{packs}</div></section>\n',
        f"<section><h2>Useful work<small>share of the processes' time, by the plan's costs</small></h2>"
        f"{_bars(found)}{_table(shape_rows(found))}</section>\n",
        f"<section><h2>Budgets<small>of a pack</small></h2>{_table(budget_rows(found))}</section>\n",
        f"<section><h2>Data sets</h2>{_table(dataset_rows(found))}{lost}</section>\n",
    ]


def _bars(found: Outlook) -> str:
    return "".join(
        f'<div class="bar-row"><span class="bar-name">{one.ranks:,}</span>'
        f'<span class="track"><span class="fill" style="width:{one.useful:.2%}"></span></span>'
        f'<span class="bar-share">{share(one.useful)}</span><span class="bar-count">{one.steps:,} steps</span></div>'
        for one in found.shapes
    )


def _table(rows: Sequence[Row]) -> str:
    head, *rest = rows
    cells = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>" for row in rest)
    return f'<div class="scroll"><table class="wide"><tr>{cells}</tr>{body}</table></div>'


def _paragraph(style: str, text: str) -> str:
    kind = f' class="{style}"' if style else ""
    return f"<p{kind}>{_text(text)}</p>\n"


def _text(text: str) -> str:
    return escape(visible(text))
