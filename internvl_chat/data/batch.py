"""Samples -> Batch: one packed row, or padded rows. Padding exists here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from internvl_chat.constants import IGNORE_INDEX
from internvl_chat.data.address import Address
from internvl_chat.data.faults import FaultRecord
from internvl_chat.data.sample import Sample


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Packed: ``input_ids``, ``labels``, ``position_ids`` int64 (1, T), positions restarting at 0 per sample,
    ``cu_seqlens`` int32 (samples + 1,) on the host, no ``attention_mask``. Padded: all (B, T), ``attention_mask`` bool
    (B, T), no ``cu_seqlens``. ``pixel_values`` uint8 (N, 3, S, S) or None. ``faults``: what was left out on loading.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    pixel_values: torch.Tensor | None
    cu_seqlens: torch.Tensor | None
    attention_mask: torch.Tensor | None
    addresses: tuple[Address, ...]
    faults: tuple[FaultRecord, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Real tokens, padding not counted."""
        if not self.addresses:
            return 0
        return self.input_ids.numel() if self.attention_mask is None else int(self.attention_mask.sum())

    @property
    def num_supervised(self) -> int:
        return int((self.labels != IGNORE_INDEX).sum())

    @property
    def num_tiles(self) -> int:
        return 0 if self.pixel_values is None else len(self.pixel_values)

    def pin_memory(self) -> Batch:
        """Copy in page-locked memory (called by torch's DataLoader)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """Copy on a device; ``cu_seqlens`` stays on the host, where the attention reads its lengths without a sync."""
        moved = self._map(lambda tensor: tensor.to(device, non_blocking=True))
        return replace(moved, cu_seqlens=self.cu_seqlens)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that there are, by name: the model's arguments."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if isinstance(value, torch.Tensor)}

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        changed = {name: function(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **changed)  # type: ignore[arg-type]


def pack_batch(samples: Sequence[Sample], faults: Sequence[FaultRecord] = ()) -> Batch:
    """Samples one after the other in a single row. Without samples: one ignored token, so that no rank sits out."""
    lengths = [len(sample.input_ids) for sample in samples] or [1]
    ids = np.concatenate([s.input_ids for s in samples]) if samples else np.zeros(1, np.int64)
    labels = np.concatenate([s.labels for s in samples]) if samples else np.full(1, IGNORE_INDEX, np.int64)
    positions = np.concatenate([np.arange(length) for length in lengths])
    return Batch(
        input_ids=torch.from_numpy(ids)[None],
        labels=torch.from_numpy(labels)[None],
        position_ids=torch.from_numpy(positions)[None],
        pixel_values=_stack_tiles(samples),
        cu_seqlens=torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32)),
        attention_mask=None,
        addresses=tuple(sample.address for sample in samples),
        faults=tuple(faults),
    )


def pad_batch(samples: Sequence[Sample], pad_id: int, faults: Sequence[FaultRecord] = ()) -> Batch:
    """One row per sample, padded on the right to the longest. What is padding is known by length, never by id."""
    rows = max(1, len(samples))
    length = max([len(sample.input_ids) for sample in samples] or [1])
    ids = torch.full((rows, length), pad_id, dtype=torch.int64)
    labels = torch.full((rows, length), IGNORE_INDEX, dtype=torch.int64)
    mask = torch.zeros((rows, length), dtype=torch.bool)
    for row, sample in enumerate(samples):
        end = len(sample.input_ids)
        ids[row, :end] = torch.from_numpy(sample.input_ids)
        labels[row, :end] = torch.from_numpy(sample.labels)
        mask[row, :end] = True
    if not samples:
        mask[:] = True
    return Batch(
        input_ids=ids,
        labels=labels,
        position_ids=torch.arange(length)[None].expand(rows, -1).contiguous(),
        pixel_values=_stack_tiles(samples),
        cu_seqlens=None,
        attention_mask=mask,
        addresses=tuple(sample.address for sample in samples),
        faults=tuple(faults),
    )


def _stack_tiles(samples: Sequence[Sample]) -> torch.Tensor | None:
    tiles = [sample.tiles for sample in samples if len(sample.tiles)]
    return torch.cat(tiles) if tiles else None
