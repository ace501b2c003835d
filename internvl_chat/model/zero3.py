"""Weights in ZeRO-3 pieces."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor


def gathered(weight: Tensor) -> AbstractContextManager[Any]:
    """The whole weight on every rank for the length of the block, if it is in ZeRO-3 pieces. To be read only."""
    if not hasattr(weight, "ds_id"):
        return nullcontext()
    import deepspeed

    found: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters([weight])
    return found
