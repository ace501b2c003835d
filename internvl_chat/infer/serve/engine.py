"""The thread that generates, one answer after another, and the answers that grow in it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass
from threading import Event
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.cli.serving.utils import InferenceThread
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor
from transformers.generation.streamers import BaseStreamer

from internvl_chat.errors import first_line
from internvl_chat.infer.loaded import Loaded
from internvl_chat.infer.serve.prompts import Prepared
from internvl_chat.infer.stream import RawPieces, StopsWhen, Stripped
from internvl_chat.log import get_logger
from internvl_chat.model.chat import normalize_tiles

logger = get_logger(__name__)

# So long is waited for the thread when the server ends.
PATIENCE_S = 10.0


@dataclass(frozen=True)
class Failure:
    """Put into an answer's queue if it will not be finished; ``status`` of HTTP."""

    message: str
    status: int = 500


class Stops:
    """Text in, text out up to the first stop text. What may be the start of one is held back."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def add(self, text: str, last: bool = False) -> str:
        """Text that is certain to stand before every stop text; with ``last`` there is no more to come."""
        if self.found or not self._stops:
            return "" if self.found else text
        text = self._held + text
        ends = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)]
        held = 0 if last else max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next(length for length in range(longest, -1, -1) if text.endswith(stop[:length]))


class Growing(BaseStreamer):
    """One answer: pieces of text in ``queue``, then None, or a Failure instead.

    ``tokens``: how many were made, the stop marker included. ``finish``: "length" until it is known to be "stop".
    """

    def __init__(
        self, loaded: Loaded, prepared: Prepared, stops: tuple[str, ...], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.queue: asyncio.Queue[str | Failure | None] = asyncio.Queue()
        self.tokens = 0
        self.finish: Literal["stop", "length"] = "length"
        self.closed = Event()
        self.watch: asyncio.Task[Any] | None = None
        self._loop = loop
        self._ends = frozenset(loaded.stop_ids)
        # Stop texts may be white space: they are looked for before any is dropped.
        self._pieces = RawPieces(loaded, prepared.ids.tolist() if prepared.goes_on else ())
        self._stops = Stops(stops)
        self._stripped = None if prepared.goes_on else Stripped()
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:
        """Called by ``generate`` with the prompt first, then with each new token."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        ids = value.flatten().tolist()
        self.tokens += len(ids)
        self._tell(self._stops.add(self._pieces.add(ids)))
        if self._stops.found:
            self.closed.set()
        if self._stops.found or self._ends.intersection(ids):
            self.finish = "stop"

    def end(self) -> None:
        """Called by ``generate`` behind the last token."""
        self._tell(self._stops.add(self._pieces.finish(), last=True))
        if self._stops.found:
            self.finish = "stop"
        self.hand_over(None)

    def cancel_when(self, gone: asyncio.Event) -> None:
        """Stop at the next token, or never begin, once ``gone`` is set. Called from the event loop."""

        async def wait() -> None:
            await gone.wait()
            self.closed.set()
            self.queue.put_nowait(None)

        self.watch = asyncio.create_task(wait())

    def close(self) -> None:
        """Nobody reads any more. Called from the event loop, also behind the end."""
        self.closed.set()
        if self.watch is not None:
            self.watch.cancel()

    def hand_over(self, item: str | Failure | None) -> None:
        """Put ``item`` into the queue, from the generating thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
            self._loop.call_soon_threadsafe(self.queue.put_nowait, item)

    def _tell(self, text: str) -> None:
        if self._stripped is not None:
            text = self._stripped.add(text)
        if text:
            self.hand_over(text)


class Engine:
    """Generates with transformers' own InternVL model in one thread; answers wait for their turn there."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._thread = InferenceThread()
        self._open: set[Growing] = set()

    def start(
        self, model: Any, prepared: Prepared, config: GenerationConfig, stops: tuple[str, ...], seed: int | None
    ) -> Growing:
        """An answer that grows as soon as those before it are done. Called from the event loop."""
        answer = Growing(self._loaded, prepared, stops, asyncio.get_running_loop())
        self._open.add(answer)
        self._thread.submit(self._run, model, prepared, config, seed, answer)
        return answer

    def give_up(self) -> None:
        """Tell all clients that the server ends, which they will not wait for. Called from the event loop."""
        for answer in list(self._open):
            answer.closed.set()
            answer.queue.put_nowait(Failure("the server is ending", 503))

    def stop(self) -> None:
        """Cancel all answers and wait until the thread is idle: torch must not run while Python ends."""
        for answer in list(self._open):
            answer.closed.set()
        with contextlib.suppress(Late):
            self._thread.submit(lambda: None).result(PATIENCE_S)

    def _run(self, model: Any, prepared: Prepared, config: GenerationConfig, seed: int | None, answer: Growing) -> None:
        try:
            if answer.closed.is_set():
                answer.hand_over(None)
            else:
                began = time.perf_counter()
                self._generate(model, prepared, config, seed, answer)
                took = time.perf_counter() - began
                logger.info("answered: %d tokens in, %d out, %.2f s", len(prepared.ids), answer.tokens, took)
        except Exception as error:  # whatever it is, the client hears of it and the next answer is made
            logger.exception("an answer could not be generated")
            answer.hand_over(Failure(f"the answer could not be generated ({first_line(error)})"))
        finally:
            self._open.discard(answer)

    @torch.no_grad()
    def _generate(
        self, model: Any, prepared: Prepared, config: GenerationConfig, seed: int | None, answer: Growing
    ) -> None:
        ids = torch.from_numpy(prepared.ids)[None].to(model.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if len(prepared.pixels):
            kind = self._loaded.model.config.normalize_type
            inputs["pixel_values"] = normalize_tiles(prepared.pixels.to(model.device), kind)
        processors = LogitsProcessorList()
        if config.repetition_penalty not in (None, 1.0):
            # The library would punish the words of the question, too; ``Chat`` and OpenAI's protocol do not.
            processors.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty, ids.shape[1]))
            config.repetition_penalty = 1.0
        seeded = [] if seed is None else [model.device] * (model.device.type != "cpu")
        with torch.random.fork_rng(seeded, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            model.generate(
                **inputs,
                generation_config=config,
                streamer=answer,
                logits_processor=processors,
                stopping_criteria=StoppingCriteriaList([StopsWhen(answer.closed)]),
            )
