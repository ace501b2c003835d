"""What all pages share that the package writes: one self-contained file, light and dark, nothing from outside."""

from __future__ import annotations

import base64
import hashlib
import io
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

# The policy makes the browser itself refuse anything from outside: what is on the page is in the file.
_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'{more}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
"""

STYLE = """
:root { --page: #f6f7f9; --card: #ffffff; --ink: #1b2230; --soft: #5f6b7d; --rule: #e1e5eb; --line: #2563c9;
  --good: #157347; --good-soft: #e2f3e9; --bad: #b3261e; --bad-soft: #fbe6e4; }
@media (prefers-color-scheme: dark) {
  :root { --page: #12161d; --card: #1b212b; --ink: #e6eaf1; --soft: #9aa6b8; --rule: #2e3745; --line: #6ea4ff;
    --good: #5fd394; --good-soft: #173626; --bad: #ff8a80; --bad-soft: #43201e; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 20px; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0 0 14px; }
h2 small { font-weight: 400; color: var(--soft); margin-left: .5em; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 12px; padding: 20px;
  margin: 0 0 20px; }
.none { color: var(--soft); margin: 0; }
.scroll { overflow-x: auto; }
.note { color: var(--soft); font-size: .85rem; margin: 14px 0 0; }
"""

PAGE_END = "</main>\n</body>\n</html>\n"


def page_head(title: str, style: str = "", script: str = "") -> str:
    """Everything up to the first section. ``style``: behind the common one. ``script``: the only one that may run."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    more = f"; script-src 'sha256-{digest}'" if script else ""
    return _HEAD.format(title=escape(title), style=STYLE + style, more=more)


def picture_uri(image: Image.Image, side: int | None = None, kind: str = "JPEG", quality: int = 84) -> str:
    """A picture as a data URI, no longer than ``side`` pixels; ``kind``: a format that can hold its mode."""
    from PIL import Image

    if side is not None:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    packed = io.BytesIO()
    image.save(packed, kind, quality=quality)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(packed.getvalue()).decode('ascii')}"
