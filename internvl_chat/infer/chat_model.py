"""``model.chat`` and ``model.batch_chat`` of the InternVL2 model cards, by the code of all other ways of asking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from internvl_chat.constants import IMAGE_PLACEHOLDER, IMG_CONTEXT, IMG_END, IMG_START
from internvl_chat.data.record import Turn
from internvl_chat.errors import ConfigError, DataError
from internvl_chat.infer.answer import generate, generation_options, pad_prompts, prompt_ids, settings_of
from internvl_chat.infer.batch import answer_of
from internvl_chat.infer.loaded import Loaded
from internvl_chat.infer.pictures import encode_pictures
from internvl_chat.log import get_logger

logger = get_logger(__name__)

History = list[tuple[str, str]]
Settings = Mapping[str, Any] | GenerationConfig | None


@dataclass(frozen=True)
class ConvTemplate:
    """What the cards read of a model's template; ``sep`` is the text that ends an answer."""

    name: str
    system_message: str | None
    sep: str


@dataclass(frozen=True, eq=False)
class ChatModel(Loaded):
    """A loaded model with the methods of the model cards; all else is asked of ``model`` itself."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "model" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.model, name)

    @property
    def conv_template(self) -> ConvTemplate:
        """The conversation template."""
        template = self.encoder.template
        return ConvTemplate(template.name, template.system_message, template.stop)

    def eval(self) -> ChatModel:
        """Itself: it is in eval mode from the start."""
        return self

    def to(self, *place: Any, **named: Any) -> ChatModel:
        """Itself, moved or cast as ``torch.nn.Module.to`` does."""
        self.model.to(*place, **named)
        return self

    def cuda(self, device: int | torch.device | None = None) -> ChatModel:
        """Itself on a GPU. Raises ConfigError where there is none."""
        if not torch.cuda.is_available():
            raise ConfigError("there is no CUDA device here; leave .cuda() out")
        return self.to(torch.device("cuda", torch.cuda.current_device()) if device is None else device)

    def chat(
        self,
        tokenizer: Any,
        pixel_values: Tensor | None,
        question: str,
        generation_config: Settings = None,
        history: History | None = None,
        return_history: bool = False,
        num_patches_list: Sequence[int] | None = None,
        IMG_START_TOKEN: str = IMG_START,
        IMG_END_TOKEN: str = IMG_END,
        IMG_CONTEXT_TOKEN: str = IMG_CONTEXT,
        verbose: bool = False,
    ) -> Any:
        """The answer (str); with ``return_history`` also the rounds so far, to be given with the next question.

        ``pixel_values`` (N, 3, S, S): tiles of all pictures of all rounds, uint8 or as ``load_image`` makes them;
        ``num_patches_list``: tiles of each, None = one picture. ``<image>`` in the question says where; in a first
        question without it, it is put first. ``generation_config``: arguments of ``generate``, a streamer among them.
        ``IMG_..._TOKEN`` are what they are. ``verbose`` logs prompt and answer. Raises DataError where tiles, tags and
        list do not match, ConfigError for a tokenizer that is not the model's and for arguments.
        """
        self._check(tokenizer, (IMG_START_TOKEN, IMG_END_TOKEN, IMG_CONTEXT_TOKEN))
        if not history and pixel_values is not None and IMAGE_PLACEHOLDER not in question:
            question = f"{IMAGE_PLACEHOLDER}\n{question}"
        said = list(history or [])
        turns = [turn for asked, answered in said for turn in (Turn("human", asked), Turn("gpt", answered))]
        row = self._row([*turns, Turn("human", question)], _patches(pixel_values, num_patches_list))
        (answer,) = self._answers([row], pixel_values, generation_config, verbose)
        said.append((question, answer))
        return (answer, said) if return_history else answer

    def batch_chat(
        self,
        tokenizer: Any,
        pixel_values: Tensor | None,
        questions: Sequence[str],
        generation_config: Settings = None,
        num_patches_list: Sequence[int] | None = None,
        history: None = None,
        return_history: Literal[False] = False,
        IMG_START_TOKEN: str = IMG_START,
        IMG_END_TOKEN: str = IMG_END,
        IMG_CONTEXT_TOKEN: str = IMG_CONTEXT,
        verbose: bool = False,
        image_counts: Sequence[int] | None = None,
    ) -> list[str]:
        """Answers to questions of one round each, in one batch.

        A question takes as many entries of ``num_patches_list`` (tiles of a picture) as it has ``<image>``; while there
        are more pictures than tags, a question without one gets one. ``image_counts`` is the list's old name.
        ``history`` and ``return_history`` are not to be had, as in the original. Raises as ``chat`` does.
        """
        self._check(tokenizer, (IMG_START_TOKEN, IMG_END_TOKEN, IMG_CONTEXT_TOKEN))
        if history is not None or return_history:
            raise ConfigError("batch_chat knows no history; ask each conversation with chat")
        patches = _patches(pixel_values, num_patches_list if image_counts is None else image_counts)
        tags = [question.count(IMAGE_PLACEHOLDER) for question in questions]
        if sum(tags) < len(patches):
            questions = [
                question if number else f"{IMAGE_PLACEHOLDER}\n{question}"
                for question, number in zip(questions, tags, strict=True)
            ]
            tags = [max(1, number) for number in tags]
        if sum(tags) != len(patches):
            raise DataError(f"{sum(tags)} {IMAGE_PLACEHOLDER} in the questions, pictures given: {len(patches)}")
        ends = np.cumsum([0, *tags])
        rows = [
            self._row([Turn("human", question)], patches[ends[number] : ends[number + 1]])
            for number, question in enumerate(questions)
        ]
        return self._answers(rows, pixel_values, generation_config, verbose) if rows else []

    def _row(self, turns: Sequence[Turn], patches: Sequence[int]) -> np.ndarray:
        tags = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns if turn.role == "human")
        if tags != len(patches):
            raise DataError(
                f"{tags} {IMAGE_PLACEHOLDER} in the conversation, pictures given: {len(patches)}; num_patches_list "
                "has one number per picture, of all rounds"
            )
        return prompt_ids(self, turns, patches)

    def _answers(
        self, rows: Sequence[np.ndarray], pixel_values: Tensor | None, settings: Settings, verbose: bool
    ) -> list[str]:
        given, side = settings_of(settings), self.tiles.size
        streamer = given.pop("streamer", None)
        options = generation_options(given)
        pixels = torch.zeros(0, 3, side, side) if pixel_values is None else pixel_values
        if tuple(pixels.shape[1:]) != (3, side, side):
            raise DataError(
                f"pixel_values has the shape {tuple(pixels.shape)}, this model's tiles are (N, 3, {side}, {side}); "
                f"load_image and load_video take input_size={side}"
            )
        prompts = pad_prompts(self, rows, encode_pictures(self.model, pixels))
        ids = generate(self, prompts, options, **({} if streamer is None else {"streamer": streamer})).tolist()
        found = [answer_of(self, own, len(row), options).text for own, row in zip(ids, rows, strict=True)]
        for row, answer in zip(rows, found, strict=True) if verbose else ():
            logger.info("%s%s", self.tokenizer.decode(row).replace(IMG_CONTEXT, ""), answer)
        return found

    def _check(self, tokenizer: Any, tokens: tuple[str, ...]) -> None:
        if tokens != (IMG_START, IMG_END, IMG_CONTEXT):
            raise ConfigError(
                f"the tokens around pictures are {IMG_START}, {IMG_END} and {IMG_CONTEXT}; leave them out"
            )
        same = tokenizer is self.tokenizer or (
            len(tokenizer) == len(self.tokenizer)
            and tokenizer.convert_tokens_to_ids(IMG_CONTEXT) == self.encoder.image_token_id
        )
        if not same:
            raise ConfigError("this tokenizer is not the model's; take the one of the same folder (or model.tokenizer)")


def _patches(pixel_values: Tensor | None, given: Sequence[int] | None) -> list[int]:
    """Tiles of each picture. Raises DataError if they are not those of ``pixel_values``."""
    tiles = 0 if pixel_values is None else len(pixel_values)
    patches = list(given) if given is not None else [tiles] if tiles else []
    if sum(patches) != tiles:
        raise DataError(f"num_patches_list {patches} adds up to {sum(patches)} tiles, pixel_values has {tiles}")
    return patches
