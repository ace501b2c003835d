"""One line of an annotation as training would see it: record, pictures and their tiles, boxes, tokens and weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from internvl_chat.constants import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from internvl_chat.data.address import Address
from internvl_chat.data.annotation import LineFile, find_lines, line_offsets, look_at
from internvl_chat.data.boxes import Grounding, box_problems, parse_boxes
from internvl_chat.data.containers import Kind, kind_of, where
from internvl_chat.data.faults import Cut, Fault
from internvl_chat.data.fit import Limits, check_limits
from internvl_chat.data.frames import draw_count
from internvl_chat.data.media import read_image
from internvl_chat.data.record import Record, parse_record, resolve_boxes
from internvl_chat.data.sample import Sample, SampleMaker
from internvl_chat.data.storage import locate_medium
from internvl_chat.data.tiles import TileSettings, choose_grid, count_tiles
from internvl_chat.errors import ConfigError, DataError

if TYPE_CHECKING:
    from internvl_chat.data.manifest import DatasetSpec
    from internvl_chat.tools.data_view import View

# Ids that one character may be spread over.
_LONGEST_CHARACTER = 8
_NO_LIMIT = 2**30


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture: its grid (columns, rows), its tiles uint8 (N, 3, S, S), thumbnail last if there is one.

    ``boxes``: those of the text that are drawn on it; ``certain``: whether the line says that they are this one's.
    """

    name: str
    image: Image.Image
    grid: tuple[int, int]
    tiles: torch.Tensor
    boxes: tuple[Grounding, ...]
    certain: bool

    @property
    def thumbnail(self) -> bool:
        return len(self.tiles) > self.grid[0] * self.grid[1]


@dataclass(frozen=True, eq=False)
class Film:
    """A video: the frames that are seen, one tile each, uint8 (N, 3, S, S)."""

    name: str
    clip: Any
    frames: torch.Tensor


@dataclass(frozen=True)
class Token:
    """A piece of the prompt: its text, its ids (several where they are one character or all image tokens).

    ``weight``: of each id in the loss; 0 = not learned.
    """

    text: str
    ids: tuple[int, ...]
    weight: float


@dataclass(frozen=True, eq=False)
class Look:
    """A line and what becomes of it. ``fault`` alone, or with all else where it is only too large."""

    spec: DatasetSpec
    place: str
    line: bytes
    fault: Fault | None = None
    record: Record | None = None
    sample: Sample | None = None
    media: tuple[Picture | Film, ...] = ()
    tokens: tuple[Token, ...] = ()
    cut: Cut | None = None


def read_line(view: View, spec: DatasetSpec, number: int) -> tuple[bytes, str]:
    """A line, counted from 1, and its name for messages. No index is needed. Raises ConfigError and DataError."""
    try:
        lines, kind = spec.annotation, kind_of(spec.annotation)
        if kind != "jsonl":
            view.index_dir.mkdir(parents=True, exist_ok=True)
            lines, kind = find_lines(spec.annotation, look_at(spec.annotation, view.index_dir), view.index_dir)
        offsets = line_offsets(lines)
        if not 1 <= number <= len(offsets):
            raise ConfigError(f"--line {number}: {spec.annotation} has lines 1 to {len(offsets)}")
        end = int(offsets[number]) if number < len(offsets) else None
        return LineFile.of(lines).read(int(offsets[number - 1]), end), place_of(spec, kind, number)
    except OSError as error:
        raise DataError(f"{error.filename or spec.annotation}: {error.strerror}; it must be readable") from error


def place_of(spec: DatasetSpec, kind: Kind, number: int) -> str:
    """``notes.jsonl:3``"""
    return f"{spec.annotation}{where(kind, number)}"


def look(view: View, spec: DatasetSpec, line: bytes, number: int, place: str) -> Look:
    """Everything about a line, counted from 1; its fault, if it has one."""
    maker = view.maker
    try:
        sample = maker.load(line, spec, Address(spec.name, number - 1))
        record = parse_record(line, spec.format, spec.columns)
        pictures = [read_image(locate_medium(spec.root, name, maker.remote)) for name in record.images]
        resolved = resolve_boxes(record, [picture.size for picture in pictures])
        media = tuple(_media(line, spec, maker, pictures, sample))
        cut = maker.measure(line, spec)[1]
    except Fault as fault:
        return Look(spec, place, line, fault)
    too_large = None
    try:
        check_limits(sample.footprint, maker.limits)
    except Fault as fault:
        too_large = fault
    weights = loss_weights(sample, view.data.loss_reduction)
    image_id = maker.encoder_of(spec).image_token_id
    tokens = tuple(split_tokens(sample.input_ids.tolist(), weights, decoder(view.tokenizer), image_id))
    return Look(spec, place, line, too_large, resolved, sample, media, tokens, cut)


def _media(
    line: bytes, spec: DatasetSpec, maker: SampleMaker, pictures: Sequence[Image.Image], sample: Sample
) -> Iterator[Picture | Film]:
    """Pictures and videos in reading order, each with its part of the sample's tiles."""
    record = parse_record(line, spec.format, spec.columns)
    sizes = [picture.size for picture in pictures]
    drawn = boxes_by_picture(record, resolve_boxes(record, sizes))
    settings, frames = arrangement(line, spec, maker, record, sizes, sample.tiles_per_image)
    entries, first, image = iter(sample.tiles_per_image), 0, 0
    for number, tag in enumerate(record.media()):
        film = None if tag == IMAGE_PLACEHOLDER else record.videos[number - image]
        count = sum(next(entries, 0) for _ in range(1 if film is None else frames[number - image]))
        tiles = sample.tiles[first : first + count]
        if film is not None and count:
            yield Film(film.name, film.clip, tiles)
        elif film is None and count:
            boxes, certain = drawn[image]
            grid = choose_grid(*sizes[image], settings)
            yield Picture(record.images[image], pictures[image], grid, tiles, boxes, certain)
        image += film is None
        first += count


def arrangement(
    line: bytes,
    spec: DatasetSpec,
    maker: SampleMaker,
    record: Record,
    sizes: Sequence[tuple[int, int]],
    entries: Sequence[int],
) -> tuple[TileSettings, list[int]]:
    """How the pictures were cut and how many frames each video has, told from the tiles of each picture and frame.

    Tried in the order in which a sample is made to fit: as it is, with fewer tiles, with fewer frames.
    """
    whole = maker.tiles.max_tiles if spec.max_dynamic_patch is None else spec.max_dynamic_patch
    counts = frame_counts(line, spec, maker, record)
    longest = max(counts, default=0)
    tries = [*((tiles, longest) for tiles in range(whole, 0, -1)), *((1, most) for most in range(longest - 1, 0, -1))]
    part = slice(len(entries) if maker.limits.too_long == "truncate" else None)  # rounds are left away from the end
    for most_tiles, most_frames in tries:
        settings = replace(maker.tiles, max_tiles=most_tiles).shared_among(len(sizes))
        frames = [min(count, most_frames) for count in counts]
        pictures, films = iter(sizes), iter(frames)
        made: list[int] = []
        for tag in record.media():
            made += [count_tiles(*next(pictures), settings)] if tag == IMAGE_PLACEHOLDER else [1] * next(films)
        if made[part] == list(entries):
            return settings, frames
    raise ValueError(f"{spec.name}: tiles {list(entries)} of a line fit no way in which its media are cut")


def frame_counts(line: bytes, spec: DatasetSpec, maker: SampleMaker, record: Record) -> list[int]:
    """How many frames of each video are seen, before anything is done to make the sample fit."""
    if not (spec.sampling_method or maker.videos.method).startswith("fps"):
        low, high = maker.videos.min_frames, maker.videos.max_frames
        return [draw_count(line, spec.min_num_frame or low, spec.max_num_frame or high)] * len(record.videos)
    plain = replace(spec, format=None, columns=None)
    unlimited = replace(maker, limits=Limits(_NO_LIMIT, _NO_LIMIT))
    turns = [{"from": "human", "value": VIDEO_PLACEHOLDER}, {"from": "gpt", "value": "-"}]
    alone = [{"video": video.name, "clip": video.clip, "conversations": turns} for video in record.videos]
    return [unlimited.measure(json.dumps(item).encode(), plain)[0].tiles for item in alone]


def boxes_by_picture(record: Record, resolved: Record) -> list[tuple[tuple[Grounding, ...], bool]]:
    """For each picture the boxes of the text, and whether they are its own for certain.

    Text names no picture: where there are several and 'objects' does not say it either, all may be meant.
    """
    found = [grounding for turn in resolved.turns for grounding in parse_boxes(turn.text)]
    count = len(record.images)
    owners = [box.image for box in record.objects.boxes if len(box.corners[0]) == 4] if record.objects else []
    if len(owners) == len(found) and owners:
        return [
            (tuple(g for g, owner in zip(found, owners, strict=True) if owner == number), True)
            for number in range(count)
        ]
    return [(tuple(found), count == 1)] * count


def problems_of(record: Record) -> list[str]:
    """What is wrong with the boxes in the text."""
    return [problem for turn in record.turns for problem in box_problems(turn.text)]


def loss_weights(sample: Sample, reduction: str) -> list[float]:
    """Weight of each token in the loss, as the trainer computes it."""
    from internvl_chat.model.loss import token_weights

    return [float(weight) for weight in token_weights(torch.from_numpy(sample.labels)[None], None, reduction)[0]]


def decoder(tokenizer: Any) -> Callable[[Sequence[int]], str]:
    """ids -> text, nothing left out or tidied up."""

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    return decode


def split_tokens(
    ids: Sequence[int], weights: Sequence[float], decode: Callable[[Sequence[int]], str], image_id: int
) -> Iterator[Token]:
    """The prompt in pieces: a token each; ids that only together are a character, or image tokens in a row, are one."""
    start = 0
    before: tuple[int, ...] = ()
    while start < len(ids):
        end = start + 1
        if ids[start] == image_id:
            while end < len(ids) and ids[end] == image_id:
                end += 1
            text = decode(ids[start : start + 1])
        else:
            text = _text_behind(before, ids[start:end], decode)
            while _goes_on(text, ids, weights, start, end, image_id):
                end += 1
                text = _text_behind(before, ids[start:end], decode)
            if text.endswith("\ufffd"):  # no character comes of it
                end = start + 1
                text = _text_behind(before, ids[start:end], decode)
        before = tuple(ids[start:end])[-_LONGEST_CHARACTER:]
        yield Token(text, tuple(ids[start:end]), weights[start])
        start = end


def _goes_on(text: str, ids: Sequence[int], weights: Sequence[float], start: int, end: int, image_id: int) -> bool:
    """Whether the next id may complete the last character."""
    if not text.endswith("\ufffd") or end >= len(ids) or end - start >= _LONGEST_CHARACTER:
        return False
    return ids[end] != image_id and (weights[end] > 0) == (weights[start] > 0)


def _text_behind(before: Sequence[int], ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> str:
    """Text of ids behind others: alone, some tokenizers drop the space that they begin with."""
    head, whole = decode(before) if before else "", decode([*before, *ids])
    return whole[len(head) :] if whole.startswith(head) else decode(ids)


def visible(text: str) -> str:
    """Text in which nothing can hide or steer a terminal: control characters as escapes, line breaks kept."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
