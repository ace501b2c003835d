"""Opens members of archives and what lies on a network; used through ``data/storage.py`` only.

Archives and drivers are opened once per process and thread: an open handle must not cross a fork, and that of a tar has
one position. The list of an archive's members is kept in memory, about 1 KB each.
"""

from __future__ import annotations

import errno
import io
import os
import posixpath
import re
import tarfile
import threading
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from internvl_chat.constants import MAX_PICTURE_BYTES
from internvl_chat.data.faults import Fault, FaultCode
from internvl_chat.errors import ConfigError, first_line

Result = TypeVar("Result")

# Seconds until a silent server is given up.
TIMEOUT = 60
# What is fetched of a remote file at once: a picture's header, or a video's, fits.
BLOCK = 64 * 1024

_SERVER = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def protocol_of(text: str) -> str:
    """``S3://a/b`` -> ``s3``; an empty string for plain paths."""
    match = _PROTOCOL.match(text)
    return match[1].lower() if match else ""


def shorten(text: str) -> str:
    """A path or URL for a message."""
    return text if len(text) <= 200 else f"{text[:150]}...{text[-40:]}"


def open_remote(url: str) -> tuple[BinaryIO, int | None]:
    """(file that can seek, its size if known) of any URL of fsspec. Raises OSError, Fault and ConfigError."""
    return _driven(_open_remote, url)


def list_remote(url: str) -> list[str]:
    """Names of the files right under a URL. Raises as ``open_remote`` does."""
    entries = _driven(lambda driver, where: list(driver.ls(where, detail=True)), url)
    return [str(entry["name"]).rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file"]


def open_member(archive: str, member: str) -> tuple[BinaryIO, int]:
    """(file, size as the archive says) of a member. Raises OSError (FileNotFoundError) and Fault UNREADABLE."""
    entry = members_of(archive).get(member)
    if entry is None:
        raise FileNotFoundError(errno.ENOENT, "not in the archive", member)
    packed, info = entry
    if isinstance(packed, zipfile.ZipFile):
        return cast(BinaryIO, packed.open(info)), info.file_size
    file = packed.extractfile(info)
    if file is None:
        raise IsADirectoryError(errno.EISDIR, "no file of the archive", member)
    return cast(BinaryIO, file), info.size


def list_members(archive: str, folder: str) -> list[str]:
    """Members right inside a folder (path with "/" at its end) of an archive. Raises as ``open_member`` does."""
    return [m for m in members_of(archive) if m.startswith(folder) and m != folder and "/" not in m[len(folder) :]]


def forget_archives() -> None:
    """Open archives anew when they are next used: after an error their handles may be what is broken."""
    _archive.cache_clear()


def members_of(where: str) -> dict[str, tuple[Any, Any]]:
    """Path of each member of an archive (a path or address) -> (the opened archive, its entry)."""
    return _archive(where, os.getpid(), threading.get_ident())


@lru_cache(maxsize=16)
def _archive(where: str, process: int, thread: int) -> dict[str, tuple[Any, Any]]:
    """Member's path -> (opened archive, its entry); later entries of a path replace earlier ones."""
    file = open_remote(where)[0] if protocol_of(where) else Path(where).open("rb")  # noqa: SIM115 - for the process
    try:
        if where.lower().endswith(".zip"):
            packed = zipfile.ZipFile(file)
            return {_key(info.filename, info.is_dir()): (packed, info) for info in packed.infolist()}
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
        return {_key(info.name, info.isdir()): (tar, info) for info in tar.getmembers()}
    except OSError:
        file.close()
        raise
    except Exception as error:  # a damaged archive raises whatever it leads the parser to
        file.close()
        what = f"archive {shorten(where)!r} is damaged or compressed as a whole ({first_line(error)})"
        raise Fault(FaultCode.UNREADABLE, what, "pack it again as plain .zip or .tar") from error


def _key(name: str, folder: bool) -> str:
    return posixpath.normpath(name).lstrip("/") + ("/" if folder else "")


def _driven(action: Callable[[Any, str], Result], url: str) -> Result:
    """``action`` of the URL's file system. Whatever a driver raises becomes an OSError, which is tried again."""
    try:
        server = _SERVER.match(url)
        return action(_driver(server[0] if server else url, os.getpid()), url)
    except ImportError as error:
        raise ConfigError(
            f"{shorten(url)!r} needs a package that is not installed ({first_line(error)}): pip install fsspec, and "
            "s3fs for s3://, aiohttp for http(s)://"
        ) from error
    except FileNotFoundError as error:
        # fsspec says so of every address that gives no answer, too: a busy server would pass for a missing file.
        cause = error.__cause__
        if protocol_of(url) not in ("http", "https") or cause is None or getattr(cause, "status", 0) in (404, 410):
            raise
        raise OSError(errno.EIO, first_line(cause)) from error
    except (IsADirectoryError, PermissionError, Fault):
        raise
    except Exception as error:
        raise OSError(errno.EIO, first_line(error)) from error


@lru_cache(maxsize=16)
def _driver(server: str, process: int) -> Any:
    """The file system of a host or bucket (``s3://bucket``)."""
    import fsspec

    protocol = protocol_of(server)
    if protocol not in fsspec.available_protocols():
        raise Fault(FaultCode.UNREADABLE, f"'{protocol}://' is no protocol that fsspec knows", "check the spelling")
    options: dict[str, Any] = {}
    if protocol in ("http", "https"):
        import aiohttp

        options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(sock_connect=TIMEOUT, sock_read=TIMEOUT)}
    elif protocol in ("s3", "s3a"):
        options["config_kwargs"] = {"connect_timeout": TIMEOUT, "read_timeout": TIMEOUT}
        options["use_listings_cache"] = False
    # fsspec's own cache of instances would hand a forked worker its parent's connections.
    return fsspec.core.url_to_fs(server, skip_instance_cache=True, **options)[0]


def _open_remote(driver: Any, url: str) -> tuple[BinaryIO, int | None]:
    file = driver.open(url, "rb", block_size=BLOCK)
    size = getattr(file, "size", None)
    if not file.seekable():  # a server that does not send parts
        with file:
            content = file.read(MAX_PICTURE_BYTES + 1)
        if len(content) > MAX_PICTURE_BYTES:
            what = f"{shorten(url)!r} is large, and its server does not send parts of files"
            raise Fault(FaultCode.UNREADABLE, what, "copy it to a local folder")
        return io.BytesIO(content), len(content)
    return cast(BinaryIO, io.BufferedReader(_Steady(file), BLOCK)), size


class _Steady(io.RawIOBase):
    """A driver's file whose every error is an OSError, as with files of this machine."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        try:
            content = self._file.read(len(buffer))
        except Exception as error:
            raise OSError(errno.EIO, first_line(error)) from error
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()
