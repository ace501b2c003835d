"""Models loaded by several threads at once."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from internvl_chat.model.build import load_model
from internvl_chat.model.chat import InternVLChatModel


def test_threads_do_not_spoil_tying(tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first to begin ends first, the order in which two of transformers' loads leave its class without tying."""
    tie_weights = PreTrainedModel.tie_weights
    begun = threading.Event()
    build = InternVLChatModel.__init__

    @functools.wraps(build)
    def slow(*given: object, **named: object) -> None:
        if PreTrainedModel.tie_weights is not tie_weights:  # within a load
            wait = 0.8 if begun.is_set() else 0.4
            begun.set()
            time.sleep(wait)
        build(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(InternVLChatModel, "__init__", slow)
    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(load_model, [tiny_folder("qwen2")] * 2))
        assert PreTrainedModel.tie_weights is tie_weights
    finally:
        PreTrainedModel.tie_weights = tie_weights
