"""What a run does per step: sums over ranks, and what is logged from them. docs/metrics.md explains every key."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from internvl_chat.model.flops import TowerFlops
from internvl_chat.train import dist
from internvl_chat.train.inputs import PER_DATASET, MicroBatch
from internvl_chat.train.timing import PHASES, PhaseClock, peak_memory

# Columns of the vector that all ranks sum once per optimizer step.
COLUMNS = ("weight", "tokens", "supervised", "tiles", "samples", "faults", "capacity", "data_wait", "squares")


def step_counts(batches: Sequence[MicroBatch], capacity: int, data_wait: float) -> torch.Tensor:
    """This rank's counts of one optimizer step, float64 (len(COLUMNS),).

    ``capacity``: tokens that would have fitted; ``data_wait``: seconds spent waiting for the loader.
    """
    return torch.tensor(
        [
            sum(micro.weight for micro in batches),
            sum(micro.batch.num_tokens for micro in batches),
            sum(micro.batch.num_supervised for micro in batches),
            sum(micro.batch.num_tiles for micro in batches),
            sum(len(micro.batch.addresses) for micro in batches),
            sum(len(micro.batch.faults) for micro in batches),
            capacity,
            data_wait,
            sum(micro.squares for micro in batches),
        ],
        dtype=torch.float64,
    )


class Meter:
    """Sums counts between two log lines. ``faults_in_all`` and ``steps_skipped`` go on over a resume.

    ``datasets``: names, in the order of the rows of ``MicroBatch.table``. ``flops``: of a training step, if rates are
    to be told; ``peak``: FLOP/s that a device could do at most, if known.
    """

    def __init__(
        self,
        world_size: int,
        datasets: Sequence[str] = (),
        device: torch.device | None = None,
        flops: TowerFlops | None = None,
        peak: float | None = None,
    ) -> None:
        self.world_size = world_size
        self.datasets = tuple(datasets)
        self.device = device or torch.device("cpu")
        self.flops, self.peak = flops, peak
        self.clock = PhaseClock(self.device)
        self.faults_in_all = 0
        self.steps_skipped = 0  # loss or gradient was not finite
        self.scaler_skips = 0  # fp16's loss scaler found its scale too high
        self._since = time.perf_counter()
        self._sums = torch.zeros(len(COLUMNS), dtype=torch.float64)
        self._table = torch.zeros(len(self.datasets), len(PER_DATASET), dtype=torch.float64)
        self._idle = 0.0
        self._steps = 0
        # Of the steps that were applied, since the last log line and since the run or its resume began.
        self._applied, self._all_applied, self._all_loss = 0, 0, 0.0
        self._weights = torch.zeros(len(self.datasets), dtype=torch.float64)
        self._losses = torch.zeros(len(self.datasets), dtype=torch.float64, device=self.device)
        self._step_weights, self._step_losses = self._weights.clone(), self._losses.clone()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on counting, as JSON values."""
        return {name: getattr(self, name) for name in ("faults_in_all", "steps_skipped", "scaler_skips")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``; what an older checkpoint does not know begins at 0."""
        for name in self.state_dict():
            setattr(self, name, int(state.get(name, 0)))

    # -- one step -----------------------------------------------------------------------------------------------------

    def add(self, counts: torch.Tensor, batches: Sequence[MicroBatch] = (), idle: float = 0.0) -> None:
        """A step begins: its counts over all ranks, this rank's part of it, and the planned share of idle time."""
        self._sums += counts
        self._steps += 1
        self._idle += idle
        self.faults_in_all += int(counts[COLUMNS.index("faults")])
        self._step_losses.zero_()
        self._step_weights.zero_()
        denominator = float(counts[0]) or 1.0
        for micro in batches:
            self._table += micro.table
            self._step_weights += micro.table[:, 0] / denominator

    def add_losses(
        self, losses: torch.Tensor, weights: torch.Tensor, groups: torch.Tensor, denominator: torch.Tensor | float
    ) -> None:
        """Cross-entropies (M,) of a micro-batch, on the device; data set ``groups`` (M,). Waits for nothing."""
        shares = losses.double() * weights.double() / denominator
        self._step_losses.index_add_(0, groups, shares)

    def applied(self) -> None:
        """The optimizer took the step."""
        self._applied += 1
        self._weights += self._step_weights
        self._losses += self._step_losses

    def refused(self) -> None:
        """The step was left out: what it would have added to the loss is forgotten."""
        self.steps_skipped += 1

    def skip(self, seconds: float) -> None:
        """Leave out time that was not spent on training."""
        self._since += seconds
        self.clock.skip(seconds)

    # -- log ----------------------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether every step since the last log line was applied."""
        return self._applied == self._steps

    def drain(self) -> dict[str, float]:
        """All that is logged since the last call, ``loss`` among it if a step was applied. Collective over ranks."""
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        sums = dict(zip(COLUMNS, self._sums.tolist(), strict=True))
        table, losses, weights, phases, memory = self._over_ranks()
        logs = self._loss_logs(losses, weights)
        logs |= {
            "tokens_per_second": round(sums["tokens"] / seconds, 1),
            "supervised_tokens_per_second": round(sums["supervised"] / seconds, 1),
            "tiles_per_second": round(sums["tiles"] / seconds, 2),
            "samples_per_second": round(sums["samples"] / seconds, 2),
            "fill": round(sums["tokens"] / max(sums["capacity"], 1.0), 4),
            "idle_share": round(self._idle / max(self._steps, 1), 4),
            "data_wait": round(sums["data_wait"] / self.world_size / seconds, 4),
            "step_seconds": seconds / max(self._steps, 1),
            "samples_left_out": float(self.faults_in_all),
            "steps_skipped": float(self.steps_skipped),
            **self._rates(sums, seconds),
            **phases,
            **memory,
        }
        if self.scaler_skips:
            logs["scaler_skips"] = float(self.scaler_skips)
        for name, row in zip(self.datasets, table.tolist(), strict=True):
            counts = dict(zip(PER_DATASET, row, strict=True))
            if counts["samples"]:
                logs |= {f"{key}/{name}": float(round(counts[key])) for key in ("tokens", "samples", "tiles")}
        self._sums.zero_()
        self._table.zero_()
        self._weights.zero_()
        self._losses.zero_()
        self._idle, self._steps, self._applied, self._since = 0.0, 0, 0, now
        return logs

    def _over_ranks(
        self,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, float], dict[str, float]]:
        """(Counts by data set, losses, weights, share of time by phase, greatest memory), in one message."""
        seconds, memory = self.clock.drain(), peak_memory(self.device)
        # A maximum by a sum: every rank writes into a place of its own.
        own = torch.zeros(self.world_size, len(memory), dtype=torch.float64)
        own[dist.rank() % self.world_size] = torch.tensor(list(memory.values()), dtype=torch.float64)
        parts = [self._table, self._losses.cpu(), self._weights, torch.tensor(seconds, dtype=torch.float64), own]
        message = dist.sum_over_ranks(torch.cat([part.flatten() for part in parts]))
        table, losses, weights, time_spent, peaks = message.split([part.numel() for part in parts])
        total = max(float(time_spent.sum()), 1e-9)
        shares = {f"time/{name}": float(spent) / total for name, spent in zip(PHASES, time_spent, strict=True)}
        most = peaks.view(self.world_size, -1).amax(0).tolist()
        return table.view_as(self._table), losses, weights, shares, dict(zip(memory, most, strict=True))

    def _loss_logs(self, losses: torch.Tensor, weights: torch.Tensor) -> dict[str, float]:
        """The mean loss of the steps that were applied; per data set its mean, and its share of all weights."""
        self._all_applied += self._applied
        self._all_loss += float(losses.sum())
        logs = {"loss": float(losses.sum()) / self._applied} if self._applied else {}
        for name, loss, weight in zip(self.datasets, losses.tolist(), weights.tolist(), strict=True):
            if weight:
                logs |= {f"loss/{name}": loss / weight, f"weight/{name}": weight / self._applied}
        return logs

    def mean_loss(self) -> float:
        """Of all steps applied since the run, or its resume, began; of what was drained."""
        return self._all_loss / max(self._all_applied, 1)

    def _rates(self, sums: dict[str, float], seconds: float) -> dict[str, float]:
        """Useful TFLOP/s per device, and their share of what the device could do."""
        if self.flops is None:
            return {}
        data = (sums["tokens"], sums["squares"], sums["supervised"], sums["tiles"])
        found = {name: getattr(self.flops, name).of(*data) for name in ("vit", "llm", "vit_again", "llm_again")}
        rate = {name: value / seconds / self.world_size for name, value in found.items()}
        useful = rate["vit"] + rate["llm"]
        logs = {"tflops": useful / 1e12, "vit_tflops": rate["vit"] / 1e12, "llm_tflops": rate["llm"] / 1e12}
        if self.peak:
            logs |= {"mfu": useful / self.peak, "vit_mfu": rate["vit"] / self.peak, "llm_mfu": rate["llm"] / self.peak}
            logs["hfu"] = sum(rate.values()) / self.peak
        return logs
