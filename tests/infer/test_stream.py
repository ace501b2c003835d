"""Streams: the same text in pieces, errors that arrive, threads that end."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast, StoppingCriteria

from internvl_chat.errors import ConfigError
from internvl_chat.infer.answer import decode
from internvl_chat.infer.chat import Chat
from internvl_chat.infer.load import Loaded
from internvl_chat.infer.stream import RawPieces, TextPieces

TEXT = "  \n Hello  world,\n\n你好 🙂 é <ref>dog</ref><box>[[1, 2]]</box> e\u0301 \ufffd ok.\n  "


def answer_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("internvl-answer")]


def pieces_of(loaded: Any, ids: Sequence[int]) -> list[str]:
    pieces = TextPieces(loaded)
    return [pieces.add([number]) for number in ids] + [pieces.finish()]


def sentencepiece_like() -> SimpleNamespace:
    """Letters and bytes, a prefix space that its decoder strips: what Llama and Phi3 tokenizers do."""
    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    for letter in ("▁", *"Helowrdk,.gx[]12<>/n\nbf"):
        vocab.setdefault(letter, len(vocab))
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return SimpleNamespace(tokenizer=PreTrainedTokenizerFast(tokenizer_object=core), hidden_ids=frozenset())


def test_pieces_join_to_the_decoded_text(loaded: Loaded) -> None:
    ids = loaded.encoder.text_ids(TEXT)
    pieces = pieces_of(loaded, [*ids, *loaded.stop_ids])
    assert "".join(pieces) == decode(loaded, ids) == TEXT.strip()
    assert sum(bool(piece) for piece in pieces) > 20, "text comes as it is made, not at the end"


def test_pieces_join_for_tokenizers_with_a_prefix_space() -> None:
    loaded = sentencepiece_like()
    ids = loaded.tokenizer("▁" + TEXT.replace(" ", "▁"), add_special_tokens=False)["input_ids"]
    assert "".join(pieces_of(loaded, ids)) == decode(loaded, ids) == TEXT.strip()


def test_raw_pieces_go_on_behind_a_text() -> None:
    """With the space that the tokenizer would drop in front of a text of its own."""
    loaded = sentencepiece_like()
    before, ids = (
        loaded.tokenizer("▁" + text.replace(" ", "▁"), add_special_tokens=False)["input_ids"]
        for text in ("Hello, 你", TEXT[1:])
    )
    pieces = RawPieces(loaded, before)
    assert "".join([*map(pieces.add, [[number] for number in ids]), pieces.finish()]) == TEXT
    alone = RawPieces(loaded)
    assert "".join([*map(alone.add, [[number] for number in ids]), alone.finish()]) == TEXT[1:]


def test_pieces_join_for_random_ids(loaded: Loaded) -> None:
    """Broken characters and special tokens in the middle included."""
    generator = torch.Generator().manual_seed(0)
    for length in (1, 2, 5, 60, 60, 60, 60):
        ids = torch.randint(0, len(loaded.tokenizer), (length,), generator=generator).tolist()
        assert "".join(pieces_of(loaded, ids)) == decode(loaded, ids)


def test_grounding_survives_and_markers_do_not(loaded: Loaded) -> None:
    text = "<ref>a dog</ref><box>[[10, 20, 30, 40]]</box><quad></quad>"
    special = loaded.tokenizer.convert_tokens_to_ids(["<img>", "</img>", "<IMG_CONTEXT>"])
    ids = [*special, *loaded.encoder.text_ids(text), loaded.encoder.stop_id, loaded.pad_id, loaded.pad_id]
    assert decode(loaded, ids) == text
    assert len(loaded.encoder.text_ids("<ref></ref>")) == 2


def test_no_piece_is_empty_and_none_ends_in_space(qwen: Loaded, pictures: list[Path]) -> None:
    pieces = list(Chat(qwen).ask("Tell me", pictures[:1], stream=True, max_new_tokens=40))
    assert len(pieces) > 5
    assert all(piece and piece == piece.rstrip() for piece in pieces)


@pytest.mark.parametrize("tokens", [0, 3])
def test_an_error_in_the_thread_reaches_the_caller(qwen: Loaded, monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """Before the first token, and in the middle; the conversation is as before and can go on."""

    class Burst(StoppingCriteria):
        calls = 0

        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            self.calls += 1
            if self.calls > tokens:
                raise MemoryError("no room")
            return torch.zeros(len(input_ids), dtype=torch.bool)

    chat = Chat(qwen)
    before = chat.ask("Hello", max_new_tokens=5)
    turns = chat.turns
    stream = chat.ask("Tell me", stream=True, max_new_tokens=40, stopping_criteria=[Burst()])
    with pytest.raises(MemoryError, match="no room"):
        list(stream)
    assert chat.turns == turns
    assert not answer_threads()
    chat.clear()
    assert chat.ask("Hello", max_new_tokens=5) == before


def test_a_wrong_argument_reaches_the_caller(qwen: Loaded) -> None:
    with pytest.raises(ConfigError, match="no_such_flag"):
        list(Chat(qwen).ask("Tell me", stream=True, no_such_flag=1))


def test_early_close_stops_the_thread(qwen: Loaded) -> None:
    chat = Chat(qwen)
    stream = chat.ask("Tell me", stream=True, max_new_tokens=100_000, eos_token_id=[10**6])
    next(stream)
    assert len(answer_threads()) == 1
    stream.close()
    assert not answer_threads()
    assert chat.turns == ()
    for _ in chat.ask("Tell me", stream=True, max_new_tokens=100_000, eos_token_id=[10**6]):
        break
    del _
    assert not answer_threads()
    chat.ask("Tell me", stream=True)  # never begun: no thread at all
    assert not answer_threads()


def test_streams_do_not_overtake_each_other(qwen: Loaded) -> None:
    chat = Chat(qwen)
    late = chat.ask("First", stream=True, max_new_tokens=3)
    chat.ask("Second", max_new_tokens=3)
    with pytest.raises(RuntimeError, match="the conversation went on"):
        list(late)
    assert len(chat.turns) == 2


def test_two_sessions_stream_at_once(qwen: Loaded, pictures: list[Path]) -> None:
    questions = [("What is it?", pictures[:1]), ("And what is that?", pictures[1:2])]
    alone = ["".join(Chat(qwen).ask(q, images, stream=True, max_new_tokens=20)) for q, images in questions]
    streams = [Chat(qwen).ask(q, images, stream=True, max_new_tokens=20) for q, images in questions]
    texts = ["", ""]
    while streams[0] is not None or streams[1] is not None:
        for number, stream in enumerate(streams):
            piece = next(stream, None) if stream is not None else None
            if piece is None:
                streams[number] = None  # type: ignore[call-overload]
            else:
                texts[number] += piece
    assert texts == alone
