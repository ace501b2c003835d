"""What is doubtful about a line that can be used: told as warnings with a mend. What makes it unusable are faults.

Everything here looks at one line, so that lines can be looked at by many processes; ``data/survey.py`` puts them
together.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from itertools import chain
from typing import Any, BinaryIO, Literal

from internvl_chat.constants import (
    GROUNDING_TOKENS,
    IMAGE_PLACEHOLDER,
    MAX_PICTURE_BYTES,
    SPECIAL_TOKENS,
    VIDEO_PLACEHOLDER,
)
from internvl_chat.data.address import Address
from internvl_chat.data.boxes import BOX_TAG, REF_TAG, Box, box_problems
from internvl_chat.data.faults import Fault, show
from internvl_chat.data.fit import Footprint
from internvl_chat.data.formats.fields import is_empty
from internvl_chat.data.formats.swift import ALIASES
from internvl_chat.data.formats.table import COLUMNS, recognise
from internvl_chat.data.manifest import DatasetSpec
from internvl_chat.data.media import open_picture, read_image_size
from internvl_chat.data.opening import shorten
from internvl_chat.data.record import Record, parse_record
from internvl_chat.data.sample import SampleMaker
from internvl_chat.data.storage import locate_medium

# Kind of warning -> (what it is, what to do about it). The order is that of every list of them.
WARNINGS: Mapping[str, tuple[str, str]] = {
    "marker": (
        "text that looks like a token which only the template may place; it is plain text here, the token itself in "
        "the original",
        "remove it, unless the data are about such text",
    ),
    "box": ("boxes that are not whole thousandths x1, y1, x2, y2", "write <box>[[x1, y1, x2, y2]]</box>, 0..1000"),
    "box_tag": (f"{REF_TAG} or {BOX_TAG} without 'objects', trained as it stands", "add 'objects' or remove the tags"),
    "box_unit": ("boxes in pixels whose numbers are 0 to 1", "give them the unit 0-1, or write pixels"),
    "box_clipped": (
        "boxes that reach over the picture's edge, where they are cut off",
        "correct them; are the unit and the picture those that are meant?",
    ),
    "tag_like": ("what looks like a media tag and is plain text", "write <image> or <video>"),
    "media_tag": ("a media tag in an answer or system turn, where it is plain text", "move it to a human turn"),
    "size": ("width and height that are not the picture's", "correct or remove them"),
    "ratio": ("pictures more than 200 times as long as wide", "cut or remove them; max_image_ratio of the manifest"),
    "exif": ("pictures with an EXIF rotation, which is not applied", "turn the files themselves"),
    "unknown_key": ("a key that is not read, and looks like one that is", "rename or remove it"),
    "key_twice": ("a key that is there twice in one object; the last value counts", "remove one of them"),
    "question": ("a question without a word or a picture", "write one or remove the turns"),
    "space": ("answers with white space at an end, trained as it stands", "strip them"),
    "repetition": ("answers that say the same over and over", "shorten or remove them"),
    "duplicate": ("the same conversation and media as in an earlier line", "internvl repair --drop_duplicates"),
    "near_duplicate": ("like an earlier line but for white space", "remove one of them"),
    "elsewhere": ("the same conversation and media in another data set", "remove one, most of all if one is held out"),
    "same_id": ("an id that an earlier line has", "give ids once; they are used only to find lines again"),
    "no_jsonl": ("an annotation that is no JSONL", "write one JSON object per line"),
    "length": ("'length' in the manifest is not the number of lines", "correct or remove it; is the file whole?"),
    "unsupervised": ("a data set without a token to learn", "switch 'loss' on for answers, or leave it out"),
}
# An answer of whose runs of RUN words a larger share was there before repeats itself. A long text said twice stays
# below, said three times it does not.
REPETITION_LIMIT = 0.5
RUN = 10
_FEWEST_WORDS = 3 * RUN
LONGEST_RATIO = 200
# A character of a script that is written without spaces counts as a word.
_WORDS = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|\w+|[^\w\s]")
_EXIF_ORIENTATION = 0x0112
_SIZE_KEYS = ("width", "height", "width_list", "height_list")
# Keys that some format reads; of them those of a preference pair, which no line that is looked at is.
_KEYS_OF_ALL = frozenset(chain(*(columns.values() for columns in COLUMNS.values()), *ALIASES.values()))
_PAIR_KEYS = ("question", "chosen", "rejected", "rejected_response")
_TURN_LISTS = ("conversations", "messages")
_TURN_KEYS = ("from", "value", "role", "content", "loss", "weight")
# How like a known key an unknown one must be (difflib's ratio) to be a slip of the pen.
_LIKE = 0.75
_KEY_WORDS = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z0-9]+")
_TAG_LIKE = re.compile(r"<\|?\s*(image|img|video)s?[\s_-]*(?:\d+|pad|token|placeholder)?\s*\|?\s*/?>", re.IGNORECASE)
# Share of the picture's side by which a box may leave the picture unremarked: annotators are that careless.
_OVERHANG = 0.05

# What is looked at of a line: its text; the heads of its pictures as well; all, decoded as in training.
Depth = Literal["text", "heads", "all"]


@dataclass(frozen=True, slots=True)
class LineFacts:
    """What is known of a line. ``content``, ``loose`` (white space made equal), ``id``: hashes, 0 = none.

    ``warnings``: (kind, detail), each kind once. ``fault``: what came up on loading. ``reach``: the largest number in
    its boxes in pixels, 0 without any.
    """

    content: int = 0
    loose: int = 0
    id: int = 0
    answers: int = 0
    repetitive: int = 0
    warnings: tuple[tuple[str, str], ...] = ()
    fault: Fault | None = None
    reach: float = 0.0


def look_at_line(
    line: bytes, spec: DatasetSpec, maker: SampleMaker, address: Address, usable: Footprint | None, depth: Depth
) -> LineFacts:
    """Everything that can be told from one line. ``usable``: its size in the index; None: it is faulty.

    A faulty line is looked at for warnings as far as it can be read, but never counts as a duplicate.
    """
    parsed = _parse(line, spec)
    if parsed is None:
        return LineFacts()
    data, record, doubled = parsed
    found: dict[str, str] = {}

    def note(warnings: Iterator[tuple[str, str]]) -> None:
        for kind, text in warnings:
            found.setdefault(kind, text)

    note(_key_warnings(data, doubled, spec))
    if record is None:
        return LineFacts(warnings=_in_order(found))
    note(_warnings(data, record, template_tokens(maker, spec)))
    sizes = dict(enumerate(record.sizes or ()))
    if usable is not None and depth != "text":
        note(_media_warnings(line, record, spec, maker, depth, sizes))
    note(_box_warnings(record, sizes))
    answers = [turn.text for turn in record.turns if turn.role == "gpt"]
    repetitive = [text for text in answers if repetition(text) > REPETITION_LIMIT]
    if repetitive:
        found["repetition"] = f"{show(repetitive[0])}: {repetition(repetitive[0]):.0%} was said before"
    reach = max((value for box in _pixel_boxes(record) for one in box.corners for value in one), default=0.0)
    facts = LineFacts(answers=len(answers), repetitive=len(repetitive), warnings=_in_order(found), reach=reach)
    if usable is None:
        return facts
    fault = None
    if depth == "all":
        try:
            maker.load(line, spec, address, usable)
        except Fault as caught:
            fault = caught
    name = data.get("id")
    id_hash = 0 if name is None or name == "" else _hash(json.dumps(name, sort_keys=True))
    strict, loose = (content_hash(record, spec.root, loosely) for loosely in (False, True))
    return replace(facts, content=strict, loose=loose, id=id_hash, fault=fault)


def _in_order(found: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((kind, found[kind]) for kind in WARNINGS if kind in found)


def _parse(line: bytes, spec: DatasetSpec) -> tuple[dict[str, Any], Record | None, list[str]] | None:
    """The item, its record (None where the index has a fault for it), and keys that are in one object twice.

    None where there is no item.
    """
    doubled: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        whole = dict(pairs)
        if len(whole) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            doubled.extend(key for key in whole if counts[key] > 1)
        return whole

    try:
        data = json.loads(line.decode("utf-8"), object_pairs_hook=note)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict):
        return None
    try:
        return data, parse_record(data, spec.format, spec.columns), doubled
    except (Fault, ValueError, RecursionError):
        return data, None, doubled


def template_tokens(maker: SampleMaker, spec: DatasetSpec) -> tuple[str, ...]:
    """The tokens that only the template may place in this data set."""
    own = [token for token in SPECIAL_TOKENS if token not in GROUNDING_TOKENS]
    return (*maker.encoder_of(spec).template.markers, *own)


def _key_warnings(data: Mapping[str, Any], doubled: Sequence[str], spec: DatasetSpec) -> Iterator[tuple[str, str]]:
    """What the keys alone tell, of an item with a fault, too; a kind may come more than once, as in all of these."""
    if doubled:
        yield "key_twice", show(doubled[0])
    try:
        usual = COLUMNS[spec.format or recognise(data)]
    except Fault:  # its reason names the key
        return
    columns = spec.columns or {}
    own = {name: columns.get(name, key) for name, key in usual.items()}
    items = [key for name, key in own.items() if not name.endswith("_tag") and name not in _PAIR_KEYS]
    yield from _misspelt(data, (*items, *_SIZE_KEYS, "clip"), "")
    names = [columns.get(name, name) for name in _TURN_LISTS]
    turns = next((data[name] for name in (*names, *_TURN_LISTS) if isinstance(data.get(name), list)), ())
    legal = (*_TURN_KEYS, *(key for name, key in columns.items() if name.endswith("_tag")))
    for number, turn in enumerate(turns, 1):
        if isinstance(turn, dict):
            yield from _misspelt(turn, legal, f" in turn {number}")


def _misspelt(data: Mapping[str, Any], legal: tuple[str, ...], where: str) -> Iterator[tuple[str, str]]:
    """Keys near to a ``legal`` one that is not there."""
    for key, value in data.items():
        like = _nearest_key(key, legal)
        if like is not None and like not in data and not is_empty(value):
            yield "unknown_key", f"unknown key {show(key)}{where}, did you mean {like!r}?"


@lru_cache(2**12)
def _nearest_key(key: str, legal: tuple[str, ...]) -> str | None:
    """The key that an unknown one is a slip of. ``image_id`` is none: it has a known one for a word."""
    known, words = _KEYS_OF_ALL.union(legal, _TURN_KEYS), [word.lower() for word in _KEY_WORDS.findall(key)]
    if key in known or (len(words) > 1 and not known.isdisjoint(words)):
        return None
    return next(iter(get_close_matches(key.lower(), legal, 1, _LIKE)), None)


def _warnings(data: Mapping[str, Any], record: Record, tokens: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What the text alone tells."""
    if record.images and record.sizes is None and any(data.get(key) is not None for key in _SIZE_KEYS):
        yield "size", f"{len(record.images)} pictures, but not one width and height for each; they are not used"
    for name, (width, height) in zip(record.images, record.sizes or (), strict=False):
        if max(width, height) > LONGEST_RATIO * min(width, height):
            yield "ratio", f"{name!r} is {width} x {height}"
    for number, turn in enumerate(record.turns, 1):
        where = f"in turn {number} ({turn.role})"
        for token in tokens:
            if token in turn.text:
                yield "marker", f"{token} {where}"
        for problem in box_problems(turn.text) if "box>" in turn.text else ():
            yield "box", f"{problem} {where}"
        if turn.role == "human":
            for match in _TAG_LIKE.finditer(turn.text):
                if match[0] not in (IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER):
                    meant = VIDEO_PLACEHOLDER if match[1].lower() == "video" else IMAGE_PLACEHOLDER
                    yield "tag_like", f"{match[0]} {where}, did you mean {meant}?"
        if record.objects is None:
            for tag in (REF_TAG, BOX_TAG):
                if tag in turn.text:
                    yield "box_tag", f"{tag} {where}"
        if turn.role != "human":
            for tag in (IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER):
                if tag in turn.text:
                    yield "media_tag", f"{tag} {where}"
        if turn.role == "human" and not turn.text.strip():
            yield "question", where
        if turn.role == "gpt" and turn.text != turn.text.strip():
            yield "space", where


def _media_warnings(
    line: bytes, record: Record, spec: DatasetSpec, maker: SampleMaker, depth: Depth, sizes: dict[int, tuple[int, int]]
) -> Iterator[tuple[str, str]]:
    """What the pictures' heads tell; what cannot be read is a fault, which others report.

    Puts (width, height) of each picture into ``sizes``.
    """
    wrong = maker.contradicted_size(line, spec)
    if wrong is not None:
        yield "size", wrong
    for number, name in enumerate(record.images):
        try:
            medium = locate_medium(spec.root, name, maker.remote)
            sizes[number] = width, height = read_image_size(medium)
            turned = medium.attempt(lambda file: _orientation(medium.name, file), MAX_PICTURE_BYTES)  # noqa: B023
        except (Fault, OSError):
            continue
        if max(width, height) > LONGEST_RATIO * min(width, height):
            yield "ratio", f"{name!r} is {width} x {height}"
        if depth == "all" and turned > 1:
            yield "exif", f"{name!r} has orientation {turned}"


def _pixel_boxes(record: Record) -> list[Box]:
    return [] if record.objects is None else [box for box in record.objects.boxes if box.in_pixels]


def _box_warnings(record: Record, sizes: Mapping[int, tuple[int, int]]) -> Iterator[tuple[str, str]]:
    """What is doubtful about boxes in pixels. ``sizes``: (width, height) by number of the picture, where known."""
    for box in _pixel_boxes(record):
        for corners in box.corners:
            what = f"box [{', '.join(f'{value:g}' for value in corners)}]"
            if all(0 <= value <= 1 for value in corners) and (len(corners) == 4 or any(v % 1 for v in corners)):
                yield "box_unit", f"{what} in pixels: it looks like 0-1"
            if box.image not in sizes:
                continue
            width, height = sizes[box.image]
            over = [max(-low, low - side) / side for low, side in zip(corners, (width, height) * 2, strict=False)]
            if max(over) > _OVERHANG:
                picture = f"picture {shorten(record.images[box.image])!r} of {width} x {height} pixels"
                yield "box_clipped", f"{what} reaches {max(over):.0%} of the side over {picture}"


def _orientation(name: str, file: BinaryIO) -> int:
    """The EXIF orientation that is not applied when the picture is read; 1 if there is none."""
    with open_picture(name, file) as image:
        if image.format == "TIFF":  # Pillow turns these itself
            return 1
        try:
            found = image.getexif().get(_EXIF_ORIENTATION, 1)
        except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):
            return 1
        return found if isinstance(found, int) and 1 <= found <= 8 else 1


def repetition(text: str) -> float:
    """Share of the runs of RUN words that were there before in the text, 0..1; 0 for fewer than three times as many.

    A sentence said twice in a long text gives little, one said ten times nearly 1.
    """
    words = _WORDS.findall(text)
    if len(words) < _FEWEST_WORDS:
        return 0.0
    runs = list(zip(*(words[start:] for start in range(RUN)), strict=False))
    return 1 - len(set(runs)) / len(runs)


def content_hash(record: Record, root: str, loosely: bool = False) -> int:
    """Hash of conversation and media, of any format. ``loosely``: white space is all the same."""
    turns = [(turn.role, " ".join(turn.text.split()) if loosely else turn.text) for turn in record.turns]
    videos = [(video.name, video.clip) for video in record.videos]
    media = (root, record.images, videos) if record.images or videos else None
    return _hash(json.dumps([turns, media, repr(record.objects)], default=repr))


def _hash(text: str) -> int:
    """64 bits, never 0."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1
