"""Picture files: read as Pillow reads them, or a fault that names the file; nothing else, whatever is in them."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from internvl_chat.constants import MAX_IMAGE_PIXELS
from internvl_chat.data.faults import Fault, FaultCode
from internvl_chat.data.media import read_image, read_image_size, to_rgb
from internvl_chat.data.storage import resolve_media
from tests.data.helpers import png_bytes, properties, write_noise

FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "ICO", "TGA", "JPEG2000", "AVIF", "DDS", "MPO", "SPIDER")


def make_files() -> dict[str, bytes]:
    """One small file of each format that this Pillow writes."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8))
    files = {}
    for name in FORMATS:
        buffer = io.BytesIO()
        try:
            (picture.convert("L") if name == "SPIDER" else picture).save(buffer, format=name)
        except (KeyError, OSError):
            continue  # built without it
        files[name] = buffer.getvalue()
    return files


FILES = make_files()


@pytest.mark.parametrize("name", [name for name in FILES if name != "SPIDER"])
def test_the_size_in_the_header_is_that_of_the_picture(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").write_bytes(FILES[name])
    assert read_image_size(tmp_path / "a") == read_image(tmp_path / "a").size
    assert read_image(tmp_path / "a").mode == "RGB"


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_faults_and_nothing_else(tmp_path: Path, name: str) -> None:
    """Decoders answer damage with any exception (AVIF: RuntimeError, DDS: NotImplementedError): none may end a run."""
    path = tmp_path / "damaged.bin"

    @properties(60)
    @given(st.lists(st.tuples(st.integers(0, 150), st.integers(0, 255)), max_size=6), st.integers(0, 3000))
    def check(changes: list[tuple[int, int]], length: int) -> None:
        content = bytearray(FILES[name])
        for place, value in changes:
            content[place % len(content)] = value
        path.write_bytes(bytes(content[: length or None]))
        for read in (read_image_size, read_image):
            try:
                read(path)
            except Fault as fault:
                assert fault.code in (FaultCode.BROKEN_IMAGE, FaultCode.IMAGE_SIZE)
                assert "damaged.bin" in fault.reason

    check()


def test_a_missing_picture_names_key_and_root(tmp_path: Path) -> None:
    for read in (read_image_size, read_image):
        with pytest.raises(Fault, match=r"gone\.png' does not exist; check 'image' and the manifest's 'root'") as fault:
            read(tmp_path / "gone.png")
        assert fault.value.code is FaultCode.MISSING_IMAGE


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(Fault, match=r"a\.png' .*; replace the file") as fault:
        read_image_size(tmp_path / "a.png")
    assert fault.value.code is FaultCode.BROKEN_IMAGE


def test_a_folder_and_impossible_names_are_faults(tmp_path: Path) -> None:
    for name in ("", "a\0b.png", "x" * 5000):
        with pytest.raises(Fault) as fault:
            read_image_size(tmp_path / name)
        assert fault.value.code is FaultCode.BROKEN_IMAGE


def test_a_file_cut_short_opens_for_its_size_and_fails_on_reading(tmp_path: Path) -> None:
    """The index looks at headers only, so such a file is found on loading."""
    content = png_bytes(300, 200)
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    assert read_image_size(tmp_path / "a.png") == (300, 200)
    with pytest.raises(Fault, match=r"a\.png' cannot be decoded \(.+\); replace the file"):
        read_image(tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("factor", [1.5, 3])
def test_a_picture_of_too_many_pixels_is_refused_by_its_header(tmp_path: Path, factor: float) -> None:
    """Pillow warns above its limit and raises above twice that; both are refused here."""
    side = int((MAX_IMAGE_PIXELS * factor) ** 0.5) + 1
    header = bytearray(png_bytes(1, 1))
    header[16:24] = side.to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    (tmp_path / "huge.png").write_bytes(bytes(header))
    with pytest.raises(Fault, match=rf"huge\.png' has more than {MAX_IMAGE_PIXELS} pixels; scale it down") as fault:
        read_image_size(tmp_path / "huge.png")
    assert fault.value.code is FaultCode.IMAGE_SIZE


@pytest.mark.parametrize("name", ["фото.png", "图片 1.png", "é\u0301.png", "\U0001f600.PNG", "a?b#c%20.png", "..png"])
def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    write_noise(tmp_path / "plain.png", 5, 4)
    (tmp_path / "plain.png").rename(tmp_path / name)
    assert read_image_size(resolve_media(str(tmp_path), name)) == (5, 4)


def test_paths_are_joined_as_in_the_original(tmp_path: Path) -> None:
    """A root without a slash at its end; an absolute name ignores the root; "" is the working directory."""
    assert resolve_media("root/images", "a/1.png") == Path("root/images/a/1.png")
    assert resolve_media("root/images/", "a/1.png") == Path("root/images/a/1.png")
    assert resolve_media("root", "/data/1.png") == Path("/data/1.png")
    assert resolve_media("", "a/1.png") == Path("a/1.png")


@pytest.mark.parametrize(
    ("root", "name"), [("s3://bucket/", "a.png"), ("", "s3://bucket/a.png"), ("x", "http://y/a.png")]
)
def test_remote_pictures_are_refused_with_the_mend(root: str, name: str) -> None:
    with pytest.raises(Fault, match="is remote; copy the pictures to a local folder") as fault:
        resolve_media(root, name)
    assert fault.value.code is FaultCode.UNSUPPORTED


def test_the_first_frame_of_an_animation_is_the_picture(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (8, 6), (255, 0, 0)), Image.new("RGB", (8, 6), (0, 0, 255))
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert read_image(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


def test_transparency_is_dropped_and_the_colours_under_it_show() -> None:
    assert to_rgb(Image.new("RGBA", (2, 2), (10, 20, 30, 0))).getpixel((0, 0)) == (10, 20, 30)


def test_a_palette_with_byte_transparency_gives_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    image = Image.new("P", (4, 4))
    image.info["transparency"] = bytes(256)
    to_rgb(image)
    assert not recwarn.list
