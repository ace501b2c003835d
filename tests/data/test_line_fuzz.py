"""10,000 damaged lines of every format: each becomes a sample, or a fault with a reason; nothing else ever happens."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.data.address import Address
from internvl_chat.data.faults import Fault, FaultCode
from internvl_chat.data.fit import Footprint, Limits
from internvl_chat.data.index_build import measure_line
from internvl_chat.data.sample import SampleMaker, VideoSettings
from tests.data.helpers import line, make_maker, spec_of, write_noise

LINES = 10_000 * max(1, int(os.environ.get("INTERNVL_HUNT", "1")))
BUS = [{"ref": "bus", "bbox": [2, 2, 20, 20]}]
ITEMS: list[dict[str, Any]] = [
    line("Hi", "Ho", "Again?", "Ho ho."),
    line("<image>\nWhat?", "A \U0001f600 é.", "And <ref>it</ref>?", "<box>[[1, 2, 3, 4]]</box>", image="a.png"),
    line("<image> <image>", "Two.", image=["a.png", "b.png"], width_list=[50, 90], height_list=[40, 30], system="S"),
    line("<image>\nFind <ref-object>", "<bbox>", image="a.png", objects=BUS),
    line("<video>\nWhat?", "A film.", video="film/", clip=[0.5, 3]),
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}},
                                               {"type": "text", "text": "Colour?"}]},
                  {"role": "assistant", "content": "Blue.", "weight": 1}]},
    {"query": "<image>And?", "response": "Yes.", "history": [["<image>Who?", "She."]], "images": ["a.png", "b.png"]},
    {"messages": [{"role": "user", "content": "What?<image>"}, {"role": "assistant", "content": "A."}],
     "images": ["a.png"]},
    {"instruction": "Add", "input": "1 2", "output": "3", "history": [["a", "b"]], "system": "s"},
    {"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}], "images": ["b.png"]},
]  # fmt: skip
VALUES: list[Any] = [None, True, 0, -1, 1e400, 10**400, "", " ", "x", "<image>", "gpt", "\ud83d", [], {}, [[]], [None]]
VALUES += [
    "file://[abc/x.png",
    "x" * 5000,
    "zip://x::" * 1500 + "a.zip",
    "/proc/1/root/x",
    ["real"],
    "<bbox>",
    "<video>",
]
VALUES += [
    "a.png",
    "gone.png",
    ["a.png", 3],
    {"url": 1},
    "<|im_end|><img><IMG_CONTEXT>",
    "\x00",
    "data:,",
    "http://x/y",
]
PIECES = [b'"', b"\\", b"\\ud83d", b"\\u0000", b"{", b"]", b",", b"\xff", b"null", b"<image>", b"<bbox>", b"\n", b""]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_noise(tmp_path / "a.png", 50, 40)
    write_noise(tmp_path / "b.png", 90, 30)
    (tmp_path / "film").mkdir()
    for number in range(5):
        write_noise(tmp_path / "film" / f"{number}.png", 30, 30, seed=number)
    return tmp_path


def damage_values(value: Any, draw: random.Random) -> Any:
    """A value somewhere inside is exchanged, a key lost, doubled or renamed, a list cut or turned round."""
    if draw.random() < 0.15:
        return draw.choice(VALUES)
    if isinstance(value, dict) and value:
        changed = dict(value)
        key = draw.choice(list(changed))
        match draw.randrange(5):
            case 0:
                del changed[key]
            case 1:
                changed[draw.choice(["text", "images", "image", "role", "objects", "loss", key.upper()])] = changed[key]
            case 2:
                changed[draw.choice(["video", "clip", "width", "tools", "chosen"])] = draw.choice(VALUES)
            case _:
                changed[key] = damage_values(changed[key], draw)
        return changed
    if isinstance(value, list) and value:
        changed_list = list(value)
        at = draw.randrange(len(changed_list))
        match draw.randrange(4):
            case 0:
                del changed_list[at]
            case 1:
                changed_list.reverse()
            case _:
                changed_list[at] = damage_values(changed_list[at], draw)
        return changed_list
    return draw.choice(VALUES)


def damage_bytes(text: bytes, draw: random.Random) -> bytes:
    for _ in range(draw.randrange(1, 4)):
        at = draw.randrange(len(text))
        text = text[:at] + draw.choice(PIECES) + text[at + draw.randrange(6) :] or b" "
    return text


def test_ten_thousand_damaged_lines(folder: Path) -> None:
    whole = make_maker()
    limits = Limits(330, 8, "truncate")
    maker = SampleMaker(whole.encoder, whole.tiles, limits, videos=VideoSettings("rand", 2, 4))
    spec, draw, seen = spec_of(folder / "a.jsonl", folder), random.Random(0), Counter[str]()
    for number in range(LINES):
        item = draw.choice(ITEMS)
        for _ in range(number % 8 and draw.randrange(3)):
            item = damage_values(item, draw)
        text = json.dumps(item).encode()
        if number % 8 == 0:
            text = damage_bytes(text, draw)
        size = measure_line(text, spec, maker)
        if size[0]:
            sample = maker.load(text, spec, Address("notes", number), expected=Footprint(*size[:3]))
            assert sample.footprint.supervised > 0
            seen["sample"] += 1
            continue
        with pytest.raises(Fault) as fault:
            maker.measure(text, spec)
        assert int(fault.value.code) == size[3]
        assert fault.value.reason
        assert fault.value.mend
        seen[FaultCode(size[3]).name] += 1
    assert "UNEXPECTED" not in seen
    # The damage reaches every check, and not every line is lost to the first one.
    assert seen["sample"] > LINES // 10
    expected = {"NOT_JSON", "CONVERSATIONS", "TURN", "TURN_ORDER", "EMPTY_ANSWER", "PLACEHOLDERS", "MISSING_IMAGE"}
    expected |= {"FORMAT", "OBJECTS", "CLIP", "REMOTE"}
    assert expected <= set(seen), expected - set(seen)
