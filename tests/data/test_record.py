"""Every way in which a line can be wrong has a sentence that names the place and the mend."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.data.faults import Fault, FaultCode
from internvl_chat.data.record import Record, Turn, parse_record
from tests.data.helpers import conversation, line, properties

HUMAN, GPT = conversation("What?", "This.")


def fault_of(data: Any) -> Fault:
    text = data if isinstance(data, (bytes, str)) else json.dumps(data)
    with pytest.raises(Fault) as fault:
        parse_record(text)
    assert "\n" not in str(fault.value)
    assert len(str(fault.value)) < 400
    return fault.value


# -- good lines ---------------------------------------------------------------------------------------------------


def test_text_only() -> None:
    assert parse_record(json.dumps(line("a", "b"))) == Record((Turn("human", "a"), Turn("gpt", "b")))


def test_a_single_picture_without_a_tag_stands_before_the_first_question() -> None:
    record = parse_record(json.dumps(line("What?", "x", "And?", "y", system="Be brief.", image="a.png")))
    assert record.images == ("a.png",)
    assert [turn.text for turn in record.turns] == ["Be brief.", "<image>\nWhat?", "x", "And?", "y"]


def test_tags_stay_where_they_are() -> None:
    record = parse_record(json.dumps(line("Is <image> like <image>?", "No.", image=["a.png", "b.png"])))
    assert record.turns[0].text == "Is <image> like <image>?"
    assert record.images == ("a.png", "b.png")


def test_a_tag_in_an_answer_or_a_system_turn_is_a_word() -> None:
    record = parse_record(json.dumps(line("<image>", "An <image>!", system="See <image>.", image="a.png")))
    assert record.images == ("a.png",)


@pytest.mark.parametrize("image", [None, "", []])
def test_no_picture_is_said_in_three_ways(image: Any) -> None:
    assert parse_record(json.dumps(line("a", "b", image=image))).images == ()


@pytest.mark.parametrize("video", [None, ""])
def test_no_video_is_said_in_two_ways(video: Any) -> None:
    assert parse_record(json.dumps(line("a", "b", video=video))).images == ()


def test_other_keys_are_not_looked_at() -> None:
    record = parse_record(json.dumps(line("a", "b", id=2**70, width=3, length="9", width_list=[1], answer_gt=None)))
    assert len(record.turns) == 2


def test_an_empty_question_and_a_long_conversation_are_fine() -> None:
    assert len(parse_record(json.dumps(line(*["", "answer"] * 2000))).turns) == 4000


# -- bad lines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "code", "says"),
    [
        (b"", "NOT_JSON", "blank line; write one JSON object per line (JSONL)"),
        (b"  \t", "NOT_JSON", "blank line"),
        (b"hello", "NOT_JSON", "not JSON (Expecting value"),
        (b'{"id": 1,}', "NOT_JSON", "not JSON ("),
        (b"[1]", "NOT_JSON", "a JSON list, not an object; write one JSON object per line (JSONL)"),
        (b"3", "NOT_JSON", "a JSON int, not an object"),
        (b"null", "NOT_JSON", "a JSON NoneType, not an object"),
        ('{"id": "\u4f60"}'.encode("gb18030"), "NOT_JSON", "not UTF-8 ("),
        (b"\xef\xbb\xbf{}", "NOT_JSON", "BOM"),
        (b"{}\x00", "NOT_JSON", "not JSON"),
        (b"[" * 100_000, "NOT_JSON", "not JSON ("),
        (b'{"id": ' + b"7" * 5000 + b"}", "NOT_JSON", "not JSON ("),
        (
            {"image": "a.png"},
            "CONVERSATIONS",
            "key 'conversations' is missing; add it, a list of {'from': 'human'|'gpt', 'value': text}",
        ),
        ({}, "FORMAT", "an item with no keys is of no known format; write it in one of these; formats: internvl, "),
        ({"conversation": []}, "FORMAT", "of no known format; rename 'conversation' to 'conversations'"),
        ({"messages": []}, "FORMAT", "key 'messages' holds [], no messages; make it a list of"),
        ({"conversations": []}, "CONVERSATIONS", "'conversations' holds no turns; make it a list of {'from'"),
        ({"conversations": None}, "CONVERSATIONS", "holds no turns"),
        ({"conversations": {"from": "human"}}, "CONVERSATIONS", "holds no turns"),
        ({"conversations": ["hello"]}, "TURN", "conversations[0] is not an object; write {'from'"),
        (
            {"conversations": [HUMAN, {"from": "gpt", "text": "x"}]},
            "TURN",
            "[1] has no key 'value'; rename 'text' to 'value'",
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"role": "assistant", "value": "x"}]},
            "TURN",
            "[1] has no key 'from'; rename 'role' to 'from'",
        ),
        ({"conversations": [{"from": "human", "content": "x"}]}, "TURN", "rename 'content' to 'value'"),
        (
            {"conversations": [{"from": "human", "image": "x"}]},
            "TURN",
            "conversations[0] has no key 'value'; add 'value'",
        ),
        (
            {"conversations": [HUMAN, {"from": "gpt", "value": None}]},
            "TURN",
            "conversations[1]['value'] is None, not a text",
        ),
        (
            {"conversations": [HUMAN, {"from": "gpt", "value": 7}]},
            "TURN",
            "['value'] is 7, not a text; give a text in quotes",
        ),
        ({"conversations": [HUMAN, {"from": "gpt", "value": ["x" * 900]}]}, "TURN", "['value'] is ['xxx"),
        ({"conversations": [{"from": "user", "value": "x"}, GPT]}, "TURN", "['from'] is 'user'; write 'human'"),
        ({"conversations": [HUMAN, {"from": "ASSISTANT", "value": "x"}]}, "TURN", "is 'ASSISTANT'; write 'gpt'"),
        ({"conversations": [HUMAN, {"from": "GPT", "value": "x"}]}, "TURN", "is 'GPT'; write 'gpt'"),
        ({"conversations": [{"from": "tool", "value": "x"}]}, "TURN", "is 'tool'; use one of system, human, gpt"),
        ({"conversations": [{"from": ["human"], "value": "x"}]}, "TURN", "use one of system, human, gpt"),
        ({"conversations": [{"from": None, "value": "x"}]}, "TURN", "use one of system, human, gpt"),
        (
            {"conversations": [GPT, HUMAN, GPT]},
            "TURN_ORDER",
            "conversations[0] is a gpt turn where human is due; let human",
        ),
        ({"conversations": [HUMAN, HUMAN, GPT]}, "TURN_ORDER", "conversations[1] is a human turn where gpt is due"),
        ({"conversations": [HUMAN, GPT, GPT]}, "TURN_ORDER", "conversations[2] is a gpt turn where human is due"),
        ({"conversations": [HUMAN, GPT, HUMAN]}, "TURN_ORDER", "does not end with a gpt turn; add the answer"),
        ({"conversations": [HUMAN]}, "TURN_ORDER", "does not end with a gpt turn"),
        ({"conversations": conversation(system="Be brief.")}, "TURN_ORDER", "does not end with a gpt turn"),
        (
            {"conversations": [HUMAN, {"from": "system", "value": "x"}, GPT]},
            "TURN_ORDER",
            "conversations[1] is a system turn where gpt is due; let human and gpt alternate, human first, one system",
        ),
        (line("a", ""), "EMPTY_ANSWER", "conversations[1] is an empty answer; write one or remove the turns"),
        (line("a", "b", "c", " \n\u3000"), "EMPTY_ANSWER", "conversations[3] is an empty answer"),
        (line("<image>\n<image>", "x", image="a.png"), "PLACEHOLDERS", "2 <image> in the human turns but 1 pictures"),
        (
            line("<image>", "x"),
            "PLACEHOLDERS",
            "1 <image> in the human turns but 0 pictures in 'image'; write <image> once",
        ),
        (line("a", "x", image=["a.png"]), "PLACEHOLDERS", "0 <image> in the human turns but 1 pictures"),
        (line("a", "<image>", image=["a.png"]), "PLACEHOLDERS", "0 <image> in the human turns but 1 pictures"),
        (line("a", "x", image=5), "CONVERSATIONS", "key 'image' holds 5; give a path or a list of paths"),
        (line("a", "x", image=[""]), "CONVERSATIONS", "key 'image' holds ['']"),
        (line("a", "x", image=["a.png", None]), "CONVERSATIONS", "key 'image' holds ['a.png', None]"),
        (line("a", "x", image={"path": "p" * 999}), "CONVERSATIONS", "key 'image' holds {'path': 'ppp"),
        (line("a", "x", video=["a.mp4"]), "PLACEHOLDERS", "0 <video> in the human turns but 1 videos in 'video'"),
        (line("<video>", "x"), "PLACEHOLDERS", "1 <video> in the human turns but 0 videos in 'video'"),
        (line("<video>", "x", video={"path": "a.mp4"}), "CONVERSATIONS", "key 'video' holds {'path': 'a.mp4'}"),
        (line("<video><video>", "x", video=["a", "b"], clip=[1, 2, 3]), "CLIP", "holds [1, 2, 3] for 2 videos; give"),
        (line("a", "x", objects=[{"bbox": [1, 2, 3]}]), "OBJECTS", "'objects'[0] has the box [1, 2, 3]; give x1, y1"),
        ({"question": "a", "chosen": "b", "rejected": "c"}, "UNSUPPORTED", "a preference pair (question, chosen, rej"),
        (
            {"conversations": [{"from": "human", "value": "a", "loss": True}, {"from": "gpt", "value": "x"}]},
            "TURN",
            "conversations[0]['loss'] is True in a human turn; give true or false, in gpt turns",
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "x", "loss": "no"}]},
            "TURN",
            "conversations[1]['loss'] is 'no' in a gpt turn",
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "x", "loss": False}]},
            "NOTHING_SUPERVISED",
            "'loss' is off for every answer, so there is nothing to learn; switch it on for one",
        ),
        (
            r'{"conversations": [{"from": "human", "value": "a \ud83d b"}]}',
            "TURN",
            r"[0]['value'] holds half a character",
        ),
        (
            r'{"image": "\udc00.png", "conversations": [{"from": "human", "value": "a"}]}',
            "TURN",
            r"key 'image' holds half a character ('\udc00'); write it whole or remove it",
        ),
    ],
)
def test_a_bad_line_says_what_is_wrong_and_how_to_mend_it(data: Any, code: str, says: str) -> None:
    fault = fault_of(data)
    assert fault.code is FaultCode[code]
    assert says in str(fault)


def test_whole_surrogate_pairs_are_one_character() -> None:
    text = r'{"conversations": [{"from": "human", "value": "\ud83d\ude00"}, {"from": "gpt", "value": "b"}]}'
    record = parse_record(text)
    assert record.turns[0].text == "\U0001f600"


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["from", "value", "image", "conversations", "video", "x"]), inner, max_size=4),
        st.lists(st.fixed_dictionaries({"from": inner, "value": inner}), max_size=3),
    ),
    max_leaves=12,
)


@properties(400)
@given(st.dictionaries(st.sampled_from(["conversations", "image", "video", "id"]), json_values, max_size=4))
def test_any_object_is_a_record_or_a_fault(data: dict[str, Any]) -> None:
    try:
        record = parse_record(json.dumps(data))
    except Fault as fault:
        assert fault.reason
        assert fault.mend
    else:
        assert record.turns[-1].role == "gpt"


@properties(300)
@given(st.one_of(st.binary(max_size=40), st.text(max_size=40)))
def test_any_bytes_are_a_fault(data: bytes | str) -> None:
    with pytest.raises(Fault):
        parse_record(data)
