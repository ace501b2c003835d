"""Where media lie: folders, URLs, archives, networks; every one gives the same bytes, or says what is wrong."""

from __future__ import annotations

import base64
import errno
import importlib.util
import io
import multiprocessing
import os
import pickle
import tarfile
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from internvl_chat.constants import MAX_PICTURE_BYTES
from internvl_chat.data.faults import Fault, FaultCode
from internvl_chat.data.media import read_image, read_image_size
from internvl_chat.data.storage import Medium, locate_medium
from internvl_chat.errors import ConfigError
from tests.data.helpers import picture_bytes, write_noise
from tests.data.serving import web_server

MEND = "pass --remote_media True to read it over the network, or copy it to a local folder"


def content_of(root: str, name: str, remote: bool = False) -> bytes:
    medium = replace(locate_medium(root, name, remote), pauses=(0.0, 0.0))
    copy = pickle.loads(pickle.dumps(medium))
    assert copy == medium
    return copy.read(10**6)


def fault_of(root: str, name: str, remote: bool = False) -> Fault:
    with pytest.raises(Fault) as caught:
        content_of(root, name, remote)
    return caught.value


# -- plain paths ----------------------------------------------------------------------------------------------------


def test_paths_are_joined_as_in_the_original() -> None:
    """A root without a slash at its end; an absolute name ignores the root; "" is the working directory."""
    joined = {
        ("root/images", "a/1.png"): "root/images/a/1.png",
        ("root/images/", "a/1.png"): "root/images/a/1.png",
        ("root", "/data/1.png"): "/data/1.png",
        ("pics.zip", "/data/1.png"): "/data/1.png",
        ("s3://bucket/", "/data/1.png"): "/data/1.png",
        ("", "a/1.png"): "a/1.png",
    }
    for (root, name), path in joined.items():
        medium = locate_medium(root, name)
        assert medium.local == Path(path)
        assert medium.name == path


@pytest.mark.parametrize("name", ["a?b#c%20.png", "a::b.png", "data.png", "file:x.png", "фото.png", "zip:a.png"])
def test_odd_names_are_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"content")
    assert content_of(str(tmp_path), name) == b"content"


def test_a_folder_called_like_an_archive_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "pics.zip").mkdir()
    (tmp_path / "pics.zip" / "a.png").write_bytes(b"content")
    assert content_of(str(tmp_path / "pics.zip"), "a.png") == b"content"


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("pipe", "no regular file"), (".", "is a folder")):
        with pytest.raises(IsADirectoryError, match=message):
            locate_medium(str(tmp_path), name).open()
        with pytest.raises(Fault, match="cannot be opened") as fault:
            read_image(locate_medium(str(tmp_path), name))
        assert fault.value.code is FaultCode.BROKEN_IMAGE


def test_bytes_are_limited_before_they_are_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(MAX_PICTURE_BYTES + 1)
    for read in (read_image, read_image_size):
        with pytest.raises(Fault, match=rf"huge\.png' has more than the {MAX_PICTURE_BYTES} bytes allowed") as fault:
            read(tmp_path / "huge.png")
        assert fault.value.code is FaultCode.IMAGE_SIZE
    (tmp_path / "ten").write_bytes(b"0123456789")
    assert locate_medium(str(tmp_path), "ten").read(10) == b"0123456789"
    with pytest.raises(Fault, match="more than the 9 bytes"):
        locate_medium(str(tmp_path), "ten").read(9)


# -- data: and file: ------------------------------------------------------------------------------------------------


def test_a_picture_within_the_line() -> None:
    url = "data:image/png;base64," + base64.b64encode(picture_bytes(7, 5)).decode()
    medium = locate_medium("s3://anywhere", url)
    assert read_image_size(medium) == read_image(medium).size == (7, 5)
    assert len(medium.name) < 80


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:image/png,abc", "is no base64 data; write data:image/png;base64,"),
        ("data:", "is no base64 data"),
        ("data:image/png;base64,!!!!", "is broken base64"),
        ("data:image/png;base64,abc", "is broken base64"),
        ("data:image/png;base64,é", "is broken base64"),
        ("data:image/png;base64,aGFsbG8=", "is not a picture"),
    ],
)
def test_bad_data_urls_say_what_is_wrong(url: str, message: str) -> None:
    with pytest.raises(Fault, match=message) as fault:
        read_image(locate_medium("", url))
    assert fault.value.code is FaultCode.BROKEN_IMAGE


def test_a_data_url_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("internvl_chat.data.storage.MAX_PICTURE_BYTES", 3000)
    with pytest.raises(Fault, match="more than the 3000 bytes"):
        locate_medium("", "data:image/png;base64," + "A" * 4100)


def test_file_urls(tmp_path: Path) -> None:
    (tmp_path / "a b#c.png").write_bytes(b"content")
    assert content_of("elsewhere", f"file://{tmp_path}/a%20b#c.png") == b"content"
    assert content_of("elsewhere", f"file://localhost{tmp_path}/a b%23c.png") == b"content"
    assert content_of(f"file://{tmp_path}", "a b#c.png") == content_of(f"file://{tmp_path}/", "a b#c.png") == b"content"
    assert "three slashes" in fault_of("", "file://host/a.png").mend


# -- archives -------------------------------------------------------------------------------------------------------


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """pics.zip and pics.tar with the same members, and what is wrong with archives."""
    picture = write_noise(tmp_path / "a.png", 9, 4).read_bytes()
    with zipfile.ZipFile(tmp_path / "pics.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("sub/a.png", picture)
        file.writestr("фото 1.png", picture)
        file.writestr("bomb.png", bytes(3 * 10**6))
        file.mkdir("empty")
    with tarfile.open(tmp_path / "pics.tar", "w") as tar:
        for name in ("./sub/a.png", "фото 1.png"):
            info = tarfile.TarInfo(name)
            info.size = len(picture)
            tar.addfile(info, io.BytesIO(picture))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "sub/a.png"
        tar.addfile(link)
    with tarfile.open(tmp_path / "pics.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "a.png", "a.png")
    (tmp_path / "disguised.tar").write_bytes((tmp_path / "pics.tar.gz").read_bytes())
    (tmp_path / "cut.zip").write_bytes((tmp_path / "pics.zip").read_bytes()[:-40])
    return tmp_path


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_of_archives(archives: Path, kind: str) -> None:
    picture = (archives / "a.png").read_bytes()
    root = str(archives / f"pics.{kind}")
    for name in ("sub/a.png", "./sub/a.png", "sub//a.png", "фото 1.png"):
        assert content_of(root, name) == picture
    assert content_of(str(archives), f"{kind}://sub/a.png::pics.{kind}") == picture
    assert content_of("elsewhere", f"{kind}://sub/a.png::{root}") == picture
    assert content_of("elsewhere", f"{kind}://sub/a.png::file://{root}") == picture
    assert content_of(f"{kind}://sub::{root}", "a.png") == picture
    assert content_of(f"{kind}://::{root}", "sub/a.png") == picture
    assert read_image_size(locate_medium(root, "sub/a.png")) == (9, 4)
    for name in ("gone.png", "a.png", ""):
        with pytest.raises(Fault) as fault:
            read_image(locate_medium(root, name))
        assert fault.value.code is FaultCode.MISSING_IMAGE
        assert f"pics.{kind}::" in fault.value.reason


def test_links_within_a_tar_are_followed(archives: Path) -> None:
    assert content_of(str(archives / "pics.tar"), "link.png") == (archives / "a.png").read_bytes()


def test_a_zip_bomb_is_refused_by_its_entry(archives: Path) -> None:
    assert (archives / "pics.zip").stat().st_size < 10_000
    assert fault_of(str(archives / "pics.zip"), "bomb.png").code is FaultCode.IMAGE_SIZE


def test_archives_that_cannot_be_used_say_why(archives: Path) -> None:
    cases = {
        ("pics.tar.gz", "a.png"): "unpack it, or pack it again as .tar or .zip",
        ("disguised.tar", "a.png"): "is damaged or compressed as a whole",
        ("cut.zip", "a.png"): "is damaged or compressed as a whole",
        ("", "zip://a.png::pics.7z"): "is no .zip or .tar archive",
        ("", "zip://a.png"): "names no archive; write zip://PATH-INSIDE::ARCHIVE",
        ("", "zip://a.png::zip://b.zip::c.zip"): "is an archive inside an archive",
    }
    for (root, name), message in cases.items():
        fault = fault_of(str(archives / root), name)
        assert message in str(fault)
        assert fault.code is FaultCode.UNREADABLE
    with pytest.raises(Fault, match="does not exist"):
        read_image(locate_medium(str(archives / "gone.zip"), "a.png"))


def test_a_damaged_member_is_a_broken_picture(archives: Path) -> None:
    content = bytearray((archives / "pics.zip").read_bytes())
    content[60:90] = bytes(30)
    (archives / "damaged.zip").write_bytes(bytes(content))
    for read in (read_image, read_image_size):
        with pytest.raises(Fault, match=r"damaged\.zip::sub/a\.png' cannot be opened") as fault:
            read(locate_medium(str(archives / "damaged.zip"), "sub/a.png"))
        assert fault.value.code is FaultCode.BROKEN_IMAGE


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_forked_processes_and_threads_read_an_archive_at_once(tmp_path: Path, kind: str) -> None:
    """Handles that were shared across a fork would move each other's position."""
    contents = {f"{number}.bin": np.random.default_rng(number).bytes(50_000) for number in range(8)}
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
            for name, content in contents.items():
                file.writestr(name, content)
    else:
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for name, content in contents.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    wrong: list[str] = []

    def read_all() -> None:
        for name in list(contents) * 5:
            if content_of(str(tmp_path / f"a.{kind}"), name) != contents[name]:
                wrong.append(name)

    def in_process() -> None:
        read_all()
        os._exit(len(wrong))

    read_all()
    children = [multiprocessing.get_context("fork").Process(target=in_process) for _ in range(3)]
    threads = [threading.Thread(target=read_all) for _ in range(3)]
    for child in children:
        child.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for child in children:
        child.join(30)
    assert not wrong
    assert [child.exitcode for child in children] == [0, 0, 0]


# -- errors in passing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failures", [0, 1, 2, 3])
def test_errors_in_passing_are_tried_again_twice(tmp_path: Path, failures: int) -> None:
    (tmp_path / "a").write_bytes(b"content")
    medium = Medium("a", tmp_path / "a", pauses=(0.0, 0.0))
    tries = []

    def flaky(file: io.BufferedIOBase) -> bytes:
        tries.append(file)
        if len(tries) <= failures:
            raise OSError(errno.EIO, "Input/output error")
        return file.read()

    if failures < 3:
        assert medium.attempt(flaky) == b"content"
    else:
        with pytest.raises(Fault, match=r"cannot be read .*tried 3 times; check the disk or the network") as fault:
            medium.attempt(flaky)
        assert fault.value.code is FaultCode.UNREADABLE
    assert len(tries) == min(failures + 1, 3)
    assert all(file.closed for file in tries)


@pytest.mark.parametrize("error", [FileNotFoundError(2, "no"), PermissionError(13, "no"), OSError("truncated file")])
def test_lasting_errors_are_not_tried_again(tmp_path: Path, error: OSError) -> None:
    (tmp_path / "a").write_bytes(b"")
    tries = []

    def failing(file: io.BufferedIOBase) -> None:
        tries.append(file)
        raise error

    with pytest.raises(type(error)):
        Medium("a", tmp_path / "a", pauses=(0.0, 0.0)).attempt(failing)
    assert len(tries) == 1


# -- networks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("root", "name"),
    [
        ("s3://bucket/", "a.png"),
        ("", "s3://bucket/a.png"),
        ("x", "HTTP://y/a.png"),
        ("s3://bucket/pics.zip", "a.png"),
        ("x", "zip://a.png::https://y/pics.zip"),
        ("memory://x", "a.png"),
    ],
)
def test_the_network_is_used_only_when_allowed(root: str, name: str) -> None:
    with pytest.raises(Fault) as fault:
        locate_medium(root, name)
    assert fault.value.code is FaultCode.REMOTE
    assert fault.value.mend == MEND


def test_any_file_system_of_fsspec(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/sub/a.png", picture_bytes(6, 3))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as file:
        file.writestr("in/a.png", picture_bytes(6, 3))
    memory.pipe("/bucket/b.zip", (tmp_path / "b.zip").read_bytes())
    for root, name in (
        ("memory://bucket", "sub/a.png"),
        ("memory://bucket/", "sub/a.png"),
        ("elsewhere", "memory://bucket/sub/a.png"),
        ("memory://bucket/b.zip", "in/a.png"),
        ("memory://bucket", "zip://in/a.png::b.zip"),
    ):
        medium = locate_medium(root, name, remote=True)
        assert medium.local is None
        assert read_image_size(medium) == read_image(medium).size == (6, 3)
    with pytest.raises(Fault, match=r"picture 'memory://bucket/gone\.png' does not exist; check 'image'") as fault:
        read_image_size(locate_medium("memory://bucket", "gone.png", remote=True))
    assert fault.value.code is FaultCode.MISSING_IMAGE
    assert [m.name for m in locate_medium("memory://bucket", "sub/", remote=True).children()] == [
        "memory://bucket/sub/a.png"
    ]


def test_unknown_protocols_and_missing_drivers_say_what_to_do() -> None:
    assert "no protocol that fsspec knows" in fault_of("", "s4://bucket/a.png", remote=True).reason
    if importlib.util.find_spec("gcsfs") is None:
        with pytest.raises(ConfigError, match=r"gcsfs.*: pip install fsspec, and s3fs for s3://"):
            content_of("gs://bucket", "a.png", remote=True)


def noise_png(side: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def test_pictures_on_a_web_server() -> None:
    pytest.importorskip("aiohttp")
    picture = noise_png(400)
    with web_server({"/d/a.png": picture}) as served:
        medium = locate_medium(f"{served.url}/d", "a.png?size=large", remote=True)
        assert read_image_size(medium) == (400, 400)
        assert served.sent < len(picture) / 2, "only the head is fetched"
        assert np.array_equal(read_image(medium), Image.open(io.BytesIO(picture)))
        with pytest.raises(Fault, match="does not exist") as fault:
            read_image_size(locate_medium(served.url, "d/b.png", remote=True))
        assert fault.value.code is FaultCode.MISSING_IMAGE
    with web_server({"/a.png": picture}, ranges=False) as served:
        medium = locate_medium(served.url, "a.png", remote=True)
        assert read_image_size(medium) == read_image(medium).size == (400, 400)


def test_a_server_that_is_busy_or_gone() -> None:
    pytest.importorskip("aiohttp")
    with web_server({"/a.png": picture_bytes(4, 4)}) as served:
        medium = replace(locate_medium(served.url, "a.png", remote=True), pauses=(0.0, 0.0))
        served.failures = 1
        assert read_image_size(medium) == (4, 4)
        served.failures = 1000
        with pytest.raises(Fault, match="tried 3 times") as fault:
            read_image(medium)
        assert fault.value.code is FaultCode.UNREADABLE
    with pytest.raises(Fault, match="tried 3 times") as fault:
        read_image(medium)
    assert fault.value.code is FaultCode.UNREADABLE
