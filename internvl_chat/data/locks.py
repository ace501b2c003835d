"""One process at a time: locks on files, as far as the file system has them."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """One process at a time is inside, the others wait; gives whether that is so: some file systems have no locks.

    ``path``: an empty file, made where it is not there; it stays. Raises OSError where it cannot be made.
    """
    with path.open("a") as file:
        held = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            held = False
        yield held
