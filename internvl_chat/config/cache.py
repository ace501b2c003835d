"""Where what can be made again is kept: indexes, plans, exports for the server."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder that INTERNVL_CACHE names, else one in the user's home."""
    return Path(os.environ.get("INTERNVL_CACHE") or "~/.cache/internvl_chat").expanduser()
