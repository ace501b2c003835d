"""What is doubtful about a line that can be used: told as warnings with a mend. What makes it unusable are faults.

Everything here looks at one line, so that lines can be looked at by many processes; ``data/survey.py`` puts them
together.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from internvl_chat.constants import (
    GROUNDING_TOKENS,
    IMAGE_PLACEHOLDER,
    MAX_PICTURE_BYTES,
    SPECIAL_TOKENS,
    VIDEO_PLACEHOLDER,
)
from internvl_chat.data.address import Address
from internvl_chat.data.boxes import BOX_TAG, REF_TAG, box_problems
from internvl_chat.data.faults import Fault, show
from internvl_chat.data.fit import Footprint
from internvl_chat.data.manifest import DatasetSpec
from internvl_chat.data.media import open_picture, read_image_size
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
    "media_tag": ("a media tag in an answer or system turn, where it is plain text", "move it to a human turn"),
    "size": ("width and height that are not the picture's", "correct or remove them"),
    "ratio": ("pictures more than 200 times as long as wide", "cut or remove them; max_image_ratio of the manifest"),
    "exif": ("pictures with an EXIF rotation, which is not applied", "turn the files themselves"),
    "key_twice": ("a key that is there twice in one object; the last value counts", "remove one of them"),
    "question": ("a question without a word or a picture", "write one or remove the turns"),
    "space": ("answers with white space at an end, trained as it stands", "strip them"),
    "repetition": ("answers that say the same over and over", "shorten or remove them"),
    "duplicate": ("the same conversation and media as in an earlier line", "internvl repair --drop_duplicates"),
    "near_duplicate": ("like an earlier line but for white space", "remove one of them"),
    "elsewhere": ("the same conversation and media in another data set", "remove one, most of all if one is held out"),
    "same_id": ("an id that an earlier line has", "give ids once; they are used only to find lines again"),
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

# What is looked at of a line: its text; the heads of its pictures as well; all, decoded as in training.
Depth = Literal["text", "heads", "all"]


@dataclass(frozen=True, slots=True)
class LineFacts:
    """What is known of a line. ``content``, ``loose`` (white space made equal), ``id``: hashes, 0 = none.

    ``warnings``: (kind, detail), each kind once. ``fault``: what came up on loading.
    """

    content: int = 0
    loose: int = 0
    id: int = 0
    answers: int = 0
    repetitive: int = 0
    warnings: tuple[tuple[str, str], ...] = ()
    fault: Fault | None = None


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
    for kind, text in _warnings(data, record, doubled, template_tokens(maker, spec)):
        found.setdefault(kind, text)
    fault = None
    if usable is not None and depth != "text":
        for kind, text in _media_warnings(line, record, spec, maker, depth):
            found.setdefault(kind, text)
    if usable is not None and depth == "all":
        try:
            maker.load(line, spec, address, usable)
        except Fault as caught:
            fault = caught
    answers = [turn.text for turn in record.turns if turn.role == "gpt"]
    repetitive = [text for text in answers if repetition(text) > REPETITION_LIMIT]
    if repetitive:
        found["repetition"] = f"{show(repetitive[0])}: {repetition(repetitive[0]):.0%} was said before"
    warnings = tuple((kind, found[kind]) for kind in WARNINGS if kind in found)
    if usable is None:
        return LineFacts(answers=len(answers), repetitive=len(repetitive), warnings=warnings)
    name = data.get("id")
    id_hash = 0 if name is None or name == "" else _hash(json.dumps(name, sort_keys=True))
    strict, loose = (content_hash(record, spec.root, loosely) for loosely in (False, True))
    return LineFacts(strict, loose, id_hash, len(answers), len(repetitive), warnings, fault)


def _parse(line: bytes, spec: DatasetSpec) -> tuple[dict[str, Any], Record, list[str]] | None:
    """The item, its record, and keys that are in one object twice; None where the index has a fault for it."""
    doubled: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        whole = dict(pairs)
        if len(whole) < len(pairs):
            keys = [key for key, _ in pairs]
            doubled.extend(key for key in whole if keys.count(key) > 1)
        return whole

    try:
        data = json.loads(line.decode("utf-8"), object_pairs_hook=note)
        return (data, parse_record(data, spec.format, spec.columns), doubled) if isinstance(data, dict) else None
    except (Fault, ValueError, RecursionError):
        return None


def template_tokens(maker: SampleMaker, spec: DatasetSpec) -> tuple[str, ...]:
    """The tokens that only the template may place in this data set."""
    own = [token for token in SPECIAL_TOKENS if token not in GROUNDING_TOKENS]
    return (*maker.encoder_of(spec).template.markers, *own)


def _warnings(
    data: Mapping[str, Any], record: Record, doubled: Sequence[str], tokens: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """What the text alone tells; a kind may come more than once."""
    if doubled:
        yield "key_twice", show(doubled[0])
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
    line: bytes, record: Record, spec: DatasetSpec, maker: SampleMaker, depth: Depth
) -> Iterator[tuple[str, str]]:
    """What the pictures' heads tell; what cannot be read is a fault, which others report."""
    wrong = maker.contradicted_size(line, spec)
    if wrong is not None:
        yield "size", wrong
    for name in record.images:
        try:
            medium = locate_medium(spec.root, name, maker.remote)
            width, height = read_image_size(medium)
            turned = medium.attempt(lambda file: _orientation(medium.name, file), MAX_PICTURE_BYTES)  # noqa: B023
        except (Fault, OSError):
            continue
        if max(width, height) > LONGEST_RATIO * min(width, height):
            yield "ratio", f"{name!r} is {width} x {height}"
        if depth == "all" and turned > 1:
            yield "exif", f"{name!r} has orientation {turned}"


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
