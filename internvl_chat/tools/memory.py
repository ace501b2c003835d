"""Peak memory of a process and all that it started, sampled from /proc while a block runs (Linux)."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from pathlib import Path
from types import TracebackType


class TreeMemory:
    """Context manager; ``peak_mib`` is the largest sum seen over the process tree, in MiB.

    Sums proportional set sizes (PSS: shared pages counted once over their users) where the kernel gives them, else
    resident set sizes. 0 where there is no /proc. Asking for them stops a process for some milliseconds, so it is done
    every few seconds only.
    """

    def __init__(self, interval_s: float = 5.0) -> None:
        self.peak_mib = 0.0
        self._interval_s = interval_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> TreeMemory:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            total = sum(_memory_kib(pid) for pid in _family(os.getpid())) / 1024
            self.peak_mib = max(self.peak_mib, total)
            if self._done.wait(self._interval_s):
                return


def _family(root: int) -> list[int]:
    """The process and its descendants."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in brackets, may hold blanks; the parent comes second after it.
            children[int(stat.read_text().rpartition(")")[2].split()[1])].append(int(stat.parent.name))
        except (OSError, IndexError, ValueError):
            continue  # gone meanwhile
    family = [root]
    for member in family:
        family += children[member]
    return family


def _memory_kib(pid: int) -> float:
    for name, field in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        try:
            for line in Path(f"/proc/{pid}/{name}").read_text().splitlines():
                if line.startswith(field):
                    return float(line.split()[1])
        except OSError:
            continue
    return 0.0
