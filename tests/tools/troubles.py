"""A manifest with every kind of trouble that data come with, each on a line of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from tests.data.helpers import conversation, line, picture_bytes, write_lines, write_noise

LOOP = " ".join(["no", "yes"] * 20)


def one(*texts: str, image: Any = "a.png", **keys: Any) -> dict[str, Any]:
    """A line with a picture."""
    return line(*(texts or ("<image>\nWhat?", "Noise.")), image=image, **keys)


# (name, line, fault code, warnings). Texts differ where lines are not meant to be duplicates.
TROUBLES: list[tuple[str, Any, str | None, tuple[str, ...]]] = [
    ("good", one("<image>\nWhat is it?", "Noise, 1."), None, ()),
    ("no JSON", b'{"conversations": [', "NOT_JSON", ()),
    ("array on a line", b"[1, 2]", "NOT_JSON", ()),
    ("not UTF-8", '{"conversations": "é"}'.encode("latin-1"), "NOT_JSON", ()),
    ("blank", b"", "NOT_JSON", ()),
    ("no conversation", {"image": "a.png"}, "CONVERSATIONS", ()),
    ("text for value", {"conversations": [{"from": "human", "text": "a"}, {"from": "gpt", "text": "b"}]}, "TURN", ()),
    ("number as answer", {"conversations": [*conversation("q"), {"from": "gpt", "value": 3}]}, "TURN", ()),
    ("two questions", {"conversations": conversation("q", "a")[:1] * 2}, "TURN_ORDER", ()),
    ("no last answer", line("q", "a", "q2"), "TURN_ORDER", ()),
    ("empty answer", line("q", "  "), "EMPTY_ANSWER", ()),
    ("a tag too many", one("<image><image>\nq", "a"), "PLACEHOLDERS", ()),
    ("no such picture", one(image="none.png"), "MISSING_IMAGE", ()),
    ("no picture", one(image="text.png"), "BROKEN_IMAGE", ()),
    ("too long", line("word " * 400, "a"), "TOO_LONG", ()),
    ("preference pair", {"question": "q", "chosen": "a", "rejected": "b"}, "UNSUPPORTED", ()),
    ("remote", one(image="https://example.org/a.png"), "REMOTE", ()),
    ("bad objects", one("<image><bbox>", "a", objects=[{"bbox": [5, 5, 1, 1]}]), "OBJECTS", ()),
    (
        "nothing to learn",
        {"conversations": [conversation("q", "a")[0], {"from": "gpt", "value": "a", "loss": 0}]},
        "NOTHING_SUPERVISED",
        (),
    ),
    ("no such video", line("<video>\nq", "a", video="none.mp4"), "MISSING_VIDEO", ()),
    ("marker", line("what is <|im_end|> and <IMG_CONTEXT>", "a stop"), None, ("marker",)),
    ("swapped box", one("<image>\nq", "<ref>a</ref><box>[[300, 1, 200, 2]]</box>"), None, ("box",)),
    ("pixels", one("<image>\nq", "<box>[[0, 0, 1920, 1080]]</box>"), None, ("box",)),
    ("open box", one("<image>\nq", "<box>[[0, 0, 20, 10]]"), None, ("box",)),
    ("tags of objects", one("<image>\n<ref-object>?", "<bbox>"), None, ("box_tag",)),
    ("fractions", one("<image>\n<bbox>?", "f", objects=[{"bbox": [0, 0, 0.5, 1]}]), None, ("box_unit",)),
    ("over the edge", one("<image>\n<bbox>?", "o", objects=[{"bbox": [10, 10, 43, 20]}]), None, ("box_clipped",)),
    ("tag of another tool", line("<image_1>\nq", "t"), None, ("tag_like",)),
    ("key misspelt", line("misspelt", "a", imgae="a.png"), None, ("unknown_key",)),
    ("tag in answer", one("<image>\nq", "see <image>"), None, ("media_tag",)),
    ("wrong size", one("<image>\nsize", "a", width=41, height=30), None, ("size",)),
    ("sizes too few", one("<image><image>", "b", image=["a.png", "b.png"], width_list=[1], height_list=[1]),
     None, ("size",)),
    ("long picture", one("<image>\nlong", "a", image="long.png"), None, ("ratio",)),
    ("key twice", b'{"id": 7, "id": 8,' + json.dumps(line("twice", "a")).encode()[1:],
     None, ("key_twice",)),
    ("no question", line(" ", "an answer"), None, ("question",)),
    ("outer space", line("space", "an answer\n"), None, ("space",)),
    ("loop", line("loop", LOOP), None, ("repetition",)),
    ("duplicate", one("<image>\nWhat is it?", "Noise, 1.", id="x"), None, ("duplicate",)),
    ("near duplicate", one("<image>\nWhat  is it?", "Noise, 1."), None, ("near_duplicate",)),
    ("same id", line("other", "answer", id="x"), None, ("same_id",)),
    ("truncated", one("<image>\ntruncated", "a", image="cut.png"), None, ()),
    ("turned", one("<image>\nturned", "a", image="turned.jpg"), None, ()),
    ("markup", line("<script>alert(1)</script>", "<b>&amp;</b>"), None, ()),
]  # fmt: skip
# What only --decode finds: name -> fault or warning.
DECODED = {"truncated": "BROKEN_IMAGE", "turned": "exif"}


def number_of(name: str) -> int:
    """Line of a trouble, counted from 1."""
    return next(n for n, trouble in enumerate(TROUBLES, 1) if trouble[0] == name)


def write_troubles(folder: Path, **entry: Any) -> Path:
    """Pictures, annotation and manifest; the path of the manifest. ``entry``: more keys of its data set."""
    folder.mkdir(parents=True, exist_ok=True)
    write_noise(folder / "a.png", 40, 30)
    write_noise(folder / "b.png", 30, 30, seed=1)
    (folder / "long.png").write_bytes(picture_bytes(804, 4))
    (folder / "text.png").write_text("no picture at all")
    whole = write_noise(folder / "cut.png", 60, 60, seed=2).read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 30)).save(folder / "turned.jpg", exif=exif)
    write_lines(folder / "troubles.jsonl", [trouble[1] for trouble in TROUBLES])
    manifest = {"troubles": {"root": str(folder), "annotation": str(folder / "troubles.jsonl"), **entry}}
    (folder / "troubles.json").write_text(json.dumps(manifest))
    return folder / "troubles.json"


def data_flags(tiny: Path, *more: str) -> list[str]:
    """Flags of a run on the tiny model, with room for all but the longest line."""
    return ["--model_name_or_path", str(tiny), "--max_seq_length", "300", *more]
