"""Decoding arguments as they are typed, ``NAME`` and ``VALUE`` -> arguments of transformers' ``generate``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from transformers import GenerationConfig

from internvl_chat.errors import ConfigError, first_line, nearest
from internvl_chat.infer.answer import generation_options

_WHOLE = (
    "max_new_tokens", "min_new_tokens", "max_length", "min_length", "top_k", "num_beams", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "prompt_lookup_num_tokens",
)  # fmt: skip
_NUMBERS = (
    "temperature", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty",
    "encoder_repetition_penalty", "length_penalty", "guidance_scale", "max_time",
)  # fmt: skip
_SWITCHES = ("do_sample", "use_cache", "renormalize_logits", "remove_invalid_values")


def read_setting(name: str, text: str) -> Any:
    """The value of a decoding argument: JSON, or else the text itself. Raises ConfigError, also for unknown names."""
    legal = [field for field in vars(GenerationConfig()) if not field.startswith("_")]
    if name not in legal:
        raise ConfigError(f"{name!r} is no decoding argument of generate{nearest(name, legal)}")
    try:
        value = json.loads(text)
    except ValueError:
        value = {"True": True, "False": False, "None": None}.get(text, text)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    for names, good, what in (
        (_WHOLE, number and value == int(value), "a whole number"),
        (_NUMBERS, number, "a number"),
        (_SWITCHES, isinstance(value, bool), "true or false"),
    ):
        if name in names and not good and value is not None:
            raise ConfigError(f"{name} = {text!r}: must be {what}")
    if name in _WHOLE and value is not None:
        value = int(value)
    check_settings({name: value})
    return value


def read_settings(words: Iterable[str]) -> dict[str, Any]:
    """``NAME=VALUE`` words, as of ``--generate``. Raises ConfigError."""
    settings = {}
    for word in words:
        name, sign, text = word.partition("=")
        if not sign:
            raise ConfigError(f"--generate {word}: write NAME=VALUE, as in --generate repetition_penalty=1.1")
        settings[name] = read_setting(name, text)
    return settings


def check_settings(settings: dict[str, Any]) -> None:
    """Raise ConfigError for arguments that cannot be used, by themselves or together."""
    options = generation_options(settings)
    try:
        GenerationConfig(**options)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"decoding arguments {json.dumps(settings)}: {first_line(error)}") from error
