"""Prompt ids and features -> answers, through transformers' ``generate``; token ids -> the text a user sees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from internvl_chat.data.faults import Fault, check_text
from internvl_chat.data.record import Turn
from internvl_chat.errors import ConfigError, DataError, first_line
from internvl_chat.infer.loaded import Loaded
from internvl_chat.log import get_logger

logger = get_logger(__name__)

MAX_NEW_TOKENS = 256
# Arguments of ``generate`` that would change what it returns, or that are set here.
_RESERVED = {
    "streamer": "ask with stream=True",
    "return_dict_in_generate": "the answer is a text",
    "num_return_sequences": "ask several times",
    "input_ids": "they are made here",
    "inputs_embeds": "they are made here",
    "max_length": "use max_new_tokens",
    "assistant_early_exit": "in transformers 5.23 it leaves the model giving other answers",
}
# What users write for an argument of ``Chat.ask``, and would reach ``generate``.
_MEANT = {"image": "images", "picture": "images", "pictures": "images", "videos": "video"}
_SAID_BY = {"system": "system message", "human": "question", "gpt": "answer"}


@dataclass(frozen=True, eq=False)
class Prompts:
    """Left-padded ``input_ids`` and ``attention_mask`` (B, T); ``features`` (N, num_image_token, hidden_size)."""

    input_ids: Tensor
    attention_mask: Tensor
    features: Tensor


def prompt_ids(loaded: Loaded, turns: Sequence[Turn], tiles: Sequence[int]) -> np.ndarray:
    """Ids (T,) of a conversation up to its next answer. Raises DataError for text that holds half a character."""
    for turn in turns:
        try:
            check_text(f"the {_SAID_BY[turn.role]}", turn.text)
        except Fault as fault:
            raise DataError(str(fault)) from fault
    return loaded.encoder.encode_prompt(turns, tiles)


def pad_prompts(loaded: Loaded, rows: Sequence[np.ndarray], features: Tensor) -> Prompts:
    """Prompts of rows of ids (T_i,), on the model's device."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), loaded.pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, longest - len(row) :] = torch.from_numpy(row)
        mask[number, longest - len(row) :] = 1
    device = loaded.model.device
    return Prompts(ids.to(device), mask.to(device), features)


def generation_options(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``generate``: greedy and 256 new tokens unless said otherwise; a temperature above 0 means sampling.

    A ``generation_config`` among them is taken apart. Raises ConfigError for values that cannot be used.
    """
    given = {name: value for name, value in generation.items() if value is not None}
    if (config := given.pop("generation_config", None)) is not None:
        given = {**settings_of(config), **given}
    if unlike := _MEANT.keys() & given.keys():
        raise ConfigError(f"{min(unlike)!r} is no argument here; did you mean {_MEANT[min(unlike)]!r}?")
    if taken := [name for name in _RESERVED if given.get(name) not in (None, False)]:
        raise ConfigError(f"generation argument {taken[0]!r} cannot be set here: {_RESERVED[taken[0]]}")
    options = {"max_new_tokens": MAX_NEW_TOKENS, **given}
    temperature, top_p = options.get("temperature"), options.get("top_p")
    for name in ("temperature", "top_p", "max_new_tokens"):
        if isinstance(options.get(name, 0), bool) or not isinstance(options.get(name, 0), (int, float)):
            raise ConfigError(f"{name} {options[name]!r} is not a number")
    if temperature is not None and temperature < 0:
        raise ConfigError(f"temperature {temperature} is negative; 0 = always the likeliest token, 0.2 to 1 = sampling")
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError(f"top_p {top_p} is not in (0, 1]; it is the share of probability to sample from")
    if options["max_new_tokens"] < 1:
        raise ConfigError(f"max_new_tokens {options['max_new_tokens']} leaves no room for an answer; at least 1")
    options.setdefault("do_sample", bool(temperature))
    if not options["do_sample"]:
        for name in ("temperature", "top_p", "top_k"):
            options.pop(name, None)
    return options


def settings_of(config: Mapping[str, Any] | GenerationConfig | None) -> dict[str, Any]:
    """What a generation config says, as arguments."""
    return config.to_diff_dict() if isinstance(config, GenerationConfig) else dict(config or {})


def generate(loaded: Loaded, prompts: Prompts, options: Mapping[str, Any], **extra: Any) -> Tensor:
    """Ids of the answers (B, new tokens), stop marker and pads included. ``options`` of ``generation_options``.

    Raises ConfigError for what the library refuses.
    """
    room, length = loaded.model.config.llm_config.max_position_embeddings, prompts.input_ids.shape[1]
    if length > room:
        logger.warning("the prompt has %d tokens, the model was made for %d: expect nonsense", length, room)
    ends = {"eos_token_id": list(loaded.stop_ids), "pad_token_id": loaded.pad_id}
    if options.get("stop_strings"):
        ends["tokenizer"] = loaded.tokenizer
    try:
        result: Tensor = loaded.model.generate(
            input_ids=prompts.input_ids,
            attention_mask=prompts.attention_mask,
            visual_features=prompts.features if len(prompts.features) else None,
            **{**ends, **options},
            **extra,
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"transformers' generate refuses these arguments: {first_line(error)}") from error
    return result


def decode(loaded: Loaded, ids: Iterable[int]) -> str:
    """Text of an answer: no stop marker, no pads, no other special token; ``<ref> <box> <quad>`` stay."""
    return decode_raw(loaded, ids).strip()


def decode_raw(loaded: Loaded, ids: Iterable[int]) -> str:
    """As ``decode``, white space at the ends kept."""
    shown = [number for number in ids if number not in loaded.hidden_ids]
    text: str = loaded.tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
