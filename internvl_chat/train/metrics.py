"""What a run does per step: sums over ranks, and the rates that are logged from them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from internvl_chat.data.batch import Batch

# Columns of the vector that all ranks sum once per optimizer step.
COLUMNS = ("weight", "tokens", "supervised", "tiles", "samples", "faults", "capacity", "data_wait")


def step_counts(batches: list[Batch], weight: float, capacity: int, data_wait: float) -> torch.Tensor:
    """This rank's counts of one optimizer step, float64 (len(COLUMNS),).

    ``capacity``: tokens that would have fitted; ``data_wait``: seconds spent waiting for the loader.
    """
    return torch.tensor(
        [
            weight,
            sum(batch.num_tokens for batch in batches),
            sum(batch.num_supervised for batch in batches),
            sum(batch.num_tiles for batch in batches),
            sum(len(batch.addresses) for batch in batches),
            sum(len(batch.faults) for batch in batches),
            capacity,
            data_wait,
        ],
        dtype=torch.float64,
    )


@dataclass
class Meter:
    """Sums counts between two log lines."""

    world_size: int
    _sums: torch.Tensor = field(default_factory=lambda: torch.zeros(len(COLUMNS), dtype=torch.float64))
    _since: float = field(default_factory=time.perf_counter)
    faults_in_all: int = 0

    def add(self, counts: torch.Tensor) -> None:
        """Counts of one optimizer step, summed over ranks."""
        self._sums += counts
        self.faults_in_all += int(counts[COLUMNS.index("faults")])

    def drain(self) -> dict[str, float]:
        """Rates since the last call: per second of wall clock over all ranks; shares are 0..1."""
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        sums = dict(zip(COLUMNS, self._sums.tolist(), strict=True))
        self._sums.zero_()
        self._since = now
        return {
            "tokens_per_second": round(sums["tokens"] / seconds, 1),
            "supervised_tokens_per_second": round(sums["supervised"] / seconds, 1),
            "tiles_per_second": round(sums["tiles"] / seconds, 2),
            "samples_per_second": round(sums["samples"] / seconds, 2),
            "fill": round(sums["tokens"] / max(sums["capacity"], 1.0), 4),
            "data_wait": round(sums["data_wait"] / self.world_size / seconds, 4),
            "samples_left_out": float(self.faults_in_all),
        }
