"""Fields of a request: the types and ranges that are taken, and what is refused rather than ignored."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from internvl_chat.infer.serve.faults import ApiError, wrong

# Below this a sample is the likeliest token, and the division by it no longer a number.
COLDEST = 1e-3
MAX_STOPS, MAX_STOP_CHARACTERS = 16, 500
MAX_BIASES = 1024


@dataclass(frozen=True)
class Wishes:
    """How an answer is to be made. ``max_tokens`` None: as long as the server answers; ``temperature`` 0: greedy.

    ``usage`` of a stream: True = in a piece of its own, False = nowhere, None = in the last piece, as the library.
    """

    stream: bool
    usage: bool | None
    max_tokens: int | None
    temperature: float
    top_p: float | None
    top_k: int | None
    penalty: float
    stop: tuple[str, ...]
    seed: int | None
    logit_bias: Mapping[int, float]


# What changes an answer and is not offered -> the values that leave it as it is.
_REFUSED: dict[str, Callable[[Any], bool]] = {
    "n": lambda value: value == 1 and value is not True,
    "best_of": lambda value: value == 1 and value is not True,
    "logprobs": lambda value: value is False,
    "top_logprobs": lambda value: value == 0,
    "echo": lambda value: value is False,
    "suffix": lambda value: value == "",
    "presence_penalty": lambda value: value == 0 and value is not False,
    "tools": lambda value: value == [],
    "functions": lambda value: value == [],
    "tool_choice": lambda value: value in ("none", "auto"),
    "function_call": lambda value: value in ("none", "auto"),
    "response_format": lambda value: value == {"type": "text"},
    "modalities": lambda value: value == ["text"],
    "reasoning_effort": lambda value: value == "none",
    "generation_config": lambda value: False,
    "chat_template_kwargs": lambda value: value == {},
    "audio": lambda value: False,
    "prediction": lambda value: False,
    "web_search_options": lambda value: False,
    "moderation": lambda value: False,
    "verbosity": lambda value: value == "medium",
    "store": lambda value: value is False,
}


# Not of OpenAI's protocol, but what clients of vLLM and others send in their ``extra_body``.
EXTRA = ("top_k", "repetition_penalty")


def check_fields(body: dict[str, Any], legal: Collection[str]) -> None:
    """Drop what is null, refuse what is unknown (422) or cannot be done (400)."""
    for name in [name for name, value in body.items() if value is None]:
        del body[name]
    if unknown := sorted(body.keys() - {*legal, *EXTRA}):
        message = f"unknown fields: {', '.join(map(repr, unknown[:5]))}; leave them out"
        raise ApiError(422, message, unknown[0][:100], "unknown_field")
    for name, harmless in _REFUSED.items():
        if name in body and not harmless(body[name]):
            raise wrong(f"{name}: this server has no such function; leave it out", name, "unsupported_value")


def read_wishes(body: Mapping[str, Any], vocabulary: int) -> Wishes:
    """How the answer is to be made. ``vocabulary``: number of tokens. Raises ApiError."""
    longest = _integer(body, "max_tokens", 1, 2**31 - 1)
    completion = _integer(body, "max_completion_tokens", 1, 2**31 - 1)
    stream = body.get("stream", False)
    if not isinstance(stream, bool):
        raise wrong("stream: true or false", "stream")
    top_p = _number(body, "top_p", 0.0, 1.0)
    if top_p == 0:
        raise wrong("top_p: above 0, it is the share of probability to sample from", "top_p")
    temperature = _number(body, "temperature", 0.0, 2.0) or 0.0
    return Wishes(
        stream=stream,
        usage=_usage_wish(body.get("stream_options", {}), stream),
        max_tokens=longest if completion is None else completion,
        temperature=temperature if temperature >= COLDEST else 0.0,
        top_p=top_p,
        top_k=_integer(body, "top_k", 1, vocabulary),
        # As the library reads it: a factor on tokens that were written already.
        penalty=_number(body, "repetition_penalty", 0.1, 10.0)
        or 1.0 + (_number(body, "frequency_penalty", 0.0, 2.0) or 0.0),
        stop=_stops(body.get("stop", [])),
        seed=_integer(body, "seed", -(2**63), 2**63 - 1),
        logit_bias=_biases(body.get("logit_bias", {}), vocabulary),
    )


def _usage_wish(options: Any, stream: bool) -> bool | None:
    if not isinstance(options, dict):
        raise wrong('stream_options: an object, {"include_usage": true}', "stream_options")
    if unknown := sorted(options.keys() - {"include_usage", "include_obfuscation"}):
        raise ApiError(422, f"unknown field: stream_options.{unknown[0][:100]}", "stream_options", "unknown_field")
    for name, value in options.items():
        if not isinstance(value, (bool, type(None))):
            raise wrong(f"stream_options.{name}: true or false", f"stream_options.{name}")
    if options.get("include_obfuscation"):
        message = "stream_options.include_obfuscation: this server has no such function; leave it out"
        raise wrong(message, "stream_options.include_obfuscation", "unsupported_value")
    if options and not stream:
        raise wrong('stream_options: only together with "stream": true; leave it out', "stream_options")
    return options.get("include_usage")


def _integer(body: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise wrong(f"{name}: an integer of at least {low}, at most {high}", name)
    return value


def _number(body: Mapping[str, Any], name: str, low: float, high: float) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if not _is_number(value) or not low <= value <= high:
        raise wrong(f"{name}: a number from {low:g} to {high:g}", name)
    return float(value)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return not isinstance(value, float) or math.isfinite(value)


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise wrong("stop: a text or a list of texts", "stop")
    if len(stops) > MAX_STOPS or any(not 0 < len(stop) <= MAX_STOP_CHARACTERS for stop in stops):
        raise wrong(f"stop: at most {MAX_STOPS} texts of 1 to {MAX_STOP_CHARACTERS} characters", "stop")
    return tuple(stops)


def _biases(value: Any, vocabulary: int) -> dict[int, float]:
    what = f"logit_bias: an object of at most {MAX_BIASES} token ids (below {vocabulary}) with numbers from -100 to 100"
    if not isinstance(value, dict) or len(value) > MAX_BIASES:
        raise wrong(what, "logit_bias")
    found = {}
    for name, bias in value.items():
        known = name.isascii() and name.isdigit() and len(name) < 10 and int(name) < vocabulary
        if not known or not _is_number(bias) or not -100 <= bias <= 100:
            raise wrong(what, "logit_bias")
        found[int(name)] = float(bias)
    return found
