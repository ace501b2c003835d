"""What a micro-batch hands to the model, worked out on the host: nothing in the forward pass waits for the device.

Which positions are supervised, where the pictures go and which data set a token is from follow from the batch, which is
on the host anyway; asked of the device, each would stop the queue of kernels until it is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from internvl_chat.data.batch import Batch
from internvl_chat.model.loss import next_token_targets, token_weights

# Columns of ``MicroBatch.table``.
PER_DATASET = ("weight", "tokens", "samples", "tiles")


@dataclass(frozen=True)
class MicroBatch:
    """A batch and what follows from it, all on the host.

    ``targets``: (index, target, weight), each (M,), see ``next_token_targets``; ``groups`` (M,) int64: data set of each
    target; ``image_places`` (P,) int64: placeholders in the flattened ids; ``table`` float64 (data sets,
    len(PER_DATASET)); ``squares``: sum over samples of their tokens squared.
    """

    batch: Batch
    targets: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    groups: torch.Tensor
    image_places: torch.Tensor
    table: torch.Tensor
    squares: float

    @property
    def weight(self) -> float:
        """Sum of the weights: this micro-batch's part of the loss denominator."""
        return float(self.targets[2].double().sum())

    def inputs(self, device: torch.device) -> tuple[dict[str, Any], torch.Tensor]:
        """(The model's arguments, ``groups``), on the device."""
        values: dict[str, Any] = self.batch.to(device).tensors()
        del values["labels"]
        if self.batch.cu_seqlens is not None:
            # As numbers: DDP would send a tensor to the device, and the lengths would have to be fetched from there.
            values["cu_seqlens"] = tuple(self.batch.cu_seqlens.tolist())
        values["targets"] = tuple(send(tensor, device) for tensor in self.targets)
        values["image_places"] = send(self.image_places, device)
        return values, send(self.groups, device)


def make_micro_batch(
    batch: Batch, reduction: str, datasets: Sequence[str], image_token: int | None, tokens_per_tile: int
) -> MicroBatch:
    """``datasets``: names in the order of the table's rows; ``image_token``: id of the placeholder."""
    weights = token_weights(batch.labels, batch.cu_seqlens, reduction)
    targets = next_token_targets(batch.labels, weights, batch.cu_seqlens)
    flat = batch.input_ids.flatten()
    places = (flat == (-1 if image_token is None else image_token)).nonzero().squeeze(1)
    lengths = _lengths(batch)
    number = {name: position for position, name in enumerate(datasets)}
    # A batch of which nothing could be loaded has one row or sample that belongs to nobody; nothing in it counts.
    owners = [number[address.dataset] for address in batch.addresses] or [0]
    if batch.cu_seqlens is not None:
        owner = torch.tensor(owners).repeat_interleave(batch.cu_seqlens.diff().long())
    else:
        owner = torch.tensor(owners).repeat_interleave(batch.input_ids.shape[1])
    groups = owner[targets[0] + 1]
    table = torch.zeros(len(datasets), len(PER_DATASET), dtype=torch.float64)
    table[:, 0].index_add_(0, groups, targets[2].double())
    if batch.addresses:
        table[:, 1].index_add_(0, torch.tensor(owners), lengths)
        table[:, 2].index_add_(0, torch.tensor(owners), torch.ones(len(owners), dtype=torch.float64))
        tiles = torch.full((len(places),), 1.0 / tokens_per_tile, dtype=torch.float64)
        table[:, 3].index_add_(0, owner[places], tiles)
    return MicroBatch(batch, targets, groups, places, table, float(lengths.square().sum()))


def _lengths(batch: Batch) -> torch.Tensor:
    """Real tokens of each sample, float64; none for a batch without samples."""
    if not batch.addresses:
        return torch.zeros(0, dtype=torch.float64)
    if batch.cu_seqlens is not None:
        return batch.cu_seqlens.diff().double()
    if batch.attention_mask is not None:
        return batch.attention_mask.sum(1).double()
    return torch.full((len(batch.input_ids),), float(batch.input_ids.shape[1]), dtype=torch.float64)


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device, without waiting for it."""
    # A copy from memory that is not page-locked waits for all that is queued.
    source = tensor.pin_memory() if device.type == "cuda" else tensor
    return source.to(device, non_blocking=True)
