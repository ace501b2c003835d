"""Miniature data sets in the layouts of the guide, by the name of their task."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from pathlib import Path


@cache
def writers() -> dict[str, Callable[[Path], object]]:
    """Name of a task -> what writes miniature data of it below a data root."""
    found: dict[str, Callable[[Path], object]] = {}
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        found |= getattr(importlib.import_module(module.name), "WRITERS", {})
    return found


def write_task(name: str, root: Path) -> None:
    """Write the data of a task."""
    writers()[name](root)
