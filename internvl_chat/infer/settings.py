"""Decoding arguments as they are typed, ``NAME`` and ``VALUE`` -> arguments of transformers' ``generate``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from transformers import GenerationConfig

from internvl_chat.errors import ConfigError, first_line, nearest
from internvl_chat.infer.answer import generation_options
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
# Arguments that transformers 5 knows and that cannot work here -> why.
_REFUSED = {
    **dict.fromkeys(
        ("penalty_alpha", "dola_layers", "constraints", "force_words_ids", "num_beam_groups", "diversity_penalty"),
        "transformers left it to code from the hub, which is never run",
    ),
    **dict.fromkeys(
        (
            "guidance_scale", "encoder_repetition_penalty", "encoder_no_repeat_ngram_size", "prefill_chunk_size",
            "token_healing", "assistant_early_exit", "is_assistant",
        ),
        "it needs the prompt's ids, and generate is given embeddings, for pictures have no ids",
    ),
    **dict.fromkeys(
        ("use_mtp", "speculation_type", "compile_config", "cache_config", "continuous_batching_config"),
        "it needs what cannot be given on a command line",
    ),
    **dict.fromkeys(
        ("output_attentions", "output_hidden_states", "output_logits", "output_scores"), "the answer is a text"
    ),
}  # fmt: skip


def read_setting(name: str, text: str) -> Any:
    """The value of a decoding argument: JSON, or else the text itself. Raises ConfigError, also for unknown names."""
    if name in _REFUSED:
        raise ConfigError(f"{name} cannot be set: {_REFUSED[name]}")
    legal = [field for field in vars(GenerationConfig()) if not field.startswith("_") and field not in _REFUSED]
    if name not in legal:
        raise ConfigError(f"{name!r} is no decoding argument of generate{nearest(name, legal)}")
    try:
        value = json.loads(text)
    except ValueError:
        value = {"True": True, "False": False, "None": None}.get(text, text)
    if name == "stop_strings" and not isinstance(value, list) and value is not None:
        value = text
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    for names, good, what in (
        (_WHOLE, number and value == int(value), "a whole number"),
        (_NUMBERS, number, "a number"),
        (_SWITCHES, isinstance(value, bool), "true or false"),
        (_LISTS, isinstance(value, list) and value, "a list, as in bad_words_ids=[[5,6]] or suppress_tokens=[5]"),
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


def searches_beams(loaded: Loaded, generation: Mapping[str, Any]) -> bool:
    """Whether beams are searched, by ``generation`` or else by the checkpoint: such an answer cannot be streamed."""
    own = loaded.model.language_model.generation_config
    beams = generation.get("num_beams")
    return ((own.num_beams if beams is None else beams) or 1) > 1
