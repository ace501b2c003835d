"""Every way of asking gives the same greedy answer, and history is what was said."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

from internvl_chat.data.media import read_image
from internvl_chat.data.record import Turn
from internvl_chat.data.storage import locate_medium
from internvl_chat.data.tiles import cut_tiles
from internvl_chat.errors import ConfigError, DataError
from internvl_chat.infer import batch as batch_module
from internvl_chat.infer import pictures as pictures_module
from internvl_chat.infer.answer import REFUSED
from internvl_chat.infer.batch import answers, batch_answer
from internvl_chat.infer.chat import Chat
from internvl_chat.infer.load import Loaded
from internvl_chat.infer.questions import Question, question_of

Seen = Callable[[Loaded], dict[str, list[torch.Tensor]]]
LENGTH = {"max_new_tokens": 24}


def plain_generate(loaded: Loaded, turns: list[Turn], pictures: list[Path], settings: object) -> str:
    """The answer by the model's own ``generate`` and the tokenizer's own ``decode``, nothing of infer in it."""
    tiles = [cut_tiles(read_image(picture), settings) for picture in pictures]
    ids = loaded.encoder.encode_prompt(turns, [len(t) for t in tiles])
    out = loaded.model.generate(
        input_ids=torch.from_numpy(ids)[None],
        pixel_values=torch.cat(tiles) if tiles else None,
        do_sample=False,
        eos_token_id=list(loaded.stop_ids),
        **LENGTH,
    )[0].tolist()
    cut = next((number for number, token in enumerate(out) if token in loaded.stop_ids), len(out))
    keep = {loaded.tokenizer.convert_tokens_to_ids(token) for token in ("<ref>", "</ref>", "<box>", "</box>")}
    keep |= {loaded.tokenizer.convert_tokens_to_ids(token) for token in ("<quad>", "</quad>")}
    special = {number for number, token in loaded.tokenizer.added_tokens_decoder.items() if token.special} - keep
    return loaded.tokenizer.decode([token for token in out[:cut] if token not in special]).strip()


def test_all_ways_of_asking_agree(loaded: Loaded, pictures: list[Path]) -> None:
    """ask, the joined stream, a batch of one, a left-padded batch of all, and plain generate."""
    items: list[tuple[str, list[Path]]] = [
        ("What number is written?", pictures[:1]),
        ("Tell me, without looking at anything at all, what is the sum of one and two?", []),
        ("Which is larger, the first or the second?", pictures[:2]),
        ("Is <image> the same as <image> ?", pictures[2:4]),
        ("x", pictures[3:]),
    ]
    asked = [Chat(loaded).ask(question, images, **LENGTH) for question, images in items]
    streamed = ["".join(Chat(loaded).ask(q, images, stream=True, **LENGTH)) for q, images in items]
    assert streamed == asked
    for size in (1, 2, 5):
        assert batch_answer(loaded, items, size, **LENGTH) == asked
    for (_, images), answer in zip(items, asked, strict=True):
        chat = Chat(loaded)
        assert chat.ask(_, images, **LENGTH) == answer
        settings = loaded.tiles.shared_among(len(images))
        assert plain_generate(loaded, list(chat.turns[:-1]), images, settings) == answer
    assert len(set(asked)) == len(asked), "the model must look at its input for this test to mean anything"


def test_rounds_equal_one_call_with_the_whole_conversation(loaded: Loaded, pictures: list[Path], seen: Seen) -> None:
    """Pictures of the first round are seen in all; each is encoded once."""
    calls = seen(loaded)
    chat = Chat(loaded)
    first = chat.ask("What is this?", pictures[:2], **LENGTH)
    second = "".join(chat.ask("Are you sure?", stream=True, **LENGTH))
    third = chat.ask("Why?", **LENGTH)
    assert len(calls["tiles"]) == 1
    assert [turn.text for turn in chat.turns[1::2]] == [first, second, third]
    settings = loaded.tiles.shared_among(2)
    for turns in (3, 5):
        expected = plain_generate(loaded, list(chat.turns[:turns]), pictures[:2], settings)
        assert chat.turns[turns].text == expected
    assert Chat(loaded).ask("Why?", **LENGTH) != third, "history must matter for this test to mean anything"


def test_pictures_of_a_later_round_are_added(qwen: Loaded, pictures: list[Path], seen: Seen) -> None:
    calls = seen(qwen)
    chat = Chat(qwen)
    chat.ask("Hello", max_new_tokens=3)
    chat.ask("First", pictures[:1], max_new_tokens=3)
    answer = chat.ask("Second", pictures[1:2], **LENGTH)
    assert [len(tiles) for tiles in calls["tiles"]] == list(chat._said.tiles)
    assert answer == plain_generate(qwen, list(chat.turns[:-1]), pictures[:2], qwen.tiles)


def test_clear_forgets_all_but_the_system_message(qwen: Loaded, pictures: list[Path]) -> None:
    chat = Chat(qwen, "Be brief.")
    fresh = chat.ask("What?", **LENGTH)
    chat.ask("And this?", pictures[:1], **LENGTH)
    chat.clear()
    assert chat.turns == (Turn("system", "Be brief."),)
    assert chat.ask("What?", **LENGTH) == fresh
    assert Chat(qwen).ask("What?", **LENGTH) != fresh


def test_a_single_picture_needs_no_list(qwen: Loaded, pictures: list[Path]) -> None:
    expected = Chat(qwen).ask("What?", pictures[:1], **LENGTH)
    assert Chat(qwen).ask("What?", str(pictures[0]), **LENGTH) == expected
    assert Chat(qwen).ask("What?", Image.open(pictures[0]), **LENGTH) == expected
    assert batch_answer(qwen, [("What?", pictures[0])], **LENGTH) == [expected]
    assert batch_answer(qwen, []) == []


def test_many_tiles_go_through_the_tower_in_parts(
    qwen: Loaded, pictures: list[Path], seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Chat(qwen).ask("What?", pictures[:3], **LENGTH)
    monkeypatch.setattr("internvl_chat.infer.pictures.TILES_AT_ONCE", 2)
    calls = seen(qwen)
    assert Chat(qwen).ask("What?", pictures[:3], **LENGTH) == whole
    assert max(len(tiles) for tiles in calls["tiles"]) == 2


def test_sampling_follows_the_seed_and_temperature_zero_is_greedy(qwen: Loaded) -> None:
    greedy = Chat(qwen).ask("Tell me a story", **LENGTH)
    assert Chat(qwen).ask("Tell me a story", temperature=0, top_p=0.5, **LENGTH) == greedy
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(Chat(qwen).ask("Tell me a story", temperature=2.0, **LENGTH))
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] != greedy


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ({"temperature": -1}, "temperature -1 is negative"),
        ({"temperature": 1.0, "top_p": 0}, "top_p 0 is not in"),
        ({"max_new_tokens": 0}, "leaves no room"),
        ({"num_return_sequences": 2}, "num_return_sequences cannot be set here: ask several times"),
        ({"image": "a.png"}, "'image' is no argument here; did you mean 'images'"),
        ({"max_length": 5}, "max_length cannot be set here: use max_new_tokens"),
        ({"generation_config": GenerationConfig(return_dict_in_generate=True)}, "return_dict_in_generate cannot"),
        ({"temperature": "hot"}, "temperature 'hot' is not a number"),
        ({"max_new_tokens": True}, "max_new_tokens True is not a whole number"),
        ({"bad_words_ids": 3}, "generate refuses these arguments: "),
        ({"max_new_tokens": 2.5}, "max_new_tokens 2.5 is not a whole number"),
        ({"temperature": float("nan")}, "temperature nan is not a number"),
        ({"do_sample": True, "temperature": 0.0}, "do_sample needs a temperature above 0; add --temperature"),
        ({"num_beams": 0}, "num_beams 0: at least 1"),
        ({"num_beams": -1}, "num_beams -1: at least 1"),
        ({"stop_strings": [1]}, "a text or a list of texts"),
        ({"stop_strings": 3}, "a text or a list of texts"),
        ({"forced_eos_token_id": 99999}, "forced_eos_token_id 99999: the ids of this model's tokens are 0 to"),
        ({"forced_bos_token_id": 99999}, "forced_bos_token_id 99999: the ids of"),
        ({"pad_token_id": -1}, "pad_token_id -1: the ids of"),
        ({"eos_token_id": 1e30}, "eos_token_id 1e.30: the ids of"),
        ({"exponential_decay_length_penalty": [5]}, "generate refuses these arguments: "),
        ({"cache_implementation": "quantized"}, "generate refuses these arguments: "),
        ({"prompt_lookup_num_tokens": 10**30}, "generate refuses these arguments: "),
        *(({name: 2}, f"{name} cannot be set here: ") for name in sorted(REFUSED)),
    ],
)
def test_bad_arguments(qwen: Loaded, generation: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Chat(qwen).ask("What?", **generation)


def test_arguments_that_say_nothing_are_taken(qwen: Loaded) -> None:
    """Configs are full of them."""
    said = {"num_return_sequences": 1, "penalty_alpha": 0.0, "output_scores": False, "guidance_scale": 1.0}
    assert Chat(qwen).ask("What?", **LENGTH, **said) == Chat(qwen).ask("What?", **LENGTH)


def test_no_code_is_run_and_nobody_asked_for_leave(
    qwen: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would ask on stdin whether to run the folder's code, and then do it."""
    (tmp_path / "custom_generate").mkdir()
    (tmp_path / "custom_generate" / "generate.py").write_text("def generate(**given):\n    raise SystemExit\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    for more in ({}, {"trust_remote_code": True}):
        with pytest.raises(ConfigError, match="no code but that of transformers"):
            Chat(qwen).ask("What?", custom_generate=str(tmp_path), **more)


def test_a_generation_config_is_taken_apart(qwen: Loaded) -> None:
    given = GenerationConfig(max_new_tokens=5, repetition_penalty=3.0)
    expected = Chat(qwen).ask("What?", max_new_tokens=5, repetition_penalty=3.0)
    assert Chat(qwen).ask("What?", generation_config=given) == expected
    assert Chat(qwen).ask("What?", max_new_tokens=None, generation_config=given) == expected
    stopped = Chat(qwen).ask("What?", stop_strings=[expected[2:4]], **LENGTH)
    assert stopped == Chat(qwen).ask("What?", **LENGTH)[: len(stopped)]


def test_half_a_character_is_refused_and_the_others_go_on(qwen: Loaded) -> None:
    for ask in (lambda: Chat(qwen).ask("a\ud800"), lambda: Chat(qwen, system="\udfff").ask("What?")):
        with pytest.raises(DataError, match=r"the (question|system message) holds half a character"):
            ask()
    questions = [Question((Turn("human", text),)) for text in ("fine", "\ud83d")]
    found = dict(answers(qwen, questions, **LENGTH))
    assert "half a character" in str(found[1])
    assert found[0].text == Chat(qwen).ask("fine", **LENGTH)


def test_pictures_of_archives_are_read_when_they_are_due(
    qwen: Loaded, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than a batch of them is decoded at once."""
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for picture in pictures:
            archive.write(picture, picture.name)
    media = [locate_medium(str(tmp_path / "all.zip"), picture.name) for picture in pictures]
    expected = [Chat(qwen).ask("What?", [picture], **LENGTH) for picture in pictures]
    held: list[int] = []
    real = pictures_module.cut_shown
    monkeypatch.setattr(batch_module, "cut_shown", lambda *a: held.append(len(a[0])) or real(*a))
    questions = [question_of("What?", [medium], None, qwen.tiles) for medium in media]
    assert not any(isinstance(shown.source, Image.Image) for question in questions for shown in question.shown)
    found = dict(answers(qwen, questions, 2, **LENGTH))
    assert [found[number].text for number in range(len(pictures))] == expected
    assert held == [1] * len(pictures)


@pytest.mark.parametrize(
    ("question", "number", "message"),
    [
        ("What is <image>?", 0, "has 1 <image> but no picture is given"),
        ("<image> <image>", 1, "2 <image> in the question, pictures given: 1"),
        ("<image>", 2, "1 <image> in the question, pictures given: 2"),
    ],
)
def test_tags_and_pictures_must_match(
    qwen: Loaded, pictures: list[Path], question: str, number: int, message: str
) -> None:
    chat = Chat(qwen)
    with pytest.raises(DataError, match=message):
        chat.ask(question, pictures[:number])
    assert chat.turns == ()
    with pytest.raises(DataError, match=f"item 1: .*{message}"):
        batch_answer(qwen, [("fine", []), (question, pictures[:number])])


def test_bad_pictures(qwen: Loaded, tmp_path: Path, pictures: list[Path]) -> None:
    missing, text, cut = tmp_path / "no.png", tmp_path / "text.png", tmp_path / "cut.png"
    text.write_text("not a picture")
    cut.write_bytes(pictures[0].read_bytes()[:-200])
    for path, message in ((missing, "does not exist; check the path"), (text, "not a picture"), (cut, "cannot be")):
        with pytest.raises(DataError, match=message) as caught:
            Chat(qwen).ask("What?", [path])
        assert path.name in str(caught.value)
        assert "manifest" not in str(caught.value)
        assert "\n" not in str(caught.value)
        with pytest.raises(DataError, match=f"item 1: .*{message}"):
            batch_answer(qwen, [("What?", pictures[:1]), ("What?", [path])])
    for address in ("https://example.org/a.jpg", "file:///a.jpg"):
        with pytest.raises(DataError, match="is an address, and none is opened here; download it"):
            Chat(qwen).ask("What?", [address])
    with pytest.raises(DataError, match=r"a path or a PIL\.Image, not ndarray"):
        Chat(qwen).ask("What?", [np.zeros((8, 8, 3), np.uint8)])
    with pytest.raises(DataError, match="floats"):
        Chat(qwen).ask("What?", [Image.fromarray(np.zeros((8, 8), np.float32))])
