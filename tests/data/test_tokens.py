"""ids and labels of any conversation: what is supervised is the answers, and only the template places markers."""

from __future__ import annotations

import pickle
import re
import unicodedata
from collections import Counter
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from internvl_chat.constants import GROUNDING_TOKENS, IGNORE_INDEX, IMG_CONTEXT, IMG_END, IMG_START
from internvl_chat.data.record import Turn
from internvl_chat.data.template import TEMPLATES, get_template
from internvl_chat.data.tokens import Encoder
from internvl_chat.errors import ConfigError
from tests.data.helpers import GOLDEN_PAIRS, TINY_PAIRS, encoder, properties, tokenizer

TOKENIZERS = ("qwen2", "internlm2_like", "phi3_like", "tiny-qwen2", "tiny-llama", "tiny-phi3")
# Every template with every tokenizer that has its markers.
PAIRS = [
    (template.name, name)
    for template in TEMPLATES.values()
    for name in TOKENIZERS
    if set(template.markers) <= set(tokenizer(name).get_added_vocab())
]
TOKENS_PER_TILE = 3
LOOK_ALIKES = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
    *("<s>", "</s>", "<unk>", "<0x0A>", "<img>", "</img>", "<IMG_CONTEXT>", "<|placeholder1|>", "<human>: ", "<bot>:"),
    *("<", "|", ">", "<|im_", "end|>", "\n", "\n\n", "\r\n", " ", "  ", "\t"),
    *("\u2581", "\u0301", "\u00a0", "\ufeff", "\0"),
)
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
pieces = st.one_of(any_text, st.sampled_from(LOOK_ALIKES), st.sampled_from(GROUNDING_TOKENS))
texts = st.lists(pieces, max_size=5).map("".join)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[Turn], list[int]]:
    """Turns with any text, pictures anywhere in the questions, tags as plain words elsewhere; tiles of each picture."""
    turns = [Turn("system", draw(texts))] if draw(st.booleans()) else []
    tiles: list[int] = []
    for _ in range(draw(st.integers(1, 3))):
        question = draw(texts).replace("<image>", "")
        for _ in range(draw(st.integers(0, 2))):
            at = draw(st.integers(0, len(question)))
            question = f"{question[:at]}<image>{question[at:]}"
        tiles += [draw(st.integers(1, 4)) for _ in range(question.count("<image>"))]
        turns += [Turn("human", question), Turn("gpt", draw(st.one_of(texts, st.just("an <image> here"))))]
    return turns, tiles


def supervised_runs(ids: np.ndarray, labels: np.ndarray) -> list[list[int]]:
    groups = groupby(zip(ids.tolist(), labels.tolist(), strict=True), key=lambda pair: pair[1] != IGNORE_INDEX)
    return [[label for _, label in group] for supervised, group in groups if supervised]


def as_tokenized(text: str, name: str) -> str:
    """What a tokenizer makes of a text before it cuts: Qwen composes accents, SentencePiece has one space."""
    if name == "qwen2":
        # Grounding tokens are cut out first, so accents do not reach over them.
        parts = re.split("(" + "|".join(GROUNDING_TOKENS) + ")", text)
        return "".join(unicodedata.normalize("NFC", part) for part in parts)
    return text.replace("\u2581", " ") if name.endswith("_like") else text


def decode(ids: list[int], name: str) -> str:
    return tokenizer(name).backend_tokenizer.decode(ids, skip_special_tokens=False)


def test_the_golden_pairs_and_the_tiny_ones_are_among_them() -> None:
    assert {*GOLDEN_PAIRS, *TINY_PAIRS} <= set(PAIRS)
    assert {template for template, _ in PAIRS} == set(TEMPLATES)


@pytest.mark.parametrize(("template", "name"), PAIRS)
def test_supervised_tokens_are_the_answers_and_their_stop_markers(template: str, name: str) -> None:
    t = get_template(template)

    @properties(40)
    @given(conversations())
    @example(([Turn("human", "a"), Turn("gpt", "\n\nb"), Turn("human", ""), Turn("gpt", "<ref>x</ref>")], []))
    @example(([Turn("human", "a"), Turn("gpt", "\u0301b")], []))
    def check(case: tuple[list[Turn], list[int]]) -> None:
        turns, tiles = case
        ids, labels = encoder(template, name, TOKENS_PER_TILE).encode(turns, tiles)
        assert ids.dtype == labels.dtype == np.int64
        assert ids.shape == labels.shape
        answers = [turn.text for turn in turns if turn.role == "gpt"]
        expected = [as_tokenized(t.answer_prefix + answer, name) + t.stop for answer in answers]
        assert [decode(run, name) for run in supervised_runs(ids, labels)] == expected
        on = labels != IGNORE_INDEX
        assert np.array_equal(labels[on], ids[on])

    check()


@pytest.mark.parametrize(("template", "name"), PAIRS)
def test_look_alikes_never_become_markers_and_grounding_tokens_do(template: str, name: str) -> None:
    """Every special id stands as often as the template, the pictures and the grounding words ask for; others never."""
    t, vocabulary = get_template(template), tokenizer(name).get_added_vocab()
    scaffold = [t.system_prefix, t.system_suffix]

    @properties(40)
    @given(conversations())
    def check(case: tuple[list[Turn], list[int]]) -> None:
        turns, tiles = case
        ids, _ = encoder(template, name, TOKENS_PER_TILE).encode(turns, tiles)
        parts = [*scaffold, "" if turns[0].role == "system" else t.system_message]
        for turn in turns:
            if turn.role == "human":
                parts += [t.user_prefix, t.user_suffix]
            elif turn.role == "gpt":
                parts += [t.assistant_prefix, t.stop, t.after]
        expected: Counter[str] = Counter({marker: "".join(parts).count(marker) for marker in t.markers})
        expected += Counter({IMG_START: len(tiles), IMG_END: len(tiles), IMG_CONTEXT: sum(tiles) * TOKENS_PER_TILE})
        expected += Counter(token for turn in turns for token in re.findall("|".join(GROUNDING_TOKENS), turn.text))
        bos = tokenizer(name).bos_token
        if bos is not None:
            assert ids[0] == vocabulary[bos]
            expected[bos] += 1
        found = Counter(ids.tolist())
        assert {token: found[id_] for token, id_ in vocabulary.items() if found[id_]} == dict(+expected)

    check()


@pytest.mark.parametrize(("template", "name"), PAIRS)
def test_a_prompt_is_the_start_of_the_sample_that_answers_it(template: str, name: str) -> None:
    """So a model is asked with the very ids that it was trained on."""

    @properties(20)
    @given(conversations())
    def check(case: tuple[list[Turn], list[int]]) -> None:
        turns, tiles = case
        coder = encoder(template, name, TOKENS_PER_TILE)
        ids, labels = coder.encode(turns, tiles)
        prompt = coder.encode_prompt(turns[:-1], tiles)
        assert prompt.tolist() == ids[: len(prompt)].tolist()
        # What follows is the last answer: supervised from its first token, but for the space that internvl_zh adds.
        assert labels[len(prompt)] != IGNORE_INDEX

    check()


@pytest.mark.parametrize(("template", "name"), TINY_PAIRS)
def test_an_encoder_sent_to_another_process_encodes_the_same(template: str, name: str) -> None:
    coder = encoder(template, name, TOKENS_PER_TILE)
    turns = [Turn("human", "<image>\nWhere is <ref>it</ref>?"), Turn("gpt", "<box>[[1, 2, 3, 4]]</box>")]
    twin: Encoder = pickle.loads(pickle.dumps(coder))
    assert twin.fingerprint() == coder.fingerprint()
    for ours, theirs in zip(coder.encode(turns, [2]), twin.encode(turns, [2]), strict=True):
        assert np.array_equal(ours, theirs)


def test_the_fingerprint_tells_apart_all_that_ids_depend_on() -> None:
    prints = [
        encoder("internvl2_5", "tiny-qwen2", 4).fingerprint(),
        encoder("internvl2_5", "tiny-qwen2", 3).fingerprint(),
        encoder("Hermes-2", "tiny-qwen2", 4).fingerprint(),
        encoder("internvl2_5", "qwen2", 4).fingerprint(),
        encoder("internvl2_5", "tiny-llama", 4).fingerprint(),
    ]
    assert len(set(prints)) == len(prints)


def test_two_tokenizers_with_the_same_files_have_one_fingerprint() -> None:
    """The key of the index must not depend on the process."""
    from internvl_chat.tools.tiny import KINDS, train_tokenizer

    twins = [train_tokenizer(KINDS["qwen2"], 320, ()) for _ in range(2)]
    one, two = (Encoder(twin, get_template("internvl2_5"), 4).fingerprint() for twin in twins)
    assert one == two == encoder("internvl2_5", "tiny-qwen2", 4).fingerprint()


def test_making_an_encoder_leaves_the_tokenizer_as_it_was() -> None:
    before = tokenizer("tiny-phi3").backend_tokenizer.to_str()
    Encoder(tokenizer("tiny-phi3"), get_template("phi3-chat"), 4)
    assert tokenizer("tiny-phi3").backend_tokenizer.to_str() == before
    assert not tokenizer("tiny-phi3").backend_tokenizer.encode_special_tokens


def test_a_tokenizer_without_the_templates_markers_is_refused_with_the_mend() -> None:
    with pytest.raises(ConfigError, match=r"template 'phi3-chat' needs the tokens <\|system\|> .*--conv_style"):
        Encoder(tokenizer("tiny-qwen2"), get_template("phi3-chat"), 4)


def test_a_tokenizer_without_tokenizer_json_is_refused_with_the_mend() -> None:
    class Slow:
        """A tokenizer in plain Python."""

    with pytest.raises(ConfigError, match=r"Slow has no tokenizer\.json form; convert it"):
        Encoder(Slow(), get_template("internvl2_5"), 4)


@pytest.mark.parametrize("typo", ["internvl2.5", "hermes-2", "phi3"])
def test_an_unknown_template_gets_the_nearest_and_the_list(typo: str) -> None:
    with pytest.raises(ConfigError) as error:
        get_template(typo)
    assert f"conv_style {typo!r} is not a template; did you mean" in str(error.value)
    assert all(name in str(error.value) for name in TEMPLATES)


def test_truncation_and_padding_set_in_a_tokenizer_file_are_not_used() -> None:
    """A saved tokenizer may carry a length limit that would cut long texts in silence."""
    from internvl_chat.tools.tiny import KINDS, train_tokenizer

    limited: Any = train_tokenizer(KINDS["qwen2"], 320, ())
    limited.backend_tokenizer.enable_truncation(5)
    limited.backend_tokenizer.enable_padding(length=50)
    turns = [Turn("human", "a"), Turn("gpt", "b" * 90)]
    ids, labels = Encoder(limited, get_template("internvl2_5"), 4).encode(turns, [])
    assert (labels != IGNORE_INDEX).sum() >= 90
    assert ids.tolist() == encoder("internvl2_5", "tiny-qwen2", 4).encode(turns, [])[0].tolist()


def test_many_long_texts_do_not_stay_in_memory() -> None:
    """Only short texts are remembered: a data set of long documents must not fill the memory of each worker."""
    coder = Encoder(tokenizer("tiny-qwen2"), get_template("internvl2_5"), 4)
    for number in range(30):
        coder.encode([Turn("human", f"{number} " * 900), Turn("gpt", "b")], [])
    assert coder._remember.cache_info().currsize < 10


@pytest.mark.parametrize("tiles", [[], [1, 1]])
def test_tiles_that_do_not_fit_the_tags_are_an_error(tiles: list[int]) -> None:
    coder = encoder("internvl2_5", "tiny-qwen2", 4)
    for turns in ([Turn("human", "<image>"), Turn("gpt", "b")], [Turn("human", "<image>")]):
        with pytest.raises(ValueError, match=rf"1 <image> in the human turns, but tiles of {len(tiles)} pictures"):
            coder.encode_prompt(turns, tiles)
