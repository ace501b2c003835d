"""Boxes as data: every form and unit becomes the series' text, and the text can be read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.data.address import Address
from internvl_chat.data.boxes import (
    Box,
    Grounding,
    Objects,
    box_problems,
    box_text,
    fill_in_boxes,
    parse_boxes,
    read_objects,
    to_pixels,
)
from internvl_chat.data.faults import Fault, FaultCode
from internvl_chat.data.record import parse_record, resolve_boxes
from tests.data.helpers import line, make_maker, picture_bytes, properties, spec_of, tokenizer

# A bus from (20, 10) to (60, 40) in a picture of 200 x 100: 100, 100, 300, 400 thousandths.
BUS = "<ref>bus</ref><box>[[100, 100, 300, 400]]</box>"
FORMS: list[Any] = [
    [{"ref": "bus", "bbox": [20, 10, 60, 40], "unit": "pixel"}],
    [{"ref": "bus", "bbox": [20, 10, 60, 40]}],
    [{"caption": "bus", "bbox": [20, 10, 60, 40], "bbox_type": "real", "image": 0}],
    [{"caption": "bus", "bbox": [[20, 10, 60, 40]], "bbox_type": "norm_1000"}],
    [{"caption": "bus", "bbox": [0.1, 0.1, 0.3, 0.4], "bbox_type": "norm_1"}],
    {"ref": ["bus"], "bbox": [[20, 10, 60, 40]], "bbox_type": "real", "image_id": [0]},
    {"ref": ["bus"], "bbox": [[0.1, 0.1, 0.3, 0.4]], "bbox_type": "norm1"},
    {"ref": ["bus"], "bbox": [[20, 10, 60, 40]]},
    {"ref": ["bus"], "bbox": [[20, 10, 60, 40]], "bbox_type": ["real"]},
]


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_and_unit_is_written_in_thousandths(form: Any, as_text: bool) -> None:
    objects = read_objects(json.dumps(form) if as_text else form)
    expected = BUS.replace("100, 100, 300, 400", "20, 10, 60, 40") if "norm_1000" in json.dumps(form) else BUS
    assert fill_in_boxes(["Find <ref-object><bbox>"], objects, [(200, 100)]) == [f"Find {expected}"]


def test_names_and_boxes_are_counted_apart_and_over_all_turns() -> None:
    objects = Objects(
        ("cup", "jug"), (Box(((0, 0, 10, 10), (10, 10, 20, 20)), "pixel", 1), Box(((1, 2, 3, 4),), "0-1000"))
    )
    texts = ["<ref-object>?", "<bbox>", "And <ref-object>?", "There: <bbox>."]
    assert fill_in_boxes(texts, objects, [(5, 5), (100, 100)]) == [
        "<ref>cup</ref>?",
        "<box>[[0, 0, 100, 100], [100, 100, 200, 200]]</box>",
        "And <ref>jug</ref>?",
        "There: <box>[[1, 2, 3, 4]]</box>.",
    ]


@pytest.mark.parametrize(
    ("corners", "expected"),
    [
        ((-5, -5, 50, 50), [0, 0, 250, 500]),
        ((150, 50, 300, 130), [750, 500, 1000, 1000]),
        ((0.4, 0.4, 0.6, 0.6), [2, 4, 3, 6]),
        ((20, 10), [100, 100]),
        ((20, 10, 20.01, 10.01), [100, 100, 101, 101]),
        ((199.99, 99.99, 200, 100), [999, 999, 1000, 1000]),
    ],
)
def test_a_box_is_clipped_to_the_picture(corners: tuple[float, ...], expected: list[int]) -> None:
    assert box_text(Box((corners,), "pixel"), [(200, 100)]) == f"<box>{[expected]}</box>"


@pytest.mark.parametrize(
    ("objects", "says"),
    [
        (
            [{"ref": "a", "bbox": [60, 10, 20, 40]}],
            "has the box [60, 10, 20, 40] in a space of 200 x 100; write x1",
        ),
        ([{"ref": "a", "bbox": [10, 10, 10, 40]}], "with x1 < x2 and y1 < y2 (not x, y, width, height)"),
        ([{"ref": "a", "bbox": [250, 10, 300, 40]}], "outside the picture; check the unit: pixel, 0-1 or 0-1000"),
        ([{"ref": "a", "bbox": [1, 2, 3, 4], "image": 1}], "has a box of picture 1, the line has 1; count pictures"),
        ([{"ref": "a", "bbox": [1, 2, 3, 4], "image": -1}], "'objects'[0] is of picture -1; count pictures from 0"),
        ([{"ref": "a", "bbox": [1, 2, 3, 4], "unit": "cm"}], "'objects'[0] has the unit 'cm'; use one of pixel, real"),
        ([{"ref": "a", "bbox": [1, 2, 3, 1e400]}], "'objects'[0] has the box [1, 2, 3, inf]; give x1, y1, x2, y2"),
        ([{"ref": "a", "bbox": [1, 2, 3, 10**400]}], "'objects'[0] has the box [1, 2, 3, 1000"),
        ([{"ref": "a", "bbox": [1, 2, 3, True]}], "'objects'[0] has the box [1, 2, 3, True]"),
        ([{"ref": "", "bbox": [1, 2, 3, 4]}], "'objects'[0] has the name ''; give a text"),
        ([{"ref": "a", "bbox": [1, 2, 3, 4]}] * 2, "has 2 names, the text has 1 <ref-object>; write <ref-object> once"),
        ([{"bbox": [1, 2, 3, 4]}] * 2, "has 0 names, the text has 1 <ref-object>"),
        ({"ref": ["a"], "bbox": [[1, 2, 3, 4]], "image_id": [0, 0]}, "has 1 boxes but 2 in 'image_id'"),
        ({"ref": ["a"], "bbox": [[1, 2, 3, 4]], "bbox_type": ["real", "real"]}, "has 1 boxes but 2 units; give one"),
        ({"ref": ["a"], "bbox": [[1, 2, 3, 4]], "bbox_type": {"a": 1}}, "has the unit {'a': 1}; use one of pixel"),
        ([{"ref": "x <image>", "bbox": [1, 2, 3, 4]}], "'objects'[0] has a name with <image> in it; write the name"),
        ([{"ref": "<bbox>", "bbox": [1, 2, 3, 4]}], "'objects'[0] has a name with <bbox> in it"),
        ("[1", "'objects' is a string, but not JSON"),
        (7, "'objects' holds 7; write a list of"),
        ([7], "'objects'[0] is 7; write"),
        ({"ref": "a"}, "make 'ref', 'bbox' and 'image_id' lists"),
    ],
)
def test_what_cannot_be_meant_is_a_fault(tmp_path: Path, objects: Any, says: str) -> None:
    (tmp_path / "a.png").write_bytes(picture_bytes(200, 100))
    item = line("<image>\nFind <ref-object>", "<bbox>", image="a.png", objects=objects)
    with pytest.raises(Fault) as fault:
        make_maker().measure(json.dumps(item).encode(), spec_of(tmp_path / "a.jsonl", tmp_path))
    assert fault.value.code is FaultCode.OBJECTS
    assert says in str(fault.value)


def test_a_sample_has_its_boxes_as_tokens(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture_bytes(200, 100))
    item = line("<image>\nFind <ref-object>", "Here: <bbox>", image="a.png", objects=FORMS[0])
    plain = line("<image>\nFind <ref>bus</ref>", "Here: <box>[[100, 100, 300, 400]]</box>", image="a.png")
    maker, spec = make_maker(), spec_of(tmp_path / "a.jsonl", tmp_path)
    footprint, _ = maker.measure(json.dumps(item).encode(), spec)
    samples = [maker.load(json.dumps(one).encode(), spec, Address("a", 0)) for one in (item, plain)]
    assert samples[0].footprint == footprint
    assert samples[0].input_ids.tolist() == samples[1].input_ids.tolist()
    box = tokenizer("tiny-qwen2").convert_tokens_to_ids("<box>")
    assert samples[0].input_ids.tolist().count(box) == 1


coordinates = st.lists(st.tuples(*[st.integers(0, 999)] * 2, *[st.integers(1, 500)] * 2), min_size=1, max_size=3)


def test_what_is_written_is_parsed_back() -> None:
    @properties(100)
    @given(st.lists(st.tuples(st.sampled_from(["a", "red cup", "杯"]), coordinates), min_size=1, max_size=4), st.text())
    def check(named: list[tuple[str, list[tuple[int, int, int, int]]]], between: str) -> None:
        between = between.replace("<", "")
        boxes = [tuple((x, y, min(x + w, 1000), min(y + h, 1000)) for x, y, w, h in many) for _, many in named]
        objects = Objects(tuple(name for name, _ in named), tuple(Box(one, "0-1000") for one in boxes))
        text = between.join(["<ref-object><bbox>"] * len(named))
        (written,) = fill_in_boxes([text], objects, [])
        assert parse_boxes(written) == [
            Grounding(name, tuple(tuple(map(float, box)) for box in one))  # type: ignore[misc]
            for (name, _), one in zip(named, boxes, strict=True)
        ]
        assert box_problems(written) == []

    check()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<box>[1, 2, 3, 4]</box>", [(None, [(1, 2, 3, 4)])]),
        ("<ref>a</ref> <box> [[1, 2, 3, 4], [5,6,7,8]] </box>!", [("a", [(1, 2, 3, 4), (5, 6, 7, 8)])]),
        ("<box>[[0.1, 0.2, 0.3, 0.4]]</box>", [(None, [(0.1, 0.2, 0.3, 0.4)])]),
        ("<box>[[1, 2]]</box> <box>[[1, 2, 3</box> <box>x</box> [1, 2, 3, 4]", []),
        ("<ref>a</ref> is <ref>b</ref><box>[[1, 2, 3, 4]]</box>", [("b", [(1, 2, 3, 4)])]),
    ],
)
def test_boxes_of_an_answer(text: str, found: list[tuple[str | None, list[tuple[float, ...]]]]) -> None:
    assert [(one.ref, list(one.boxes)) for one in parse_boxes(text)] == found


def test_thousandths_are_scaled_back_to_the_picture() -> None:
    assert to_pixels((100, 100, 300, 400), 200, 100) == (20, 10, 60, 40)
    assert to_pixels((0.1, 0.1, 0.3, 0.4), 200, 100, whole=1) == pytest.approx((20, 10, 60, 40))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<box>[[0.1, 0.2, 0.3, 0.4]]</box>", "holds fractions"),
        ("<box>[[1, 2, 1200, 4]]</box>", "leaves 0..1000"),
        ("<box>[[5, 2, 3, 4]]</box>", "swapped corners"),
        ("<box>[[5, 2, 3]]</box>", "has 3 numbers"),
        ("<box>here</box>", "is not a list"),
        ("<box>[[1, 2, 3, 4]]", "<box> without </box>"),
        ("<box>[[1, 2, 3, NaN]]</box>", "leaves 0..1000"),
    ],
)
def test_doubtful_boxes_are_named(text: str, says: str) -> None:
    (problem,) = box_problems(text)
    assert says in problem


def test_a_record_without_objects_keeps_its_text() -> None:
    record = parse_record(line("What is a <bbox>?", "A tag."))
    assert resolve_boxes(record, []) == record


def test_a_text_full_of_open_boxes_does_not_hang() -> None:
    assert len(box_problems("<box>" * 300_000)) == 1
    assert parse_boxes("<ref>" * 300_000) == []
