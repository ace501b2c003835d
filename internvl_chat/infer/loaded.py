"""What every way of asking needs: a model in eval mode with the encoder and the tile settings of its training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from internvl_chat.data.tiles import TileSettings
from internvl_chat.data.tokens import Encoder
from internvl_chat.model.chat import InternVLChatModel


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in eval mode with the very encoder and tile settings of its training.

    ``stop_ids`` end an answer, ``hidden_ids`` are never shown in one, ``pad_id`` fills the short rows of a batch.
    """

    model: InternVLChatModel = field(repr=False)
    tokenizer: Any = field(repr=False)
    encoder: Encoder = field(repr=False)
    tiles: TileSettings
    stop_ids: tuple[int, ...]
    hidden_ids: frozenset[int]
    pad_id: int
