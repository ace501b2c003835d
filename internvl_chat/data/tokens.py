"""Turns and tile counts -> ids and labels, built together turn by turn, so that a mask cannot drift from its text.

Markers are placed by id, and only by this module: text that looks like one (``<|im_end|>``, ``<img>``,
``<IMG_CONTEXT>`` in a question or an answer) is tokenized as ordinary text. ``<ref> <box> <quad>`` are meant by users
and become their tokens everywhere.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from internvl_chat.constants import (
    GROUNDING_TOKENS,
    IGNORE_INDEX,
    IMAGE_PLACEHOLDER,
    IMG_CONTEXT,
    IMG_END,
    IMG_START,
    SPECIAL_TOKENS,
)
from internvl_chat.data.chat_template import template_of
from internvl_chat.data.record import Turn
from internvl_chat.data.template import Framing
from internvl_chat.errors import ConfigError

_GROUNDING = re.compile("(" + "|".join(map(re.escape, GROUNDING_TOKENS)) + ")")
# What an answer may be tokenized behind when the tokenizer merges its start into the header.
_NEUTRAL = (":", ".", "a")
# The ids of this many short texts (in characters) are kept.
_REMEMBERED, _SHORT = 2048, 512


@dataclass(frozen=True, slots=True)
class Marker:
    """A token that only the template may place; some tokenizers let it eat the white space beside it."""

    id: int
    eats_left: bool
    eats_right: bool


class Encoder:
    """Tokenizer + template + image tokens per tile -> ids and labels. Picklable; equal inputs give equal ids."""

    def __init__(self, tokenizer: Any, template: Framing, tokens_per_tile: int) -> None:
        """``tokenizer``: a transformers one with a ``tokenizers`` backend. Raises ConfigError if a token is missing."""
        self.template = template
        self.tokens_per_tile = tokens_per_tile
        names = (*template.markers, *SPECIAL_TOKENS)
        self._text, self._markers = _as_plain_text_tokenizer(tokenizer, names, template.name)
        self._bos = () if template.writes_bos else bos_of(tokenizer)
        self._marker_pattern = re.compile("(" + "|".join(map(re.escape, template.markers)) + ")")
        self._set_caches()
        parts = (self._text.to_str(), repr(template), str(tokens_per_tile), str(self._bos))
        self._fingerprint = hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @classmethod
    def from_config(cls, tokenizer: Any, config: Any) -> Encoder:
        """The encoder of a checkpoint. ``config``: its chat config (template, system_message, num_image_token)."""
        return cls(tokenizer, template_of(config, tokenizer), config.num_image_token)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_remember", "_frames")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._set_caches()

    def _set_caches(self) -> None:
        self._remember = lru_cache(maxsize=_REMEMBERED)(self._encode_plain)
        self._frames = lru_cache(maxsize=_REMEMBERED)(self.template.frames)

    @property
    def image_token_id(self) -> int:
        """Id of ``<IMG_CONTEXT>``."""
        return self._markers[IMG_CONTEXT].id

    @property
    def stop_id(self) -> int:
        """Id of the marker that ends an answer."""
        return self._markers[self.template.stop].id

    def fingerprint(self) -> str:
        """Hash of all that the ids depend on: tokenizer, template, tokens per tile."""
        return self._fingerprint

    def encode(self, turns: Sequence[Turn], tiles: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """ids and labels, int64 (T,), of a whole conversation; ``tiles`` holds the tiles of each picture in order."""
        writer = self._write(turns, tiles)
        return writer.spread(writer.ids), writer.spread(writer.labels)

    def encode_prompt(self, turns: Sequence[Turn], tiles: Sequence[int]) -> np.ndarray:
        """ids, int64 (T,), of a conversation that ends with a human turn, up to and including the assistant header."""
        writer = self._write(turns, tiles, prompt=True)
        return writer.spread(writer.ids)

    def _write(self, turns: Sequence[Turn], tiles: Sequence[int], prompt: bool = False) -> _Writer:
        tags = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns if turn.role == "human")
        if tags != len(tiles):
            raise ValueError(f"{tags} {IMAGE_PLACEHOLDER} in the human turns, but tiles of {len(tiles)} pictures")
        message = self.template.system_message
        if message is not None and (not turns or turns[0].role != "system"):
            turns = (Turn("system", message), *turns)
        writer = _Writer(self, iter(tiles))
        writer.ids.extend(self._bos)
        writer.labels.extend([IGNORE_INDEX] * len(self._bos))
        frames = self._frames(tuple(turn.role for turn in turns), prompt)
        for turn, frame, behind in zip(turns, frames, frames[1:], strict=False):
            writer.add_header(frame.header)
            if turn.role == "gpt":
                writer.add_answer(frame.answer_prefix + turn.text, self._stop_of(behind.header), turn.supervised)
            else:
                writer.add_text(turn.text, with_images=turn.role == "human")
        writer.add_header(frames[-1].header)
        writer.flush()
        return writer

    def _stop_of(self, header: str) -> str:
        """The marker that the header behind an answer begins with."""
        return next(name for name in self.template.markers if header.startswith(name))

    def _encode_plain(self, text: str) -> tuple[int, ...]:
        return tuple(self._text.encode(text, add_special_tokens=False).ids)

    def _encode_cached(self, text: str) -> tuple[int, ...]:
        """Headers and short questions come again and again; long texts do not, and would only fill the memory."""
        return self._remember(text) if len(text) <= _SHORT else self._encode_plain(text)

    def text_ids(self, text: str, before: str | None = None) -> list[int]:
        """ids of user text; grounding tokens are real, other markers are plain text.

        ``before``: the header this text continues. The ids are those of the text *behind* that header, as in a prompt
        that the model goes on writing (matters for tokenizers that put a prefix space before every piece).
        """
        ids: list[int] = []
        for number, piece in enumerate(_GROUNDING.split(text)):
            if number % 2:
                ids.append(self._markers[piece].id)
            elif piece:
                ids.extend(self._continue(before, piece) if number == 0 and before else self._encode_cached(piece))
        return ids

    def _continue(self, before: str, text: str) -> tuple[int, ...]:
        for head in (before, *_NEUTRAL):
            head_ids, ids = self._encode_cached(head), self._encode_plain(head + text)
            if ids[: len(head_ids)] == head_ids:
                return ids[len(head_ids) :]
        return self._encode_plain(text)


class _Writer:
    """Grows ids and labels; holds unsupervised text back until a marker or an answer ends the piece."""

    def __init__(self, encoder: Encoder, tiles: Any) -> None:
        self._encoder = encoder
        self._tiles = tiles
        self._pending = ""
        self._after_eater = False
        self._written = ""  # the start of the next header that is there already
        # Of a picture's tokens only one stands in these; ``spread`` has all. Lists of thousands would take most of the
        # time that an index needs.
        self._runs: list[tuple[int, int]] = []
        self.ids: list[int] = []
        self.labels: list[int] = []

    def spread(self, values: list[int]) -> np.ndarray:
        """int64 (T,): ``ids`` or ``labels`` with every image token in its place."""
        array = np.array(values, np.int64)
        if not self._runs:
            return array
        times = np.ones(len(array), np.int64)
        places, counts = zip(*self._runs, strict=True)
        times[list(places)] = counts
        return array.repeat(times)

    def add_header(self, text: str) -> None:
        """Template text: its markers become tokens, the rest joins the text around it."""
        text = text.removeprefix(self._written)
        self._written = ""
        for number, piece in enumerate(self._encoder._marker_pattern.split(text)):
            if number % 2:
                self._put_marker(piece, supervised=False)
            else:
                self._pending += piece

    def add_text(self, text: str, with_images: bool = False) -> None:
        """User text; with ``with_images`` each ``<image>`` becomes ``<img>``, its context tokens and ``</img>``."""
        if not with_images:
            self._pending += text
            return
        for number, piece in enumerate(text.split(IMAGE_PLACEHOLDER)):
            if number:
                self._put_image()
            self._pending += piece

    def add_answer(self, text: str, stop: str, supervised: bool) -> None:
        """An answer and its stop marker, which the next header begins with."""
        before = self._take_pending()
        self._put(self._encoder.text_ids(before), supervised=False)
        self._put(self._encoder.text_ids(text, before or None), supervised)
        self._put_marker(stop, supervised)
        self._written = stop

    def flush(self) -> None:
        """Write the text that is held back."""
        self._put(self._encoder.text_ids(self._take_pending()), supervised=False)

    def _take_pending(self) -> str:
        text, self._pending = self._pending, ""
        if self._after_eater:
            text = text.lstrip()
        return text

    def _put(self, ids: Sequence[int], supervised: bool) -> None:
        self.ids.extend(ids)
        self.labels.extend(ids if supervised else [IGNORE_INDEX] * len(ids))

    def _put_marker(self, name: str, supervised: bool) -> None:
        marker = self._encoder._markers[name]
        if marker.eats_left:
            self._pending = self._pending.rstrip()
        self.flush()
        self._put([marker.id], supervised)
        self._after_eater = marker.eats_right

    def _put_image(self) -> None:
        self._put_marker(IMG_START, supervised=False)
        self._runs.append((len(self.ids), next(self._tiles) * self._encoder.tokens_per_tile))
        self._put([self._encoder.image_token_id], supervised=False)
        self._put_marker(IMG_END, supervised=False)


def _as_plain_text_tokenizer(
    tokenizer: Any, names: Sequence[str], template: str
) -> tuple[Tokenizer, dict[str, Marker]]:
    """A copy of the tokenizer that never turns text into one of ``names``, and these as markers."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ConfigError(
            f"tokenizer {type(tokenizer).__name__} has no tokenizer.json form; "
            "convert it with AutoTokenizer and save it"
        )
    data = json.loads(backend.to_str())
    added = {entry["content"]: entry for entry in data.get("added_tokens", [])}
    missing = [name for name in names if name not in added]
    if missing:
        raise ConfigError(
            f"template {template!r} needs the tokens {' '.join(missing)}, which this tokenizer lacks; "
            "choose the --conv_style that the checkpoint was trained with, or a checkpoint with InternVL's tokens"
        )
    for name in names:
        added[name]["special"] = True
    data["truncation"] = data["padding"] = None
    if merges := data["model"].get("merges"):
        # Where a marker is a piece of the vocabulary, too (Yi's <img>), text must not be merged into it.
        data["model"]["merges"] = [merge for merge in merges if _merged(merge) not in names]
    plain = Tokenizer.from_str(json.dumps(data))
    plain.encode_special_tokens = True
    markers = {n: Marker(added[n]["id"], bool(added[n]["lstrip"]), bool(added[n]["rstrip"])) for n in names}
    return plain, markers


def _merged(merge: str | list[str]) -> str:
    return "".join(merge.split(" ") if isinstance(merge, str) else merge)


def bos_of(tokenizer: Any) -> tuple[int, ...]:
    """The id that the tokenizer itself puts before every text, if it does; else nothing."""
    bos, ids = tokenizer.bos_token_id, tokenizer("a")["input_ids"]
    return (bos,) if bos is not None and ids[:1] == [bos] else ()
