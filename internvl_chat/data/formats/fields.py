"""What the adapters share: keys taken out of a foreign item, media values, tags, and the InternVL item put together.

Nothing is lost in silence: a key that has no place in the InternVL format and would change the training is a Fault;
any other key that is not read is carried over as it came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any
from urllib.parse import unquote

from internvl_chat.constants import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from internvl_chat.data.faults import Fault, FaultCode, show

Turn = dict[str, Any]

# Kind -> what a user writes where one stands.
TAGS = {"image": IMAGE_PLACEHOLDER, "video": VIDEO_PLACEHOLDER}
BREAKS = ("\n", "\r\n")
# Left over beside a conversation they would make the result be read as something else.
_RESERVED = ("messages", "conversations", "image", "images", "video", "videos", "question", "chosen", "rejected")
_NO_PLACE = {
    "audios": "sound is not supported",
    "audio": "sound is not supported",
    "tools": "calls of tools have no place in the InternVL format",
    "kto_tag": "good and bad single answers (KTO) cannot be trained on",
    "rejected_messages": "only 'rejected_response', one text, is read",
}
_NO_PLACE_IN_TURN = (
    "tool_calls", "function_call", "tool_call_id", "refusal", "audio", "reasoning_content", "reasoning", "thinking",
)  # fmt: skip
_EMPTY: tuple[Any, ...] = (None, "", [], {}, "[]")


def wrong(reason: str, mend: str) -> Fault:
    """The Fault of an item that cannot be converted."""
    return Fault(FaultCode.FORMAT, reason, mend)


def is_empty(value: Any) -> bool:
    """Whether a value says nothing: null, no text, no entries. 0 and false say something."""
    return value in _EMPTY


class Fields:
    """The keys of one item, taken one by one; null counts as absent, as tables write it.

    ``names``: what the format calls a thing -> the key it usually has; ``columns``: -> the key the user's data has.
    """

    def __init__(self, item: Mapping[str, Any], names: Mapping[str, str], columns: Mapping[str, str]) -> None:
        self._item = {key: value for key, value in item.items() if value is not None}
        self._keys = {**names, **columns}

    def key(self, name: str) -> str:
        """The key that ``name`` has in this item."""
        return self._keys.get(name, name)

    def has(self, name: str) -> bool:
        return self.key(name) in self._item

    def take(self, name: str) -> Any:
        """Remove the value and return it; None if there is none."""
        return self._item.pop(self.key(name), None)

    def text(self, name: str) -> str:
        """A value that must be there and be a text. Raises Fault."""
        if not self.has(name):
            key = self.key(name)
            like = get_close_matches(key, self._item, n=1)
            mend = f"rename {like[0]!r} to it" if like else "add it, or name the key that holds it in 'columns'"
            raise wrong(f"key {key!r} is missing", mend)
        return as_text(self.take(name), f"key {self.key(name)!r}")

    def optional_text(self, name: str) -> str | None:
        """A text, or None if it is absent. Raises Fault for anything else."""
        return self.text(name) if self.has(name) else None

    def media(self, kind: str) -> list[str]:
        """Paths of the pictures or videos, several or one, under the plural or the singular key. Raises Fault."""
        many, one = self.key(f"{kind}s"), kind
        values = [(key, self._item.pop(key)) for key in dict.fromkeys((many, one)) if key in self._item]
        found = [(key, media_paths(value, key)) for key, value in values]
        full = [paths for _, paths in found if paths]
        if len(full) > 1:
            raise wrong(f"both {many!r} and {one!r} hold {kind}s", "keep one of the two keys")
        return full[0] if full else []

    def refuse_what_has_no_place(self) -> None:
        """Raise Fault for content that training without it would falsify."""
        for name, why in _NO_PLACE.items():
            value = self.take(name)
            if not is_empty(value):
                mend = "leave such items out"
                raise wrong(f"key {self.key(name)!r} holds {show(value)}; {why}", mend)
        if isinstance(self._item.get("label"), bool):
            why = "good and bad single answers (KTO) cannot be trained on"
            raise wrong(f"key 'label' is {show(self._item['label'])}; {why}", "keep the good ones, without 'label'")

    def rest(self) -> dict[str, Any]:
        """What nobody took. Raises Fault where it would be read as something else in the InternVL format."""
        objects = self.take("objects")
        for key in _RESERVED:
            if key in self._item and not is_empty(self._item[key]):
                raise wrong(f"key {key!r} belongs to another format", "keep the keys of one format, or rename this one")
        rest = {key: value for key, value in self._item.items() if key not in _RESERVED}
        return rest if objects is None else {**rest, "objects": objects}


def as_text(value: Any, where: str) -> str:
    """``value`` if it is a text. Raises Fault."""
    if not isinstance(value, str):
        raise wrong(f"{where} holds {show(value)}, not a text", "give a text in quotes")
    return value


def read_turn(role: str, value: str, message: Mapping[str, Any], read: Sequence[str], where: str) -> Turn:
    """The InternVL turn of a message, whose keys ``read`` are in ``role`` and ``value`` already. Raises Fault.

    ``loss`` (true or false) and ``weight`` (1 or 0) say whether an answer is trained on.
    """
    rest = {key: value for key, value in message.items() if key not in read and value is not None}
    for key in _NO_PLACE_IN_TURN:
        if not is_empty(rest.pop(key, None)):
            raise wrong(f"{where} has a key {key!r}, which has no place in the InternVL format", "leave the item out")
    told = {key: rest.pop(key) for key in ("loss", "weight") if key in rest}
    if any(value not in (0, 1) for value in told.values()) or len({bool(value) for value in told.values()}) > 1:
        raise wrong(f"{where} has {show(told)}", "give 'loss' as true or false, or 'weight' as 1 or 0")
    for key in ("from", "value"):
        if key in rest:
            raise wrong(f"{where} has both {key!r} and {read[key == 'value']!r}", "keep the keys of one format")
    loss = {"loss": bool(next(iter(told.values())))} if told else {}
    return {"from": role, "value": value, **loss, **rest}


def media_paths(value: Any, key: str) -> list[str]:
    """Paths of one or several media; null, "" and [] are none. Raises Fault."""
    if is_empty(value):
        return []
    if isinstance(value, list):
        return [media_path(one, f"{key}[{number}]") for number, one in enumerate(value)]
    return [media_path(value, f"key {key!r}")]


def media_path(value: Any, where: str) -> str:
    """Path, address or data URL of one picture or video, given as a text or as an object around one. Raises Fault.

    ``file://`` is taken off (and its %20 decoded, as in any such address); bytes that were embedded as a data URL go
    before a path, which is then only the name that the file once had.
    """
    if isinstance(value, dict):
        told = [value[key] for key in ("bytes", "url", "path") if not is_empty(value.get(key))]
        if not told or (not is_empty(value.get("bytes")) and not str(told[0]).startswith("data:")):
            raise wrong(f"{where} holds {show(value)}", "give a path, or {'path': path}, or a data URL")
        value = told[0]
    if isinstance(value, list):
        raise wrong(f"{where} is a list ({show(value)})", "give one path; frames of a video can be given as pictures")
    if not isinstance(value, str) or not value:
        raise wrong(f"{where} holds {show(value)}", "give a path")
    path = value.removeprefix("file://").removeprefix("localhost") if value.startswith("file://") else ""
    return unquote(path) if path.startswith("/") else value  # file://host/..: left for who opens it to refuse


def count_tags(turns: Sequence[Turn], tag: str) -> int:
    """How often a tag stands in the human turns."""
    return sum(turn["value"].count(tag) for turn in turns if turn["from"] == "human")


def refuse_tags_elsewhere(turns: Sequence[Turn], media: Mapping[str, Sequence[str]]) -> None:
    """Raise Fault where media could only belong to tags outside the questions: the InternVL format has none there."""
    for kind, paths in media.items():
        tag = TAGS[kind]
        if paths and not count_tags(turns, tag) and any(tag in turn["value"] for turn in turns):
            what = f"{tag} stands in a system turn or an answer, but in no question"
            raise wrong(what, f"put the {kind}s into questions")


def put_tags_last(turns: Sequence[Turn], media: Mapping[str, Sequence[str]]) -> list[Turn]:
    """Media of a kind without any tag stand before the last question, a line each; pictures, then videos."""
    refuse_tags_elsewhere(turns, media)
    lines = "".join(
        f"{TAGS[kind]}\n" * len(paths) for kind, paths in media.items() if not count_tags(turns, TAGS[kind])
    )
    last = max((number for number, turn in enumerate(turns) if turn["from"] == "human"), default=None)
    if not lines or last is None:
        return list(turns)
    tagged = {**turns[last], "value": lines + turns[last]["value"]}
    return [*turns[:last], tagged, *turns[last + 1 :]]


def break_after_tags(text: str, tag: str) -> str:
    """``text`` with a line break behind each tag that has none."""
    first, *rest = text.split(tag)
    return first + "".join(f"{tag}{piece}" if piece.startswith(BREAKS) else f"{tag}\n{piece}" for piece in rest)


def conversation_item(fields: Fields, turns: Sequence[Turn], media: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The InternVL item of a conversation, and all that was not taken from ``fields``. Raises Fault."""
    rest = fields.rest()
    return {**_head(rest, media), "conversations": list(turns), **rest}


def preference_item(
    fields: Fields, turns: Sequence[Turn], answers: tuple[str, str], media: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """The InternVL item of a pair of answers, (chosen, rejected), to one question. Raises Fault.

    ``turns``: what comes before the answers. There is a place for a system turn and one question, not for more.
    """
    start = 1 if turns and turns[0]["from"] == "system" else 0
    if [turn["from"] for turn in turns[start:]] != ["human"]:
        raise wrong(
            f"a preference pair with {len(turns) - start} turns before its two answers",
            "give one question; the InternVL format has no place for earlier turns",
        )
    extra = [key for turn in turns for key in turn if key not in ("from", "value")]
    if extra:
        raise wrong(f"key {extra[0]!r} of a turn has no place in a preference pair", "remove it")
    rest = fields.rest()
    system = {"system": turns[0]["value"]} if start else {}
    pair = {"question": turns[-1]["value"], "chosen": answers[0], "rejected": answers[1]}
    return {**_head(rest, media), **system, **pair, **rest}


def _head(rest: dict[str, Any], media: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """``id`` (taken from ``rest``) and media: one as a text, several as a list."""
    head = {"id": rest.pop("id")} if "id" in rest else {}
    return head | {kind: paths[0] if len(paths) == 1 else list(paths) for kind, paths in media.items() if paths}
