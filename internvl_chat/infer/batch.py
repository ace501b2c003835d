"""Many questions -> answers, in batches of like length, as they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from internvl_chat.constants import BATCH_TOKENS, READERS
from internvl_chat.errors import ConfigError, DataError
from internvl_chat.infer.answer import decode, generate, generation_options, pad_prompts, prompt_ids
from internvl_chat.infer.loaded import Loaded
from internvl_chat.infer.pictures import Picture, count_shown, cut_shown, encode_pictures
from internvl_chat.infer.questions import Question, question_of


@dataclass(frozen=True)
class Answer:
    """``tokens``: number of new ones, the stop marker included; ``finish``: "length" if it was cut off."""

    text: str
    tokens: int
    prompt_tokens: int
    finish: Literal["stop", "length"]


def answers(
    loaded: Loaded,
    questions: Iterable[Question],
    batch_size: int = 8,
    window: int = 32,
    *,
    batch_tokens: int = BATCH_TOKENS,
    readers: int = READERS,
    **generation: Any,
) -> Iterator[tuple[int, Answer | DataError]]:
    """(number of the question, its answer), batch by batch; of a question whose media cannot be used, its DataError.

    Within ``window`` batches prompts of like length go together, the longest first, left-padded; questions are taken
    from the iterable no earlier than that. A batch has ``batch_size`` questions, fewer where their prompts would have
    more than ``batch_tokens`` tokens. While one is answered, ``readers`` threads cut the pictures of the next. Greedy
    answers are those of ``Chat.ask`` (up to ties within rounding: a batch sums in another order). ``generation``:
    arguments of transformers' ``generate``. Raises ConfigError.
    """
    if min(batch_size, window, batch_tokens, readers) < 1:
        raise ConfigError(
            f"batch_size {batch_size}, window {window}, batch_tokens {batch_tokens}, readers {readers}: at least 1"
        )
    options = generation_options(generation)
    left = enumerate(questions)
    with ThreadPoolExecutor(readers, "internvl-read") as pool:
        while part := dict(islice(left, batch_size * window)):
            rows: dict[int, np.ndarray] = {}
            for number, question in part.items():
                try:
                    rows[number] = prompt_ids(loaded, question.turns, count_shown(question.shown, loaded.tiles))
                except DataError as error:
                    yield number, error

            def read(batch: Sequence[int], part: Mapping[int, Question] = part) -> list[Future[Tensor]]:
                return [pool.submit(_pixels_of, loaded, part[number]) for number in batch]

            batches = cut_batches({number: len(row) for number, row in rows.items()}, batch_size, batch_tokens)
            if not batches:
                continue  # none of the window can be asked
            coming = read(batches[0])
            for batch, behind in zip(batches, [*batches[1:], []], strict=True):
                reading, coming = coming, read(behind)
                pixels: dict[int, Tensor] = {}
                for number, future in zip(batch, reading, strict=True):
                    try:
                        pixels[number] = future.result()
                    except DataError as error:
                        yield number, error
                if not pixels:
                    continue
                try:
                    found = _answer_batch(loaded, [rows[number] for number in pixels], [*pixels.values()], options)
                except torch.OutOfMemoryError as error:
                    raise ConfigError(
                        f"the GPU has no more memory with --batch_size {batch_size} and --batch_tokens {batch_tokens}; "
                        "halve one of them, the same command goes on with what is left"
                    ) from error
                yield from zip(pixels, found, strict=True)


def cut_batches(lengths: Mapping[int, int], size: int, tokens: int) -> list[list[int]]:
    """Numbers of prompts by their lengths, the longest first, cut into batches of at most ``size``.

    Padded to its longest a batch has at most ``tokens`` tokens, unless it is one prompt alone.
    """
    batches: list[list[int]] = []
    for number in sorted(lengths, key=lambda number: -lengths[number]):
        if batches and len(batches[-1]) < min(size, tokens // lengths[batches[-1][0]]):
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches


def _pixels_of(loaded: Loaded, question: Question) -> Tensor:
    return cut_shown(question.shown, loaded.tiles).pixels


def _answer_batch(
    loaded: Loaded, rows: Sequence[np.ndarray], pixels: Sequence[Tensor], options: dict[str, Any]
) -> list[Answer]:
    prompts = pad_prompts(loaded, rows, encode_pictures(loaded.model, torch.cat([*pixels])))
    found = generate(loaded, prompts, options).tolist()
    return [answer_of(loaded, ids, len(row), options) for ids, row in zip(found, rows, strict=True)]


def answer_of(loaded: Loaded, ids: Sequence[int], prompt_tokens: int, options: Mapping[str, Any]) -> Answer:
    """Answer of the ids (T,) that ``generate`` made with ``options``; it pads rows behind their stop marker."""
    ends = options.get("eos_token_id", loaded.stop_ids)
    ends = (ends,) if isinstance(ends, int) else ends
    stops = (place for place, number in enumerate(ids) if number in ends)
    end = next(stops, None)
    tokens = len(ids) if end is None else end + 1
    return Answer(decode(loaded, ids[:tokens]), tokens, prompt_tokens, "length" if end is None else "stop")


def batch_answer(
    loaded: Loaded, items: Sequence[tuple[str, Sequence[Picture]]], batch_size: int = 8, **generation: Any
) -> list[str]:
    """Answers to ``items`` (question, pictures), each a conversation of its own, in order.

    Raises DataError naming the first item that cannot be asked, ConfigError.
    """
    questions = []
    for number, (text, images) in enumerate(items):
        try:
            questions.append(question_of(text, images, None, loaded.tiles))
        except DataError as error:
            raise DataError(f"item {number}: {error}") from error
    texts = [""] * len(items)
    for number, found in answers(loaded, questions, batch_size, max(1, len(items)), **generation):
        if isinstance(found, DataError):
            raise DataError(f"item {number}: {found}") from found
        texts[number] = found.text
    return texts
