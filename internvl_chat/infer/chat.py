"""A conversation with a model about pictures and videos.

Ids and tiles come from the code that makes them in training (``Encoder``, ``cut_tiles``), so that a model is asked
exactly as it was taught.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from internvl_chat.data.record import Turn
from internvl_chat.infer.answer import Prompts, decode, generate, generation_options, pad_prompts, prompt_ids
from internvl_chat.infer.kept import Kept, cache_for, keep
from internvl_chat.infer.loaded import Loaded
from internvl_chat.infer.pictures import NUM_SEGMENTS, Picture, cut_shown, encode_pictures
from internvl_chat.infer.questions import question_of
from internvl_chat.infer.stream import stream_answer


@dataclass(frozen=True, eq=False)
class Conversation:
    """What was said: turns, tiles of each picture in order, features (N, num_image_token, hidden_size) per question."""

    turns: tuple[Turn, ...] = ()
    tiles: tuple[int, ...] = ()
    features: tuple[Tensor, ...] = ()

    def asked(self, question: Turn, tiles: Sequence[int], features: Tensor) -> Conversation:
        """The conversation with one more question, its pictures at the tags."""
        return Conversation((*self.turns, question), (*self.tiles, *tiles), (*self.features, features))

    def answered(self, answer: str) -> Conversation:
        """The conversation with one more answer."""
        return replace(self, turns=(*self.turns, Turn("gpt", answer)))


class Chat:
    """A conversation with a model. Pictures of earlier rounds stay; each is encoded once.

    A round becomes history when its answer is complete: after an error, or a stream that was closed early, the
    conversation is as it was before the question. What the language model has read is kept as well, in the memory of
    the model's device, so that a round costs what is new in it.
    """

    def __init__(self, loaded: Loaded, system: str | None = None) -> None:
        """``system``: system message, None = the template's."""
        self.loaded = loaded
        self._kept: Kept | None = None
        self._start = Conversation() if system is None else Conversation((Turn("system", system),))
        self._said = self._start

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All that was said so far."""
        return self._said.turns

    def copy(self) -> Chat:
        """The conversation as it is now, to come back to. It does not hold what the language model has read."""
        other = Chat(self.loaded)
        other._start, other._said = self._start, self._said
        return other

    def forget_read(self) -> None:
        """Give back the memory of what the language model has read; the next round reads all of it again."""
        self._kept = None

    def clear(self) -> None:
        """Forget all rounds and pictures; the system message stays."""
        self._said = self._start
        self._kept = None

    @overload
    def ask(
        self,
        question: str,
        images: Sequence[Picture] | Picture = ...,
        video: Path | str | None = ...,
        *,
        stream: Literal[False] = ...,
        num_segments: int = ...,
        bound: tuple[float, float] | None = ...,
        **generation: Any,
    ) -> str: ...
    @overload
    def ask(
        self,
        question: str,
        images: Sequence[Picture] | Picture = ...,
        video: Path | str | None = ...,
        *,
        stream: Literal[True],
        num_segments: int = ...,
        bound: tuple[float, float] | None = ...,
        **generation: Any,
    ) -> Generator[str, None, None]: ...

    def ask(
        self,
        question: str,
        images: Sequence[Picture] | Picture = (),
        video: Path | str | None = None,
        *,
        stream: bool = False,
        num_segments: int = NUM_SEGMENTS,
        bound: tuple[float, float] | None = None,
        **generation: Any,
    ) -> str | Generator[str, None, None]:
        """The answer, or with ``stream`` an iterator of its pieces.

        ``images``: paths or opened pictures; they stand where the question has ``<image>``, else before it, and share
        the tile limit. ``video``: a file, or a folder of frames, at ``<video>`` or first; ``num_segments`` frames of
        it, or of (start, end) in seconds, ``bound``, a tile each. ``generation``: arguments of transformers'
        ``generate``; greedy, 256 tokens by default. Raises DataError for pictures that cannot be used or do not match
        the tags, ConfigError for arguments.
        """
        options = generation_options(generation)
        asking = question_of(question, images, video, self.loaded.tiles, num_segments=num_segments, bound=bound)
        tiles = cut_shown(asking.shown, self.loaded.tiles)
        before = self._said
        asked = before.asked(asking.turns[-1], tiles.counts, encode_pictures(self.loaded.model, tiles.pixels))
        row = prompt_ids(self.loaded, asked.turns, asked.tiles)
        if stream:
            return self._stream(before, asked, row, options)
        prompts, cache = self._begin(before, asked, row, options)
        ids = generate(self.loaded, prompts, options, past_key_values=cache)[0].tolist()
        self._end(asked.answered(decode(self.loaded, ids)), row, cache, ids)
        return self._said.turns[-1].text

    def _stream(
        self, before: Conversation, asked: Conversation, row: np.ndarray, options: dict[str, Any]
    ) -> Generator[str, None, None]:
        prompts, cache = self._begin(before, asked, row, options)
        pieces: list[str] = []
        with closing(stream_answer(self.loaded, prompts, options, past_key_values=cache)) as answer:
            while True:
                try:
                    pieces.append(next(answer))
                except StopIteration as end:
                    ids = end.value
                    break
                yield pieces[-1]
        if self._said is not before:
            raise RuntimeError("the conversation went on while this answer was streamed; finish a stream, then ask")
        self._end(asked.answered("".join(pieces)), row, cache, ids)

    def _begin(
        self, before: Conversation, asked: Conversation, row: np.ndarray, options: dict[str, Any]
    ) -> tuple[Prompts, DynamicCache | None]:
        kept = self._kept if self._said is before else None  # another question may have been asked in between
        return pad_prompts(self.loaded, [row], torch.cat(asked.features)), cache_for(self.loaded, kept, row, options)

    def _end(self, said: Conversation, row: np.ndarray, cache: DynamicCache | None, ids: list[int]) -> None:
        self._said, self._kept = said, keep(cache, row, ids)
