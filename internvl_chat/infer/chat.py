"""Questions with pictures -> answers: a conversation (``Chat``), or many questions in batches (``batch_answer``).

Ids and tiles come from the code that makes them in training (``Encoder``, ``cut_tiles``), so that a model is asked
exactly as it was taught.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import torch
from PIL import Image
from torch import Tensor

from internvl_chat.data.record import Turn
from internvl_chat.errors import ConfigError, DataError
from internvl_chat.infer.answer import Prompts, decode, generate, generation_options, pad_prompts
from internvl_chat.infer.load import Loaded
from internvl_chat.infer.pictures import Picture, count_picture_tiles, cut_pictures, encode_pictures, place_pictures
from internvl_chat.infer.stream import stream_answer


@dataclass(frozen=True, eq=False)
class Conversation:
    """What was said: turns, tiles of each picture in order, features (N, num_image_token, hidden_size) per question."""

    turns: tuple[Turn, ...] = ()
    tiles: tuple[int, ...] = ()
    features: tuple[Tensor, ...] = ()

    def asked(self, question: str, tiles: Sequence[int], features: Tensor) -> Conversation:
        """The conversation with one more question, its pictures at the tags."""
        return Conversation((*self.turns, Turn("human", question)), (*self.tiles, *tiles), (*self.features, features))

    def answered(self, answer: str) -> Conversation:
        """The conversation with one more answer."""
        return replace(self, turns=(*self.turns, Turn("gpt", answer)))


class Chat:
    """A conversation with a model. Pictures of earlier rounds stay; each is encoded once.

    A round becomes history when its answer is complete: after an error, or a stream that was closed early, the
    conversation is as it was before the question.
    """

    def __init__(self, loaded: Loaded, system: str | None = None) -> None:
        """``system``: system message, None = the template's."""
        self.loaded = loaded
        self._start = Conversation() if system is None else Conversation((Turn("system", system),))
        self._said = self._start

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All that was said so far."""
        return self._said.turns

    def clear(self) -> None:
        """Forget all rounds and pictures; the system message stays."""
        self._said = self._start

    @overload
    def ask(
        self, question: str, images: Sequence[Picture] = ..., *, stream: Literal[False] = ..., **generation: Any
    ) -> str: ...
    @overload
    def ask(
        self, question: str, images: Sequence[Picture] = ..., *, stream: Literal[True], **generation: Any
    ) -> Generator[str, None, None]: ...

    def ask(
        self, question: str, images: Sequence[Picture] = (), *, stream: bool = False, **generation: Any
    ) -> str | Generator[str, None, None]:
        """The answer, or with ``stream`` an iterator of its pieces.

        ``images``: paths or opened pictures; they stand where the question has ``<image>``, else before it, and share
        the tile limit. ``generation``: arguments of transformers' ``generate``; greedy, 256 tokens by default.
        Raises DataError for pictures that cannot be used or do not match the tags, ConfigError for arguments.
        """
        options = generation_options(generation)
        tagged = place_pictures(question, len(_as_list(images)))
        tiles = cut_pictures(_as_list(images), self.loaded.tiles)
        before = self._said
        asked = before.asked(tagged, tiles.counts, encode_pictures(self.loaded.model, tiles.pixels))
        row = self.loaded.encoder.encode_prompt(asked.turns, asked.tiles)
        prompts = pad_prompts(self.loaded, [row], torch.cat(asked.features))
        if stream:
            return self._stream(before, asked, prompts, options)
        answer = decode(self.loaded, generate(self.loaded, prompts, options)[0].tolist())
        self._said = asked.answered(answer)
        return answer

    def _stream(
        self, before: Conversation, asked: Conversation, prompts: Prompts, options: dict[str, Any]
    ) -> Generator[str, None, None]:
        pieces = []
        with closing(stream_answer(self.loaded, prompts, options)) as answer:
            for piece in answer:
                pieces.append(piece)
                yield piece
        if self._said is not before:
            raise RuntimeError("the conversation went on while this answer was streamed; finish a stream, then ask")
        self._said = asked.answered("".join(pieces))


def batch_answer(
    loaded: Loaded, items: Sequence[tuple[str, Sequence[Picture]]], batch_size: int = 8, **generation: Any
) -> list[str]:
    """Answers to ``items`` (question, pictures), each a conversation of its own, in order.

    Prompts of like length go together, the longest first, left-padded. Greedy answers are those of ``Chat.ask`` (up
    to ties within rounding: a batch sums in another order). Raises DataError naming the item, ConfigError.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size {batch_size}: at least 1")
    options = generation_options(generation)
    rows = []
    for number, (question, images) in enumerate(items):
        with _naming(number):
            turn = Turn("human", place_pictures(question, len(_as_list(images))))
            rows.append(loaded.encoder.encode_prompt([turn], count_picture_tiles(_as_list(images), loaded.tiles)))
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
    answers = [""] * len(rows)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        pixels = []
        for number in batch:
            with _naming(number):
                pixels.append(cut_pictures(_as_list(items[number][1]), loaded.tiles).pixels)
        features = encode_pictures(loaded.model, torch.cat(pixels))
        prompts = pad_prompts(loaded, [rows[number] for number in batch], features)
        for number, ids in zip(batch, generate(loaded, prompts, options).tolist(), strict=True):
            answers[number] = decode(loaded, ids)
    return answers


@contextmanager
def _naming(number: int) -> Iterator[None]:
    """Adds the number of the item, from 0, to what is wrong with it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"item {number}: {error}") from error


def _as_list(images: Sequence[Picture] | Picture) -> Sequence[Picture]:
    """A single picture is taken as a list of one; a path must not fall apart into letters."""
    return images if isinstance(images, Sequence) and not isinstance(images, (str, Image.Image)) else [images]
