"""``--conv_style chat_template``: a model is trained and asked exactly as its tokenizer's chat template says."""

from __future__ import annotations

import copy
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from internvl_chat.constants import IGNORE_INDEX
from internvl_chat.data.chat_template import OwnTemplate, flattened_chat_template, template_of
from internvl_chat.data.faults import Fault, FaultCode
from internvl_chat.data.record import Turn
from internvl_chat.data.template import OWN_TEMPLATE, TEMPLATES
from internvl_chat.data.tokens import Encoder
from internvl_chat.errors import ConfigError
from tests.data.helpers import properties, tokenizer
from tests.data.test_tokens import as_tokenized, conversations, decode, supervised_runs

# Written for these tests after the ways in which released models' templates differ.
CHATML = """\
{%- if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}
{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
# An empty block of thoughts before the last answer, none before earlier ones.
THINKING = """\
{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}
{%- if m['role'] == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{{- m['content'] + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
# BOS written out, no system turns, system text nowhere, answers end with EOS.
BRACKETS = """\
{{- bos_token }}{% for m in messages %}
{%- if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}
{%- elif m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}
{%- else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"""
# The system text is merged into the first question.
MERGED = """\
{{- bos_token }}{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] + '\\n\\n' %}
{%- set messages = messages[1:] %}{% else %}{% set s = '' %}{% endif %}
{%- for m in messages %}{% if m['role'] == 'user' %}
{{- '<|im_start|>user\\n' + (s if loop.first else '') + m['content'] | trim + '<|im_end|>' }}
{%- else %}{{ '<|im_start|>assistant\\n' + m['content'] | trim + '<|im_end|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
WAYS = {
    "chatml": ("qwen2", CHATML),
    "chatml-sentencepiece": ("internlm2_like", CHATML),
    "thinking": ("qwen2", THINKING),
    "brackets": ("internlm2_like", BRACKETS),
    "merged": ("internlm2_like", MERGED),
}
ROLES = {"system": "system", "human": "user", "gpt": "assistant"}


@cache
def asked_as(way: str) -> tuple[Any, Encoder]:
    name, template = WAYS[way]
    tok = copy.deepcopy(tokenizer(name))
    tok.chat_template = template
    return tok, Encoder(tok, OwnTemplate(tok), 4)


def rendered(tok: Any, turns: list[Turn], prompt: bool = False) -> str:
    messages = [{"role": ROLES[turn.role], "content": turn.text} for turn in turns]
    return str(tok.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))


TURNS = [Turn("human", "What is it?"), Turn("gpt", "A cup."), Turn("human", "Sure?"), Turn("gpt", "Yes.")]


@pytest.mark.parametrize("way", WAYS)
def test_ids_are_those_of_the_rendered_text(way: str) -> None:
    tok, encode = asked_as(way)
    for turns in (TURNS, TURNS[:2], *([[Turn("system", "Be brief."), *TURNS]] if way != "brackets" else [])):
        ids, labels = encode.encode(turns, [])
        assert decode(ids.tolist(), WAYS[way][0]) == rendered(tok, turns)
        if way.startswith(("chatml", "thinking")) and WAYS[way][0] == "qwen2":
            assert ids.tolist() == tok(rendered(tok, turns), add_special_tokens=False)["input_ids"]
        assert np.array_equal(ids[labels != IGNORE_INDEX], labels[labels != IGNORE_INDEX])
        prompt = encode.encode_prompt(turns[:-1], [])
        assert decode(prompt.tolist(), WAYS[way][0]) == rendered(tok, turns[:-1], prompt=True)


@pytest.mark.parametrize("way", WAYS)
def test_what_the_model_has_to_write_is_supervised_and_nothing_else(way: str) -> None:
    """Any text, look-alikes of markers too: as with the named templates."""
    _, encode = asked_as(way)
    name = WAYS[way][0]

    @properties(25)
    @given(conversations())
    def check(case: tuple[list[Turn], list[int]]) -> None:
        turns, tiles = case
        if way == "brackets" and turns[0].role == "system":
            turns = turns[1:]
        ids, labels = encode.encode(turns, tiles)
        answers = [turn.text for turn in turns if turn.role == "gpt"]
        last = "<think>\n\n</think>\n\n" if way == "thinking" else ""
        begin = " " if way == "brackets" else ""
        texts = [begin + text for text in answers[:-1]] + [begin + last + answers[-1]]
        assert [decode(run, name) for run in supervised_runs(ids, labels)] == [
            as_tokenized(text, name) + encode.template.stop for text in texts
        ]

    check()


def test_a_prompt_is_how_training_went_on_from(way: str = "thinking") -> None:
    _, encode = asked_as(way)
    ids, labels = encode.encode(TURNS[:2], [])
    prompt = encode.encode_prompt(TURNS[:1], [])
    assert ids[: len(prompt)].tolist() == prompt.tolist()
    assert (labels[: len(prompt)] == IGNORE_INDEX).all()
    assert (labels[len(prompt) : len(prompt) + 5] != IGNORE_INDEX).all()


def test_a_system_message_of_the_checkpoint_is_written(way: str = "chatml") -> None:
    tok, _ = asked_as(way)
    config = SimpleNamespace(template=OWN_TEMPLATE, system_message="Say little.")
    ids, _ = Encoder(tok, template_of(config, tok), 4).encode(TURNS, [])
    assert decode(ids.tolist(), "qwen2") == rendered(tok, [Turn("system", "Say little."), *TURNS])


def test_bos_comes_once_and_only_where_the_template_has_it() -> None:
    for way, times in (("brackets", 1), ("merged", 1), ("chatml-sentencepiece", 0)):
        tok, encode = asked_as(way)
        assert encode.encode(TURNS, [])[0].tolist().count(tok.bos_token_id) == times


def test_a_system_turn_that_the_template_refuses_is_a_fault() -> None:
    with pytest.raises(
        Fault, match=r"takes no system turn here \(System role not supported\); remove the turn"
    ) as fault:
        asked_as("brackets")[1].encode([Turn("system", "x"), *TURNS], [])
    assert fault.value.code is FaultCode.UNSUPPORTED


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "has no chat template; name a template"),
        ("{{ messages[0]['content'] }}", "it does not write every message once, in order"),
        ("{% for m in messages %}{{ m['content'] }}. {% endfor %}", "up to a special token"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}{{ nothing.at_all }}", "'nothing' is undefined"),
        ("{{ ", "cannot be used: "),
        (CHATML.replace("m['content'] +", "m['content'] + m['content'] +"), "it does not write every message once"),
    ],
)
def test_a_template_that_cannot_be_used_says_why(template: str | None, says: str) -> None:
    tok = copy.deepcopy(tokenizer("qwen2"))
    tok.chat_template = template
    with pytest.raises(ConfigError, match=r"^--conv_style chat_template: the checkpoint's ") as error:
        OwnTemplate(tok)
    assert says in str(error.value)


def test_encoders_of_two_templates_have_two_fingerprints() -> None:
    prints = {asked_as(way)[1].fingerprint() for way in WAYS}
    assert len(prints) == len(WAYS)


def test_a_saved_template_takes_pictures_in_parts_and_is_saved_unchanged_again() -> None:
    tok, _ = asked_as("merged")
    flat = flattened_chat_template(tok.chat_template, "<image>\n")
    assert flattened_chat_template(flat, "<image>\n") == flat
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    text = tok.apply_chat_template(messages, chat_template=flat, tokenize=False, add_generation_prompt=True)
    assert text == rendered(tok, [Turn("system", "Be brief."), Turn("human", "<image>\nWhat is it?")], prompt=True)
    plain = [{"role": "user", "content": "Hi"}]
    assert tok.apply_chat_template(plain, chat_template=flat, tokenize=False) == rendered(tok, [Turn("human", "Hi")])


def test_it_is_no_name_of_a_named_template() -> None:
    assert OWN_TEMPLATE not in TEMPLATES


def test_the_date_in_a_template_never_moves() -> None:
    """Samples, and the key of the index, must not depend on the clock."""
    tok = copy.deepcopy(tokenizer("qwen2"))
    dated = CHATML.replace("You help.", "Today is ' + date_string + '.")
    tok.chat_template = "{% if not date_string %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}" + dated
    ids, _ = Encoder(tok, OwnTemplate(tok), 4).encode(TURNS, [])
    assert "Today is 01 Jan 2025." in decode(ids.tolist(), "qwen2")
    tok.chat_template = CHATML.replace("You help.", "Today is ' + strftime_now('%d %B %Y') + '.")
    with pytest.raises(ConfigError, match="it writes the date of the day, on which samples must not depend"):
        OwnTemplate(tok)


def test_a_template_that_writes_no_system_turn_refuses_the_line_alone() -> None:
    tok = copy.deepcopy(tokenizer("qwen2"))
    tok.chat_template = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}" + CHATML
    encode = Encoder(tok, OwnTemplate(tok), 4)
    with pytest.raises(Fault, match="does not write a system turn here; remove the turn"):
        encode.encode([Turn("system", "x"), *TURNS], [])
    encode.encode(TURNS, [])


def test_the_special_tokens_are_part_of_the_fingerprint() -> None:
    prints = set()
    for end in ("<|im_end|>", "<|endoftext|>"):
        tok = copy.deepcopy(tokenizer("qwen2"))
        tok.chat_template, tok.eos_token = BRACKETS.replace("bos_token", "''"), end
        prints.add(Encoder(tok, OwnTemplate(tok), 4).fingerprint())
    assert len(prints) == 2
