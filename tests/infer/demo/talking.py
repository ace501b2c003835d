"""A tiny model that says plain words, or what a test wants to hear. Only its words are replaced, by a logits processor:
pictures, prompts, ``generate``, streaming and stopping are those of any model."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from internvl_chat.infer.load import Loaded

PLAIN = re.compile(r" ?[A-Za-z]+")


class Words(LogitsProcessor):
    """The given ids one after another; without any, the likeliest token of plain letters. ``pause``: s per token.

    The model's ``generate`` starts from embeddings, so ``input_ids`` are those of new tokens only.
    """

    def __init__(self, ids: list[int] | None, plain: Tensor, pause: float) -> None:
        self._ids, self._plain, self._pause = ids, plain, pause

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        time.sleep(self._pause)
        allowed = self._plain
        if self._ids is not None:
            allowed = torch.tensor([self._ids[min(input_ids.shape[1], len(self._ids) - 1)]])
        masked = torch.full_like(scores, -torch.inf)
        masked[:, allowed] = scores[:, allowed].nan_to_num(neginf=-1e4)
        return masked


class Talking:
    """The model, its words replaced: ``said`` maps a word of the question to the answer; else letters, greedily."""

    def __init__(self, loaded: Loaded, said: Mapping[str, str], pause: float) -> None:
        self.inner, self._loaded, self._said, self.pause = loaded.model, loaded, dict(said), pause
        tokens = [loaded.tokenizer.decode([number]) for number in range(len(loaded.tokenizer))]
        self._plain = torch.tensor([number for number, token in enumerate(tokens) if PLAIN.fullmatch(token)])
        self.failing = False
        self.at_work, self.most_at_work, self.tokens = 0, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["inner"], name)

    def generate(self, input_ids: Tensor, **named: Any) -> Tensor:
        """As that of the model."""
        if self.failing:
            raise RuntimeError("CUDA error: out of memory")
        last = self._loaded.tokenizer.decode(input_ids[0]).rsplit("user", 1)[-1]
        text = next((answer for word, answer in self._said.items() if word in last), None)
        ids = None
        if text is not None:
            ids = [*self._loaded.tokenizer(text, add_special_tokens=False).input_ids, self._loaded.stop_ids[0]]
        words = Words(ids, self._plain, self.pause)
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            result: Tensor = self.inner.generate(
                input_ids=input_ids, logits_processor=LogitsProcessorList([words]), **named
            )
            self.tokens = result.shape[1]
            return result
        finally:
            self.at_work -= 1


def talking(loaded: Loaded, said: Mapping[str, str] | None = None, pause: float = 0.0) -> Loaded:
    """The loaded model, saying plain words."""
    return replace(loaded, model=Talking(loaded, said or {}, pause))  # type: ignore[arg-type]


def write_video(path: Path) -> Path:
    """A second of 12 frames, each of another grey with a brighter stripe."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(12):
            pixels = np.full((64, 96, 3), 20 * number, dtype=np.uint8)
            pixels[:, 8 * number : 8 * number + 8] = 255
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return path
