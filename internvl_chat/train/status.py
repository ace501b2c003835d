"""What a run leaves behind for those who started it: an exit status, and word that it is to be started again."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from internvl_chat.config.early import flag_of
from internvl_chat.log import get_logger

log = get_logger(__name__)

FAILED = 1
USER_ERROR = 2
AGAIN = os.EX_TEMPFAIL  # 75
INTERRUPTED = 130
# In the output folder of a run that ended for a reason outside of it: batch jobs look for it.
START_AGAIN = "start_again.json"


def output_folder(argv: Sequence[str]) -> Path | None:
    """``--output_dir``, as far as it can be told before the flags are checked."""
    value = flag_of(argv, "output_dir")
    return Path(value) if value else None


def note_start_again(output_dir: Path, reason: str | None, step: int | None = None) -> None:
    """Leave word that the run is to be started again; ``reason`` None takes it back. Any rank may do so."""
    path = output_dir / START_AGAIN
    try:
        if reason is None:
            with suppress(NotADirectoryError):  # the flags' own check tells that better
                path.unlink(missing_ok=True)
            return
        output_dir.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}")
        temporary.write_text(json.dumps({"reason": reason, "step": step}) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        log.warning("%s: cannot be written or removed (%s)", path, error)
