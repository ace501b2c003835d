"""Messages of a request -> prompt ids and tiles: what is in memory meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from serving_tools import picture, user

from internvl_chat.infer import pictures as reading
from internvl_chat.infer.load import Loaded
from internvl_chat.infer.serve.export import describe
from internvl_chat.infer.serve.faults import ApiError
from internvl_chat.infer.serve.prompts import Limits, prepare_chat


@pytest.fixture()
def loaded(tiny_folder: Callable[[str], Path]) -> Loaded:
    return describe(tiny_folder("qwen2"))


def test_decoded_pictures_of_a_request_are_not_held_together(
    loaded: Loaded, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When one is decoded, those before it are closed: their memory has been given back."""
    seen: list[Image.Image] = []
    decode = reading.to_rgb

    def watch(image: Image.Image) -> Image.Image:
        for earlier in seen:
            with pytest.raises(ValueError, match="closed"):
                earlier.getpixel((0, 0))
        seen.append(image)
        return decode(image)

    monkeypatch.setattr(reading, "to_rgb", watch)
    shown = [picture(path) for path in pictures]
    prepared = prepare_chat([user(*shown, "Q")], loaded, Limits.of(loaded), 1)
    assert len(seen) == len(pictures)
    assert len(prepared.pixels) >= len(pictures)


def test_a_picture_that_cannot_be_decoded_is_named(
    loaded: Loaded, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoders raise whatever a damaged file leads them to."""

    def fail(image: Image.Image) -> Image.Image:
        raise RuntimeError("bad bits")

    monkeypatch.setattr(reading, "to_rgb", fail)
    with pytest.raises(ApiError, match=r"messages\[0\]\.content\[0\]: picture cannot be decoded \(bad bits\)"):
        prepare_chat([user(picture(pictures[0]), "Q")], loaded, Limits.of(loaded), 1)
