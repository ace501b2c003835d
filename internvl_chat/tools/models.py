"""``internvl models``: the published releases, what is known of each, and how to fetch one."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from internvl_chat.model.catalogue import Release, release, releases

WIDTH = 120
UNKNOWN = "unknown"
LEGEND = (
    "~ inferred, not read in the release; * published figure, the shapes are not known; tiles +: and a thumbnail.",
    "Parameters and GB (10^9 bytes, bfloat16) are computed from the shapes. One release in full: internvl models NAME",
)
_HEAD = ("release", "vision", "language model", "params", "GB", "context", "tiles", "template", "trained")
_RIGHT = ("params", "GB", "context")
# What the sizes hang on. The towers are left out: each of their two sizes is confirmed by published counts.
_SIZES = ("llm_config.hidden_size", "llm_config.vocab_size", "llm_config.moe_intermediate_size")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command ``internvl models``."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="show everything known about this release")
    parser.add_argument("--json", action="store_true", help="print JSON, with how each value is known")


def run(args: argparse.Namespace) -> int:
    """Print the table, or one release. Returns the exit status; raises ConfigError for an unknown name."""
    if args.name is None:
        found: Any = [one.to_dict() for one in releases()]
        lines: Iterable[str] = table(releases())
    else:
        found = release(args.name).to_dict()
        lines = details(release(args.name))
    print(json.dumps(found, indent=2, ensure_ascii=False) if args.json else "\n".join(lines))
    return 0


def table(shown: Iterable[Release]) -> Iterator[str]:
    """Lines of the overview, a blank one between generations."""
    rows = [(one.generation, _row(one)) for one in shown]
    widths = [max(len(cells[i]) for cells in (_HEAD, *(row for _, row in rows))) for i in range(len(_HEAD))]
    yield _line(_HEAD, widths)
    for generation, group in groupby(rows, key=lambda row: row[0]):
        yield ""
        yield f"InternVL {generation}"
        for _, cells in group:
            yield _line(cells, widths)
    yield ""
    yield from LEGEND


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    aligned = [
        cell.rjust(width) if head in _RIGHT else cell.ljust(width)
        for head, cell, width in zip(_HEAD, cells, widths, strict=True)
    ]
    return " ".join(aligned).rstrip()


def _row(one: Release) -> tuple[str, ...]:
    tiles = str(one.max_tiles) if one.max_tiles == one.min_tiles else f"{one.min_tiles}-{one.max_tiles}"
    parameters, size = _sizes(one)
    return (
        one.name,
        one.vision_tower.removeprefix("InternViT-").replace("-448px", ""),
        one.llm + _mark(one, "base_model"),
        parameters,
        size,
        _shown(one.context_length) + _mark(one, "context_length"),
        tiles + "+" * one.use_thumbnail + _mark(one, "max_tiles"),
        one.template + _mark(one, "template"),
        "yes" if one.supported else "no",
    )


def _sizes(one: Release) -> tuple[str, str]:
    total = one.parameters.total
    if total is None or one.bf16_bytes is None:
        text = one.published.get("total")
        return (f"{float(text.rstrip('B')):.1f}B*" if text else UNKNOWN), UNKNOWN
    mark = _size_mark(one) or " "  # so that the digits stand in line
    return f"{total / 1e9:.1f}B{mark}", f"{one.bf16_bytes / 1e9:.1f}{mark}"


def _size_mark(one: Release) -> str:
    return "~" if any(one.known(name) != "read" for name in _SIZES) else ""


def _mark(one: Release, name: str) -> str:
    return "~" if one.known(name) == "inferred" else ""


def _shown(value: Any) -> str:
    return UNKNOWN if value is None else str(value)


def details(one: Release) -> Iterator[str]:
    """Lines about one release: what it is made of, its sizes, its config, what is not known, how to fetch it."""
    yield f"{one.name} (InternVL {one.generation})"
    for label, text in _facts(one):
        yield from _wrapped(label, text)
    yield ""
    if one.hub_id is None:
        yield "hub id unknown"
    else:
        yield f"hf download {one.hub_id} --local-dir pretrained/{one.name}"
    yield ""
    yield "~ inferred from sibling releases, the base model or published totals, not read in the release."


def _facts(one: Release) -> Iterator[tuple[str, str]]:
    def marked(name: str) -> str:
        return _shown(getattr(one, name)) + _mark(one, name)

    thumbnail = "with a thumbnail" if one.use_thumbnail else "no thumbnail"
    yield "hub id", _shown(one.hub_id)
    yield "trained here", "yes" if one.supported else f"no: {one.unsupported}"
    yield "vision tower", one.vision_tower
    yield "language model", f"{one.llm}, {marked('llm_class')}, from {marked('base_model')}"
    yield "template", marked("template")
    yield "context length", marked("context_length")
    yield "tiles", f"{marked('min_tiles')} to {marked('max_tiles')}, {thumbnail}{_mark(one, 'use_thumbnail')}"
    yield "parameters", ", ".join(_counts(one))
    if one.published:
        published = ", ".join(f"{part} {value}" for part, value in one.published.items())
        yield "published", published + (" (of another model, see the note)" if one.published_is_wrong else "")
    yield "weights", ", ".join(_weights(one)) or UNKNOWN
    yield "published size", UNKNOWN if one.download_gb is None else f"{one.download_gb:g} GB"
    top = {key: value for key, value in one.config.items() if not isinstance(value, dict)}
    for part, values in (("config", top), *((key, one.config[key]) for key in ("vision_config", "llm_config"))):
        text = ", ".join(f"{key} {json.dumps(value)}{_mark(one, f'{part}.{key}')}" for key, value in values.items())
        yield part, text
    yield "unknown", ", ".join(one.unknown) or "nothing"
    for note in one.notes:
        yield "note", note


def _counts(one: Release) -> Iterator[str]:
    mark = _size_mark(one)
    for part in ("total", "vision", "mlp", "llm"):
        count = getattr(one.parameters, part)
        sign = mark if part in ("total", "llm") else ""
        yield f"{part} {UNKNOWN}" if count is None else f"{part} {count / 1e6:,.2f}M{sign}"


def _weights(one: Release) -> Iterator[str]:
    if one.bf16_bytes is not None:
        yield f"{one.bf16_bytes / 1e9:.2f} GB in bfloat16{_size_mark(one)}, {one.tensors} tensors"
    if one.shards is not None:
        seen = "seen" if one.known("shards") == "read" else "predicted"
        yield f"{one.shards} file{'s' * (one.shards > 1)} ({seen})"


def _wrapped(label: str, text: str) -> list[str]:
    indent = " " * 18
    return textwrap.wrap(
        text, WIDTH, initial_indent=f"  {label}".ljust(18), subsequent_indent=indent, break_on_hyphens=False
    )
