"""One logger for the package. Only rank 0 speaks at INFO; every rank may warn."""

from __future__ import annotations

import logging
import os
import sys
import warnings


def get_logger(name: str) -> logging.Logger:
    """Logger below ``internvl_chat``; silent until an entry point calls ``setup_logging``."""
    return logging.getLogger(name if name.startswith("internvl_chat") else f"internvl_chat.{name}")


def hush_libraries() -> None:
    """Before anything is imported: warnings about which a user can do nothing.

    Where bitsandbytes is installed, it warns of a kernel that is not; accelerate, that the Trainer counts accumulated
    steps itself; peft, that a model that was not loaded has no name; transformers, that penalties count what is new.
    """
    for name in ("bitsandbytes", "accelerate.accelerator"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="The PEFT config's `base_model_name_or_path` was renamed")
    warnings.filterwarnings("ignore", message="Passing `.*` with `inputs_embeds` and without `input_ids`")


class _ToStderr(logging.StreamHandler):
    """Writes to what is stderr by then: a thread may still speak when the one of now is closed."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def setup_logging(verbose: bool = False) -> None:
    """Write log lines to stderr; ranks above 0 only warnings. Called by entry points, never at import."""
    rank = int(os.environ.get("RANK", "0"))
    handler = _ToStderr()
    where = f"[rank {rank}] " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    handler.setFormatter(logging.Formatter(f"%(asctime)s {where}%(message)s", datefmt="%H:%M:%S"))
    logger = logging.getLogger("internvl_chat")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.INFO if rank == 0 else logging.WARNING)
