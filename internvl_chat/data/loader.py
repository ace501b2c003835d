"""Schedule + corpus -> the micro-batches of one rank, from any step on, by any number of workers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from internvl_chat.data.batch import Batch, pack_batch, pad_batch
from internvl_chat.data.corpus import Corpus, Due, Reader
from internvl_chat.data.faults import Fault
from internvl_chat.data.plan.schedule import Schedule


@dataclass(frozen=True)
class Place:
    """Where a process stands: its rank, the number of ranks, micro-batches per optimizer step."""

    rank: int
    world_size: int
    accumulation: int


class BatchReader(Dataset[Batch]):
    """Samples that are due -> their batch. All that a worker process has, beside what it is sent: paths and settings.

    A fault found on loading takes its sample out of the batch and rides along in ``Batch.faults``; nothing replaces it.
    """

    def __init__(self, reader: Reader, packed: bool, pad_id: int) -> None:
        self.reader = reader
        self.packed = packed
        self.pad_id = pad_id

    def __getitem__(self, due: tuple[Due, ...]) -> Batch:
        samples, faults = [], []
        for one in due:
            try:
                samples.append(self.reader.load(*one))
            except Fault as fault:
                faults.append(self.reader.record_of(fault, *one))
        return pack_batch(samples, faults) if self.packed else pad_batch(samples, self.pad_id, faults)


class MicroBatches(Sampler[tuple[Due, ...]]):
    """This rank's micro-batches of the run: ``i`` is micro-batch ``i % accumulation`` of step ``i // accumulation``.

    Steps count from ``first_step``. Iterating gives what is due, indexing loads it.
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
        self.reader = BatchReader(corpus.reader, schedule.settings.packed, pad_id)

    @property
    def epochs(self) -> float:
        """Epochs of the whole run, estimated where they are very many."""
        return self.schedule.about_epochs(self.num_steps)

    def __len__(self) -> int:
        return (self.num_steps - self.first_step) * self.place.accumulation

    def __iter__(self) -> Iterator[tuple[Due, ...]]:
        return map(self.due, range(len(self)))

    def due(self, item: int) -> tuple[Due, ...]:
        """The samples of a micro-batch. Raises IndexError."""
        if not 0 <= item < len(self):
            raise IndexError(item)
        place = self.place
        step, micro = divmod(item, place.accumulation)
        share, shares = micro * place.world_size + place.rank, place.world_size * place.accumulation
        epoch, packs = self.schedule.packs(self.first_step + step, share, shares, place.world_size)
        return self.corpus.due(np.concatenate(packs) if packs else np.empty(0, np.int64), epoch)

    def __getitem__(self, item: int) -> Batch:
        return self.reader[self.due(item)]


class Batches(Protocol):
    """Micro-batches in order: iterating gives what is due, ``reader`` loads it."""

    reader: BatchReader

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Due, ...]]: ...


def make_loader(batches: Batches, num_workers: int, pin_memory: bool, prefetch: int | None = None) -> DataLoader:
    """DataLoader that yields the batches in order. Its own generator keeps the global random state untouched."""
    return _Loader(
        batches.reader,
        batch_size=None,
        sampler=batches,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=prefetch if num_workers else None,
        # Forked workers start at once; others would import torch and transformers first.
        multiprocessing_context="fork" if num_workers else None,
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_heed_parent_only,
    )


class _Loader(DataLoader):
    """A DataLoader whose workers are born with SIGTERM blocked, in every thread that libraries start in them."""

    def __iter__(self) -> Any:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _heed_parent_only(worker: int) -> None:
    """Whoever signals all processes of a job means the rank, which still needs its workers to end in good order."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_when_parent_says, args=(os.getppid(),), daemon=True).start()


def _end_when_parent_says(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
