"""Types of the fixtures of tests/config."""

from __future__ import annotations

from collections.abc import Callable

from internvl_chat.config.data import DataArguments
from internvl_chat.config.model import ModelArguments
from internvl_chat.config.train import TrainArguments

Parse = Callable[..., tuple[ModelArguments, DataArguments, TrainArguments]]
Refuse = Callable[..., list[str]]
