"""Records of own data -> items: columns of a table, or lines of the InternVL training format."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internvl_chat.constants import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from internvl_chat.data.faults import Fault
from internvl_chat.data.media import read_image_size
from internvl_chat.data.record import Turn, expand_videos, parse_record, resolve_boxes
from internvl_chat.data.storage import Medium
from internvl_chat.errors import DataError, first_line, nearest
from internvl_chat.eval.own_media import as_url, locate_picture
from internvl_chat.eval.sources import read_records, read_table, unpacked
from internvl_chat.eval.task import Ask, Item, Record
from internvl_chat.eval.tasks.common import BOX, LETTERS, option_lines
from internvl_chat.infer.pictures import Shown, Video, place_pictures

FORMATS = ("table", "internvl")
# The key under which a record carries its number.
_NUMBER = " number"
_TAGS = re.compile(f"{re.escape(IMAGE_PLACEHOLDER)}|{re.escape(VIDEO_PLACEHOLDER)}")
# A question with this asks for a box already, and is asked as it is.
_REF = "<ref>"
_SEPARATORS = {",": "a comma", "\t": "a tab"}


@dataclass(frozen=True)
class Columns:
    """Column of each field; None: the column of the field's own name, if there is one; of choices: there are none."""

    question: str | None = None
    image: str | None = None
    images: str | None = None
    video: str | None = None
    answer: str | None = None
    id: str | None = None
    choices: str | Sequence[str] | None = None


@dataclass(frozen=True, eq=False)
class Source:
    """Where own data lie and how they are asked.

    ``root``: folder of pictures, or an archive of them; ``prompt``: with ``{question}``.
    """

    data: Path
    root: Path
    format: str
    columns: Columns
    prompt: str
    metric: str
    num_segments: int


def read_source(source: Source) -> Iterator[Record]:
    """The records of the file, numbered from 1. Raises DataError."""
    path, kind = source.data, source.data.suffix.lower()
    if kind in (".tsv", ".csv"):
        # Pictures inside are written once, not held in memory.
        found: Iterator[Record] = unpacked([path], _tsv if kind == ".tsv" else _csv)
    elif kind == ".parquet":
        found = unpacked([path])
    else:
        found = read_records(path)
    for number, record in enumerate(found, 1):
        yield {**record, _NUMBER: number}


def _tsv(path: Path) -> Iterator[Record]:
    return _rows(path, "\t")


def _csv(path: Path) -> Iterator[Record]:
    return _rows(path, ",")


def _rows(path: Path, separator: str) -> Iterator[Record]:
    """The rows, with base64 of pictures as data URLs. Raises DataError."""
    _check_separator(path, separator)
    found = False
    for row in read_table(path, separator):
        found = True
        yield {name: value if value is None else as_url(value) for name, value in row.items()}
    if not found:
        raise DataError(f"{path}: there is no row below its header")


def _check_separator(path: Path, separator: str) -> None:
    """Raises DataError where the header is one column, and another separator would make several of it."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = file.readline(1 << 16).strip("\r\n")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({first_line(error)}); save it as UTF-8") from error
    other = max(";\t,|", key=head.count)
    if separator not in head and other in head:
        mend = f"call it {'.tsv' if other == chr(9) else '.csv'}" if other in _SEPARATORS else "write it anew"
        raise DataError(
            f"{path}: a single column, {head[:80]!r}: the separator of {path.suffix} is {_SEPARATORS[separator]}, not "
            f"{_SEPARATORS.get(other, repr(other))}; {mend}"
        )


def item_reader(source: Source) -> Callable[[Record, Ask], Item]:
    """What makes an item of a record."""
    make = _table_item if source.format == "table" else _line_item
    return lambda record, ask: make(source, record, ask)


# -- columns --------------------------------------------------------------------------------------------------------


def _table_item(source: Source, record: Record, ask: Ask) -> Item:
    columns = source.columns
    question = str(_needed(record, columns.question, "question"))
    choices = _choices(record, columns.choices)
    if columns.choices is None and record.get("choices") not in (None, "", []):
        raise DataError(
            f"there are choices, which metric {source.metric!r} does not show: take 'metric: letter', or a 'prompt' "
            "with {choices} in it, or leave the column out"
        )
    parts = {"question": question, "choices": option_lines(list(choices.values()))}
    if len(choices) > len(LETTERS):
        raise DataError(f"{len(choices)} choices; there are letters for {len(LETTERS)}")
    text = _grounding(question) if source.prompt == BOX else source.prompt.format(**parts)
    images, video = _pictures(record, columns), _optional(record, columns.video, "video")
    text, shown = _shown(source, ask, text, images, [] if video is None else [(str(video), None)])
    gold: Any = None
    extra: dict[str, Any] = {"options": choices} if choices else {}
    if source.metric != "none":
        gold = _gold(source, _needed(record, columns.answer, "answer"), choices)
    if source.metric == "iou":
        extra |= _size(shown)
    name = _optional(record, columns.id, "id")
    return Item(str(record[_NUMBER] if name is None else name), text, shown, gold, extra)


def _grounding(question: str) -> str:
    """The request for a box; a tag of the picture stays in front of it."""
    if _REF in question:
        return question
    tag = IMAGE_PLACEHOLDER if question.startswith(IMAGE_PLACEHOLDER) else ""
    text = BOX.format(question=question.removeprefix(tag).strip())
    return f"{tag}\n{text}" if tag else text


def _column(record: Record, name: str, hint: str = "") -> Any:
    if name not in record:
        known = [str(key) for key in record if key != _NUMBER]
        there = f"{nearest(name, known)} (there are: {', '.join(known[:12])})"
        raise DataError(f"no column {name!r}{there}; see 'fields'{hint}")
    return record[name]


def _optional(record: Record, named: str | None, field: str) -> Any:
    value = record.get(field) if named is None else _column(record, named)
    return None if value in (None, "") else value


def _needed(record: Record, named: str | None, field: str) -> Any:
    hint = ", or 'metric: none' where there are no right answers" if field == "answer" else ""
    if field == "question" and "conversations" in record:
        hint = "; 'format: internvl' reads lines of the training format, which have 'conversations'"
    value = _column(record, field if named is None else named, hint)
    if value is None or (field == "question" and not isinstance(value, str)):
        raise DataError(f"{field} (column {named or field!r}) holds {value!r}")
    return value


def _pictures(record: Record, columns: Columns) -> list[str]:
    names: list[str] = []
    for named, field in ((columns.image, "image"), (columns.images, "images")):
        value = _optional(record, named, field)
        if isinstance(value, str) and value.startswith("["):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise DataError(f"{field} holds {value[:80]!r}, which is no list ({error})") from error
        found = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(one, str) for one in found):
            raise DataError(f"{field} holds {str(value)[:80]!r}; the name of a picture is expected")
        names += found
    return names


def _choices(record: Record, named: str | Sequence[str] | None) -> dict[str, str]:
    """Letter -> text. A column with a list, an object or JSON; or a column for each choice, the empty ones left out."""
    if named is None:
        return {}
    if not isinstance(named, str):
        texts = [_column(record, name) for name in named]
        return dict(zip(LETTERS, [str(text) for text in texts if text not in (None, "")], strict=False))
    value = _column(record, named)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise DataError(f"choices (column {named!r}) hold {value[:80]!r}, which is no JSON list") from error
    texts = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(texts, list) or len(texts) < 2:
        raise DataError(f"choices (column {named!r}) hold {str(value)[:80]!r}; a list of at least two is expected")
    return dict(zip(LETTERS, map(str, texts), strict=False))


def _gold(source: Source, answer: Any, choices: Mapping[str, str]) -> Any:
    if source.metric == "letter":
        return _letter(answer, choices)
    if source.metric == "iou":
        return _box(answer)
    golds = answer if isinstance(answer, list) else [answer]
    if not golds or not all(isinstance(one, (str, int, float)) for one in golds):
        raise DataError(f"answer holds {str(answer)[:80]!r}; a text, or a list of texts, is expected")
    return [str(one) for one in golds]


def _letter(answer: Any, choices: Mapping[str, str]) -> str:
    if type(answer) is int and 0 <= answer < len(choices):
        return LETTERS[answer]
    text = str(answer).strip()
    if text.upper() in choices:
        return text.upper()
    same = [letter for letter, choice in choices.items() if choice.strip() == text]
    if len(same) == 1:
        return same[0]
    raise DataError(f"answer {text[:80]!r} is neither a letter nor the text of a choice, nor its number from 0")


def _box(answer: Any) -> list[float]:
    if isinstance(answer, str):
        try:
            answer = json.loads(answer)
        except ValueError as error:
            raise DataError(f"answer {answer[:80]!r} is no box; write [x1, y1, x2, y2] in pixels") from error
    if not isinstance(answer, list) or len(answer) != 4 or not all(type(one) in (int, float) for one in answer):
        raise DataError(f"answer {str(answer)[:80]!r} is no box; write [x1, y1, x2, y2] in pixels")
    return [float(one) for one in answer]


# -- lines of the InternVL format -----------------------------------------------------------------------------------


def _line_item(source: Source, record: Record, ask: Ask) -> Item:
    """The first question of a conversation, and the answer to it; what follows is not asked."""
    fields = {name: value for name, value in record.items() if name != _NUMBER}
    try:
        line = parse_record(fields)
        if line.objects is not None:
            sizes = [read_image_size(locate_picture(source.root, name)) for name in line.images]
            line = resolve_boxes(line, line.sizes or sizes)
    except Fault as fault:
        raise DataError(str(fault)) from fault
    if line.turns[0].role == "system":
        raise DataError("the line has a system message; take it out, and give it with --system if it is meant")
    human = next(turn.text for turn in line.turns if turn.role == "human")
    gold: Any = next(turn.text for turn in line.turns if turn.role == "gpt").strip()
    tags = _TAGS.findall(human)
    images = list(line.images)[: tags.count(IMAGE_PLACEHOLDER)]
    videos = [(video.name, video.clip) for video in line.videos[: tags.count(VIDEO_PLACEHOLDER)]]
    text, shown = _shown(source, ask, source.prompt.format(question=human), images, videos)
    extra: dict[str, Any] = {}
    if source.metric == "letter":
        choices = _choices_in(human)
        gold, extra = _letter(gold, choices), {"options": choices}
    elif source.metric == "iou":
        extra = _size(shown)
        gold = _pixels(gold, extra)
    elif source.metric != "none":
        gold = [gold]
    name = fields.get("id")
    return Item(str(record[_NUMBER] if name is None else f"{record[_NUMBER]}:{name}"), text, shown, gold, extra)


def _choices_in(question: str) -> dict[str, str]:
    """The options that a question lists as ``A. text`` lines."""
    found = {m[1]: m[2] for m in re.finditer(r"^\(?([A-Z])[.):]\s*(.*?)\s*$", question, re.MULTILINE)}
    if len(found) < 2:
        raise DataError("metric 'letter': the question lists no options as 'A. text', a line each")
    return found


def _pixels(answer: str, size: Mapping[str, float]) -> list[float]:
    from internvl_chat.data.boxes import parse_boxes, to_pixels

    boxes = [box for grounding in parse_boxes(answer) for box in grounding.boxes]
    if len(boxes) != 1:
        raise DataError(f"metric 'iou': the answer {answer[:80]!r} has {len(boxes)} boxes; one is expected")
    return list(to_pixels(boxes[0], int(size["width"]), int(size["height"])))


# -- pictures -------------------------------------------------------------------------------------------------------


def _shown(
    source: Source, ask: Ask, text: str, images: Sequence[str], videos: Sequence[tuple[str, Any]]
) -> tuple[str, tuple[Shown, ...]]:
    """The text with a tag for each picture and frame, and what stands there. Pictures share the tile limit."""
    if len(images) > 1:
        text = place_pictures(text, len(images))
    elif images and IMAGE_PLACEHOLDER not in text:
        text = f"{IMAGE_PLACEHOLDER}\n{text}"
    if videos and VIDEO_PLACEHOLDER not in text:
        text = f"{VIDEO_PLACEHOLDER}\n{text}"
    tags = _TAGS.findall(text)
    for tag, media in ((IMAGE_PLACEHOLDER, images), (VIDEO_PLACEHOLDER, videos)):
        if tags.count(tag) != len(media):
            raise DataError(f"{tags.count(tag)} {tag} in the question, {len(media)} given; write one for each")
    limit = max(1, ask.max_tiles // max(1, len(images)))
    stills = iter([Shown(locate_picture(source.root, name), limit) for name in images])
    films = iter(
        [
            Shown(Video(source.root / name, source.num_segments, None if clip is None else (clip[0], clip[1])), 1)
            for name, clip in videos
        ]
    )
    shown = tuple(next(stills if tag == IMAGE_PLACEHOLDER else films) for tag in tags)
    turns = expand_videos([Turn("human", text)], [source.num_segments] * len(videos))
    return turns[0].text, shown


def _size(shown: Sequence[Shown]) -> dict[str, float]:
    if len(shown) != 1 or isinstance(shown[0].source, Video):
        raise DataError(f"metric 'iou': a box is of one picture; there are {len(shown)}")
    where = shown[0].source
    assert isinstance(where, (Path, Medium))
    if isinstance(where, Path) and not where.is_file():
        raise DataError(f"the picture {where} is not there")
    try:
        width, height = read_image_size(where)
    except Fault as fault:
        raise DataError(str(fault)) from fault
    return {"width": width, "height": height}
