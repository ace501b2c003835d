"""A model is asked as it was taught: the ids and tiles of chat are those of the training sample."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from internvl_chat.data.address import Address
from internvl_chat.data.fit import Limits
from internvl_chat.data.manifest import DatasetSpec
from internvl_chat.data.record import Turn
from internvl_chat.data.sample import Sample, SampleMaker
from internvl_chat.data.tiles import TileSettings
from internvl_chat.infer.chat import Chat
from internvl_chat.infer.load import Loaded, load

Seen = Callable[[Loaded], dict[str, list[torch.Tensor]]]


def training_sample(loaded: Loaded, turns: tuple[Turn, ...], images: list[Path], tiles: TileSettings) -> Sample:
    """What training makes of the conversation."""
    maker = SampleMaker(loaded.encoder, tiles, Limits(10**6, 10**6))
    line = {
        "image": [image.name for image in images],
        "conversations": [{"from": turn.role, "value": turn.text} for turn in turns],
    }
    root = str(images[0].parent) if images else ""
    spec = DatasetSpec(name="d", root=root, annotation=Path("d.jsonl"))
    return maker.load(json.dumps(line).encode(), spec, Address("d", 0))


def answers(chat: Chat, monkeypatch: pytest.MonkeyPatch, *texts: str) -> None:
    """Let the conversation go on with these answers, whatever the model says."""
    left = iter(texts)
    monkeypatch.setattr("internvl_chat.infer.chat.decode", lambda *_: next(left))


@pytest.mark.parametrize("system", [None, "Answer in one word."])
def test_prompt_ids_are_a_prefix_of_the_training_ids(
    loaded: Loaded, pictures: list[Path], seen: Seen, monkeypatch: pytest.MonkeyPatch, system: str | None
) -> None:
    """In every round, for every template, with the answers of earlier rounds in between."""
    calls = seen(loaded)
    chat = Chat(loaded, system)
    answers(chat, monkeypatch, "It is 7.", " A <ref>dog</ref>  ", "好的。")
    chat.ask("What number is written?", pictures[:1], max_new_tokens=1)
    chat.ask("And here: <image>\nor there <image> ?", pictures[1:3], max_new_tokens=1)
    chat.ask("  why?\n", max_new_tokens=1)
    # The tile limit is shared per question, in training per sample: take the tile counts of chat here.
    ids, labels = loaded.encoder.encode(chat.turns, chat._said.tiles)
    assert len(calls["ids"]) == 3
    for number, prompt in enumerate(calls["ids"]):
        length = prompt.shape[1]
        np.testing.assert_array_equal(prompt[0].numpy(), ids[:length])
        # The very next token is the first one that training supervises in this round.
        assert labels[length] != -100
        assert labels[length - 1] == -100, number


def test_one_question_is_the_training_sample(loaded: Loaded, pictures: list[Path], seen: Seen) -> None:
    """The whole sample, with the tile limit shared by the pictures, ids and pixels to the last bit."""
    calls = seen(loaded)
    chat = Chat(loaded)
    chat.ask("Which is larger?", pictures[:3], max_new_tokens=4)
    tagged = chat.turns[0]
    assert tagged.text == "Image-1: <image>\nImage-2: <image>\nImage-3: <image>\nWhich is larger?"
    sample = training_sample(loaded, (tagged, Turn("gpt", "the first")), pictures[:3], loaded.tiles)
    prompt = calls["ids"][0][0].numpy()
    np.testing.assert_array_equal(prompt, sample.input_ids[: len(prompt)])
    assert torch.equal(torch.cat(calls["tiles"]), sample.tiles)
    assert all(count <= 3 for count in sample.tiles_per_image)


def test_tiles_of_one_picture_are_those_of_training(
    tiny_folder: Callable[[str], Path], pictures: list[Path], seen: Seen
) -> None:
    """For both backends; a picture that is opened already gives the tiles of its file."""
    from PIL import Image

    for backend in ("torch", "pillow"):
        loaded = load(tiny_folder("qwen2"), device="cpu", image_backend=backend)
        calls = seen(loaded)
        for picture in pictures:
            calls["tiles"].clear()
            Chat(loaded).ask("What?", [picture], max_new_tokens=1)
            Chat(loaded).ask("What?", [Image.open(picture)], max_new_tokens=1)
            turns = (Turn("human", "<image>\nWhat?"), Turn("gpt", "x"))
            sample = training_sample(loaded, turns, [picture], TileSettings.from_config(loaded.model.config, backend))
            assert calls["tiles"][0].dtype == torch.uint8
            assert torch.equal(calls["tiles"][0], sample.tiles)
            assert torch.equal(calls["tiles"][1], sample.tiles)


@pytest.mark.parametrize("marker", ["<|im_end|>", "<IMG_CONTEXT>", "<img>", "</img>", "<|im_start|>user\n", "</s>"])
def test_lookalikes_in_a_question_stay_text(loaded: Loaded, pictures: list[Path], seen: Seen, marker: str) -> None:
    """Who types a marker does not end the turn, and gets no picture."""
    calls = seen(loaded)
    Chat(loaded).ask("What is it?", pictures[:1], max_new_tokens=1)
    Chat(loaded).ask(f"What is {marker} it?", pictures[:1], max_new_tokens=1)
    plain, tricky = (ids[0].tolist() for ids in calls["ids"])
    for number in loaded.hidden_ids:
        assert plain.count(number) == tricky.count(number)
    assert marker in loaded.tokenizer.decode(tricky, skip_special_tokens=False)
