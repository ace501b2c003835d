"""Picture files: read as Pillow reads them, or a fault that names the file; nothing else, whatever is in them."""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, ImageCms, ImageFile

from internvl_chat.constants import MAX_IMAGE_PIXELS
from internvl_chat.data.faults import Fault, FaultCode
from internvl_chat.data.media import read_image, read_image_size, to_rgb
from internvl_chat.data.storage import locate_medium
from tests.data.helpers import picture_bytes, properties, write_noise

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
    content = picture_bytes(300, 200)
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    assert read_image_size(tmp_path / "a.png") == (300, 200)
    with pytest.raises(Fault, match=r"a\.png' cannot be decoded \(.+\); replace the file"):
        read_image(tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("factor", [1.5, 3])
def test_a_picture_of_too_many_pixels_is_refused_by_its_header(tmp_path: Path, factor: float) -> None:
    """Pillow warns above its limit and raises above twice that; both are refused here."""
    side = int((MAX_IMAGE_PIXELS * factor) ** 0.5) + 1
    header = bytearray(picture_bytes(1, 1))
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
    assert read_image_size(locate_medium(str(tmp_path), name)) == (5, 4)


# -- kinds of pixels ------------------------------------------------------------------------------------------------

ORANGE = (200, 120, 40)


def saved(path: Path, picture: Image.Image, **options: object) -> tuple[int, ...]:
    """The first pixel of a picture that was written and read again; it is RGB and of the size in the header."""
    picture.save(path, **options)
    assert Image.open(path).mode == picture.mode or path.suffix == ".webp"
    read = read_image(path)
    assert read.mode == "RGB"
    assert read.size == read_image_size(path) == picture.size
    pixel = read.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel


def test_transparency_is_dropped_and_the_colours_under_it_show(tmp_path: Path) -> None:
    assert to_rgb(Image.new("RGBA", (2, 2), (10, 20, 30, 0))).getpixel((0, 0)) == (10, 20, 30)
    assert saved(tmp_path / "rgba.png", Image.new("RGBA", (3, 2), (*ORANGE, 0))) == ORANGE
    assert saved(tmp_path / "la.png", Image.new("LA", (3, 2), (77, 0))) == (77, 77, 77)
    assert saved(tmp_path / "rgba.webp", Image.new("RGBA", (3, 2), (*ORANGE, 0)), lossless=True, exact=True) == ORANGE
    palette = Image.new("P", (3, 2), 1)
    palette.putpalette([0, 0, 0, *ORANGE])
    assert saved(tmp_path / "p.png", palette) == ORANGE
    assert saved(tmp_path / "one.png", palette, transparency=1) == ORANGE
    assert saved(tmp_path / "many.png", palette, transparency=bytes([9, 0])) == ORANGE
    assert saved(tmp_path / "one.gif", palette, transparency=1) == ORANGE


def test_grey_of_every_depth(tmp_path: Path) -> None:
    assert saved(tmp_path / "1.png", Image.new("1", (3, 2), 1)) == (255, 255, 255)
    assert saved(tmp_path / "l.png", Image.new("L", (3, 2), 90)) == (90, 90, 90)
    deep = Image.fromarray(np.full((2, 3), 25700, np.uint16))
    assert saved(tmp_path / "16.png", deep) == (100, 100, 100)
    assert saved(tmp_path / "16.tif", deep) == (100, 100, 100)
    assert saved(tmp_path / "8in16.png", Image.fromarray(np.full((2, 3), 90, np.uint16))) == (90, 90, 90)
    assert saved(tmp_path / "32.tif", Image.fromarray(np.full((2, 3), 70000, np.int32))) == (255, 255, 255)


def test_floats_are_refused(tmp_path: Path) -> None:
    Image.new("F", (3, 2), 0.5).save(tmp_path / "f.tif")
    for read in (read_image, read_image_size):
        with pytest.raises(Fault, match=r"f\.tif' holds floats; convert it to an 8-bit PNG or JPEG") as fault:
            read(tmp_path / "f.tif")
        assert fault.value.code is FaultCode.BROKEN_IMAGE


def test_printers_colours(tmp_path: Path) -> None:
    """(1 - C)(1 - K) and so on, computed by hand; Adobe's inverted JPEGs give the same colours."""
    inks = (0, 100, 200, 50)
    expected = [(255 - ink) * (255 - inks[3]) / 255 for ink in inks[:3]]
    for name in ("cmyk.tif", "cmyk.jpg"):
        pixel = saved(tmp_path / name, Image.new("CMYK", (16, 16), inks), quality=100)
        assert max(abs(a - b) for a, b in zip(pixel, expected, strict=True)) <= 2
    content = (tmp_path / "cmyk.jpg").read_bytes()
    assert b"Adobe" in content, "Pillow writes CMYK as Adobe does, inverted"


def test_other_colour_spaces(tmp_path: Path) -> None:
    orange = Image.new("RGB", (16, 16), ORANGE)
    lab = ImageCms.profileToProfile(
        orange, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    pictures = {"lab.tif": lab, "ycbcr.tif": orange.convert("YCbCr")}
    if int(PIL.__version__.split(".")[0]) < 13:
        del pictures["ycbcr.tif"]  # written by older Pillows such that they cannot read it
    for name, picture in pictures.items():
        pixel = saved(tmp_path / name, picture)
        assert max(abs(a - b) for a, b in zip(pixel, ORANGE, strict=True)) <= 3
    pixel = to_rgb(orange.convert("HSV")).getpixel((0, 0))
    assert isinstance(pixel, tuple)
    assert max(abs(a - b) for a, b in zip(pixel, ORANGE, strict=True)) <= 3


def test_orientation_and_profiles_are_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert saved(tmp_path / "turned.png", Image.new("RGB", (5, 2), ORANGE), exif=exif) == ORANGE
    assert read_image_size(tmp_path / "turned.png") == (5, 2)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    assert saved(tmp_path / "profile.png", Image.new("RGB", (5, 2), ORANGE), icc_profile=profile) == ORANGE


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
def test_sides_of_any_length(tmp_path: Path, size: tuple[int, int]) -> None:
    assert saved(tmp_path / "a.png", Image.new("RGB", size, ORANGE)) == ORANGE


@pytest.mark.parametrize("name", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP"])
def test_truncated_files_are_faults_whatever_others_told_pillow(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    (tmp_path / "a").write_bytes(FILES[name][: len(FILES[name]) * 2 // 3])
    with pytest.raises(Fault) as fault:
        read_image(tmp_path / "a")
    assert fault.value.code is FaultCode.BROKEN_IMAGE
    assert ImageFile.LOAD_TRUNCATED_IMAGES, "the setting of others is left as it was"


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_the_first_frame_of_an_animation_is_the_picture(tmp_path: Path, name: str) -> None:
    second = Image.new("RGB", (8, 6), (0, 0, 255))
    options = {"lossless": True} if name == "a.webp" else {}
    Image.new("RGB", (8, 6), (255, 0, 0)).save(tmp_path / name, save_all=True, append_images=[second], **options)
    assert read_image(tmp_path / name).getpixel((0, 0)) == (255, 0, 0)


def test_a_palette_with_byte_transparency_gives_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    image = Image.new("P", (4, 4))
    image.info["transparency"] = bytes(256)
    to_rgb(image)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n%%EOF\n", "EPS"),
        (b"\xd7\xcd\xc6\x9a" + bytes(40), "WMF"),
        (b"8BPS\0\1" + bytes(40), "PSD"),
    ],
)
def test_formats_that_are_not_read_are_named(
    tmp_path: Path, content: bytes, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the file is called; and nothing is started for it, as Pillow starts Ghostscript."""
    started = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # it is looked for once
    (tmp_path / "a.png").write_bytes(content)
    for read in (read_image_size, read_image):
        with pytest.raises(Fault, match=rf"a\.png' is of the format {name}, which is not read; convert it") as fault:
            read(tmp_path / "a.png")
        assert fault.value.code is FaultCode.BROKEN_IMAGE
    assert not started.exists()
