"""Messages of a request -> prompt ids and tiles, by the code that ``Chat`` asks with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from internvl_chat.constants import IMAGE_PLACEHOLDER, MAX_PICTURE_BYTES
from internvl_chat.data.faults import Fault, check_text
from internvl_chat.data.media import open_picture
from internvl_chat.data.record import Turn
from internvl_chat.data.storage import locate_medium
from internvl_chat.errors import ConfigError, DataError
from internvl_chat.infer.loaded import Loaded
from internvl_chat.infer.pictures import Shown, count_shown, cut_shown
from internvl_chat.infer.questions import Question, question_of
from internvl_chat.infer.serve.faults import ApiError, wrong

_DETAILS = ("auto", "low", "high")
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, eq=False)
class Prepared:
    """``ids`` int64 (T,) of a prompt, ``pixels`` uint8 (N, 3, S, S) of its pictures, ``room``: tokens left.

    ``goes_on``: the answer is the rest of a text, whose white space belongs to it.
    """

    ids: np.ndarray
    pixels: Tensor
    room: int
    goes_on: bool = False


@dataclass(frozen=True)
class Limits:
    """``context``: tokens of prompt and answer together. ``longest``: characters of the longest token there is."""

    context: int
    longest: int

    @classmethod
    def of(cls, loaded: Loaded) -> Limits:
        """Limits of a model. Where its config names no context, a text has none."""
        context = getattr(loaded.model.config.llm_config, "max_position_embeddings", None) or 2**31
        return cls(int(context), max(map(len, loaded.tokenizer.get_vocab())))

    def check_text(self, text: str, where: str) -> None:
        """Raise ApiError for text that cannot be tokenized, or that is too long without counting its tokens."""
        try:
            check_text(where, text)
        except Fault as fault:
            raise wrong(str(fault), where) from fault
        if len(text) > self.context * self.longest:
            raise self.too_long(f"{where} alone has {len(text)} characters")

    def too_long(self, what: str) -> ApiError:
        """The error of a prompt that does not fit."""
        return wrong(f"{what}; the model's context is {self.context} tokens", "messages", "context_length_exceeded")

    def room(self, prompt: int, pictures: int, wanted: int | None) -> int:
        """Tokens left behind a prompt of ``prompt`` tokens. Raises ApiError unless ``wanted``, at least one, fit."""
        left = self.context - prompt
        if left < (wanted or 1):
            of_them = f" ({pictures} of them for pictures)" if pictures else ""
            asked = f", max_tokens {wanted}" if wanted else " and leaves no room for an answer"
            raise self.too_long(f"the prompt has {prompt} tokens{of_them}{asked}")
        return left


@dataclass(frozen=True)
class _Part:
    """A text, or the URL of a picture; ``place`` names it in messages to the client."""

    text: str
    place: str
    url: str | None = None
    detail: str = "auto"


def prepare_chat(messages: Any, loaded: Loaded, limits: Limits, wanted: int | None) -> Prepared:
    """Prompt of OpenAI's ``messages``; ``wanted``: tokens of the answer, None = any. Raises ApiError."""
    _check_roles(messages)
    parts = [_read_parts(message, f"messages[{number}]", limits) for number, message in enumerate(messages)]
    pictures = [part for message in parts for part in message if part.url is not None]
    if len(pictures) * loaded.encoder.tokens_per_tile > limits.context:
        raise limits.too_long(f"{len(pictures)} pictures have more tokens than there is room for")
    question: Question | None = None
    system: str | None = None
    for number, (message, own) in enumerate(zip(messages, parts, strict=True)):
        text, seen = _text_of(own), [part for part in own if part.url is not None]
        role = _ROLES[message["role"]]
        if role == "system":
            system = text
        elif role == "assistant":
            question = (question or _begin(system)).answered(text)
        else:
            opened = [_open(part) for part in seen]
            with _naming(f"messages[{number}]"):
                question = question_of(text, opened, None, loaded.tiles, question, system)
            earlier = len(question.shown) - len(seen)
            low = [replace(shown, max_tiles=1) if part.detail == "low" else shown
                   for shown, part in zip(question.shown[earlier:], seen, strict=True)]  # fmt: skip
            question = replace(question, shown=(*question.shown[:earlier], *low))
    assert question is not None
    return _prepare(question, [part.place for part in pictures], loaded, limits, wanted)


def prepare_text(prompt: Any, loaded: Loaded, limits: Limits, wanted: int | None) -> Prepared:
    """A prompt that is tokenized as it stands, markers included. Raises ApiError."""
    if not isinstance(prompt, str) or not prompt:
        raise wrong("prompt: a text; lists and token ids are not taken", "prompt")
    limits.check_text(prompt, "prompt")
    ids = np.array(loaded.tokenizer(prompt)["input_ids"], np.int64)
    size = loaded.tiles.size
    none = torch.zeros((0, 3, size, size), dtype=torch.uint8)
    return Prepared(ids, none, limits.room(len(ids), 0, wanted), goes_on=True)


def _prepare(question: Question, places: Sequence[str], loaded: Loaded, limits: Limits, wanted: int | None) -> Prepared:
    counts = count_shown(question.shown, loaded.tiles)
    pictures = sum(counts) * loaded.encoder.tokens_per_tile
    if pictures > limits.context:
        raise limits.too_long(f"the pictures alone have {pictures} tokens")
    with _naming("messages"):
        ids = loaded.encoder.encode_prompt(question.turns, counts)
    room = limits.room(len(ids), pictures, wanted)
    tiles = [cut_shown((), loaded.tiles).pixels]
    tiles += [_cut(shown, place, loaded) for shown, place in zip(question.shown, places, strict=True)]
    return Prepared(ids, torch.cat(tiles), room)


def _begin(system: str | None) -> Question:
    return Question(() if system is None else (Turn("system", system),))


def _check_roles(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise wrong("messages: a list of at least one message", "messages")
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, dict):
            raise wrong(f"{where}: an object with role and content", where)
        role = message.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise wrong(f"{where}.role: system, user or assistant", f"{where}.role")
        if _ROLES[role] == "system" and number:
            raise wrong(f"{where}: a system message comes first, and once", f"{where}.role")
        if message.get("tool_calls") or message.get("function_call") or message.get("audio"):
            raise wrong(f"{where}: this server knows no tools and no audio", where, "unsupported_value")
    if _ROLES[messages[-1]["role"]] != "user":
        raise wrong("messages: the last one must be the user's", "messages")


def _read_parts(message: Mapping[str, Any], where: str, limits: Limits) -> list[_Part]:
    content = message.get("content")
    if isinstance(content, str):
        limits.check_text(content, f"{where}.content")
        return [_Part(content, f"{where}.content")]
    if not isinstance(content, list) or not content:
        raise wrong(f"{where}.content: a text, or a list of parts", f"{where}.content")
    parts = []
    for number, part in enumerate(content):
        place = f"{where}.content[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            limits.check_text(part["text"], place)
            parts.append(_Part(part["text"], place))
        elif kind == "image_url" and message["role"] == "user":
            parts.append(_read_url(part.get("image_url"), place))
        elif kind == "image_url":
            raise wrong(f"{place}: pictures belong into messages of the user", place)
        else:
            raise wrong(f'{place}: {{"type": "text", "text": ...}}, or a user\'s "image_url"', place)
    return parts


def _read_url(given: Any, place: str) -> _Part:
    url, detail = (given.get("url"), given.get("detail") or "auto") if isinstance(given, dict) else (given, "auto")
    if not isinstance(url, str) or not url:
        raise wrong(f'{place}: a picture is {{"type": "image_url", "image_url": {{"url": "data:..."}}}}', place)
    if detail not in _DETAILS:
        raise wrong(f"{place}.image_url.detail: {', '.join(_DETAILS)}", f"{place}.image_url.detail")
    if url[:5].lower() != "data:":
        mend = "send the picture itself as a data URL (data:image/png;base64,...)"
        raise wrong(f"{place}: this server opens no addresses and no files; {mend}", place)
    return _Part("", place, f"data:{url[5:]}", detail)


def _text_of(parts: Sequence[_Part]) -> str:
    """Texts, a line each. Pictures between texts get their tag there; all others go where ``question_of`` puts them."""
    texts = [number for number, part in enumerate(parts) if part.url is None]
    inside = any(part.url is not None and texts[0] < number < texts[-1] for number, part in enumerate(parts) if texts)
    if not inside or any(IMAGE_PLACEHOLDER in part.text for part in parts):
        return "\n".join(part.text for part in parts if part.url is None)
    return "\n".join(part.text if part.url is None else IMAGE_PLACEHOLDER for part in parts)


def _open(part: _Part) -> Image.Image:
    """The picture, of which only the head is read. Raises ApiError."""
    with _naming(part.place):
        medium = locate_medium("", part.url or "")
        return open_picture(medium.name, BytesIO(medium.read(MAX_PICTURE_BYTES)))


def _cut(shown: Shown, place: str, loaded: Loaded) -> Tensor:
    """Tiles uint8 (N, 3, S, S) of one picture, which is closed: decoded, all of a request would fill the memory.

    Raises ApiError.
    """
    assert isinstance(shown.source, Image.Image)
    with _naming(place), closing(shown.source):
        return cut_shown([shown], loaded.tiles).pixels


@contextmanager
def _naming(place: str) -> Iterator[None]:
    """What is wrong within is the client's to mend, at ``place``."""
    try:
        yield
    except (Fault, DataError, ConfigError) as error:
        raise wrong(f"{place}: {error}", place) from error
