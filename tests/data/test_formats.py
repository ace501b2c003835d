"""The same conversation comes out of every format: turns, order of media, boxes. What has no place is a Fault."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.data.faults import Fault, FaultCode
from internvl_chat.data.formats.table import COLUMNS, FORMATS, check_format, recognise, to_internvl
from internvl_chat.errors import ConfigError
from tests.data.helpers import conversation, line, properties

ASK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
TURNS = conversation("a", "b")


def fault_of(item: Any, format: str | None = None, columns: dict[str, str] | None = None) -> str:
    with pytest.raises(Fault) as fault:
        to_internvl(item, format, columns)
    assert fault.value.code is FaultCode.FORMAT
    assert "\n" not in str(fault.value)
    assert len(str(fault.value)) < 400
    return str(fault.value)


# -- hand-made cases ----------------------------------------------------------------------------------------------


def test_openai_parts_become_tags_at_their_place() -> None:
    item = {
        "id": 7,
        "messages": [
            {"role": "developer", "content": "Answer in one word."},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "p/1.png", "detail": "high"}},
                    {"type": "text", "text": "Is this "},
                    {"type": "image_url", "image_url": "https://x.org/2.png"},
                    {"type": "text", "text": "\nthe same as "},
                    {"type": "image", "image": "file:///d/my%20pet.png"},
                ],
            },
            {
                "role": "assistant",
                "content": [{"type": "text", "text": "N"}, {"type": "text", "text": "o"}],
                "weight": 0,
            },
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "Yes", "loss": True},
        ],
        "source": "hand",
    }
    assert to_internvl(item) == {
        "id": 7,
        "image": ["p/1.png", "https://x.org/2.png", "/d/my pet.png"],
        "conversations": [
            {"from": "system", "value": "Answer in one word."},
            {"from": "human", "value": "<image>\nIs this <image>\nthe same as <image>\n"},
            {"from": "gpt", "value": "No", "loss": False},
            {"from": "human", "value": "Sure?"},
            {"from": "gpt", "value": "Yes", "loss": True},
        ],
        "source": "hand",
    }


def test_parts_as_tables_write_them() -> None:
    part = {"type": None, "text": None, "index": None, "image": None}
    content = [
        {**part, "type": "image", "index": 0},
        {**part, "type": "image", "index": 1},
        {**part, "type": "text", "text": "?"},
    ]
    item = {
        "messages": [{"role": "user", "content": content, "tool_calls": None}, ASK[1]],
        "images": ["a", "b"],
        "audios": None,
    }
    result = to_internvl(item)
    assert result["image"] == ["a", "b"]
    assert result["conversations"][0] == {"from": "human", "value": "<image>\n<image>\n?"}


def test_tags_in_messages_take_from_the_lists_and_stay_where_they_are() -> None:
    talk = [{"role": "user", "content": "What is <image>, and <video>?"}, ASK[1]]
    images = [{"bytes": "data:image/png;base64,AA==", "path": "x.png"}]
    assert to_internvl({"messages": talk, "images": images, "videos": [{"url": "v.mp4"}]}) == {
        "image": "data:image/png;base64,AA==",
        "video": "v.mp4",
        "conversations": conversation("What is <image>, and <video>?", "b"),
    }


def test_media_without_tags_go_before_the_last_question() -> None:
    talk = {"messages": [*ASK, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}
    expected = conversation("a", "b", "<image>\n<image>\n<video>\nc", "d")
    assert to_internvl({**talk, "images": ["1", "2"], "videos": "v"}) == {
        "image": ["1", "2"], "video": "v", "conversations": expected,
    }  # fmt: skip
    swift = {"query": "c", "response": "d", "history": [["a", "b"]], "images": ["1", "2"], "videos": ["v"]}
    assert to_internvl(swift)["conversations"] == expected


def test_swift_history_comes_first_and_its_tags_take_the_first_pictures() -> None:
    item = {
        "query": "<image>Or here?",
        "response": "Cold.",
        "history": [["Look: <image>", "Warm."]],
        "images": ["1", "2"],
    }
    assert to_internvl(item) == {
        "image": ["1", "2"],
        "conversations": conversation("Look: <image>\n", "Warm.", "<image>\nOr here?", "Cold."),
    }


def test_swift_paths_in_the_text_are_taken_in_reading_order() -> None:
    item = {"query": "<img>n/2.png</img>And this?", "response": "y", "history": [["<img>n/1.png</img>\nThis?", "n"]]}
    assert to_internvl(item) == {
        "image": ["n/1.png", "n/2.png"],
        "conversations": conversation("<image>\nThis?", "n", "<image>\nAnd this?", "y"),
    }


def test_swift_objects_and_their_tags_pass_untouched() -> None:
    objects = '[{"caption": "cup", "bbox": [1, 2, 3, 4], "bbox_type": "real", "image": 0}]'
    item = {
        "query": "Where is <ref-object>?",
        "response": "<bbox>",
        "images": ["c.png"],
        "objects": objects,
        "width": 9,
    }
    assert to_internvl(item) == {
        "image": "c.png",
        "conversations": conversation("<image>\nWhere is <ref-object>?", "<bbox>"),
        "objects": objects,
        "width": 9,
    }


@pytest.mark.parametrize("query", ["query", "prompt", "input", "instruction", "question", "problem"])
@pytest.mark.parametrize("response", ["response", "answer", "output", "target", "solution", "completion", "text"])
def test_swift_aliases(query: str, response: str) -> None:
    item = {query: "a", response: "b", "image": "p.png", "system_prompt": "s"}
    assert recognise(item) == ("alpaca" if (query, response) == ("instruction", "output") else "swift")
    item = {query: "a", response: "b", "image": "p.png", "system_prompt": "s"}
    assert to_internvl(item, "swift") == {
        "image": "p.png",
        "conversations": conversation("<image>\na", "b", system="s"),
    }


def test_sharegpt_keeps_tags_where_they_stand() -> None:
    talk = [
        {"from": "human", "value": "Who is that?<image>", "loss": None},
        {"from": "gpt", "value": "Ann.", "weight": 1},
        {"from": "human", "value": "<image> and here?"},
        {"from": "gpt", "value": "Bob."},
    ]
    expected = conversation("Who is that?<image>", "Ann.", "<image> and here?", "Bob.", system="Be nice.")
    expected[2]["loss"] = True  # type: ignore[assignment]
    item = {"conversations": talk, "images": ["1", "2"], "system": "Be nice.", "tools": "[]"}
    assert to_internvl(item) == {"image": ["1", "2"], "conversations": expected}


def test_sharegpt_columns_and_tags_rename_everything() -> None:
    talk = [{"who": "u", "says": "a <video>"}, {"who": "b", "says": "c"}]
    columns = {
        "messages": "chat", "videos": "clips", "system": "sys", "role_tag": "who", "content_tag": "says",
        "user_tag": "u", "assistant_tag": "b",
    }  # fmt: skip
    item = {"chat": [*talk, *talk], "clips": ["1.mp4", "2.mp4"], "sys": "s", "images": []}
    assert to_internvl(item, "sharegpt", columns) == {
        "video": ["1.mp4", "2.mp4"], "conversations": conversation("a <video>", "c", "a <video>", "c", system="s"),
    }  # fmt: skip
    assert "use one of u, b, system" in fault_of({"chat": [{"who": "human", "says": "a"}]}, "sharegpt", columns)


def test_alpaca_joins_instruction_and_input() -> None:
    item = {"instruction": "Add.", "input": "1 2", "output": "3", "history": [["Hi", "Ho"]], "system": ""}
    assert to_internvl(item) == {"conversations": conversation("Hi", "Ho", "Add.\n1 2", "3")}
    assert to_internvl({**item, "input": ""})["conversations"][2]["value"] == "Add."
    assert to_internvl({"q": "a", "a": "b"}, "alpaca", {"prompt": "q", "response": "a"}) == {"conversations": TURNS}


def test_internvl_and_llava_items_stay_as_they_are() -> None:
    item = line("<image>\na", "b", system="s", image=["a.png"], id=None, width_list=[1], answer=3)
    before = deepcopy(item)
    assert to_internvl(item) == item == before
    assert to_internvl({"talk": TURNS, "pic": "a"}, "internvl", {"conversations": "talk", "image": "pic"}) == {
        "conversations": TURNS, "image": "a",
    }  # fmt: skip


PAIR = {"id": 1, "image": "p.png", "system": "s", "question": "<image>\na", "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize(
    "item",
    [
        PAIR,
        {"id": 1, "query": "a", "response": "b", "rejected_response": "c", "images": ["p.png"], "system": "s"},
        {
            "id": 1,
            "messages": [{"role": "system", "content": "s"}, *ASK],
            "rejected_response": "c",
            "images": ["p.png"],
        },
        {
            "id": 1,
            "conversations": conversation("<image>\na", system="s"),
            "chosen": {"from": "gpt", "value": "b"},
            "rejected": {"from": "gpt", "value": "c"},
            "images": ["p.png"],
        },
        {
            "id": 1,
            "messages": [{"role": "user", "content": "<image>\na"}],
            "system": "s",
            "chosen": {"role": "assistant", "content": "b"},
            "rejected": "c",
            "images": ["p.png"],
        },
        {
            "id": 1,
            "instruction": "<image>",
            "input": "a",
            "chosen": "b",
            "rejected": "c",
            "images": "p.png",
            "system": "s",
        },
    ],
)
def test_preference_pairs_of_every_format_are_the_same(item: dict[str, Any]) -> None:
    assert to_internvl(item) == PAIR


# -- which format -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "name"),
    [
        ({"messages": ASK, "conversations": TURNS}, "openai"),
        ({"messages": TURNS}, "sharegpt"),
        ({"messages": []}, "openai"),
        ({"messages": None}, "openai"),
        ({"conversations": ASK}, "sharegpt"),
        ({"conversations": TURNS, "images": [], "audios": None}, "internvl"),
        ({"conversations": TURNS, "images": ["a"]}, "sharegpt"),
        ({"conversations": TURNS, "system": "s"}, "sharegpt"),
        ({"conversations": TURNS, "image": "a", "question": "?", "answer": "!"}, "internvl"),
        ({"conversations": []}, "internvl"),
        ({"conversations": None}, "internvl"),
        ({"question": "a", "chosen": "b", "rejected": "c", "answer": "b"}, "internvl"),
        ({"question": "a", "answer": "b"}, "swift"),
        ({"query": "a"}, "swift"),
        ({"instruction": "a", "output": "b", "text": "a b"}, "alpaca"),
        ({"instruction": "a", "input": "i", "answer": "b"}, "swift"),
        ({"image": "a"}, "internvl"),
    ],
)
def test_the_format_is_told_by_the_keys(item: dict[str, Any], name: str) -> None:
    assert recognise(item) == name


def test_an_item_of_no_format_names_its_keys_the_nearest_and_the_formats() -> None:
    says = fault_of({"conversation": [], "id": 3})
    assert "an item with the keys ['conversation', 'id'] is of no known format; rename 'conversation' to" in says
    assert "'conversations'; formats: internvl, openai, swift, sharegpt, alpaca" in says
    assert "no keys" in fault_of({})
    assert "write it in one of these" in fault_of({"x" * 999 + str(n): 1 for n in range(99)})


def test_a_wrong_format_or_column_is_a_configuration_error() -> None:
    for format, columns, says in (
        ("opanai", None, "unknown format 'opanai'; did you mean 'openai'?; formats: internvl"),
        ("alpaca", {"promt": "q"}, "'alpaca' has no column 'promt'; did you mean 'prompt'?"),
        (None, {"prompt": "q"}, "columns without a format"),
        ("alpaca", {"prompt": 3}, "column 'prompt' must be the key that holds it"),
    ):
        with pytest.raises(ConfigError, match=re.escape(says)):
            to_internvl({}, format, columns)  # type: ignore[arg-type]
    check_format(None)
    assert COLUMNS.keys() == FORMATS.keys()


# -- what has no place --------------------------------------------------------------------------------------------


def user(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": list(parts)}, ASK[1]]


PICTURE = {"type": "image_url", "image_url": {"url": "a.png"}}


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ({"messages": []}, "key 'messages' holds [], no messages; make it a list of {'role'"),
        ({"messages": ["a"]}, "messages[0] is 'a', not an object"),
        ({"messages": [{"content": "a"}]}, "messages[0] has no key 'role'; use one of user, assistant"),
        ({"messages": [*ASK, {"role": "tool", "content": "x"}]}, "messages[2] has the role 'tool'; use one of"),
        ({"messages": [ASK[0], {"role": "assistant", "content": None}]}, "messages[1] has no content (a call"),
        ({"messages": [ASK[0], {**ASK[1], "tool_calls": [1]}]}, "messages[1] has a key 'tool_calls', which"),
        ({"messages": [ASK[0], {**ASK[1], "reasoning_content": "hm"}]}, "'reasoning_content', which has no place"),
        ({"messages": [ASK[0], {**ASK[1], "weight": 0.5}]}, "{'weight': 0.5}; give 'loss' as true or false"),
        ({"messages": [ASK[0], {**ASK[1], "weight": 0, "loss": True}]}, "{'loss': True, 'weight': 0}; give"),
        ({"messages": [{**ASK[0], "value": "z"}]}, "messages[0] has both 'value' and 'content'"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0]['content'] holds 7, not a text"),
        ({"messages": user({"type": "input_audio"})}, "['content'][0] is of type 'input_audio'; parts can"),
        ({"messages": user({"type": "image_url", "image_url": {}})}, "[0]['image_url'] holds {}; give a path"),
        ({"messages": user({"type": "image", "image": "a", "url": "b"})}, "has both 'image' and 'url'"),
        ({"messages": user({"type": "video", "video": ["1.png"]})}, "is a list (['1.png']); give one path; frames"),
        ({"messages": user({**PICTURE, "video_start": 3})}, "has key 'video_start'; remove it"),
        ({"messages": user({"type": "text"})}, "[0]['text'] holds None, not a text"),
        ({"messages": user(PICTURE, {"type": "text", "text": "<image>?"})}, "<image> is written in a question"),
        ({"messages": user(PICTURE), "images": ["b.png"]}, "image: 1, 1 of them with a path; paths in 'images': 1"),
        ({"messages": user({"type": "image"}, PICTURE), "images": ["b.png"]}, "image: 2, 1 of them with a path"),
        ({"messages": user({"type": "image"})}, "image: 1, 0 of them with a path; paths in 'images': 0"),
        ({"messages": user({"type": "image", "index": 1}), "images": ["b"]}, "has the index 1, out of order"),
        ({"messages": [ASK[0], {"role": "assistant", "content": [PICTURE]}]}, "a part with image, is outside"),
        ({"messages": [ASK[0], {"role": "assistant", "content": "<image>"}], "images": ["a"]}, "but in no question"),
        ({"messages": ASK, "images": ["a"], "image": "b"}, "both 'images' and 'image' hold images; keep one"),
        ({"messages": ASK, "images": ["a", None]}, "images[1] holds None; give a path"),
        ({"messages": ASK, "images": [{"bytes": "AAAA"}]}, "images[0] holds {'bytes': 'AAAA'}; give a path"),
        ({"messages": ASK, "images": [""]}, "images[0] holds ''; give a path"),
        ({"messages": ASK, "audios": ["a.wav"]}, "key 'audios' holds ['a.wav']; sound is not supported"),
        ({"messages": ASK, "tools": [{}]}, "calls of tools have no place"),
        ({"messages": ASK, "label": False}, "key 'label' is False; good and bad single answers (KTO)"),
        ({"messages": ASK, "conversations": TURNS}, "key 'conversations' belongs to another format; keep"),
        ({"messages": [{"role": "system", "content": "s"}, *ASK], "system": "t"}, "two system messages"),
        ({"messages": [*ASK, *ASK], "rejected_response": "x"}, "with 3 turns before its two answers; give"),
        ({"messages": ASK[:1], "rejected_response": "x"}, "do not end with the chosen answer"),
        ({"query": "a"}, "key 'response' is missing; add it, or name the key that holds it in 'columns'"),
        ({"query": "a", "respons": "b"}, "key 'response' is missing; rename 'respons' to it"),
        ({"prompt": "a", "question": "b", "answer": "c"}, "keys 'prompt', 'question' can all be the query; rename"),
        ({"query": ["a"], "response": "b"}, "key 'query' holds ['a'], not a text"),
        ({"query": "a", "response": "b", "history": [["c"]]}, "history[0] is ['c']; write [query, response]"),
        ({"query": "a", "response": "b", "history": "x"}, "key 'history' is a text, but not JSON"),
        ({"query": "a", "response": "b", "history": 3}, "key 'history' holds 3"),
        ({"query": "<img>1</img>", "response": "b", "images": ["2"]}, "given both as <img>path</img> and in a list"),
        ({"query": "<img>1</img><image>", "response": "b"}, "given both as <img>path</img> and in a list or"),
        ({"query": "a", "response": "<img>1</img>"}, "stands outside a question"),
        ({"query": "<img> </img>", "response": "b"}, "<img> holds ''; give a path"),
        ({"query": "a", "response": "b", "rejected_response": "c", "history": [["d", "e"]]}, "with 3 turns before"),
        ({"conversations": [*TURNS, {"from": "observation", "value": "x"}], "images": ["a"]}, "a call of a tool"),
        ({"conversations": [{"from": "bob", "value": "x"}], "system": "s"}, "use one of human, user, gpt"),
        ({"conversations": [{"from": "human"}], "system": "s"}, "conversations[0] has no key 'value'; add it, or name"),
        ({"conversations": user(PICTURE)}, "[0]['content'] is a list; contents in parts are read by"),
        ({"conversations": TURNS[:1], "chosen": "x"}, "only one of 'chosen' and 'rejected' is there"),
        ({"conversations": [*TURNS, TURNS[0]], "chosen": "x", "rejected": "y"}, "with 3 turns before its two answers"),
        ({"conversations": TURNS[:1], "chosen": "x", "rejected": ["y"]}, "key 'rejected' holds ['y'], not a text"),
        ({"conversations": TURNS, "kto_tag": False}, None),
        ({"conversations": TURNS, "kto_tag": False, "system": "s"}, "key 'kto_tag' holds False; good and bad single"),
        ({"instruction": "a", "output": ["b", "c"]}, "key 'output' holds ['b', 'c'], not a text"),
        ({"instruction": "a", "output": "b", "chosen": "c", "rejected": "d"}, "both 'output' and two answers"),
        ({"question": "a", "chosen": "b", "rejected": "c", "images": ["d"]}, "key 'images' is not read in the"),
    ],
)  # fmt: skip
def test_what_has_no_place_is_a_fault_that_names_the_key(item: dict[str, Any], says: str | None) -> None:
    assert (says or "key 'kto_tag' holds False") in fault_of(item)


# -- any conversation in any format -------------------------------------------------------------------------------

texts = st.text(max_size=12).filter(lambda text: not re.search("<(image|video|img)>", text))
paths = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=6).filter(
    lambda path: not path.startswith(("file:", "[")) and "<" not in path and path == path.strip()
)


@st.composite
def conversations(draw: st.DrawFn) -> dict[str, Any]:
    """A talk: "system", rounds of (pieces of the question, answer) where ("image", path) is a picture, and objects."""
    piece = st.one_of(
        texts.map(lambda text: ("text", text)), st.tuples(st.sampled_from(["image", "image", "video"]), paths)
    )
    rounds = draw(st.lists(st.tuples(st.lists(piece, max_size=4), texts), min_size=1, max_size=4))
    objects = draw(st.none() | st.just({"ref": ["x"], "bbox": [[1, 2, 3, 4]]}))
    return {"system": draw(st.none() | texts.filter(bool)), "rounds": rounds, "objects": objects}


def media_of(talk: dict[str, Any], kind: str) -> list[str]:
    return [value for pieces, _ in talk["rounds"] for what, value in pieces if what == kind]


def question(pieces: list[tuple[str, str]], breaks: bool) -> str:
    """The question as InternVL has it: a tag per medium; ``breaks``: with a line break behind it if none follows."""
    out = ""
    for kind, value in [*pieces, ("end", "")]:
        follows = value if kind == "text" else "<"
        if breaks and follows and out.endswith(("<image>", "<video>")) and not follows.startswith(("\n", "\r\n")):
            out += "\n"
        out += value if kind == "text" else "" if kind == "end" else f"<{kind}>"
    return out


def canonical(talk: dict[str, Any], breaks: bool) -> dict[str, Any]:
    turns = [text for pieces, answer in talk["rounds"] for text in (question(pieces, breaks), answer)]
    item: dict[str, Any] = {"conversations": conversation(*turns, system=talk["system"])}
    for kind in ("image", "video"):
        if media := media_of(talk, kind):
            item[kind] = media[0] if len(media) == 1 else media
    return item if talk["objects"] is None else {**item, "objects": talk["objects"]}


def beside(talk: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """``keys`` and what stands beside the turns in other formats."""
    lists = {f"{kind}s": media for kind in ("image", "video") if (media := media_of(talk, kind))}
    return {**keys, **lists, **({} if talk["objects"] is None else {"objects": talk["objects"]})}


def messages(talk: dict[str, Any], parts: bool) -> list[dict[str, Any]]:
    def content(pieces: list[tuple[str, str]]) -> Any:
        if not parts:
            return question(pieces, breaks=False)
        return [
            {"type": "text", "text": value}
            if kind == "text"
            else {"type": f"{kind}_url", f"{kind}_url": {"url": value}}
            for kind, value in pieces
        ]

    rounds = [
        message
        for pieces, answer in talk["rounds"]
        for message in ({"role": "user", "content": content(pieces)}, {"role": "assistant", "content": answer})
    ]
    return [*([{"role": "system", "content": talk["system"]}] if talk["system"] else []), *rounds]


@properties(60)
@given(conversations())
def test_openai_parts_say_the_same(talk: dict[str, Any]) -> None:
    item = {"messages": messages(talk, parts=True)}
    if talk["objects"]:
        item["objects"] = talk["objects"]
    assert_same(item, "openai", canonical(talk, breaks=True))


@properties(60)
@given(conversations())
def test_messages_with_tags_say_the_same(talk: dict[str, Any]) -> None:
    assert_same(beside(talk, messages=messages(talk, parts=False)), "openai", canonical(talk, breaks=False))


@properties(60)
@given(conversations(), st.booleans(), st.booleans())
def test_sharegpt_says_the_same(talk: dict[str, Any], roles: bool, column: bool) -> None:
    keys = ("role", "content", "user", "assistant") if roles else ("from", "value", "human", "gpt")
    names = {"user": keys[2], "assistant": keys[3], "system": "system"}
    turns = [{keys[0]: names[m["role"]], keys[1]: m["content"]} for m in messages(talk, parts=False)]
    item = beside(talk, conversations=turns)
    if column and talk["system"]:
        item = {**item, "conversations": turns[1:], "system": talk["system"]}
    assert_same(item, "sharegpt", canonical(talk, breaks=False), recognised=roles)


@properties(60)
@given(conversations(), st.booleans())
def test_swift_says_the_same(talk: dict[str, Any], inline: bool) -> None:
    inline = inline and not media_of(talk, "video")

    def write(pieces: list[tuple[str, str]]) -> str:
        return "".join(
            f"<img>{v}</img>" if inline and k == "image" else v if k == "text" else f"<{k}>" for k, v in pieces
        )

    pairs = [[write(pieces), answer] for pieces, answer in talk["rounds"]]
    item = beside(talk, query=pairs[-1][0], response=pairs[-1][1], history=pairs[:-1], system=talk["system"])
    if inline:
        item.pop("images", None)
    assert_same(item, "swift", canonical(talk, breaks=True))


@properties(60)
@given(conversations())
def test_alpaca_says_the_same(talk: dict[str, Any]) -> None:
    pairs = [[question(pieces, breaks=False), answer] for pieces, answer in talk["rounds"]]
    first, _, second = pairs[-1][0].partition("\n")
    split = bool(first and second)
    item = beside(
        talk,
        instruction=first if split else pairs[-1][0],
        input=second if split else None,
        output=pairs[-1][1],
        history=pairs[:-1],
        system=talk["system"],
    )
    assert_same(item, "alpaca", canonical(talk, breaks=False))


def assert_same(item: dict[str, Any], name: str, expected: dict[str, Any], recognised: bool = True) -> None:
    before = deepcopy(item)
    assert to_internvl(item, name) == expected
    assert item == before
    if recognised:
        assert recognise(item) == name
    assert recognise(expected) == "internvl"
    assert to_internvl(expected) == expected


# -- any JSON -----------------------------------------------------------------------------------------------------

KEYS = sorted(
    {key for names in COLUMNS.values() for key in names.values()}
    | {
        "role",
        "content",
        "from",
        "value",
        "type",
        "text",
        "image_url",
        "url",
        "bytes",
        "loss",
        "prompt",
        "answer",
        "id",
    }
)
words = st.sampled_from(["a", "", "<image>", "user", "human", "gpt", "image", "text", "<img>x</img>", "[]", "file://"])
any_json = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-1, 2), st.floats(), words, st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
        st.lists(st.fixed_dictionaries({"role": words, "content": inner}), max_size=3),
        st.lists(st.fixed_dictionaries({"from": words, "value": inner}), max_size=3),
    ),
    max_leaves=10,
)


@properties(300)
@given(st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), any_json, max_size=5), st.data())
def test_any_object_is_an_item_or_a_fault(item: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.none() | st.sampled_from(sorted(FORMATS)))
    names = sorted(COLUMNS[name]) if name else []
    columns = data.draw(st.dictionaries(st.sampled_from(names), st.sampled_from(KEYS), max_size=3)) if names else None
    before = json.dumps(item)
    try:
        result = to_internvl(item, name, columns)
    except Fault as fault:
        assert fault.reason
        assert fault.mend
        assert "\n" not in str(fault)
    else:
        assert isinstance(result, dict)
        if name not in (None, "internvl"):
            assert recognise(result) == "internvl"
            assert json.dumps(to_internvl(result)) == json.dumps(result)
    assert json.dumps(item) == before


def test_a_text_full_of_open_tags_does_not_hang() -> None:
    text = "<img>" * 300_000
    assert to_internvl({"query": text, "response": "a"})["conversations"][0]["value"] == text


def test_what_the_stated_internvl_format_would_not_read_is_refused() -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert to_internvl({"conversations": turns, "system": "Be brief."})["conversations"][0]["from"] == "system"
    with pytest.raises(Fault, match="key 'system' is not read in the InternVL format; put it into the turns"):
        to_internvl({"conversations": turns, "system": "Be brief."}, "internvl")
