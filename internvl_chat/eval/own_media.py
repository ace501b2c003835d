"""Pictures of own data -> where they lie: files, members of archives, data URLs, base64 as tables have it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import tempfile
from dataclasses import replace
from pathlib import Path

from internvl_chat.config.cache import cache_folder
from internvl_chat.constants import MAX_PICTURE_BYTES
from internvl_chat.data.faults import Fault, FaultCode
from internvl_chat.data.media import read_image_size
from internvl_chat.data.opening import protocol_of
from internvl_chat.data.parquet import mime_of
from internvl_chat.data.storage import Medium, locate_medium
from internvl_chat.errors import DataError, first_line
from internvl_chat.eval.sources import DATA, writing_cache

_ARCHIVE = re.compile(r"\.(zip|tar|tgz|tbz2?|txz|tar\.(gz|bz2|xz|zst))$", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
# Characters: no picture is shorter as base64; no name of a file, and no part of one (bytes), is longer.
_SHORTEST_PICTURE, _LONGEST_NAME, _LONGEST_PART = 48, 1024, 255
# Base64 of as many bytes as tell the type of a file.
_HEAD = 64


def locate_picture(root: Path, name: str) -> Path | Medium:
    """Where a picture of a record lies. ``root``: folder, or archive, that names are below.

    Names are below ``root`` also where they begin with ``data/``, as they do in annotations of benchmarks. A picture
    inside the record is written to a file of the cache, once. Raises DataError for what cannot be a picture, and for
    members that an archive does not have; a file that is not there is told by who opens it.
    """
    url = as_url(name)
    if url.startswith("data:"):
        return _kept(url)
    if protocol_of(name):
        return _addressed(root, name)
    if len(name) > _LONGEST_NAME or "\0" in name or any(len(p.encode()) > _LONGEST_PART for p in name.split("/")):
        what = f"picture {name[:60]!r}... ({len(name)} characters)"
        raise DataError(f"{what}: neither the name of a file nor base64 of a picture; see 'fields'")
    places = [root / name, *([root / name.removeprefix(DATA)] if name.startswith(DATA) else [])]
    lacking = None
    for place in places:
        if place.is_file():
            return place
        archive = next((above for above in place.parents if _ARCHIVE.search(above.name) and above.is_file()), None)
        if archive is not None:
            try:
                return _member(locate_medium(str(archive), str(place.relative_to(archive))))
            except FileNotFoundError:
                lacking = lacking or f"archive {archive} has no member {str(place.relative_to(archive))!r}"
            except Fault as fault:
                raise DataError(str(fault)) from fault
    if lacking is not None:
        raise DataError(f"{lacking}; write its path as the archive lists it")
    return places[0]


def as_url(text: str) -> str:
    """Base64 of a picture as a data URL; anything else as it is."""
    if len(text) < _SHORTEST_PICTURE or text.startswith("data:"):
        return text
    head = "".join(text[: _HEAD + 8].split())[:_HEAD]
    try:
        mime = mime_of(base64.b64decode(head[: len(head) // 4 * 4], validate=True))
    except (binascii.Error, ValueError):
        return text
    if mime is None or not mime.startswith("image/"):
        return text
    whole = "".join(text.split())
    # What is too long for a name, and begins as a picture does, is one that is damaged.
    return f"data:{mime};base64,{whole}" if len(text) > _LONGEST_NAME or _BASE64.fullmatch(whole) else text


def _kept(url: str) -> Path:
    """The file of a data URL in the cache, called by its content. Raises DataError, ConfigError."""
    try:
        content = locate_medium("", url).read(MAX_PICTURE_BYTES)
        kind = (mime_of(content) or "picture/bin").partition("/")[2]
        folder = cache_folder() / "eval" / "own-pictures"
        path = folder / f"{hashlib.sha256(content).hexdigest()[:24]}.{kind}"
        with writing_cache(folder):
            if not path.is_file():
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as part:
                    whole = Path(part) / path.name
                    whole.write_bytes(content)
                    read_image_size(whole)
                    whole.replace(path)  # processes that write it at once write the same
        return path.resolve()
    except Fault as fault:
        start = f"{url[:40]}... ({len(url)} characters)"
        raise DataError(f"picture {start} inside the record is no picture ({fault.reason}); encode it anew") from fault


def _addressed(root: Path, name: str) -> Path | Medium:
    if protocol_of(name) not in ("zip", "tar", "file"):
        raise DataError(f"picture {name[:200]!r} is an address, and none is opened here; download it and name the file")
    try:
        medium = locate_medium(str(root), name)
        return medium.local if medium.local is not None else _member(medium)
    except FileNotFoundError as error:
        raise DataError(f"picture {name!r}: not there ({first_line(error)})") from error
    except Fault as fault:
        # The mend speaks of a flag of the training.
        mend = "download it" if fault.code is FaultCode.REMOTE else fault.mend
        raise DataError(f"{fault.reason}; {mend}") from fault


def _member(medium: Medium) -> Medium:
    """A member of an archive, called as the report can open it. Raises FileNotFoundError, Fault, DataError."""
    try:
        medium.open().close()
    except FileNotFoundError:
        raise
    except (OSError, RuntimeError) as error:  # RuntimeError: it is encrypted, or compressed in an odd way
        raise DataError(f"{medium.name} cannot be read ({first_line(error)})") from error
    kind = "zip" if medium.url.lower().endswith(".zip") else "tar"
    return replace(medium, name=f"{kind}://{medium.member}::{medium.url}")
