"""Where media lie: a root and the name written in the line -> a path on this machine."""

from __future__ import annotations

from pathlib import Path

from internvl_chat.data.faults import Fault, FaultCode


def resolve_media(root: str, name: str) -> Path:
    """Path of a picture. An absolute ``name`` ignores the root, as in the original. Raises Fault for remote ones."""
    if "://" in name or "://" in root:
        what = f"picture {name!r} under root {root!r} is remote"
        raise Fault(FaultCode.UNSUPPORTED, what, "copy the pictures to a local folder")
    return Path(root) / name
