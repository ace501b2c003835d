"""Where the time of a step goes: phases between two log lines, on the device's own clock where there is one."""

from __future__ import annotations

import resource
import time

import torch

PHASES = ("data", "forward", "backward", "optimizer", "other")
_GIB = 2**30
# Events that may be waiting before the finished ones are added up, also where nothing is ever logged.
_MOST_EVENTS = 256


class PhaseClock:
    """Seconds per phase. ``enter`` ends the current phase and begins another; it never waits for the device.

    On CUDA a phase is the time that the device spent between two events, read when the sums are asked for: a wait for
    data that the device does not notice is not in ``data`` there.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._phase = "other"
        self._since = time.perf_counter()
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._events: list[tuple[str, torch.cuda.Event]] = []
        if self._cuda:
            self._record()

    def enter(self, phase: str) -> None:
        if phase == self._phase:
            return
        self._end()
        self._phase = phase

    def _end(self) -> None:
        if self._cuda:
            self._record()
            return
        now = time.perf_counter()
        self._seconds[self._phase] += now - self._since
        self._since = now

    def _record(self) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append((self._phase, event))
        if len(self._events) > _MOST_EVENTS:
            self._fold()

    def _fold(self) -> None:
        """Add up the phases that the device has ended."""
        while len(self._events) > 1 and self._events[1][1].query():
            (_, start), (phase, end) = self._events[:2]
            self._seconds[phase] += start.elapsed_time(end) / 1000
            del self._events[0]

    def skip(self, seconds: float) -> None:
        """So much of the current phase is not to be counted."""
        self._seconds[self._phase] -= seconds

    def drain(self) -> list[float]:
        """Seconds by ``PHASES`` since the last call; on CUDA it waits until the device has caught up."""
        self._end()
        if self._cuda:
            self._events[-1][1].synchronize()
            self._fold()
        seconds = [max(0.0, self._seconds[phase]) for phase in PHASES]
        self._seconds = dict.fromkeys(PHASES, 0.0)
        return seconds


def peak_memory(device: torch.device) -> dict[str, float]:
    """GiB that this process took at most: of a CUDA device since the last call, else of the host since its start."""
    if device.type != "cuda":
        return {"memory_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GIB}
    found = {
        "memory_allocated_gib": torch.cuda.max_memory_allocated(device) / _GIB,
        "memory_reserved_gib": torch.cuda.max_memory_reserved(device) / _GIB,
    }
    torch.cuda.reset_peak_memory_stats(device)
    return found
