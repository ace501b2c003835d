"""Picture files -> sizes (header only) and RGB images.

What comes out is what the original's checkpoints were trained on, unless the row says otherwise:

- Transparency (RGBA, LA, PA, palettes with it) is dropped; the colours under it show.
- 16-bit grey is scaled to 8 bit (the original clips it to white), unless its values are those of 8 bit already; float
  pictures are refused (the original makes them black).
- CMYK is mixed by the plain rule (1 - C)(1 - K), without a profile. JPEGs of Adobe store it inverted; Pillow turns them
  back, so they come out in their true colours. YCbCr, HSV and LAB are converted, 1-bit becomes 0 and 255.
- EXIF orientation is ignored (but for TIFF, which Pillow turns itself), and so are colour profiles.
- Of an animation or a file of several pages the first picture is used.
- Only FORMATS are read: Pillow knows more, some of it through other programs (EPS starts Ghostscript).
- A truncated picture is a fault (the original fills it up with grey), even if another library of this process has told
  Pillow to put up with them. Sides may be of any length, as long as the pixels are not too many.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from internvl_chat.constants import MAX_IMAGE_PIXELS, MAX_PICTURE_BYTES
from internvl_chat.data.faults import Fault, FaultCode
from internvl_chat.data.opening import shorten
from internvl_chat.data.storage import Medium, as_medium, is_passing
from internvl_chat.errors import ConfigError

Result = TypeVar("Result")

# The common ones first: they are tried in this order. JPEG has MPO in it, and the formats without a mark stand last.
FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "DDS", "DIB", "ICO", "PCX", "QOI", "SGI",
    "TGA",
)  # fmt: skip
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def read_image_size(source: Path | Medium) -> tuple[int, int]:
    """(width, height) from the file's header, no pixel decoded. Raises Fault."""
    medium = as_medium(source)

    def size(file: BinaryIO) -> tuple[int, int]:
        with open_picture(medium.name, file) as image:
            return image.size

    return _reading(medium, lambda: medium.attempt(size, MAX_PICTURE_BYTES))


def read_image(source: Path | Medium) -> Image.Image:
    """The picture in RGB, fully decoded. Raises Fault (missing, truncated, not a picture, too large, float)."""
    medium = as_medium(source)
    content = _reading(medium, lambda: medium.read(MAX_PICTURE_BYTES))
    with open_picture(medium.name, BytesIO(content)) as image:
        try:
            return to_rgb(image)
        except Fault:
            raise
        except Exception as error:  # decoders raise whatever a damaged file leads them to
            raise _broken(medium.name, "decoded", error) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB copy of an opened picture. Raises Fault for float pictures."""
    with _strict():
        image.load()
    if image.mode == "F":
        raise Fault(FaultCode.BROKEN_IMAGE, "picture holds floats", "convert it to an 8-bit PNG or JPEG")
    if image.mode in _SIXTEEN_BIT:
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray((values // (257 if values.max() > 255 else 1)).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        # Pillow warns unless byte transparency goes through RGBA; the colours are the same.
        image = image.convert("RGBA")
    return image.convert("RGB")


def open_picture(name: str, file: BinaryIO) -> Image.Image:
    """An opened file as a picture of which only the header is read. Raises Fault, and OSError of the file itself."""
    try:
        image = Image.open(file, formats=_readable())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name) from error
    except UnidentifiedImageError as error:
        raise _unread(name, file) from error
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        if isinstance(error, OSError) and is_passing(error):
            raise
        raise _broken(name, "opened", error) from error
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS:
        image.close()
        raise _too_large(name)
    if image.mode == "F" or width < 1 or height < 1:
        image.close()
        what = "holds floats" if image.mode == "F" else f"is {width} x {height} pixels"
        raise Fault(FaultCode.BROKEN_IMAGE, f"picture {name!r} {what}", "convert it to an 8-bit PNG or JPEG")
    return image


@cache
def _readable() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow knows: AVIF is new in 11.3."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def _strict() -> Iterator[None]:
    """Truncated files raise within, whatever the process-wide setting of Pillow is; it is put back behind."""
    tolerant = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = tolerant


def _reading(medium: Medium, action: Callable[[], Result]) -> Result:
    """``action``, with every error as a Fault."""
    try:
        return action()
    except (Fault, ConfigError):
        raise
    except FileNotFoundError as error:
        what = f"picture {medium.name!r} does not exist"
        raise Fault(FaultCode.MISSING_IMAGE, what, "check 'image' and the manifest's 'root'") from error
    except Exception as error:  # a damaged archive, an impossible name, a folder
        raise _broken(medium.name, "opened", error) from error


def _unread(name: str, file: BinaryIO) -> Fault:
    """The fault of a file that is none of FORMATS. Nothing of Pillow reads more of it than how it begins."""
    file.seek(0)
    head = file.read(16)
    for other, (_, begins) in Image.OPEN.items():
        with suppress(SyntaxError, IndexError, TypeError, struct.error):  # as Pillow takes short files
            if other not in FORMATS and begins is not None and begins(head) is True:
                what = f"picture {name!r} is of the format {other}, which is not read"
                return Fault(FaultCode.BROKEN_IMAGE, what, "convert it to PNG or JPEG")
    what = f"picture {name!r} is not a picture, or one of an unknown format"
    return Fault(FaultCode.BROKEN_IMAGE, what, "replace the file")


def _broken(name: str, what: str, error: Exception) -> Fault:
    reason = shorten(str(error)) or type(error).__name__
    return Fault(FaultCode.BROKEN_IMAGE, f"picture {name!r} cannot be {what} ({reason})", "replace the file")


def _too_large(name: str) -> Fault:
    return Fault(FaultCode.IMAGE_SIZE, f"picture {name!r} has more than {MAX_IMAGE_PIXELS} pixels", "scale it down")
