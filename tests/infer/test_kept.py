"""What was read is kept from round to round: fewer tokens are read, and the answers are those of reading all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from internvl_chat.infer.chat import Chat
from internvl_chat.infer.kept import _steady_length
from internvl_chat.infer.load import load
from internvl_chat.infer.loaded import Loaded
from internvl_chat.model.catalogue import config_of, release
from internvl_chat.tools.tiny import make_tiny

LENGTH = {"max_new_tokens": 10}


@contextmanager
def read_by(loaded: Loaded) -> Iterator[list[int]]:
    """Fills with the number of tokens that each forward pass of the language model reads."""
    lengths: list[int] = []

    def see(module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        given = kwargs["inputs_embeds"] if kwargs.get("inputs_embeds") is not None else kwargs["input_ids"]
        lengths.append(given.shape[1])

    handle = loaded.model.language_model.get_decoder().register_forward_pre_hook(see, with_kwargs=True)
    try:
        yield lengths
    finally:
        handle.remove()


def whole(loaded: Loaded, chat: Chat) -> str:
    """The last answer of a conversation, all of which is read at once."""
    said = chat._said
    row = torch.from_numpy(loaded.encoder.encode_prompt(said.turns[:-1], said.tiles))[None]
    out = loaded.model.generate(
        input_ids=row, visual_features=torch.cat(said.features), do_sample=False, eos_token_id=list(loaded.stop_ids),
        **LENGTH,
    )  # fmt: skip
    return loaded.tokenizer.decode([t for t in out[0].tolist() if t not in loaded.hidden_ids]).strip()


@pytest.mark.parametrize("stream", [False, True])
def test_a_round_reads_what_is_new(loaded: Loaded, pictures: list[Path], stream: bool) -> None:
    chat = Chat(loaded)
    for number, (question, images) in enumerate(
        [("What is it?", pictures[:1]), ("And these?", pictures[1:3]), ("Why?", []), ("Once more.", pictures[3:])]
    ):
        with read_by(loaded) as lengths:
            answer = chat.ask(question, images, stream=stream, **LENGTH)
            text = "".join(answer) if stream else answer
        assert text == whole(loaded, chat)
        row = loaded.encoder.encode_prompt(chat.turns[:-1], chat._said.tiles)
        if number:
            # The new question with its pictures, and the few tokens around it that the template adds.
            alone = loaded.encoder.encode_prompt(chat.turns[-2:-1], chat._said.tiles[-len(images) or 10**9 :])
            assert lengths[0] <= len(alone) + LENGTH["max_new_tokens"] < len(row)
        else:
            assert lengths[0] == len(row)
        assert set(lengths[1:]) <= {1}


def test_a_picture_in_the_place_of_another_is_read(qwen: Loaded, pictures: list[Path]) -> None:
    """Placeholders of pictures with equally many tiles are the same tokens."""
    from PIL import Image

    chat = Chat(qwen)
    first, second = Image.new("RGB", (56, 56), "red"), Image.new("RGB", (56, 56), "blue")
    chat.ask("What is it?", [first], **LENGTH)
    chat.clear()
    assert chat.ask("What is it?", [second], **LENGTH) == Chat(qwen).ask("What is it?", [second], **LENGTH)


def test_a_stream_that_was_closed_leaves_nothing_wrong(qwen: Loaded, pictures: list[Path]) -> None:
    chat = Chat(qwen)
    chat.ask("What is it?", pictures[:1], **LENGTH)
    stream = chat.ask("Tell me all about it", stream=True, **LENGTH)
    next(stream)
    stream.close()
    chat.ask("And now?", **LENGTH)
    assert chat.turns[-1].text == whole(qwen, chat)
    late = chat.ask("First?", stream=True, **LENGTH)
    chat.ask("Second?", **LENGTH)
    assert chat.turns[-1].text == whole(qwen, chat)
    with pytest.raises(RuntimeError, match="went on"):
        list(late)
    chat.ask("Third?", **LENGTH)
    assert chat.turns[-1].text == whole(qwen, chat)


def test_copies_of_a_conversation_go_their_own_ways(qwen: Loaded, pictures: list[Path]) -> None:
    chat = Chat(qwen)
    chat.ask("What is it?", pictures[:1], **LENGTH)
    other = chat.copy()
    chat.ask("Which colour has it?", **LENGTH)
    other.ask("How large is it, and who made it?", **LENGTH)
    chat.ask("And?", **LENGTH)
    for one in (chat, other):
        assert one.turns[-1].text == whole(qwen, one)


def test_beams_and_others_have_a_cache_of_their_own(qwen: Loaded, pictures: list[Path]) -> None:
    chat = Chat(qwen)
    for options in ({}, {"num_beams": 2}, {}, {"use_cache": False}, {}, {"prompt_lookup_num_tokens": 2}, {}):
        text = chat.ask("What is it?", pictures[:1] if not chat.turns else (), **options, **LENGTH)
        if "num_beams" not in options:
            assert text == whole(qwen, chat)


def test_a_window_forgets_and_is_read_anew(tmp_path: Path) -> None:
    """Layers that see a window only do not hold what comes before it."""
    folder = make_tiny(tmp_path / "phi3", "phi3")
    loaded = load(folder, device="cpu")
    loaded.model.config.llm_config.sliding_window = 16
    chat = Chat(loaded)
    for question in ("Tell me a long story about a cat and a dog.", "And then?", "And?"):
        chat.ask(question, **LENGTH)
        assert chat.turns[-1].text == whole(loaded, chat)


def test_a_window_wider_than_any_text_is_none(tmp_path: Path) -> None:
    """Phi-3 names a window beyond its context: what was read can be kept all the same."""
    loaded = load(make_tiny(tmp_path / "phi3", "phi3"), device="cpu")
    loaded.model.config.llm_config.sliding_window = loaded.model.config.llm_config.max_position_embeddings
    chat = Chat(loaded)
    chat.ask("Tell me a long story about a cat and a dog.", **LENGTH)
    with read_by(loaded) as lengths:
        chat.ask("And then?", **LENGTH)
    assert lengths[0] < len(loaded.encoder.encode_prompt(chat.turns[:-1], ())) / 2
    assert chat.turns[-1].text == whole(loaded, chat)
    chat.forget_read()
    with read_by(loaded) as lengths:
        chat.ask("And?", **LENGTH)
    assert lengths[0] == len(loaded.encoder.encode_prompt(chat.turns[:-1], ()))


def test_positions_that_move_with_the_length(tmp_path: Path) -> None:
    """InternLM2 stretches its positions beyond the length it was made for: what was read before is no good then."""
    assert _steady_length(config_of(release("InternVL2-8B")).llm_config) == 32768
    assert _steady_length(config_of(release("InternVL2_5-1B")).llm_config) == float("inf")
    loaded = load(make_tiny(tmp_path / "m", "internlm2"), device="cpu")
    chat = Chat(loaded)
    for limit, expected in ((10**6, False), (20, True)):
        loaded.model.config.llm_config.max_position_embeddings = limit
        loaded.model.config.llm_config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
        chat.clear()
        chat.ask("What?", **LENGTH)
        with read_by(loaded) as lengths:
            chat.ask("And?", **LENGTH)
        row = loaded.encoder.encode_prompt(chat.turns[:-1], chat._said.tiles)
        assert (lengths[0] == len(row)) is expected


def test_ids_that_differ_are_read_from_there(qwen: Loaded) -> None:
    """An answer whose text is cut into other tokens when it is read back."""
    chat = Chat(qwen)
    chat.ask("What?", **LENGTH)
    kept = chat._kept
    assert kept is not None
    kept.ids = np.where(np.arange(len(kept.ids)) == 5, -1, kept.ids)
    with read_by(qwen) as lengths:
        chat.ask("And?", **LENGTH)
    row = qwen.encoder.encode_prompt(chat.turns[:-1], ())
    assert lengths[0] == len(row) - 5
    assert chat.turns[-1].text == whole(qwen, chat)
