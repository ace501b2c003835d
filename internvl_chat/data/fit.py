"""A conversation as tokens and tiles, and what is given up of it when it is too long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from internvl_chat.constants import IGNORE_INDEX, IMAGE_PLACEHOLDER
from internvl_chat.data.faults import Cut, Fault, FaultCode
from internvl_chat.data.record import Record, expand_videos
from internvl_chat.data.tiles import TileSettings, count_tiles
from internvl_chat.data.tokens import Encoder

LongSamples = Literal["drop", "fail", "fewer_tiles", "truncate"]


@dataclass(frozen=True)
class Limits:
    """What one sample may be at most, in tokens and tiles, and what becomes of a larger one.

    drop: left out and listed; fail: the run stops; fewer_tiles: fewer tiles per picture, then fewer frames per video;
    truncate: whole rounds are left away from the end. What is still too large then is left out.
    """

    max_tokens: int
    max_tiles: int
    too_long: LongSamples = "drop"

    @property
    def cuts(self) -> bool:
        """Whether samples are made to fit, so that their sizes depend on the limits."""
        return self.too_long in ("fewer_tiles", "truncate")


@dataclass(frozen=True, slots=True)
class Footprint:
    """Size of a sample: all tokens, tiles (thumbnails included), supervised tokens."""

    tokens: int
    tiles: int
    supervised: int


@dataclass(frozen=True, eq=False, slots=True)
class Fitted:
    """A conversation as it is trained on.

    ``input_ids`` and ``labels`` int64 (T,); ``tiles``: tiles of each picture and frame in reading order;
    ``images``: the settings that each picture is cut with; ``frames``: number of frames of each video; ``cut``: what
    was done to make it fit.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    tiles: tuple[int, ...]
    images: tuple[TileSettings, ...]
    frames: tuple[int, ...]
    cut: Cut | None = None

    @property
    def footprint(self) -> Footprint:
        return Footprint(len(self.input_ids), sum(self.tiles), int((self.labels != IGNORE_INDEX).sum()))


@dataclass(frozen=True, slots=True)
class Material:
    """A conversation whose boxes are resolved; (width, height) of each picture; number of frames of each video."""

    record: Record
    sizes: Sequence[tuple[int, int]]
    frames: Sequence[int]


def fit(material: Material, settings: TileSettings, encoder: Encoder, limits: Limits) -> Fitted:
    """A conversation as it is trained on.

    Raises Fault (too long) only where ``limits`` says that samples are made to fit and this one cannot be.
    """
    whole = _arrange(material, settings.shared_among(len(material.sizes)), encoder)
    if not limits.cuts or _fits(whole, limits):
        return whole
    shrink = _with_fewer_rounds if limits.too_long == "truncate" else _with_fewer_tiles
    fitted = shrink(material, settings, encoder, limits)
    if fitted is None:
        check_limits(whole.footprint, limits)
    return fitted or whole


def _arrange(material: Material, shared: TileSettings, encoder: Encoder) -> Fitted:
    """``shared``: the settings of each picture, its share of the sample's tile limit in them."""
    record, frames = material.record, material.frames
    pictures = iter([count_tiles(*size, shared) for size in material.sizes])
    videos = iter(frames)
    tiles: list[int] = []
    for tag in record.media():
        tiles += [next(pictures)] if tag == IMAGE_PLACEHOLDER else [1] * next(videos)
    turns = expand_videos(record.turns, frames) if frames else record.turns
    ids, labels = encoder.encode(turns, tiles)
    return Fitted(ids, labels, tuple(tiles), (shared,) * len(material.sizes), tuple(frames))


def _fits(fitted: Fitted, limits: Limits) -> bool:
    return len(fitted.input_ids) <= limits.max_tokens and sum(fitted.tiles) <= limits.max_tiles


def _with_fewer_tiles(material: Material, settings: TileSettings, encoder: Encoder, limits: Limits) -> Fitted | None:
    """The most tiles per sample that fit; if one per picture is too many, also the most frames per video."""

    def cut_to(most_tiles: int, most_frames: int) -> Fitted:
        fewer = replace(settings, max_tiles=most_tiles).shared_among(len(material.sizes))
        kept = replace(material, frames=[min(count, most_frames) for count in material.frames])
        return replace(_arrange(kept, fewer, encoder), cut=Cut.FEWER_TILES)

    all_frames = max(material.frames, default=0)
    if material.sizes:
        tiles = _largest(lambda most: _fits(cut_to(most, all_frames), limits), settings.max_tiles - 1)
        if tiles:
            return cut_to(tiles, all_frames)
    count = _largest(lambda most: _fits(cut_to(1, most), limits), all_frames - 1)
    return cut_to(1, count) if count else None


def _with_fewer_rounds(material: Material, settings: TileSettings, encoder: Encoder, limits: Limits) -> Fitted | None:
    """As many rounds from the start as fit, with at least one answer to learn."""
    record = material.record
    start = 1 if record.turns[0].role == "system" else 0
    # Each picture is cut as it would be with all of them there: what is kept looks as it did.
    shared = settings.shared_among(len(material.sizes))

    def first(rounds: int) -> Fitted:
        part = replace(record, turns=record.turns[: start + 2 * rounds])
        tags = part.media()
        images = tags.count(IMAGE_PLACEHOLDER)
        kept = Material(part, material.sizes[:images], material.frames[: len(tags) - images])
        return replace(_arrange(kept, shared, encoder), cut=Cut.FEWER_TURNS)

    rounds = _largest(lambda most: _fits(first(most), limits), (len(record.turns) - start) // 2 - 1)
    fitted = first(rounds) if rounds else None
    return fitted if fitted is not None and fitted.footprint.supervised else None


def _largest(fits: Callable[[int], bool], high: int) -> int:
    """The largest number from 1 to ``high`` that fits, where less always fits better; 0 if none does."""
    low = 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def check_limits(footprint: Footprint, limits: Limits) -> None:
    """Raise Fault for a sample that is larger than this run allows."""
    if footprint.tokens > limits.max_tokens:
        raise Fault(
            FaultCode.TOO_LONG,
            f"{footprint.tokens} tokens ({footprint.tiles} tiles), more than max_seq_length {limits.max_tokens}",
            "raise --max_seq_length, lower max_dynamic_patch, set --long_samples, or shorten the conversation",
        )
    if footprint.tiles > limits.max_tiles:
        raise Fault(
            FaultCode.TOO_MANY_TILES,
            f"{footprint.tiles} tiles, more than num_images_expected {limits.max_tiles}",
            "raise --num_images_expected, lower max_dynamic_patch, or set --long_samples fewer_tiles",
        )
