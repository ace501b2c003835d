"""Drawings of the report: a curve with axes as inline SVG, right answers as HTML bars. The page's CSS colours them."""

from __future__ import annotations

import math
from html import escape
from itertools import accumulate
from typing import Any

WIDTH, HEIGHT = 860, 320
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 14, 44
# A curve is drawn on a logarithmic axis when its highest value is this many times its lowest.
LOG_FROM = 20.0
# More points than this are not seen apart on the page; each drawn one then stands for its neighbours' mean.
MOST_POINTS = 1200
NORMAL_95 = 1.96

Point = tuple[float, float]


def finite_points(curve: list[dict[str, Any]], key: str) -> list[Point]:
    """(step, value) of the records that have ``key`` as a finite number, in order of step."""
    points: list[Point] = []
    for record in curve:
        step, value = record.get("step"), record.get(key)
        if isinstance(step, (int, float)) and isinstance(value, (int, float)) and math.isfinite(value):
            points.append((float(step), float(value)))
    return sorted(points)


def smoothed(points: list[Point], log: bool = False) -> list[Point]:
    """Mean over a window around each point (of the logarithms with ``log``), so that the line does not lag behind.

    Towards both ends the window shrinks to stay symmetric: one cut on one side only would bend a falling curve.
    """
    values = [math.log(value) if log else value for _, value in points]
    sums = [0.0, *accumulate(values)]
    count, widest = len(points), len(points) // 50
    line: list[Point] = []
    for i, (step, _) in enumerate(points):
        half = min(widest, i, count - 1 - i)
        mean = (sums[i + half + 1] - sums[i - half]) / (2 * half + 1)
        line.append((step, math.exp(mean) if log else mean))
    return line


def thinned(points: list[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most ``most`` points, each the mean of a run of neighbours."""
    size = -(-len(points) // most)
    if size <= 1:
        return points
    runs = (points[i : i + size] for i in range(0, len(points), size))
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten) within [low, high], about ``about`` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within [low, high]; only the powers where that would be many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 4 else (1,)
    values = [factor * 10.0**power for power in powers for factor in factors]
    return [value for value in values if low * 0.999 <= value <= high * 1.001]


def number(value: float) -> str:
    """Short text of an axis value: 0.05, 2, 1500, 2e-05."""
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.4g}"


class _Scale:
    """Value -> pixel along one axis, linear or logarithmic."""

    def __init__(self, low: float, high: float, start: float, end: float, log: bool = False) -> None:
        self._map = math.log10 if log else float
        self._low, high = self._map(low), self._map(high)
        self._start, self._rate = start, (end - start) / ((high - self._low) or 1.0)

    def __call__(self, value: float) -> float:
        return round(self._start + (self._map(value) - self._low) * self._rate, 1)


def _path(points: list[Point], x: _Scale, y: _Scale, style: str) -> str:
    inner = " ".join(f"{x(step)},{y(value)}" for step, value in points)
    return f'<polyline class="{style}" points="{inner}"/>'


def line_chart(points: list[Point], name: str) -> str:
    """SVG of one value over steps: the records as a faint line, their smoothed course as a strong one, and axes."""
    if not points:
        return f'<p class="none">No finite {escape(name)} was recorded.</p>'
    values = [value for _, value in points]
    low, high = min(values), max(values)
    log = low > 0 and high / low >= LOG_FROM
    line = smoothed(points, log)
    if not log:
        low, high = min(0.0, low), high if high > min(0.0, low) else low + 1.0
    x = _Scale(points[0][0], max(points[-1][0], points[0][0] + 1), LEFT, WIDTH - RIGHT)
    y = _Scale(low, high, HEIGHT - BOTTOM, TOP, log)
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)} over steps">']
    for value in log_ticks(low, high) if log else ticks(low, high):
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value)}" y2="{y(value)}"/>')
        place = f'x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end"'
        parts.append(f'<text class="tick" {place}>{number(value)}</text>')
    for step in ticks(points[0][0], points[-1][0], about=8):
        place = f'x="{x(step)}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle"'
        parts.append(f'<text class="tick" {place}>{number(step)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    parts.append(_path(thinned(points), x, y, "raw") + _path(thinned(line), x, y, "smooth"))
    end_step, end_value = line[-1]
    parts.append(f'<circle class="end" cx="{x(end_step)}" cy="{y(end_value)}" r="4"/>')
    scale = ", logarithmic" if log else ""
    label = f"optimizer step (faint: each record, strong: smoothed{scale})"
    place = f'x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle"'
    parts.append(f'<text class="label" {place}>{label}</text></svg>')
    return f'<div class="scroll">{"".join(parts)}</div>'


def wilson(right: int, total: int) -> tuple[float, float]:
    """95 % interval (Wilson) of a share of which ``right`` out of ``total`` was seen."""
    if total <= 0:
        return 0.0, 1.0
    share, z2 = right / total, NORMAL_95**2
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = NORMAL_95 * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2)) / (1 + z2 / total)
    return max(0.0, middle - half), min(1.0, middle + half)


def _bar_name(key: str) -> str:
    return f"{key} digit{'' if key == '1' else 's'}" if key.isdigit() else key


def accuracy_bars(accuracy: dict[str, dict[str, int]]) -> str:
    """One bar per key with the share of right answers, the counts and the 95 % interval as a whisker."""
    rows: list[str] = []
    for key, counts in accuracy.items():
        right, total = int(counts["right"]), int(counts["total"])
        share = right / total if total else 0.0
        low, high = wilson(right, total)
        title = f"95 % interval {low:.1%} to {high:.1%}"
        whisker = f'<span class="whisker" style="left:{low:.2%};width:{high - low:.2%}"></span>' if total else ""
        rows.append(
            f'<div class="bar-row" title="{title}"><span class="bar-name">{escape(_bar_name(key))}</span>'
            f'<span class="track"><span class="fill" style="width:{share:.2%}"></span>{whisker}</span>'
            f'<span class="bar-share">{f"{share:.1%}" if total else "none"}</span>'
            f'<span class="bar-count">{right} of {total}</span></div>'
        )
    return "".join(rows) or '<p class="none">Nothing was scored.</p>'
