"""A page about one line: pictures with tile grid and boxes drawn over them, tiles as cut, turns, tokens by loss weight.

Functions here turn what was looked at into text; they read and write nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import torch
from PIL import Image

from internvl_chat import page
from internvl_chat.data.boxes import to_pixels
from internvl_chat.page import picture_uri
from internvl_chat.tools.preview_look import Film, Look, Picture, Token, item_text, problems_of, visible
from internvl_chat.tools.preview_text import SYSTEM, fault_line, medium_text, shown, size_text
from internvl_chat.tools.report import STYLE

# Longest side of a picture and of a tile on the page.
PICTURE_SIDE, TILE_SIDE = 960, 112
# Tiles of one picture or video that are shown.
MOST_TILES = 64
MORE_STYLE = """
.view { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 20px;
  align-items: start; margin: 0 0 22px; }
.view:last-child { margin-bottom: 0; }
figure { margin: 0; min-width: 0; }
figcaption { color: var(--soft); font-size: .85rem; margin-top: 6px; overflow-wrap: anywhere; }
svg.picture { display: block; width: 100%; max-height: 560px; border-radius: 6px; background: var(--page); }
svg.picture * { vector-effect: non-scaling-stroke; }
.halo { stroke: #000; stroke-opacity: .55; stroke-width: 3.5; fill: none; }
.cut { stroke: #fff; stroke-width: 1.5; stroke-dasharray: 6 5; fill: none; }
.box { stroke: #ffb000; stroke-width: 2.5; fill: #ffb000; fill-opacity: .1; }
.box.unsure { stroke-dasharray: 3 4; }
.name { fill: #fff; stroke: #000; stroke-width: 3; paint-order: stroke; font-weight: 600; }
.tiles { display: grid; gap: 4px; justify-content: start; }
.tiles img, .apart img { display: block; width: 100%; border-radius: 3px; }
.apart { width: 112px; margin-top: 10px; }
.film { grid-template-columns: repeat(auto-fill, minmax(84px, 1fr)); }
.turn { margin: 0 0 10px; padding: 8px 12px; border-left: 3px solid var(--rule); white-space: pre-wrap;
  overflow-wrap: anywhere; }
.turn:last-child { margin-bottom: 0; }
.turn.gpt { border-color: var(--good); }
.turn b { display: block; color: var(--soft); font-weight: 400; font-size: .8rem; }
.tokens { font: 14px/1.9 ui-monospace, "DejaVu Sans Mono", Menlo, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; margin: 0; }
.tokens span { padding: 1px 0; border-right: 1px dotted var(--soft); }
.tokens .learned { color: var(--good); background: var(--good-soft); }
.tokens .image { color: var(--line); }
.fault { color: var(--bad); background: var(--bad-soft); border-radius: 6px; padding: 8px 12px; margin: 0 0 20px;
  overflow-wrap: anywhere; }
.raw { font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; margin: 0; }
"""


def line_page(look: Look, reduction: str) -> str:
    """The whole page. ``reduction``: what the tokens' weights follow."""
    title = f"{look.place}, data set {look.spec.name}"
    parts = [page_head(title)]
    if look.fault is not None:
        parts.append(f'<p class="fault">{escape(fault_line(look))}</p>\n')
    if look.record is None:
        text = escape(item_text(look.line))
        parts.append(f'<section><h2>The line</h2><p class="raw">{text}</p></section>\n')
        return "".join((*parts, PAGE_END))
    problems = "".join(f'<p class="fault">{escape(visible(text))}</p>\n' for text in problems_of(look.record))
    media = "".join(medium_html(number, medium) for number, medium in enumerate(look.media, 1))
    if media:
        parts.append(f"<section><h2>Pictures and videos</h2>{media}</section>\n")
    parts.append(f"{problems}<section><h2>Conversation</h2>{turns_html(look)}</section>\n")
    heading = f"<h2>As the model reads it<small>{escape(size_text(look))}</small></h2>"
    parts.append(f"<section>{heading}{tokens_html(look.tokens)}{legend_html(look.tokens, reduction)}</section>\n")
    return "".join((*parts, PAGE_END))


PAGE_END = page.PAGE_END


def page_head(title: str) -> str:
    """Everything up to the first section."""
    return page.page_head(visible(title), STYLE + MORE_STYLE)


def medium_html(number: int, medium: Picture | Film) -> str:
    """A picture with its grid beside its tiles, or the frames of a video."""
    text = f"{number}. {visible(medium.name)}: {medium_text(medium)}"
    if isinstance(medium, Film):
        frames = "".join(tile_html(tile, f"frame {n}") for n, tile in enumerate(medium.frames[:MOST_TILES], 1))
        return f'<figure><div class="tiles film">{frames}</div>{_caption(text)}</figure>\n'
    if medium.boxes and not medium.certain:
        text += "; the text does not say which picture its boxes are of"
    columns, rows = medium.grid
    grid = columns * rows
    tiles = "".join(tile_html(t, f"tile {n}") for n, t in enumerate(medium.tiles[: min(grid, MOST_TILES)], 1))
    style = f"grid-template-columns:repeat({columns},minmax(0,{TILE_SIDE}px))"
    apart = f'<div class="apart">{tile_html(medium.tiles[-1], "thumbnail")}</div>' if medium.thumbnail else ""
    order = "tiles as the model gets them, row by row" + (", the thumbnail last" if apart else "")
    return (
        f'<div class="view"><figure>{picture_svg(medium)}{_caption(text)}</figure><figure>'
        f'<div class="tiles" style="{style}">{tiles}</div>{apart}{_caption(order)}</figure></div>\n'
    )


def _caption(text: str) -> str:
    return f"<figcaption>{escape(text)}</figcaption>"


def picture_svg(picture: Picture, side: int = PICTURE_SIDE) -> str:
    """The picture with its grid and boxes, in its own pixels."""
    width, height = picture.image.size
    columns, rows = picture.grid
    lines = [(x := width * n / columns, 0.0, x, float(height)) for n in range(1, columns)]
    lines += [(0.0, y := height * n / rows, float(width), y) for n in range(1, rows)]
    drawn = "".join(_line(*ends, style) for style in ("halo", "cut") for ends in lines)
    size = max(width, height) / 32
    boxes = "".join(
        _box(to_pixels(box, width, height), grounding.ref, size, picture.certain)
        for grounding in picture.boxes
        for box in grounding.boxes
    )
    place = f'width="{width}" height="{height}" preserveAspectRatio="none"'
    return (
        f'<svg class="picture" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(visible(picture.name))}">'
        f'<image href="{picture_uri(picture.image, side)}" {place}/>{drawn}{boxes}</svg>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line class="{style}" x1="{x1:.6g}" y1="{y1:.6g}" x2="{x2:.6g}" y2="{y2:.6g}"/>'


def _box(corners: tuple[float, float, float, float], name: str | None, size: float, certain: bool) -> str:
    """A box in pixels with its name, kept inside of the picture."""
    x1, y1, x2, y2 = corners
    place = f'x="{x1:.6g}" y="{y1:.6g}" width="{max(0.0, x2 - x1):.6g}" height="{max(0.0, y2 - y1):.6g}"'
    style = "box" if certain else "box unsure"
    label = ""
    if name:
        at = f'x="{x1 + size / 4:.6g}" y="{max(y1 - size / 3, size):.6g}" font-size="{size:.6g}"'
        label = f'<text class="name" {at}>{escape(visible(name))}</text>'
    return f'<rect class="halo" {place}/><rect class="{style}" {place}/>{label}'


def tile_html(tile: torch.Tensor, name: str) -> str:
    """One tile, uint8 (3, S, S)."""
    image = Image.fromarray(tile.permute(1, 2, 0).contiguous().numpy())
    return f'<img alt="{name}" title="{name}" src="{picture_uri(image, TILE_SIDE)}">'


def turns_html(look: Look) -> str:
    """The conversation, boxes written into it."""
    turns = look.record.turns if look.record is not None else ()
    said = [(SYSTEM, "system", look.system)] if turns and look.system is not None else []
    for turn in turns:
        note = "" if turn.supervised or turn.role != "gpt" else " (not learned)"
        said.append((f"{turn.role}{note}", turn.role, turn.text))
    return "".join(f'<div class="turn {role}"><b>{name}</b>{escape(visible(text))}</div>' for name, role, text in said)


def tokens_html(tokens: Sequence[Token]) -> str:
    """The prompt; colour by what is learned, id and weight on hovering."""
    return f'<p class="tokens">{"".join(map(_token, tokens))}</p>'


def _token(token: Token) -> str:
    same = len(set(token.ids)) == 1 and len(token.ids) > 1
    ids = f"{token.ids[0]} ({len(token.ids)} times)" if same else " ".join(map(str, token.ids))
    style = "learned" if token.weight > 0 else "image" if same else ""
    kind = f' class="{style}"' if style else ""
    text = escape(shown(token)).replace("\\n\n", "&#9166;\n")
    return f'<span{kind} title="id {ids}, weight {token.weight:.4g}">{text}</span>'


def legend_html(tokens: Sequence[Token], reduction: str) -> str:
    """What the colours mean."""
    weights = sorted({token.weight for token in tokens if token.weight > 0})
    weight = " or ".join(f"{weight:.4g}" for weight in weights) or "none"
    return (
        f'<p class="note"><span class="tokens"><span class="learned">learned</span></span>, weight {weight} each '
        f"(--loss_reduction {escape(reduction)}); the rest is read only. Hover over a token for its id.</p>"
    )
