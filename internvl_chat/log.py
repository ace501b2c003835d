"""One logger for the package. Only rank 0 speaks at INFO; every rank may warn."""

from __future__ import annotations

import logging
import os
import sys


def get_logger(name: str) -> logging.Logger:
    """Logger below ``internvl_chat``; silent until an entry point calls ``setup_logging``."""
    return logging.getLogger(name if name.startswith("internvl_chat") else f"internvl_chat.{name}")


def hush_libraries() -> None:
    """Before anything is imported: where bitsandbytes is installed, it warns of a kernel that is not."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def setup_logging(verbose: bool = False) -> None:
    """Write log lines to stderr; ranks above 0 only warnings. Called by entry points, never at import."""
    rank = int(os.environ.get("RANK", "0"))
    handler = logging.StreamHandler(sys.stderr)
    where = f"[rank {rank}] " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    handler.setFormatter(logging.Formatter(f"%(asctime)s {where}%(message)s", datefmt="%H:%M:%S"))
    logger = logging.getLogger("internvl_chat")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.INFO if rank == 0 else logging.WARNING)
