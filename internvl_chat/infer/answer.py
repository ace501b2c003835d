"""Prompt ids and features -> answers, through transformers' ``generate``; token ids -> the text a user sees."""

from __future__ import annotations

import math
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
# How ``generate`` refuses arguments; some it finds out about by failing.
_REFUSALS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, ImportError)
# Arguments of ``generate`` that change what it returns, that are set here, or that cannot work here -> why.
REFUSED = {
    "streamer": "ask with stream=True",
    "num_return_sequences": "ask several times",
    "max_length": "use max_new_tokens",
    "assistant_early_exit": "in transformers 5.23 it leaves the model giving other answers",
    **dict.fromkeys(("inputs", "input_ids", "inputs_embeds"), "they are made here"),
    **dict.fromkeys(
        ("custom_generate", "trust_remote_code"), "no code but that of transformers and of this package is ever run"
    ),
    **dict.fromkeys(
        ("penalty_alpha", "dola_layers", "constraints", "force_words_ids", "num_beam_groups", "diversity_penalty"),
        "transformers left it to code from the hub, which is never run",
    ),
    **dict.fromkeys(
        (
            "guidance_scale", "negative_prompt_ids", "negative_prompt_attention_mask", "encoder_repetition_penalty",
            "encoder_no_repeat_ngram_size", "prefill_chunk_size", "token_healing", "is_assistant",
        ),
        "it needs the prompt's ids, and generate is given embeddings, for pictures have no ids",
    ),
    **dict.fromkeys(
        (
            "use_mtp", "speculation_type", "compile_config", "cache_config", "continuous_batching_config",
            "watermarking_config",
        ),
        "these models, and this way of asking them, do not have it",
    ),
    **dict.fromkeys(
        ("return_dict_in_generate", "output_attentions", "output_hidden_states", "output_logits", "output_scores"),
        "the answer is a text",
    ),
}  # fmt: skip
# What says of such an argument that it is not wanted.
_NEUTRAL = {"num_return_sequences": 1, "num_beam_groups": 1, "guidance_scale": 1, "encoder_repetition_penalty": 1}
# What users write for an argument of ``Chat.ask``, and would reach ``generate``.
_MEANT = {"image": "images", "picture": "images", "pictures": "images", "videos": "video"}
_LISTS_OF_IDS = ("suppress_tokens", "begin_suppress_tokens")
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
    for name in [name for name in given if name in REFUSED]:
        value = given[name]
        wanted = not isinstance(value, (int, float)) or value not in (False, _NEUTRAL.get(name))
        if value is not None and wanted:
            raise refusal(name)
    options = {"max_new_tokens": MAX_NEW_TOKENS, **given}
    _check_values(options)
    options.setdefault("do_sample", bool(options.get("temperature")))
    if not options["do_sample"]:
        for name in ("temperature", "top_p", "top_k"):
            options.pop(name, None)
    return options


def refusal(name: str) -> ConfigError:
    """The error of one of REFUSED."""
    return ConfigError(f"{name} cannot be set here: {REFUSED[name]}")


def _check_values(options: Mapping[str, Any]) -> None:
    """Raise ConfigError for values that transformers refuses in words of its own, late, or not at all."""
    temperature, top_p = options.get("temperature"), options.get("top_p")
    for name in ("temperature", "top_p"):
        value = options.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ConfigError(f"{name} {value!r} is not a number")
    for name in ("max_new_tokens", "num_beams"):
        value = options.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{name} {value!r} is not a whole number")
    if temperature is not None and temperature < 0:
        raise ConfigError(f"temperature {temperature} is negative; 0 = always the likeliest token, 0.2 to 1 = sampling")
    if temperature == 0 and options.get("do_sample"):
        raise ConfigError("do_sample needs a temperature above 0; add --temperature 0.7, or leave do_sample out")
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError(f"top_p {top_p} is not in (0, 1]; it is the share of probability to sample from")
    if options["max_new_tokens"] < 1:
        raise ConfigError(f"max_new_tokens {options['max_new_tokens']} leaves no room for an answer; at least 1")
    if options.get("num_beams", 1) < 1:
        raise ConfigError(f"num_beams {options['num_beams']}: at least 1, which searches none")
    stops = options.get("stop_strings", [])
    texts = [stops] if isinstance(stops, str) else stops
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) and text for text in texts):
        raise ConfigError(f"stop_strings {stops!r}: a text or a list of texts, none of them empty")


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
    _check_ids(loaded, options)
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
    except _REFUSALS as error:
        raise ConfigError(f"transformers' generate refuses these arguments: {first_line(error)}") from error
    return result


def _check_ids(loaded: Loaded, options: Mapping[str, Any]) -> None:
    """Raise ConfigError for ids that the model does not have: on a GPU they would end the process's use of it."""
    most = loaded.model.config.llm_config.vocab_size
    for name in [name for name in options if name.endswith("_token_id") or name in _LISTS_OF_IDS]:
        value = options[name]
        # An end that is no token is an answer that goes on.
        legal = range(-(2**63), 2**63) if name == "eos_token_id" else range(most)
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if not isinstance(number, int) or number not in legal:
                raise ConfigError(f"{name} {value!r}: the ids of this model's tokens are 0 to {most - 1}")


def decode(loaded: Loaded, ids: Iterable[int]) -> str:
    """Text of an answer: no stop marker, no pads, no other special token; ``<ref> <box> <quad>`` stay."""
    return decode_raw(loaded, ids).strip()


def decode_raw(loaded: Loaded, ids: Iterable[int]) -> str:
    """As ``decode``, white space at the ends kept."""
    shown = [number for number in ids if number not in loaded.hidden_ids]
    text: str = loaded.tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text
