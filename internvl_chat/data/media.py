"""Picture files -> sizes (header only) and RGB images.

EXIF orientation is ignored and an alpha channel is dropped, as in the original (its checkpoints were trained so).
16-bit grey is scaled to 8 bit (the original clips it to white); float pictures are refused; truncated ones are faults.
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
        except (OSError, SyntaxError, ValueError) as error:
            raise Fault(
                FaultCode.BROKEN_IMAGE, f"picture {str(path)!r} cannot be decoded ({error})", "replace the file"
            ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB copy of an opened picture. Raises Fault for float pictures."""
    image.load()
    if image.mode == "F":
        raise Fault(FaultCode.UNSUPPORTED, "picture holds floats", "convert it to an 8-bit PNG or JPEG")
    if image.mode in _SIXTEEN_BIT:
        values = np.asarray(image).astype(np.int64)
        return Image.fromarray((values.clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
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
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise Fault(
            FaultCode.BROKEN_IMAGE, f"picture {str(path)!r} cannot be opened ({error})", "replace the file"
        ) from error
    width, height = image.size
    if width * height > MAX_IMAGE_PIXELS:
        image.close()
        raise _too_large(path)
    return image


def _too_large(path: Path) -> Fault:
    return Fault(
        FaultCode.IMAGE_SIZE, f"picture {str(path)!r} has more than {MAX_IMAGE_PIXELS} pixels", "scale it down"
    )
