"""Where media lie: a root and the name written in the line -> a Medium, which can be opened and read anywhere.

Plain paths, ``data:`` and ``file://`` URLs, members of zip and tar archives, and, if allowed, all that fsspec reads.
What fails in passing (a busy file server, a lost connection) is tried again.
"""

from __future__ import annotations

import base64
import binascii
import errno
import io
import posixpath
import re
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar, cast
from urllib.parse import unquote, urlsplit

from internvl_chat.constants import MAX_PICTURE_BYTES
from internvl_chat.data.faults import Fault, FaultCode
from internvl_chat.data.opening import (
    forget_archives,
    list_members,
    list_remote,
    open_member,
    open_remote,
    protocol_of,
    shorten,
)
from internvl_chat.errors import first_line

Result = TypeVar("Result")

# Seconds between the tries of one read.
RETRY_PAUSES = (0.5, 2.0)

_PIECE = 2**20
_COMPRESSED_TAR = re.compile(r"\.(tar\.(gz|bz2|xz|zst)|tgz|tbz2?|txz)$", re.IGNORECASE)
_ARCHIVE = re.compile(r"\.(zip|tar)$", re.IGNORECASE)
# Errors that stay, however often one tries.
_LASTING = {
    errno.ENOENT,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.EINVAL,
    errno.ELOOP,
    errno.EILSEQ,
}


@dataclass(frozen=True)
class Medium:
    """One picture, video or folder of frames, wherever it lies. Picklable: nothing is open between two calls.

    ``name`` is for messages. ``local`` is its path if it is a file of this machine; else ``url`` is where it lies or,
    with a ``member``, where the archive that holds it lies.
    """

    name: str
    local: Path | None = None
    url: str = ""
    member: str = ""
    pauses: tuple[float, ...] = RETRY_PAUSES

    def open(self, limit: int | None = None) -> BinaryIO:
        """A new binary file; of archives and networks it may be slow to seek.

        Raises OSError (FileNotFoundError if it does not exist) and Fault (UNREADABLE; IMAGE_SIZE above ``limit``
        bytes, where the size is known).
        """
        file, size = _open(self)
        if limit is not None and size is not None and size > limit:
            file.close()
            raise _too_many_bytes(self, limit)
        return file

    def read(self, limit: int) -> bytes:
        """All its bytes. Raises as ``open`` does; more than ``limit`` bytes never come into memory."""
        return self.attempt(lambda file: read_at_most(self, file, limit), limit)

    def attempt(self, action: Callable[[BinaryIO], Result], limit: int | None = None) -> Result:
        """``action`` of the opened file, closed again; tried anew after each pause if reading failed in passing.

        Raises what ``open`` and ``action`` raise, and Fault UNREADABLE when the last try failed in passing, too.
        """

        def once() -> Result:
            with self.open(limit) as file:
                return action(file)

        return self._persist(once)

    def _persist(self, action: Callable[[], Result]) -> Result:
        for pause in self.pauses:
            try:
                return action()
            except OSError as error:
                if not is_passing(error):
                    raise
                forget_archives()
                time.sleep(pause)
        try:
            return action()
        except OSError as error:
            if not is_passing(error):
                raise
            what = f"{self.name!r} cannot be read ({first_line(error)}), tried {len(self.pauses) + 1} times"
            raise Fault(FaultCode.UNREADABLE, what, "check the disk or the network and run again") from error

    @property
    def is_remote(self) -> bool:
        """Whether it lies on another machine."""
        return protocol_of(self.url) not in ("", "data")

    def is_folder(self) -> bool:
        """A folder of frames: its name ends with "/", or it is one on this machine."""
        if self.local is not None and self.local.is_dir():
            return True
        return self.name.endswith("/") and not self.url.startswith("data:")

    def children(self) -> list[Medium]:
        """The files right inside a folder, in no order. Raises as ``open`` does."""
        return self._persist(self._list)

    def _list(self) -> list[Medium]:
        if self.local is not None:
            return [as_medium(path) for path in self.local.iterdir() if path.is_file()]
        if self.member:
            inside = self.member.rstrip("/") + "/"
            members = list_members(self.url, inside)
            found = [Medium(f"{self.url}::{name}", None, self.url, name, self.pauses) for name in members]
        else:
            urls = [f"{self.url.rstrip('/')}/{name}" for name in list_remote(self.url)]
            found = [Medium(shorten(url), None, url, "", self.pauses) for url in urls]
        if not found:
            raise FileNotFoundError(errno.ENOENT, "no such folder", self.name)
        return found


def as_medium(source: Path | Medium) -> Medium:
    """A path as a Medium; a Medium as it is."""
    return source if isinstance(source, Medium) else Medium(str(source), source)


def locate_medium(root: str, name: str, remote: bool = False) -> Medium:
    """Where the medium ``name`` under ``root`` lies; nothing is opened. An absolute ``name`` or URL ignores the root.

    ``root``: a folder, an archive (``pics.zip``, ``pics.tar``, ``zip://folder::pics.zip``) or a URL; with or without a
    slash at its end. Raises Fault for what lies on the network unless ``remote``, and for impossible names.
    """
    if name.startswith("data:"):
        return _data(name)
    protocol = protocol_of(name)
    if protocol in ("zip", "tar"):
        member, container = _split_chain(name)
        return _in_archive(locate_medium(root, container, remote), member)
    if protocol:
        return _from_url(protocol, name, remote)
    if Path(name).is_absolute():
        return Medium(shorten(name), Path(name))
    if protocol_of(root) in ("zip", "tar"):
        member, container = _split_chain(root)
        return _in_archive(locate_medium("", container, remote), posixpath.join(member, name))
    at = protocol_of(root)
    folder = at == "file" and not _ARCHIVE.search(root)
    if (_ARCHIVE.search(root) or _COMPRESSED_TAR.search(root)) and not folder and not Path(root).is_dir():
        return _in_archive(locate_medium("", root, remote), name)
    if at == "file":
        path = cast(Path, _from_url(at, root, remote).local) / name
        return Medium(_keep_slash(path, name), path)
    if at:
        return _from_url(at, f"{root.rstrip('/')}/{name}", remote)
    path = Path(root) / name
    return Medium(_keep_slash(path, name), path)


def is_passing(error: OSError) -> bool:
    """Whether the same read may well work a moment later. Errors without a number are Pillow's: the file is broken."""
    if isinstance(error, (TimeoutError, ConnectionError)):
        return True
    return error.errno is not None and error.errno not in _LASTING


def read_at_most(medium: Medium, file: BinaryIO, limit: int) -> bytes:
    """The rest of an opened file. Raises Fault IMAGE_SIZE if that is more than ``limit`` bytes."""
    # In pieces: asked for 256 MiB, a file reserves them, however small it is.
    pieces, left = [], limit + 1
    while left and (piece := file.read(min(left, _PIECE))):
        pieces.append(piece)
        left -= len(piece)
    if not left:
        raise _too_many_bytes(medium, limit)
    return b"".join(pieces)


def _too_many_bytes(medium: Medium, limit: int) -> Fault:
    what = f"{medium.name!r} has more than the {limit} bytes allowed for one file"
    return Fault(FaultCode.IMAGE_SIZE, what, "scale it down, or cut it into pieces")


def _keep_slash(path: Path, name: str) -> str:
    return shorten(f"{path}/" if name.endswith("/") else str(path))


def _split_chain(text: str) -> tuple[str, str]:
    """``zip://a/b.png::pics.zip`` -> (``a/b.png``, ``pics.zip``). Raises Fault."""
    member, _, container = text[text.index("://") + 3 :].partition("::")
    mend = "write zip://PATH-INSIDE::ARCHIVE"
    if not container:
        raise Fault(FaultCode.UNREADABLE, f"{shorten(text)!r} names no archive", mend)
    if protocol_of(container) in ("zip", "tar"):
        raise Fault(
            FaultCode.UNREADABLE, f"{shorten(text)!r} is an archive inside an archive", f"unpack it, and {mend}"
        )
    return member, container


def _in_archive(archive: Medium, member: str) -> Medium:
    where = archive.url if archive.local is None else str(archive.local)
    if _COMPRESSED_TAR.search(where):
        what = f"archive {where!r} is compressed as a whole, so nothing in it can be read without all before it"
        raise Fault(FaultCode.UNREADABLE, what, "unpack it, or pack it again as .tar or .zip")
    if not _ARCHIVE.search(where) or archive.member:
        raise Fault(FaultCode.UNREADABLE, f"{where!r} is no .zip or .tar archive", "name one, or unpack it")
    inside = posixpath.normpath(member).lstrip("/") + ("/" if member.endswith("/") else "")
    return Medium(f"{where}::{inside}", None, where, inside)


def _from_url(protocol: str, url: str, remote: bool) -> Medium:
    if protocol == "file":
        try:
            parts = urlsplit(url.replace("?", "%3F").replace("#", "%23"))
        except ValueError as error:
            raise Fault(FaultCode.UNREADABLE, f"{shorten(url)!r} is no URL ({error})", "write file:///PATH") from error
        if parts.netloc not in ("", "localhost"):
            mend = "write file:///PATH, with three slashes"
            raise Fault(FaultCode.UNREADABLE, f"{url!r} is a file of another machine", mend)
        path = Path(unquote(parts.path))
        return Medium(_keep_slash(path, parts.path), path)
    if not remote:
        mend = "pass --remote_media True to read it over the network, or copy it to a local folder"
        raise Fault(FaultCode.REMOTE, f"{shorten(url)!r} is remote", mend)
    return Medium(shorten(url), None, url)


def _data(url: str) -> Medium:
    head, comma, _ = url[:200].partition(",")
    name = f"{url[:40]}... ({len(url)} characters)" if len(url) > 60 else url
    if not comma or not head.endswith(";base64"):
        raise Fault(FaultCode.BROKEN_IMAGE, f"{name!r} is no base64 data", "write data:image/png;base64,...")
    if (len(url) - len(head)) // 4 * 3 > MAX_PICTURE_BYTES:
        raise _too_many_bytes(Medium(name), MAX_PICTURE_BYTES)
    return Medium(name, None, url)


def _open(medium: Medium) -> tuple[BinaryIO, int | None]:
    """(file, its size in bytes if that is known)."""
    if medium.local is not None:
        status = medium.local.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            folder = stat.S_ISDIR(status.st_mode)
            raise IsADirectoryError(errno.EISDIR, "it is a folder" if folder else "it is no regular file", medium.name)
        return medium.local.open("rb"), status.st_size
    if medium.url.startswith("data:"):
        try:
            content = base64.b64decode(medium.url.partition(",")[2], validate=True)
        except (binascii.Error, ValueError) as error:
            raise Fault(
                FaultCode.BROKEN_IMAGE, f"{medium.name!r} is broken base64 ({error})", "encode it anew"
            ) from error
        return io.BytesIO(content), len(content)
    if medium.member:
        return open_member(medium.url, medium.member)
    return open_remote(medium.url)
