"""Picture files -> sizes (header only) and RGB images.

EXIF orientation is ignored (but for TIFF, which Pillow turns itself) and an alpha channel is dropped, as in the
original: its checkpoints were trained so. 16-bit grey is scaled to 8 bit (the original clips it to white), unless its
values are those of 8 bit already; float pictures are refused; truncated ones are faults.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from internvl_chat.constants import MAX_IMAGE_PIXELS
from internvl_chat.data.faults import Fault, FaultCode

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def read_image_size(path: Path) -> tuple[int, int]:
    """(width, height) from the file's header, no pixel decoded. Raises Fault."""
    with _open(path) as image:
        return image.size


def read_image(path: Path) -> Image.Image:
    """The picture in RGB, fully decoded. Raises Fault (missing, truncated, not a picture, too large, float)."""
    with _open(path) as image:
        try:
            return to_rgb(image)
        except Fault:
            raise
        except Exception as error:  # decoders raise whatever a damaged file leads them to
            raise _broken(path, "decoded", error) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB copy of an opened picture. Raises Fault for float pictures."""
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


def _open(path: Path) -> Any:
    try:
        image = Image.open(path)
    except FileNotFoundError as error:
        raise Fault(
            FaultCode.MISSING_IMAGE, f"picture {str(path)!r} does not exist", "check 'image' and the manifest's 'root'"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path) from error
    except UnidentifiedImageError as error:
        what = f"picture {str(path)!r} is not a picture, or one of an unknown format"
        raise Fault(FaultCode.BROKEN_IMAGE, what, "replace the file") from error
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise _broken(path, "opened", error) from error
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS:
        image.close()
        raise _too_large(path)
    if image.mode == "F" or width < 1 or height < 1:
        image.close()
        what = "holds floats" if image.mode == "F" else f"is {width} x {height} pixels"
        raise Fault(FaultCode.BROKEN_IMAGE, f"picture {str(path)!r} {what}", "convert it to an 8-bit PNG or JPEG")
    return image


def _broken(path: Path, what: str, error: Exception) -> Fault:
    reason = str(error) or type(error).__name__
    return Fault(FaultCode.BROKEN_IMAGE, f"picture {str(path)!r} cannot be {what} ({reason})", "replace the file")


def _too_large(path: Path) -> Fault:
    return Fault(
        FaultCode.IMAGE_SIZE, f"picture {str(path)!r} has more than {MAX_IMAGE_PIXELS} pixels", "scale it down"
    )
