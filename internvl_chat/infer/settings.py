"""Decoding arguments as they are typed, ``NAME`` and ``VALUE`` -> arguments of transformers' ``generate``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import GenerationConfig

from internvl_chat.errors import ConfigError, first_line, nearest
from internvl_chat.infer.answer import REFUSED, generation_options, refusal
from internvl_chat.infer.loaded import Loaded

_WHOLE = (
    "max_new_tokens", "min_new_tokens", "min_length", "top_k", "num_beams", "no_repeat_ngram_size",
    "prompt_lookup_num_tokens",
)  # fmt: skip
_NUMBERS = (
    "temperature", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty",
    "length_penalty", "max_time",
)  # fmt: skip
_SWITCHES = ("do_sample", "use_cache", "renormalize_logits", "remove_invalid_values")
_LISTS = ("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias")


def read_setting(name: str, text: str) -> Any:
    """The value of a decoding argument: JSON, or else the text itself. Raises ConfigError, also for unknown names."""
    fields = [field for field in vars(GenerationConfig()) if not field.startswith("_")]
    if name in fields and name in REFUSED:
        raise refusal(name)
    legal = [field for field in fields if field not in REFUSED]
    if name not in legal:
        raise ConfigError(f"{name!r} is no decoding argument of generate{nearest(name, legal)}")
    try:
        value = json.loads(text)
    except ValueError:
        value = {"True": True, "False": False, "None": None}.get(text, text)
    if name == "stop_strings" and not isinstance(value, list) and value is not None:
        value = text
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} = {text!r}: must be finite")
    for names, good, what in (
        (_WHOLE, lambda: _is_number(value) and value == int(value), "a whole number"),
        (_NUMBERS, lambda: _is_number(value), "a number"),
        (_SWITCHES, lambda: isinstance(value, bool), "true or false"),
        (_LISTS, lambda: isinstance(value, list) and value, "a list, as in bad_words_ids=[[5,6]], suppress_tokens=[5]"),
    ):
        if name in names and value is not None and not good():
            raise ConfigError(f"{name} = {text!r}: must be {what}")
    if name in _WHOLE and value is not None:
        value = int(value)
    check_settings({name: value})
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


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


def searches_beams(loaded: Loaded, generation: Mapping[str, Any]) -> bool:
    """Whether beams are searched, by ``generation`` or else by the checkpoint: such an answer cannot be streamed."""
    own = loaded.model.language_model.generation_config
    beams = generation.get("num_beams")
    return ((own.num_beams if beams is None else beams) or 1) > 1
