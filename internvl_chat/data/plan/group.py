"""Sizes -> batches of exactly B samples (the last may be smaller), by length or at random. Padding comes later."""

from __future__ import annotations

import numpy as np

# Samples are sorted by length within this many optimizer steps' worth of them, as length-grouped samplers usually do.
_STEPS_PER_WINDOW = 50


def group_samples(
    tokens: np.ndarray, order: np.ndarray, batch_size: int, batches_per_step: int, by_length: bool
) -> list[np.ndarray]:
    """Consecutive runs of ``batch_size`` entries; with ``by_length`` sorted by length, longest first, per window."""
    if by_length:
        window = _STEPS_PER_WINDOW * batch_size * batches_per_step
        parts = [order[start : start + window] for start in range(0, len(order), window)]
        order = np.concatenate([part[np.argsort(-tokens[part], kind="stable")] for part in parts])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
