"""Schedule + corpus -> the micro-batches of one rank, from any step on, by any number of workers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from internvl_chat.data.batch import Batch, pack_batch, pad_batch
from internvl_chat.data.corpus import Corpus
from internvl_chat.data.faults import Fault
from internvl_chat.data.plan.schedule import Schedule


@dataclass(frozen=True)
class Place:
    """Where a process stands: its rank, the number of ranks, micro-batches per optimizer step."""

    rank: int
    world_size: int
    accumulation: int


class MicroBatches(Dataset[Batch]):
    """Map-style: item ``i`` is micro-batch ``i % accumulation`` of step ``first_step + i // accumulation``.

    A fault found on loading takes its sample out of the batch and rides along in ``Batch.faults``; nothing replaces it.
    """

    def __init__(
        self, corpus: Corpus, schedule: Schedule, place: Place, first_step: int, num_steps: int, pad_id: int
    ) -> None:
        self.corpus = corpus
        self.schedule = schedule
        self.place = place
        self.first_step = first_step
        self.num_steps = num_steps
        self.pad_id = pad_id

    @property
    def epochs(self) -> float:
        """Epochs of the whole run."""
        return self.schedule.epoch_at(self.num_steps)

    def __len__(self) -> int:
        return (self.num_steps - self.first_step) * self.place.accumulation

    def __getitem__(self, item: int) -> Batch:
        if not 0 <= item < len(self):
            raise IndexError(item)
        place = self.place
        step, micro = divmod(item, place.accumulation)
        share = micro * place.world_size + place.rank
        epoch, packs = self.schedule.packs(self.first_step + step, share, place.world_size * place.accumulation)
        samples, faults = [], []
        for entry in (int(entry) for pack in packs for entry in pack):
            try:
                samples.append(self.corpus.load(entry, epoch))
            except Fault as fault:
                faults.append(self.corpus.record_of(fault, entry, epoch))
        if self.schedule.settings.packed:
            return pack_batch(samples, faults)
        return pad_batch(samples, self.pad_id, faults)


def make_loader(batches: MicroBatches, num_workers: int, pin_memory: bool, prefetch: int | None = None) -> DataLoader:
    """DataLoader that yields the batches in order. Its own generator keeps the global random state untouched."""
    return DataLoader(
        batches,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=prefetch if num_workers else None,
        # Workers get corpus and plans by forking; sent through a pipe they would be copied to each.
        multiprocessing_context="fork" if num_workers else None,
        generator=torch.Generator().manual_seed(0),
    )
