"""Weights of linear layers in 8 or 4 bits, through bitsandbytes: LLM.int8, or nf4 with double quantisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import BitsAndBytesConfig
from transformers.utils import is_bitsandbytes_available

from internvl_chat.errors import ConfigError


def bits_problem(load_in_8bit: bool, load_in_4bit: bool) -> str | None:
    """Why a model cannot be loaded in so few bits here; None if it can, or is not to be."""
    if not (load_in_8bit or load_in_4bit) or is_bitsandbytes_available():
        return None
    flag = "--load_in_4bit" if load_in_4bit else "--load_in_8bit"
    return f"{flag} needs the package bitsandbytes: pip install bitsandbytes"


def bits_config(
    load_in_8bit: bool, load_in_4bit: bool, compute_dtype: torch.dtype, kept: Sequence[str]
) -> BitsAndBytesConfig:
    """For ``load_model``; ``kept``: modules that stay as they are. Raises ConfigError without bitsandbytes."""
    if problem := bits_problem(load_in_8bit, load_in_4bit):
        raise ConfigError(problem)
    return BitsAndBytesConfig(
        load_in_8bit=load_in_8bit,
        load_in_4bit=load_in_4bit,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=list(kept),
    )
