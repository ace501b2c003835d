"""Validation while training: loss on lines that are kept for it, per data set, by all ranks together.

Packs hold lines of one data set each, so that the one number which the model gives per call belongs to one data set.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from internvl_chat.data.batch import Batch
from internvl_chat.data.corpus import Corpus, Due
from internvl_chat.data.faults import FaultRecord, Ledger
from internvl_chat.data.loader import BatchReader, make_loader
from internvl_chat.data.plan.group import group_samples
from internvl_chat.data.plan.pack import Budgets, pack_samples
from internvl_chat.errors import DataError
from internvl_chat.log import get_logger
from internvl_chat.model.loss import token_weights
from internvl_chat.train import dist

log = get_logger(__name__)

# Batch and its tokens' weights -> their sum of weight x cross-entropy, a scalar on any device.
LossOf = Callable[[Batch, Tensor], Tensor]
# What is summed per data set, over batches and ranks.
_COLUMNS = ("loss", "weight", "tokens", "supervised", "samples", "faults")
# Data sets that are named in the log, those of the highest loss.
_LISTED = 6
# Faults of a rank that are shown in the log; the ledger has all.
_SHOWN = 3


@dataclass(frozen=True)
class EvalSettings:
    """``batch_size``: packs (packed) or samples (padded) per device; budgets and weights are those of training.

    ``max_tokens`` and ``max_tiles``: of a pack, or of a padded batch with its padding.
    """

    packed: bool
    batch_size: int
    max_tokens: int
    max_tiles: int
    loss_reduction: str
    max_fault_share: float
    workers: int
    prefetch: int | None
    pin_memory: bool


def plan_batches(corpus: Corpus, settings: EvalSettings) -> list[np.ndarray]:
    """Micro-batches of entries, heaviest first, each of one data set; every entry is in exactly one."""
    tokens, tiles = corpus.take(np.arange(len(corpus)), 0)
    batches: list[np.ndarray] = []
    for start, stop in pairwise(corpus.starts.tolist()):
        entries = np.arange(start, stop)
        if settings.packed:
            packs = pack_samples(tokens, tiles, entries, settings.max_tokens, settings.max_tiles)
            starts = range(0, len(packs), settings.batch_size)
            batches += [np.concatenate(packs[start : start + settings.batch_size]) for start in starts]
        else:
            budgets = Budgets(settings.max_tokens, settings.max_tiles)
            groups = group_samples(tokens[entries], tiles[entries], settings.batch_size, budgets, window=len(entries))
            batches += [entries[group] for group in groups]
    # Batches that the ranks work on at the same time weigh alike.
    return sorted(batches, key=lambda entries: -int(tokens[entries].sum()))


class EvalBatches(Sampler[tuple[Due, ...]]):
    """One rank's micro-batches: ``i`` is its part of round ``i``. Every rank has as many: what is missing is empty.

    Samples are those of epoch 0 at every evaluation: the same frames of a video each time.
    """

    def __init__(self, corpus: Corpus, settings: EvalSettings, pad_id: int, rank: int, world_size: int) -> None:
        self.corpus = corpus
        self.settings = settings
        self.rank = rank
        self.world_size = world_size
        self.reader = BatchReader(corpus.reader, settings.packed, pad_id)
        self._plan = plan_batches(corpus, settings)

    def __len__(self) -> int:
        return -(-len(self._plan) // self.world_size)

    def __iter__(self) -> Iterator[tuple[Due, ...]]:
        return (self.corpus.due(self.entries(item), 0) for item in range(len(self)))

    def entries(self, item: int) -> np.ndarray:
        """int64 (E,): what this rank loads in a round; empty when there is nothing left for it."""
        number = item * self.world_size + self.rank
        return self._plan[number] if number < len(self._plan) else np.empty(0, np.int64)

    def dataset(self, item: int) -> int:
        """Number of the data set of a batch; 0 for an empty one, which counts nowhere."""
        entries = self.entries(item)
        return int(self.corpus.places(entries[:1]).dataset[0]) if len(entries) else 0


class Validator:
    """Measures a model on the lines kept for it; what it yields is a dict of numbers, equal on all ranks.

    ``ledger`` gets what this rank could not load, each line once.
    """

    def __init__(self, batches: EvalBatches, ledger: Ledger) -> None:
        self.batches = batches
        self.ledger = ledger
        self._known: set[tuple[str, int]] = set()

    @property
    def losses(self) -> list[str]:
        """Names of the losses that an evaluation yields: that of all lines, then of each data set."""
        corpus = self.batches.corpus
        return ["eval_loss", *(f"eval_loss/{share.name}" for share in corpus.shares if share.count)]

    def run(self, loss_of: LossOf) -> dict[str, float]:
        """Loss of the whole and of each data set, and what was counted.

        Collective: every rank calls ``loss_of`` as often. A loss is ``sum(weight * CE) / sum(weight)`` over all
        supervised tokens of its lines, whatever batch or rank they fell to. Raises DataError when more lines cannot be
        loaded than ``--max_fault_share`` allows.
        """
        started = time.perf_counter()
        sums = torch.zeros(len(self.batches.corpus.specs), len(_COLUMNS), dtype=torch.float64)
        losses: list[Tensor] = []
        numbers: list[int] = []
        for item, batch in enumerate(self._loader()):
            weights = token_weights(batch.labels, batch.cu_seqlens, self.batches.settings.loss_reduction)
            losses.append(loss_of(batch, weights).detach())  # read at the end: no sync per batch
            numbers.append(self.batches.dataset(item))
            counts = [batch.num_tokens, batch.num_supervised, len(batch.addresses), len(batch.faults)]
            sums[numbers[-1], 1:] += torch.tensor([float(weights.double().sum()), *counts], dtype=torch.float64)
            self._note_faults(batch.faults)
        sums[:, 0].index_add_(0, torch.tensor(numbers), torch.stack(losses).cpu().double())
        sums = dist.sum_over_ranks(sums)
        self._check_faults(int(sums[:, _COLUMNS.index("faults")].sum()))
        return {**self._metrics(sums), "eval_seconds": round(time.perf_counter() - started, 3)}

    def _metrics(self, sums: Tensor) -> dict[str, float]:
        specs = self.batches.corpus.specs
        whole = dict(zip(_COLUMNS, sums.sum(0).tolist(), strict=True))
        parts = {
            f"eval_loss/{spec.name}": loss / weight
            for spec, (loss, weight) in zip(specs, sums[:, :2].tolist(), strict=True)
            if weight
        }
        return {
            "eval_loss": whole["loss"] / whole["weight"] if whole["weight"] else math.nan,
            **parts,
            "eval_tokens": whole["tokens"],
            "eval_supervised_tokens": whole["supervised"],
            "eval_samples": whole["samples"],
            "eval_samples_left_out": whole["faults"],
        }

    def _loader(self) -> DataLoader:
        settings = self.batches.settings
        workers = min(settings.workers, len(self.batches))
        return make_loader(self.batches, workers, settings.pin_memory, settings.prefetch)

    def _note_faults(self, faults: Sequence[FaultRecord]) -> None:
        """Into the ledger what is not there yet, the first also into the log."""
        new = [fault for fault in faults if (fault.dataset, fault.line) not in self._known]
        self.ledger.write(new)
        for fault in new[: max(0, _SHOWN - len(self._known))]:
            log.warning("left out of the evaluation, could not be loaded: %s", fault)
        self._known |= {(fault.dataset, fault.line) for fault in new}

    def _check_faults(self, faults: int) -> None:
        share, lines = self.batches.settings.max_fault_share, len(self.batches.corpus)
        if faults > share * lines:
            raise DataError(
                f"{faults} of {lines} lines to evaluate on could not be loaded, more than --max_fault_share {share:g} "
                f"allows; all are listed in {self.ledger.path}; `internvl check --decode` finds them before"
            )


def describe(metrics: dict[str, float]) -> str:
    """What a person wants to see of an evaluation; all of it is in TensorBoard and ``train_log.jsonl``."""
    losses = {name.removeprefix("eval_loss/"): loss for name, loss in metrics.items() if name.startswith("eval_loss/")}
    parts = [f"{name} {losses[name]:.4f}" for name in sorted(losses, key=lambda name: -losses[name])[:_LISTED]]
    parts += [f"{len(losses) - _LISTED} more"] if len(losses) > _LISTED else []
    left_out = f", {metrics['eval_samples_left_out']:.0f} left out" if metrics["eval_samples_left_out"] else ""
    return (
        f"loss {metrics['eval_loss']:.4f} ({', '.join(parts)}) on {metrics['eval_samples']:.0f} samples{left_out}, "
        f"{metrics['eval_seconds']:.1f} s"
    )


@contextmanager
def quiet(model: nn.Module, optimizer: Any) -> Iterator[None]:
    """No dropout, no gradient, and the random state of the training as it was; also where weights are averaged."""
    mode = model.training
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    model.eval()
    if callable(getattr(optimizer, "eval", None)):  # schedule-free optimizers hold two sets of weights
        optimizer.eval()
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            yield
    finally:
        model.train(mode)
        if callable(getattr(optimizer, "train", None)):
            optimizer.train()
