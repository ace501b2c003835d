"""An answer while it is generated: text pieces that join to exactly what ``decode`` makes of all its ids."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from internvl_chat.infer.answer import Prompts, decode_raw, generate
from internvl_chat.infer.loaded import Loaded

# What a decoder writes for bytes that are no whole character (yet).
_BROKEN = "\ufffd"


class Stripped:
    """Text in pieces in, the pieces of ``text.strip()`` out."""

    def __init__(self) -> None:
        self._begun = False
        self._space = ""

    def add(self, text: str) -> str:
        """What is certain to stay. White space waits for what comes behind it."""
        text = self._space + text if self._begun else text.lstrip()
        shown = text.rstrip()
        self._begun = self._begun or bool(shown)
        self._space = text[len(shown) :]
        return shown


class RawPieces:
    """Token ids in, text out as soon as it can no longer change. Work per token does not grow with the answer.

    The pieces join to ``decode_raw`` of all ids, or with ``behind``, ids of the text that goes on, to what that grows
    by: some tokenizers drop a space in front of the first word only.
    """

    def __init__(self, loaded: Loaded, behind: Sequence[int] = ()) -> None:
        self._loaded = loaded
        # Ids since the last border but one: those before the last border are context, for decoders that look back.
        self._window = [number for number in behind if number not in loaded.hidden_ids]
        self._context = len(self._window)

    def add(self, ids: Sequence[int]) -> str:
        """Text that these ids make certain, maybe none."""
        new = [number for number in ids if number not in self._loaded.hidden_ids]
        if not new:
            return ""
        self._window += new
        text = decode_raw(self._loaded, self._window)
        if text.endswith(_BROKEN):
            return ""
        fresh = text[len(decode_raw(self._loaded, self._window[: self._context])) :]
        self._window = self._window[self._context :]
        self._context = len(self._window)
        return fresh

    def finish(self) -> str:
        """What was held back as an unfinished character."""
        text = decode_raw(self._loaded, self._window)
        return text[len(decode_raw(self._loaded, self._window[: self._context])) :]


class TextPieces:
    """As ``RawPieces``, but the pieces join to ``decode`` of all ids: no white space at the ends."""

    def __init__(self, loaded: Loaded) -> None:
        self._raw = RawPieces(loaded)
        self._stripped = Stripped()

    def add(self, ids: Sequence[int]) -> str:
        """Text that these ids make certain, maybe none."""
        return self._stripped.add(self._raw.add(ids))

    def finish(self) -> str:
        """What was held back as an unfinished character; white space at the end is dropped."""
        return self._stripped.add(self._raw.finish())


def stream_answer(
    loaded: Loaded, prompts: Prompts, options: Mapping[str, Any], **extra: Any
) -> Generator[str, None, list[int]]:
    """Text pieces of the answer to one prompt, generated in a thread that lives as long as the iterator.

    Closing the iterator stops the generation and waits for the thread. What goes wrong in it is raised here. Returns
    the ids. ``extra``: further arguments of ``generate``.
    """
    tokens: SimpleQueue[list[int] | None] = SimpleQueue()
    closed = Event()
    extra |= {
        "streamer": _Tap(tokens),
        "stopping_criteria": StoppingCriteriaList([*options.get("stopping_criteria", ()), StopsWhen(closed)]),
    }
    options = {name: value for name, value in options.items() if name != "stopping_criteria"}
    pieces = TextPieces(loaded)
    with ThreadPoolExecutor(1, "internvl-answer") as pool:
        future: Future[Tensor] = pool.submit(generate, loaded, prompts, options, **extra)
        future.add_done_callback(lambda _: tokens.put(None))
        try:
            while (new := tokens.get()) is not None:
                if piece := pieces.add(new):
                    yield piece
            ids = future.result()[0].tolist()
            if piece := pieces.finish():
                yield piece
            return ids
        finally:
            closed.set()


class _Tap(BaseStreamer):
    """Puts the ids of new tokens into a queue. ``generate`` hands over the prompt first, which is no news."""

    def __init__(self, tokens: SimpleQueue[list[int] | None]) -> None:
        self._tokens = tokens
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:
        if self._prompt_seen:
            self._tokens.put(value.flatten().tolist())
        self._prompt_seen = True

    def end(self) -> None:
        """Nothing to do: the end of the thread ends the stream, with or without an error."""


class StopsWhen(StoppingCriteria):
    """Ends ``generate``, all rows, at the token after ``event`` was set, also where tokens make no text to be shown."""

    def __init__(self, event: Event) -> None:
        self._event = event

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self._event.is_set(), dtype=torch.bool, device=input_ids.device)
