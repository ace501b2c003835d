"""A page about a whole manifest: a table, and per data set histograms of sizes and its first samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from internvl_chat.data.corpus import held_out_lines
from internvl_chat.data.index import LineIndex
from internvl_chat.data.manifest import DatasetSpec
from internvl_chat.data.survey import Spread, fault_codes, tally_faults
from internvl_chat.data.survey_pass import FaultTally
from internvl_chat.errors import InternVLError
from internvl_chat.tools.preview_look import Film, Look, look, place_of, visible
from internvl_chat.tools.preview_page import PAGE_END, page_head, picture_svg, tile_html, turns_html
from internvl_chat.tools.preview_text import size_text
from internvl_chat.tools.report_charts import number, ticks

if TYPE_CHECKING:
    from internvl_chat.tools.data_view import View

WIDTH, HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 20, 10, 34
_BARS = 30
# Pictures of a card, and their longest side.
_PICTURES, _SIDE = 4, 360
_SIZES = ("tokens", "tiles", "supervised")
_NAMES = {"tokens": "tokens of a sample", "tiles": "tiles of a sample", "supervised": "tokens learned of a sample"}
_HEAD = (
    "data set",
    "lines",
    "usable",
    "left out",
    "held out",
    "weight",
    "tokens",
    "median",
    "largest",
    "tiles",
    "learned",
)
STYLE = """
.sizes { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 280px), 1fr)); gap: 16px; }
.sizes svg { width: 100%; height: auto; display: block; }
.bar { fill: var(--line); }
.wide th, .wide td { width: auto; padding: 7px 14px 7px 0; text-align: right; font-variant-numeric: tabular-nums; }
.wide th:first-child, .wide td:first-child { text-align: left; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 16px;
  margin-top: 18px; }
.card { border: 1px solid var(--rule); border-radius: 10px; padding: 12px; min-width: 0; }
.card .shots { display: grid; grid-template-columns: repeat(auto-fit, minmax(90px, 1fr)); gap: 6px;
  align-items: start; margin-bottom: 10px; }
.card svg.picture { max-height: 220px; }
.card .shots img { width: 100%; max-width: 180px; border-radius: 6px; }
.card .turn { max-height: 11em; overflow: auto; font-size: .9rem; }
"""


@dataclass(frozen=True, eq=False)
class Part:
    """A data set: sizes of its usable lines (int64, by name), lines left out by FaultCode, its first samples."""

    spec: DatasetSpec
    lines: int
    sizes: dict[str, np.ndarray]
    left_out: dict[str, FaultTally]
    looks: tuple[Look, ...]
    held_out: int = 0
    error: str | None = None


def overview_page(view: View, cards: int) -> str:
    """The whole page; data sets that cannot be opened say why."""
    return page_html(f"{view.manifest}", [_part(view, spec, cards) for spec in view.specs])


def _part(view: View, spec: DatasetSpec, cards: int) -> Part:
    try:
        index = view.open(spec)
        codes = fault_codes(index, view.maker.limits)
        usable = np.flatnonzero(codes == 0)
        sizes = {name: index.table[name][usable].astype(np.int64) for name in _SIZES}
        looks = tuple(_look(view, spec, index, int(line)) for line in usable[:cards])
        held_out = int((held_out_lines(spec, len(index)) & (codes == 0)).sum())
        return Part(spec, len(index), sizes, tally_faults(index, spec, view.maker), looks, held_out)
    except InternVLError as error:
        return Part(spec, 0, {name: np.zeros(0, np.int64) for name in _SIZES}, {}, (), error=str(error))


def _look(view: View, spec: DatasetSpec, index: LineIndex, line: int) -> Look:
    return look(view, spec, index.line(line), line + 1, place_of(spec, index.kind, line + 1))


def page_html(title: str, parts: Sequence[Part]) -> str:
    """Table and sections. Pure, as all below."""
    head = page_head(title).replace("</style>", f"{STYLE}</style>", 1)
    rows = "".join(_row(part) for part in parts)
    names = "".join(f"<th>{name}</th>" for name in _HEAD)
    table = f'<section><div class="scroll"><table class="wide"><tr>{names}</tr>{rows}</table></div></section>\n'
    return "".join((head, table, *map(part_html, parts), PAGE_END))


def _row(part: Part) -> str:
    tokens, usable = Spread.of(part.sizes["tokens"]), len(part.sizes["tokens"])
    tiles, learned = int(part.sizes["tiles"].sum()), int(part.sizes["supervised"].sum())
    spec = part.spec
    cells = [
        *(f"{value:,}" for value in (part.lines, usable, part.lines - usable, part.held_out)),
        f"{spec.repeat_time:g} times" if spec.weight is None else f"{spec.weight:g}",
        *(f"{value:,}" for value in (tokens.sum, tokens.p50, tokens.max, tiles)),
        f"{100 * learned / max(1, tokens.sum):.1f} %",
    ]
    name = f"<td>{escape(visible(part.spec.name))}</td>"
    return f"<tr>{name}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def part_html(part: Part) -> str:
    """Histograms, faults and cards of a data set."""
    name, path = escape(visible(part.spec.name)), escape(visible(str(part.spec.annotation)))
    head = f"<section><h2>{name}<small>{path}</small></h2>"
    if part.error is not None:
        return f'{head}<p class="fault">{escape(visible(part.error))}</p></section>\n'
    faults = "".join(
        f'<p class="fault">left out: {tally.count:,} {code}, the first: {escape(visible(str(tally.first[0])))}</p>'
        for code, tally in part.left_out.items()
    )
    charts = "".join(histogram(part.sizes[name], _NAMES[name]) for name in _SIZES)
    cards = "".join(map(card_html, part.looks)) or '<p class="none">No usable line.</p>'
    return f'{head}{faults}<div class="sizes">{charts}</div><div class="cards">{cards}</div></section>\n'


def card_html(seen: Look) -> str:
    """A sample in short."""
    place = f'<p class="note">{escape(visible(seen.place.rpartition("/")[2]))}: {escape(size_text(seen))}</p>'
    if seen.fault is not None:
        return f'<article class="card"><p class="fault">{escape(visible(str(seen.fault)))}</p>{place}</article>\n'
    shots = "".join(
        tile_html(medium.frames[0], "first frame") if isinstance(medium, Film) else picture_svg(medium, _SIDE)
        for medium in seen.media[:_PICTURES]
    )
    pictures = f'<div class="shots">{shots}</div>' if shots else ""
    return f'<article class="card">{pictures}{turns_html(seen)}{place}</article>\n'


def bins(values: np.ndarray, most: int = _BARS) -> tuple[list[int], int, int]:
    """(counts, first value, width of a bar) of whole numbers, in at most ``most`` bars."""
    low, high = int(values.min()), int(values.max())
    width = -(-(high - low + 1) // most)
    counts = np.bincount((values - low) // width)
    return [int(count) for count in counts], low, width


def histogram(values: np.ndarray, name: str, of: str = "samples") -> str:
    """SVG of how often each size occurs; ``of``: what has these sizes."""
    if not len(values):
        return f'<p class="none">{escape(name)}: none</p>'
    counts, low, width = bins(values)
    high, tallest = low + width * len(counts), max(counts)
    inner, base = WIDTH - _LEFT - _RIGHT, HEIGHT - _BOTTOM
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">']
    for value in _whole(ticks(0, tallest, 4)):
        y = base - (base - _TOP) * value / tallest
        parts.append(f'<line class="rule" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
    step = inner / len(counts)
    for place, count in enumerate(counts):
        tall = (base - _TOP) * count / tallest
        start = low + place * width
        span = f"{start}" if width == 1 else f"{start} to {start + width - 1}"
        at = f'x="{_LEFT + place * step + step * 0.06:.2f}" y="{base - tall:.2f}" width="{step * 0.88:.2f}"'
        parts.append(f'<rect class="bar" {at} height="{tall:.2f}"><title>{span}: {count} {of}</title></rect>')
    for value in _whole(ticks(low, high - 1, 5)):
        x = _LEFT + inner * (value + 0.5 * (width == 1) - low) / (high - low)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 16}" text-anchor="middle">{number(value)}</text>')
    label = f'x="{_LEFT + inner / 2}" y="{HEIGHT - 2}" text-anchor="middle"'
    parts.append(f'<text class="label" {label}>{escape(name)}</text></svg>')
    return "".join(parts)


def _whole(values: Iterable[float]) -> list[float]:
    return [value for value in values if float(value).is_integer()]
