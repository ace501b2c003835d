"""Boxes of an answer on a picture: where they are, in which colours, what cannot be written, what must not crash."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFont

from internvl_chat.errors import DataError
from internvl_chat.infer.boxes import COLOURS, draw_boxes, legend, parse_boxes

GREY = (128, 128, 128)


def plain(width: int = 400, height: int = 300, mode: str = "RGB") -> Image.Image:
    return Image.new("RGB", (width, height), GREY).convert(mode)


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))


def extent(image: Image.Image, colour: str) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 of all pixels of a colour."""
    rows, columns = np.nonzero((np.asarray(image) == rgb(colour)).all(-1))
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def test_a_box_is_where_its_thousandths_say_and_the_picture_is_left_alone() -> None:
    image = plain()
    drawn = draw_boxes(image, "It is <ref>here</ref><box>[[250, 500, 750, 900]]</box>.")
    x1, _, x2, y2 = extent(drawn, COLOURS[0])
    assert (x1, x2, y2) == (100, 300, 270)
    # The name lies above the box, and the inside of the box is as it was.
    assert extent(drawn, COLOURS[0])[1] < 150
    assert drawn.getpixel((200, 210)) == GREY
    assert image.getcolors() == [(400 * 300, GREY)]


def test_any_picture_is_drawn_on_as_the_model_sees_it() -> None:
    """16 bits are scaled and not clipped to white; colours under transparency show; floats are refused."""
    answer, inside = "<box>[[250, 500, 750, 900]]</box>", (200, 210)
    deep = Image.fromarray(np.full((300, 400), 0x8080, dtype=np.uint16))
    assert draw_boxes(deep, answer).getpixel(inside) == GREY
    clear = Image.new("RGBA", (400, 300), (*GREY, 0))
    assert draw_boxes(clear, answer).getpixel(inside) == GREY
    for image in (deep, clear):
        assert extent(draw_boxes(image, answer), COLOURS[0])[2:] == (300, 270)
    with pytest.raises(DataError, match="floats"):
        draw_boxes(Image.new("F", (40, 30)), answer)


def test_fractions_of_one_are_drawn_as_such() -> None:
    drawn = draw_boxes(plain(), "<box>[[0.25, 0.5, 0.75, 0.9]]</box>", whole=1.0)
    x1, _, x2, y2 = extent(drawn, COLOURS[0])
    assert (x1, x2, y2) == (100, 300, 270)


def test_each_name_has_one_colour_of_its_own() -> None:
    answer = (
        "<ref>cat</ref><box>[[50, 300, 200, 600], [400, 300, 500, 600]]</box> "
        "<ref>dog</ref><box>[[600, 300, 700, 600]]</box> <ref>cat</ref><box>[[800, 300, 900, 600]]</box>"
    )
    drawn = draw_boxes(plain(1000, 600), answer)
    assert extent(drawn, COLOURS[0])[::2] == (50, 900)
    x1, _, x2, y2 = extent(drawn, COLOURS[1])
    assert (x1, x2, y2) == (600, 700, 360)
    assert not (np.asarray(drawn) == rgb(COLOURS[2])).all(-1).any()
    assert len(set(COLOURS)) == len(COLOURS)


def test_what_leaves_the_picture_is_cut_off_and_what_is_outside_is_not_drawn() -> None:
    drawn = draw_boxes(plain(), "<box>[[900, 800, 1500, 1200]]</box>")
    assert extent(drawn, COLOURS[0])[2:] == (399, 299)
    for outside in ("[[1100, 0, 1200, 50]]", "[[-50, -50, -10, -10]]"):
        image = plain()
        assert draw_boxes(image, f"<box>{outside}</box>").tobytes() == image.tobytes()


def test_swapped_corners_are_drawn_as_the_box_they_span() -> None:
    one, other = (draw_boxes(plain(), f"<box>[[{box}]]</box>") for box in ("100, 400, 500, 800", "500, 800, 100, 400"))
    assert one.tobytes() == other.tobytes() != plain().tobytes()


def test_an_answer_without_boxes_gives_an_unchanged_copy() -> None:
    for mode in ("RGB", "L", "RGBA"):
        image = plain(mode=mode)
        copy = draw_boxes(image, "I see no box, and <box>[[broken</box>.")
        assert copy is not image
        assert (copy.mode, copy.tobytes()) == (mode, image.tobytes())


@pytest.mark.parametrize("size", [(1, 1), (30, 20), (20, 2000), (2000, 20), (4000, 3000)], ids=str)
def test_every_size_of_picture_takes_boxes(size: tuple[int, int]) -> None:
    answer = f"<ref>{'a long name ' * 40}</ref><box>[[100, 100, 900, 900]]</box><box>[[500, 0, 500, 0]]</box>"
    drawn = draw_boxes(plain(*size), answer)
    assert drawn.size == size
    assert drawn.tobytes() != plain(*size).tobytes()


def test_lines_and_names_grow_with_the_picture() -> None:
    def height_of_name(side: int) -> int:
        drawn = draw_boxes(plain(side, side), "<ref>name</ref><box>[[200, 500, 800, 900]]</box>")
        return side // 2 - extent(drawn, COLOURS[0])[1]

    assert 11 <= height_of_name(300) <= 20  # as high as the smallest font that can be read
    assert 80 <= height_of_name(3000) <= 130


def test_names_that_the_font_cannot_write_are_numbers_with_a_legend() -> None:
    answer = "<ref>cat</ref><box>[[0, 0, 9, 9]]</box><ref>红色的猫</ref><box>[[10, 500, 400, 900]]</box>"
    numbered = "<ref>cat</ref><box>[[0, 0, 9, 9]]</box><ref>2</ref><box>[[10, 500, 400, 900]]</box>"
    assert legend(answer) == ("2 = 红色的猫",)
    assert legend(numbered) == ()
    assert draw_boxes(plain(), answer).tobytes() == draw_boxes(plain(), numbered).tobytes()
    # The reference: what the font itself says of these characters.
    font = ImageFont.load_default(20)
    assert bytes(font.getmask("猫")) == bytes(font.getmask("\uffff")) != bytes(font.getmask("c"))


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("<box>[[007, 010, 020, 030]]</box>", [(7, 10, 20, 30)]),
        (f"<box>[[{'9' * 400}, 2, 3, 4]]</box>", [(float("inf"), 2, 3, 4)]),
        ("<box>[[٣, 2, 3, 4]]</box>", []),
        ("<box>[[1, 2, 3, 4], [5, 6]]</box>", [(1, 2, 3, 4)]),
        ("<box>[-1.5, 2, 3.25, 4]</box>", [(-1.5, 2, 3.25, 4)]),
    ],
)
def test_numbers_that_are_no_json_end_nothing(text: str, boxes: list[tuple[float, ...]]) -> None:
    assert [box for grounding in parse_boxes(text) for box in grounding.boxes] == boxes
    draw_boxes(plain(), text)
