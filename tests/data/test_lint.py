"""Warnings of single lines, and hashes: each case by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.data.address import Address
from internvl_chat.data.lint import (
    REPETITION_LIMIT,
    RUN,
    WARNINGS,
    LineFacts,
    content_hash,
    look_at_line,
    repetition,
    template_tokens,
)
from internvl_chat.data.record import parse_record
from tests.data.helpers import line, make_maker, spec_of, write_noise


def facts(item: Any, usable: bool = True, root: Path | str = "") -> LineFacts:
    """What the text of a line tells."""
    content = item if isinstance(item, bytes) else json.dumps(item, ensure_ascii=False).encode()
    maker, spec = make_maker(), spec_of(Path("notes.jsonl"), root)
    size = maker.measure(content, spec)[0] if usable else None
    return look_at_line(content, spec, maker, Address("notes", 0), size, "text")


def kinds(item: Any) -> list[str]:
    return [kind for kind, _ in facts(item, usable=False).warnings]


def test_a_plain_line_has_no_warning() -> None:
    assert facts(line("What is 1 + 1?", "2", system="Be brief.")).warnings == ()
    assert facts(b'{"conversations": [', usable=False) == LineFacts()
    assert facts(b"[]", usable=False) == LineFacts()


@pytest.mark.parametrize("token", ["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"])
def test_every_marker_of_template_and_pictures_is_found(token: str) -> None:
    like = ["tag_like"] if token == "<img>" else []  # a human turn is where a tag is due
    assert kinds(line(f"see {token}", "a")) == ["marker", *like] and kinds(line("q", f"{token}")) == ["marker"]
    detail = dict(facts(line("q", "a", system=token)).warnings)["marker"]
    assert detail == f"{token} in turn 1 (system)"
    assert token in template_tokens(make_maker(), spec_of(Path("n.jsonl")))


def test_grounding_is_meant_and_other_templates_markers_are_text() -> None:
    assert kinds(line("<ref>a cup</ref>?", "<box>[[1, 2, 3, 4]]</box>")) == []
    assert kinds(line("<|end|> </s>", "a")) == []


@pytest.mark.parametrize(
    ("item", "kind", "detail"),
    [
        (line("q", "<box>[[0.1, 0.2, 0.3, 0.4]]</box>"), "box", "fractions"),
        (line("q", "<box>[1, 2, 3]</box>"), "box", "not a list"),
        (line("<bbox>?", "a"), "box_tag", "<bbox> in turn 1 (human)"),
        (line("q", "<video> there"), "media_tag", "<video> in turn 2 (gpt)"),
        (line("q", "a", "", "b"), "question", "turn 3"),
        (line("q", " a"), "space", "turn 2"),
        (line("q", "a b " * 40 + "c"), "repetition", "was said before"),
        (line("<image>", "a", image="x.png", width=2010, height=10), "ratio", "2010 x 10"),
        (line("<image>", "a", image="x.png", width=[1, 2], height=[1, 2]), "size", "1 pictures"),
        (b'{"conversations": [{"from": "human", "value": "q", "value": "r"}, {"from": "gpt", "value": "a"}]}',
         "key_twice", "'value'"),
    ],
)  # fmt: skip
def test_each_kind_says_what_and_where(item: Any, kind: str, detail: str) -> None:
    found = dict(facts(item, usable=False).warnings)
    assert list(found) == [kind] and detail in found[kind]
    assert all(what and mend for what, mend in WARNINGS.values())


TURNS = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("item", "detail"),
    [
        (line("q", "a", imgae="x.png"), "unknown key 'imgae', did you mean 'image'?"),
        (line("<image>q", "a", imgae="x.png"), "unknown key 'imgae', did you mean 'image'?"),  # a fault, too
        (line("q", "a", img="x.png"), "unknown key 'img', did you mean 'image'?"),
        (line("q", "a", Image="x.png"), "unknown key 'Image', did you mean 'image'?"),
        (line("<video>q", "a", video="x.mp4", clips=[0, 1]), "unknown key 'clips', did you mean 'clip'?"),
        (line("q", "a", object=[1]), "unknown key 'object', did you mean 'objects'?"),
        (line("<image>", "a", image="x.png", widht=4), "unknown key 'widht', did you mean 'width'?"),
        ({"messages": [*TURNS], "imags": ["x.png"]}, "unknown key 'imags', did you mean 'images'?"),
        ({"query": "q", "response": "a", "histroy": [["q", "a"]]}, "unknown key 'histroy', did you mean 'history'?"),
        ({"instruction": "q", "output": "a", "sytem": "Be brief."}, "unknown key 'sytem', did you mean 'system'?"),
        ({"messages": [TURNS[0], {**TURNS[1], "los": False}]}, "unknown key 'los' in turn 2, did you mean 'loss'?"),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "losses": 0}]},
         "unknown key 'losses' in turn 2, did you mean 'loss'?"),
    ],
)  # fmt: skip
def test_misspelt_keys_are_named(item: dict[str, Any], detail: str) -> None:
    assert facts(item, usable=False).warnings == (("unknown_key", detail),)


@pytest.mark.parametrize(
    "key",
    ["id", "ids", "idx", "source", "score", "image_id", "imageId", "video_id", "question_id", "questions", "caption",
     "label", "language", "task", "type", "category", "context", "weight", "heights_of_what", "model", "meta", "url"],
)  # fmt: skip
def test_keys_of_others_are_no_mistakes(key: str) -> None:
    assert kinds(line("q", "a", **{key: "x"})) == []
    assert kinds(line("q", "a", imgae=None)) == []  # nothing is lost
    assert kinds({"messages": [*TURNS], key: "x"}) == []


def test_keys_that_columns_name_are_known() -> None:
    spec = spec_of(Path("n.jsonl"), "", format="sharegpt", columns={"messages": "dialog", "content_tag": "txt"})
    item = {"dialog": [{"from": "human", "txt": "q"}, {"from": "gpt", "txt": "a"}], "dialogs": 1, "imagess": 1}
    content = json.dumps(item).encode()
    found = look_at_line(content, spec, make_maker(), Address("n", 0), None, "text")
    assert found.warnings == (("unknown_key", "unknown key 'imagess', did you mean 'images'?"),)


@pytest.mark.parametrize(
    ("tag", "meant"),
    [("<Image>", "<image>"), ("<IMAGE>", "<image>"), ("<images>", "<image>"), ("<image_1>", "<image>"),
     ("<image1>", "<image>"), ("<|image|>", "<image>"), ("<image/>", "<image>"), ("<|image_pad|>", "<image>"),
     ("<Video>", "<video>"), ("<video_2>", "<video>")],
)  # fmt: skip
def test_what_looks_like_a_tag(tag: str, meant: str) -> None:
    found = facts(line(f"{tag}\nq", "a"), usable=False).warnings
    assert found == (("tag_like", f"{tag} in turn 1 (human), did you mean {meant}?"),)
    assert kinds(line("q", f"write {tag}")) == []
    assert kinds(line("<image><video> <imagery> <image of a cup>", "a", image="x.png", video="y.mp4")) == []


def boxed(*boxes: Any, **keys: Any) -> dict[str, Any]:
    objects = [{"bbox": box, **keys} for box in boxes]
    return line("<image>\n" + "<bbox>" * len(boxes), "a", image="x.png", width=200, height=100, objects=objects)


def test_boxes_in_pixels() -> None:
    assert kinds(boxed([0, 0, 1, 0.5])) == kinds(boxed([0.5, 0.25])) == ["box_unit"]
    assert kinds(boxed([0, 0, 1, 0.5], unit="0-1")) == kinds(boxed([0, 0, 2, 1], [0, 0])) == []
    # 5 % of 200 x 100 pixels are 10 and 5.
    assert kinds(boxed([0, 0, 210, 105], [-10, -5, 20, 20])) == []
    assert kinds(boxed([0, 0, 900, 900], unit="0-1000")) == []
    for box in ([0, 0, 211, 100], [0, 0, 200, 106], [-11, 0, 5, 5], [0, -6, 5, 5]):
        assert kinds(boxed(box)) == ["box_clipped"]
    (warning,) = facts(boxed([0, 0, 300, 100]), usable=False).warnings
    assert warning[1] == "box [0, 0, 300, 100] reaches 50% of the side over picture 'x.png' of 200 x 100 pixels"
    assert facts(boxed([0, 0, 300, 100], [4, 4, 5, 5]), usable=False).reach == 300
    assert facts(boxed([0, 0, 300, 100], unit="0-1000"), usable=False).reach == 0


def test_boxes_are_held_against_the_pictures_that_are_there(tmp_path: Path) -> None:
    write_noise(tmp_path / "x.png", 40, 30)
    item = {**boxed([10, 10, 60, 20]), "width": None, "height": None}
    content, maker, spec = json.dumps(item).encode(), make_maker(), spec_of(Path("n.jsonl"), tmp_path)
    size = maker.measure(content, spec)[0]
    for depth, expected in (("text", []), ("heads", ["box_clipped"])):
        found = look_at_line(content, spec, maker, Address("n", 0), size, depth)  # type: ignore[arg-type]
        assert [kind for kind, _ in found.warnings] == expected


def test_the_edges_of_rules() -> None:
    assert kinds(line("<image>", "a", image="x.png", width=2000, height=10)) == []  # exactly 200
    assert kinds(line("<image>\n<bbox>?", "a", image="x.png", objects=[{"bbox": [1, 2, 3, 4]}])) == []
    assert kinds(line("<image>", "a", image="x.png")) == []  # a picture is a question


def test_repetition_by_hand() -> None:
    words = [f"w{n}" for n in range(60)]
    assert repetition(" ".join(words)) == 0
    assert repetition("ha " * (3 * RUN - 1)) == 0  # too short to tell
    # 60 words give 51 runs of 10; one word only gives one of them.
    assert repetition("ha " * 60) == pytest.approx(50 / 51)
    # 30 words twice: runs 1 to 30 are new, runs 31 to 51 are runs 1 to 21 again.
    assert repetition(" ".join(words[:30] * 2)) == pytest.approx(21 / 51)
    assert repetition(" ".join(words * 2)) < REPETITION_LIMIT < repetition(" ".join(words * 3))
    assert repetition("天" * 60) == pytest.approx(50 / 51)  # no spaces in this script


def test_content_is_conversation_and_media_in_any_format() -> None:
    def of(item: dict[str, Any], root: str = "r", loosely: bool = False) -> int:
        return content_hash(parse_record(json.dumps(item)), root, loosely)

    base = line("<image>\nq", "a", image="x.png", id=1)
    openai = {
        "messages": [{"role": "user", "content": "<image>\nq"}, {"role": "assistant", "content": "a"}],
        "images": ["x.png"],
    }
    assert of(base) == of({**base, "id": 2}) == of({**base, "image": ["x.png"]}) == of(openai)
    assert len({of(base), of({**base, "image": "y.png"}), of(base, "other"), of(line("q", "a"))}) == 4
    assert of(line("q", "a"), "r") == of(line("q", "a"), "s")  # no media, so where they lie is nothing
    spaced = line("<image>  q ", "a\n", image="x.png")
    assert of(base) != of(spaced) and of(base, loosely=True) == of(spaced, loosely=True)


def test_faulty_lines_have_warnings_but_no_hashes() -> None:
    good, bad = facts(line("q", "a ", id="x")), facts(line("q", "a ", id="x"), usable=False)
    assert good.warnings == bad.warnings and good.content and good.loose and good.id
    assert (bad.content, bad.loose, bad.id) == (0, 0, 0)
    assert facts(line("q", "a")).id == facts(line("q", "a", id="")).id == 0
    assert facts(line("q", "a", id=1)).id != facts(line("q", "a", id="1")).id
