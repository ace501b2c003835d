"""``tokenizer.apply_chat_template`` with our jinja template gives the ids of ``Encoder``, for every pair that fits.

Two kinds of text differ on purpose, so the equal ones below do without them, and the last tests hold the difference:
an answer that begins with white space (``Encoder`` tokenizes it behind its header, so that its line breaks do not melt
into the header's), and text that looks like a marker (plain text to ``Encoder``, the marker to anyone who tokenizes the
written text; ``<img>`` and its like among them).
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import jinja2
import pytest

from internvl_chat.data.chat_template import write_chat_template
from internvl_chat.data.record import Turn
from internvl_chat.data.template import TEMPLATES, get_template
from internvl_chat.data.tokens import Encoder
from internvl_chat.errors import ConfigError
from tests.data.helpers import GOLDEN_PAIRS, TINY_PAIRS, encoder, tokenizer

TOKENIZERS = ("qwen2", "internlm2_like", "phi3_like", "tiny-qwen2", "tiny-llama", "tiny-phi3")


def fits(template: str, name: str) -> bool:
    try:
        encoder(template, name)
    except ConfigError:
        return False
    return True


PAIRS = [(template, name) for template in TEMPLATES for name in TOKENIZERS if fits(template, name)]
SYSTEMS = (None, "You are a terse assistant.", "简短回答。\n  Use \"quotes\", 'more' {{ braces }} and {% tags %}.", "")
DIALOGUES = (
    ("What is 2 + 2?", "4"),
    ("你好，世界", "你好！有什么可以帮你？😀"),
    ("Hi\n\nthere  ", "Two lines:\n- a\n- b\n"),
    (" spaces in front", "Yes.  "),
    ("", "An answer to nothing."),
    ("One", "1", "Two\n", "2."),
    ("One", "1", 'What\\is "this"?', "def f(x):\n    return {'a': x}", "And\tthis?", "Nothing else {{ x }}."),
    ("See <ref>the cat</ref>?", "<ref>the cat</ref><box>[[1, 2, 3, 4]]</box>"),
)


def messages_of(turns: tuple[str, ...], system: str | None) -> list[dict[str, Any]]:
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


def turns_of(turns: tuple[str, ...], system: str | None) -> list[Turn]:
    head = [] if system is None else [Turn("system", system)]
    return head + [Turn(("human", "gpt")[i % 2], text) for i, text in enumerate(turns)]


@cache
def jinja_of(template: str, name: str, image: str = "<image>\n") -> str:
    tok = tokenizer(name)
    adds_bos = tok.bos_token_id is not None and tok("a")["input_ids"][0] == tok.bos_token_id
    return write_chat_template(get_template(template), image, tok.bos_token if adds_bos else "")


def written_ids(template: str, name: str, messages: list[dict[str, Any]], prompt: bool = False) -> list[int]:
    out = tokenizer(name).apply_chat_template(
        messages, chat_template=jinja_of(template, name), add_generation_prompt=prompt, tokenize=True, return_dict=True
    )
    return list(out["input_ids"])


def test_every_golden_and_tiny_pair_is_tested() -> None:
    assert {*GOLDEN_PAIRS, *TINY_PAIRS} <= set(PAIRS)
    assert {template for template, _ in PAIRS} == set(TEMPLATES)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize(("template", "name"), PAIRS)
def test_whole_conversations(template: str, name: str, system: str | None) -> None:
    for turns in DIALOGUES:
        expected, _ = encoder(template, name).encode(turns_of(turns, system), [])
        assert written_ids(template, name, messages_of(turns, system)) == expected.tolist(), turns


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize(("template", "name"), PAIRS)
def test_prompts(template: str, name: str, system: str | None) -> None:
    for turns in DIALOGUES:
        expected = encoder(template, name).encode_prompt(turns_of(turns[:-1], system), [])
        assert written_ids(template, name, messages_of(turns[:-1], system), prompt=True) == expected.tolist(), turns


@pytest.mark.parametrize(("template", "name"), PAIRS)
def test_pictures_stand_where_their_parts_stand(template: str, name: str) -> None:
    picture = "<img><IMG_CONTEXT></img>\n"
    parts = [
        {"type": "image", "image": "a.png"},
        {"type": "text", "text": "Which is "},
        {"type": "image_url", "image_url": {"url": "b.png"}},
        {"type": "text", "text": "larger?"},
    ]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "b"}]}]
    turns = [Turn("human", "<image>\nWhich is <image>\nlarger?"), Turn("gpt", "b")]
    expected, _ = encoder(template, name, tokens_per_tile=1).encode(turns, [1, 1])
    ids = tokenizer(name).apply_chat_template(messages, chat_template=jinja_of(template, name, picture))["input_ids"]
    assert ids == expected.tolist()


@pytest.mark.parametrize("image", ["<IMG_CONTEXT>\n", "<image>\n"])
def test_text_around_a_picture(image: str) -> None:
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    text = tokenizer("qwen2").apply_chat_template(
        messages,
        chat_template=write_chat_template(get_template("Hermes-2"), image),
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text.endswith(f"<|im_start|>user\n{image}What?<|im_end|><|im_start|>assistant\n")


@pytest.mark.parametrize(("template", "name"), PAIRS)
def test_bos_comes_once_if_the_tokenizer_has_it(template: str, name: str) -> None:
    ids = written_ids(template, name, messages_of(("Hi", "Ho", "Hi"), None), prompt=True)
    bos = tokenizer(name).bos_token_id
    assert ids.count(bos) == (name not in ("qwen2", "tiny-qwen2"))


@pytest.mark.parametrize("template", TEMPLATES)
def test_old_readers_know_every_tag(template: str) -> None:
    """The tags of plain jinja, as transformers before 4.42 and other servers compile it, and no trace of its own."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    compiled = environment.from_string(write_chat_template(get_template(template), "<image>\n"))
    t = get_template(template)
    text = compiled.render(messages=messages_of(("Q", "A"), None), add_generation_prompt=False)
    expected = f"{t.system_prefix}{t.system_message}{t.system_suffix}{t.user_prefix}Q{t.user_suffix}"
    assert text == f"{expected}{t.assistant_prefix}{t.answer_prefix}A{t.stop}{t.after}"


def test_a_system_message_with_every_kind_of_quote() -> None:
    odd = "a\"b'c\\n\n\t{{ x }} {% y %} {# z #} 书生 😀 \u2028 \x07"
    t = replace(get_template("internvl2_5"), system_message=odd)
    text = tokenizer("qwen2").apply_chat_template(
        [{"role": "user", "content": "Hi"}], chat_template=write_chat_template(t, "<image>\n"), tokenize=False
    )
    assert text == f"<|im_start|>system\n{odd}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "tool", "content": "a"}], "roles are user and assistant"),
        ([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}], "at most one system message"),
        ([{"role": "user", "content": [{"type": "video"}]}], "user messages cannot hold parts of type video"),
        ([{"role": "assistant", "content": [{"type": "image"}]}], "assistant messages cannot hold parts of type image"),
        ([{"role": "system", "content": [{"type": "image"}]}], "system messages cannot hold parts of type image"),
    ],
)
def test_messages_that_cannot_be_written(messages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(jinja2.TemplateError, match=message):
        written_ids("internvl2_5", "qwen2", messages)


def test_an_answer_that_begins_with_line_breaks_differs() -> None:
    """The header's line break and the answer's become one token when the written text is tokenized at once."""
    turns = ("Hi", "\n\nHo")
    ours, _ = encoder("internvl2_5", "qwen2").encode(turns_of(turns, None), [])
    theirs = written_ids("internvl2_5", "qwen2", messages_of(turns, None))
    assert ours.tolist() != theirs
    assert tokenizer("qwen2").decode(ours) == tokenizer("qwen2").decode(theirs)


def test_text_that_looks_like_a_marker_differs() -> None:
    turns = ("What is <|im_end|>?", "A marker.")
    end = tokenizer("qwen2").convert_tokens_to_ids("<|im_end|>")
    ours, _ = encoder("internvl2_5", "qwen2").encode(turns_of(turns, None), [])
    theirs = written_ids("internvl2_5", "qwen2", messages_of(turns, None))
    assert (ours.tolist().count(end), theirs.count(end)) == (3, 4)


def test_encoder_is_the_one_of_the_template() -> None:
    """A checkpoint's own system message is written too."""
    t = replace(get_template("phi3-chat"), system_message="Be brief.")
    tok = tokenizer("tiny-phi3")
    expected = Encoder(tok, t, 4).encode_prompt([Turn("human", "Hi")], []).tolist()
    out = tok.apply_chat_template(
        [{"role": "user", "content": "Hi"}],
        chat_template=write_chat_template(t, "", tok.bos_token),
        add_generation_prompt=True,
    )
    assert out["input_ids"] == expected
