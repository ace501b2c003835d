"""One line of an annotation as training would see it: record, pictures and their tiles, boxes, tokens and weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from internvl_chat.constants import IMAGE_PLACEHOLDER
from internvl_chat.data.address import Address
from internvl_chat.data.annotation import LineFile, find_lines, line_offsets, look_at
from internvl_chat.data.boxes import Grounding, box_problems, parse_boxes
from internvl_chat.data.containers import Kind, kind_of, where
from internvl_chat.data.faults import Cut, Fault
from internvl_chat.data.fit import Fitted, check_limits
from internvl_chat.data.media import read_image
from internvl_chat.data.record import Record, parse_record, resolve_boxes
from internvl_chat.data.sample import Sample
from internvl_chat.data.storage import locate_medium
from internvl_chat.data.tiles import choose_grid
from internvl_chat.errors import ConfigError, DataError

if TYPE_CHECKING:
    from internvl_chat.data.manifest import DatasetSpec
    from internvl_chat.tools.data_view import View

# Ids that one character may be spread over.
_LONGEST_CHARACTER = 8
# Characters that are shown of one text of an item, of a whole item, and of a line that holds none.
_LONGEST_TEXT, _LONGEST_ITEM, _LONGEST_LINE = 200, 10_000, 2000


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

    @property
    def system(self) -> str | None:
        """The manifest's system message, where the line has none of its own."""
        own = self.record is not None and self.record.turns[0].role == "system"
        return None if own else self.spec.system_message


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
        fitted = maker.arrange(line, spec)
    except Fault as fault:
        return Look(spec, place, line, fault)
    too_large = None
    try:
        check_limits(sample.footprint, maker.limits)
    except Fault as fault:
        too_large = fault
    media = tuple(_media(record, resolved, pictures, fitted, sample.tiles))
    weights = loss_weights(sample, view.data.loss_reduction)
    image_id = maker.encoder_of(spec).image_token_id
    tokens = tuple(split_tokens(sample.input_ids.tolist(), weights, decoder(view.tokenizer), image_id))
    return Look(spec, place, line, too_large, resolved, sample, media, tokens, fitted.cut)


def _media(
    record: Record, resolved: Record, pictures: Sequence[Image.Image], fitted: Fitted, tiles: torch.Tensor
) -> Iterator[Picture | Film]:
    """Pictures and videos that are seen, in reading order, each with its part of the sample's tiles."""
    drawn, parts = boxes_by_picture(record, resolved), iter(tiles.split(fitted.tiles))
    image, video = 0, 0
    for tag in record.media()[: len(fitted.images) + len(fitted.frames)]:
        if tag == IMAGE_PLACEHOLDER:
            boxes, certain = drawn[image]
            grid = choose_grid(*pictures[image].size, fitted.images[image])
            yield Picture(name_of(record.images[image]), pictures[image], grid, next(parts), boxes, certain)
            image += 1
        else:
            film = record.videos[video]
            yield Film(name_of(film.name), film.clip, torch.cat([next(parts) for _ in range(fitted.frames[video])]))
            video += 1


def name_of(medium: str) -> str:
    """A medium as the line names it; kind and size of one that is embedded."""
    if not medium.startswith("data:"):
        return medium
    head, _, content = medium.partition(",")
    kind = head.removeprefix("data:").partition(";")[0].rpartition("/")[2]
    size = len(content.rstrip("=")) * 3 // 4
    return f"embedded {kind or 'file'}, {f'{size / 1024:,.0f} KB' if size >= 1024 else f'{size} bytes'}"


def item_text(line: bytes) -> str:
    """A line that may not be usable: its item with long texts cut, or what there is, cut."""
    try:
        text = json.dumps(_with_short_texts(json.loads(line)), ensure_ascii=False, indent=2)
        return visible(_shortened(text, _LONGEST_ITEM))
    except (ValueError, RecursionError):  # not JSON, not UTF-8, or too deep
        return visible(_shortened(line.decode("utf-8", "backslashreplace"), _LONGEST_LINE))


def _with_short_texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {_shortened(key, _LONGEST_TEXT): _with_short_texts(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_short_texts(one) for one in value]
    return _shortened(value, _LONGEST_TEXT) if isinstance(value, str) else value


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


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
