"""Keys and values of a conversation, kept from round to round: only what is new is read by the language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from internvl_chat.infer.loaded import Loaded

# Ways of generating that make, or change, a cache of their own.
_OWN_CACHE = {
    "use_cache", "cache_implementation", "past_key_values", "num_beams", "assistant_model", "prompt_lookup_num_tokens",
}  # fmt: skip


@dataclass(eq=False)
class Kept:
    """``cache`` holds keys and values of the tokens ``ids`` (T,), as long as it is not ``taken`` to go on with."""

    cache: DynamicCache
    ids: np.ndarray
    taken: bool = False


def cache_for(loaded: Loaded, kept: Kept | None, row: np.ndarray, options: Mapping[str, Any]) -> DynamicCache | None:
    """A cache for ``generate`` on a prompt ``row`` (T,), with what ``kept`` has of its beginning.

    None where ``options`` ask for something that needs another kind. Whoever passes ``kept`` answers for the pictures
    at its placeholders being the same.
    """
    if not _OWN_CACHE.isdisjoint(options):
        return None
    config = loaded.model.config.llm_config
    if kept is None or kept.taken or len(row) + options["max_new_tokens"] > _steady_length(config):
        return _empty(config)
    kept.taken = True
    # The last token is read in any case, for what comes behind it is wanted.
    most = min(len(kept.ids), len(row) - 1)
    unlike = np.flatnonzero(kept.ids[:most] != row[:most])
    common = int(unlike[0]) if len(unlike) else most
    if not all(type(layer) is DynamicLayer for layer in kept.cache.layers):
        return _empty(config)  # a sliding window has forgotten what comes before it
    kept.cache.crop(common - kept.cache.get_seq_length())
    return kept.cache


def keep(cache: DynamicCache | None, row: np.ndarray, new: list[int]) -> Kept | None:
    """What to keep of a ``row`` that ``generate`` has answered with ``new`` ids."""
    if cache is None:
        return None
    return Kept(cache, np.concatenate([row, np.array(new, dtype=row.dtype)])[: cache.get_seq_length()])


def _empty(config: Any) -> DynamicCache:
    """A window that is wider than any text (Phi-3's) is none; layers without one can be cut back."""
    window = getattr(config, "sliding_window", None)
    return DynamicCache() if window and window >= config.max_position_embeddings else DynamicCache(config=config)


def _steady_length(config: Any) -> float:
    """Up to which length the positions of tokens do not depend on how long the text gets."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") not in ("dynamic", "longrope"):
        return float("inf")
    return int(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
