"""One self-contained HTML page about a run: loss curve, held-out accuracy, pictures with answers, facts."""

from __future__ import annotations

import os
from html import escape
from typing import TYPE_CHECKING, Any

from internvl_chat.constants import IMAGE_PLACEHOLDER
from internvl_chat.log import get_logger
from internvl_chat.page import PAGE_END, page_head, picture_uri
from internvl_chat.tools.report_charts import accuracy_bars, finite_points, line_chart

if TYPE_CHECKING:
    from pathlib import Path

# Longest side of an embedded picture: sharp on a dense screen at the width of a card, small in the file.
PICTURE_SIDE = 360

STYLE = """
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 20px;
  margin: 0 0 20px; }
.two section { margin: 0; }
.chart { display: block; width: 100%; min-width: 600px; height: auto; }
.rule { stroke: var(--rule); } .axis { stroke: var(--soft); }
.tick, .label { fill: var(--soft); font-size: 13px; }
.raw, .smooth { fill: none; stroke: var(--line); stroke-linejoin: round; }
.raw { stroke-width: 1; opacity: .35; } .smooth { stroke-width: 2.5; }
.end { fill: var(--line); stroke: var(--card); stroke-width: 2; }
.bar-row { display: grid; grid-template-columns: 5.6em 1fr 4em 6.6em; gap: 12px; align-items: center; margin: 12px 0;
  font-variant-numeric: tabular-nums; }
.bar-name { overflow-wrap: anywhere; } .bar-share { text-align: right; font-weight: 600; }
.bar-count { color: var(--soft); font-size: .88rem; }
.track { position: relative; height: 18px; background: var(--rule); border-radius: 5px; }
.fill { position: absolute; inset: 0 auto 0 0; background: var(--line); border-radius: 5px; }
.whisker { position: absolute; top: 50%; height: 2px; margin-top: -1px; background: var(--ink); }
.whisker::before, .whisker::after { content: ""; position: absolute; top: -4px; width: 2px; height: 10px;
  background: var(--ink); }
.whisker::before { left: 0; } .whisker::after { right: 0; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 7px 0; border-top: 1px solid var(--rule);
  overflow-wrap: anywhere; }
tr:first-child th, tr:first-child td { border-top: 0; }
th { font-weight: 400; color: var(--soft); width: 42%; padding-right: 16px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 235px), 1fr)); gap: 16px; }
.sample { display: flex; flex-direction: column; border: 1px solid var(--rule); border-radius: 10px; overflow: hidden; }
.pictures { display: flex; gap: 6px; align-items: center; justify-content: center; height: 132px; padding: 8px;
  background: var(--page); color: var(--soft); font-size: .85rem; }
.pictures img { min-width: 0; max-width: 100%; max-height: 100%; border-radius: 4px; object-fit: contain; }
.words { padding: 10px 12px 12px; overflow-wrap: anywhere; flex: 1; display: flex; flex-direction: column; }
.question { color: var(--soft); font-size: .88rem; margin: 0 0 8px; white-space: pre-line; }
.verdict { margin: auto 0 0; border-radius: 6px; padding: 5px 9px; font-weight: 600; white-space: pre-line; }
.verdict.good { color: var(--good); background: var(--good-soft); }
.verdict.bad { color: var(--bad); background: var(--bad-soft); }
.verdict span { display: block; font-weight: 400; font-size: .88rem; }
"""


def _picture_uri(path: str | os.PathLike[str]) -> str:
    """The picture as a data URI, no longer than PICTURE_SIDE; PNG where it has transparency, JPEG otherwise."""
    from PIL import Image

    with Image.open(path) as picture:
        clear = "A" in picture.getbands() or "transparency" in picture.info
        plain = picture.convert("RGBA" if clear else "RGB")
    return picture_uri(plain, PICTURE_SIDE, "PNG" if clear else "JPEG", 82)


def _picture(path: str | os.PathLike[str], place: int) -> str:
    """An ``img`` element; a picture that cannot be read is said to be missing, a run's report is not lost for it."""
    try:
        return f'<img alt="picture {place}" src="{_picture_uri(path)}">'
    except OSError as error:
        get_logger(__name__).warning("report: picture %s left out: %s", path, error)
        return f"<span>cannot be read: {escape(str(path))}</span>"


def _sample(sample: dict[str, Any]) -> str:
    """One card: pictures, question, the model's answer marked right or wrong by sign and colour."""
    pictures = "".join(_picture(path, place) for place, path in enumerate(sample["images"], start=1))
    right = bool(sample["right"])
    sign, word, style = ("&#10003;", "right", "good") if right else ("&#10007;", "wrong", "bad")
    expected = "" if right else f"<span>expected: {escape(str(sample['answer']))}</span>"
    # The pictures stand above the words; their tags would only be noise.
    question = str(sample["question"]).replace(IMAGE_PLACEHOLDER, "").strip()
    prediction = escape(str(sample["prediction"])) or "(empty answer)"
    return (
        f'<article class="sample"><div class="pictures">{pictures or "text only"}</div><div class="words">'
        f'<p class="question">{escape(question)}</p>'
        f'<p class="verdict {style}" title="{word}">{sign} {prediction}{expected}</p></div></article>\n'
    )


def _facts(facts: dict[str, str]) -> str:
    rows = "".join(f"<tr><th>{escape(str(key))}</th><td>{escape(str(value))}</td></tr>" for key, value in facts.items())
    return f"<table>{rows}</table>" if rows else '<p class="none">No facts.</p>'


def _loss_heading(curve: list[dict[str, Any]]) -> str:
    points = finite_points(curve, "loss")
    ends = f"<small>{points[0][1]:.4g} at first, {points[-1][1]:.4g} at last</small>" if points else ""
    return f"<h2>Training loss{ends}</h2>"


def write_report(
    path: Path,
    *,
    title: str,
    curve: list[dict[str, Any]],
    accuracy: dict[str, dict[str, int]],
    samples: list[dict[str, Any]],
    facts: dict[str, str],
) -> None:
    """Write the page to ``path``: pictures and style are inside it, it needs neither network nor JavaScript.

    ``curve`` holds the records of train_log.jsonl; ``accuracy`` maps a number of digits (or another name) to
    ``{"right", "total"}``; ``samples`` hold ``images`` (paths), ``question``, ``answer``, ``prediction``, ``right``.
    """
    right = sum(bool(sample["right"]) for sample in samples)
    shown = f"<small>{right} of the {len(samples)} shown are right</small>" if samples else ""
    cards = "".join(_sample(sample) for sample in samples) or '<p class="none">No samples.</p>'
    note = '<p class="note">Exact match on held-out samples; the thin line is the 95 % interval.</p>'
    page = "".join(
        (
            page_head(title, STYLE),
            f"<section>{_loss_heading(curve)}{line_chart(finite_points(curve, 'loss'), 'loss')}</section>\n",
            f'<div class="two"><section><h2>Held-out accuracy</h2>{accuracy_bars(accuracy)}{note}</section>\n',
            f"<section><h2>Facts</h2>{_facts(facts)}</section></div>\n",
            f'<section><h2>Questions and answers{shown}</h2><div class="grid">{cards}</div></section>\n',
            PAGE_END,
        )
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    half.write_text(page, encoding="utf-8")
    half.replace(path)
