"""``internvl preview``: a line of the data as training sees it, for the terminal or as a page; or a page about all."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from internvl_chat.errors import ConfigError
from internvl_chat.tools.data_view import View, add_meta, read_own, read_view

# Sample cards per data set of the page about a whole manifest.
CARDS = 3


def add_own(parser: argparse.ArgumentParser) -> None:
    """Flags of the tool itself."""
    parser.add_argument("--dataset", metavar="NAME", help="data set of the manifest (default: the first)")
    parser.add_argument("--line", metavar="N", type=int, help="line of its annotation, from 1 (default: 1)")
    parser.add_argument(
        "--html",
        metavar="FILE",
        help="write a page instead: about the line, or without --line about the data sets, with histograms and samples",
    )
    parser.add_argument("--no_color", "--no-color", action="store_true", help="brackets instead of colours")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command ``internvl preview``."""
    add_meta(parser)


def run(args: argparse.Namespace) -> int:
    """Show it. Returns 1 for a line that training leaves out, else 0."""
    own, flags = read_own(args, "preview", add_own)
    if own.html is not None and Path(own.html).is_dir():
        raise ConfigError(f"--html {own.html}: is a folder; give a file")
    view = read_view(own.meta, flags)
    if own.dataset is not None:
        view = view.only(own.dataset)
    if own.html is not None and own.line is None:
        from internvl_chat.tools.preview_overview import overview_page

        return _write(Path(own.html), overview_page(view, CARDS))
    return _show_line(view, 1 if own.line is None else own.line, own)


def _show_line(view: View, number: int, own: argparse.Namespace) -> int:
    from internvl_chat.tools.preview_look import look, read_line
    from internvl_chat.tools.preview_text import fault_line, look_lines

    spec = view.specs[0]
    line, place = read_line(view, spec, number)
    seen = look(view, spec, line, number, place)
    if own.html is not None:
        from internvl_chat.tools.preview_page import line_page

        _write(Path(own.html), line_page(seen, view.data.loss_reduction))
        if seen.fault is not None:
            print(fault_line(seen))
    else:
        color = sys.stdout.isatty() and not own.no_color and "NO_COLOR" not in os.environ
        print("\n".join(look_lines(seen, color)))
    return 0 if seen.fault is None else 1


def _write(path: Path, page: str) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    half.write_text(page, encoding="utf-8", errors="backslashreplace")
    half.replace(path)
    print(f"wrote {path}")
    return 0
