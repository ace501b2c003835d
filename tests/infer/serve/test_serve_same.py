"""What is served is what ``Chat`` answers: kinds of models, rounds, pictures, streams, many clients at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serving_tools import Served, picture, user

from internvl_chat.infer.chat import Chat
from internvl_chat.infer.load import Loaded
from internvl_chat.infer.pictures import cut_pictures
from internvl_chat.infer.serve.prompts import Limits, prepare_chat

LENGTH = {"max_new_tokens": 24}


def events(server: Served, *messages: Any, **more: Any) -> list[dict[str, Any]]:
    """Events of a streamed answer; the last line must be [DONE]."""
    text = server.ask(*messages, stream=True, **more).text
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def streamed(server: Served, *messages: Any, **more: Any) -> str:
    found = events(server, *messages, **more)
    assert found[0]["choices"][0]["delta"]["role"] == "assistant"
    return "".join(event["choices"][0]["delta"].get("content", "") for event in found)


@pytest.mark.parametrize("llm", ("qwen2", "qwen3", "qwen3_moe", "llama", "phi3", "internlm2"))
def test_text_is_that_of_chat(
    llm: str, served_of: Callable[[str], Served], loaded_of: Callable[[str], Loaded], pictures: list[Path]
) -> None:
    server, chat = served_of(llm), Chat(loaded_of(llm), system="Be short.")
    first = chat.ask("Which is larger?", pictures[:2], **LENGTH)
    messages = [
        {"role": "system", "content": "Be short."},
        user(picture(pictures[0]), picture(pictures[1]), "Which is larger?"),
    ]
    assert server.text(*messages, max_tokens=24) == streamed(server, *messages, max_tokens=24) == first
    messages += [{"role": "assistant", "content": first}, user("And this?", picture(pictures[2]))]
    second = chat.ask("And this?", pictures[2:3], **LENGTH)
    assert server.text(*messages, max_tokens=24) == streamed(server, *messages, max_tokens=24) == second
    plain = Chat(loaded_of(llm)).ask("Hello!", **LENGTH)
    assert server.text({"role": "user", "content": "Hello!"}, max_tokens=24) == plain
    assert len({first, second, plain}) == 3


def test_grounding_tokens_stay_and_others_are_hidden(server: Served, qwen: Loaded, pictures: list[Path]) -> None:
    ids = {name: qwen.tokenizer.convert_tokens_to_ids(name) for name in ("<box>", "<ref>", "<img>", "<|im_start|>")}
    assert all(qwen.tokenizer.added_tokens_decoder[number].special for number in ids.values())
    for name, number in ids.items():
        body = {"max_tokens": 3, "logit_bias": {str(number): 100}}
        text = server.text(user(picture(pictures[0]), "Where?"), **body)
        assert text == streamed(server, user(picture(pictures[0]), "Where?"), **body)
        assert text == (name * 3 if name in ("<box>", "<ref>") else "")


def prompt_of(loaded: Loaded, *messages: Any) -> Any:
    return prepare_chat(list(messages), loaded, Limits.of(loaded), None)


def test_pictures_stand_where_they_are_meant(qwen: Loaded, pictures: list[Path]) -> None:
    """First unless the texts say where: a tag in the text, or a text before and one behind."""
    a, b = picture(pictures[0]), picture(pictures[1])
    tiles = cut_pictures(pictures[:2], qwen.tiles)

    def ids(text: str) -> list[int]:
        from internvl_chat.data.record import Turn

        return qwen.encoder.encode_prompt([Turn("human", text)], tiles.counts).tolist()

    for content, text in (
        ([a, b, "Q"], "Image-1: <image>\nImage-2: <image>\nQ"),
        (["Q", a, b], "Image-1: <image>\nImage-2: <image>\nQ"),
        ([a, b, "X <image> Y <image>"], "X <image> Y <image>"),
        (["First", a, "second", b, "same?"], "First\n<image>\nsecond\n<image>\nsame?"),
    ):
        found = prompt_of(qwen, user(*content))
        assert found.ids.tolist() == ids(text)
        assert found.pixels.equal(tiles.pixels)


def test_low_detail_is_one_tile(qwen: Loaded, pictures: list[Path]) -> None:
    assert len(prompt_of(qwen, user(picture(pictures[0], detail="high"), "Q")).pixels) > 1
    assert len(prompt_of(qwen, user(picture(pictures[0], detail="low"), "Q")).pixels) == 1


def test_usage_and_the_reason_to_end(server: Served, qwen: Loaded) -> None:
    found = server.ask("Hello!", max_tokens=5).json()
    assert found["model"] == "qwen2"
    prompt = len(prompt_of(qwen, user("Hello!")).ids)
    assert found["usage"] == {"prompt_tokens": prompt, "completion_tokens": 5, "total_tokens": prompt + 5}
    assert found["choices"][0]["finish_reason"] == "length"
    stop = {str(qwen.stop_ids[0]): 100}
    ended = server.ask("Hello!", max_tokens=5, logit_bias=stop).json()
    assert ended["choices"][0] == {"finish_reason": "stop", "index": 0, "message": {"content": "", "role": "assistant"}}
    assert ended["usage"]["completion_tokens"] == 1
    last = events(server, "Hello!", max_tokens=5)[-1]
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["usage"]["completion_tokens"] == 5


def test_stop_texts_cut_the_answer(server: Served) -> None:
    whole = server.text("Hello!", max_tokens=24)
    stop = whole[9:11]
    expected = whole[: whole.index(stop)].rstrip()
    assert expected
    for stops in (stop, ["never seen", stop]):
        found = server.ask("Hello!", max_tokens=24, stop=stops).json()
        assert found["choices"][0]["message"]["content"].rstrip() == expected
        assert found["choices"][0]["finish_reason"] == "stop"
        assert found["usage"]["completion_tokens"] < 24
        text = streamed(server, "Hello!", max_tokens=24, stop=stops)
        assert text == found["choices"][0]["message"]["content"]


def test_sampling_follows_the_seed(server: Served) -> None:
    def sample(seed: int) -> str:
        return server.text("Hello!", temperature=1.5, seed=seed)

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(4)} | {server.text("Hello!")}) > 3
    assert server.text("Hello!", temperature=0) == server.text("Hello!", top_p=0.5) == server.text("Hello!")


def test_penalty_is_on_new_tokens_only(server: Served, qwen: Loaded) -> None:
    expected = Chat(qwen).ask("Hello!", repetition_penalty=3.0, max_new_tokens=80)
    found = server.text("Hello!", frequency_penalty=2.0, max_tokens=80)
    assert found == expected != server.text("Hello!", max_tokens=80)
    assert server.text("Hello!", repetition_penalty=3.0, max_tokens=80) == expected
    assert server.text("Hello!", temperature=2.0, top_k=1) == server.text("Hello!")


def test_plain_completions(server: Served, qwen: Loaded) -> None:
    chat = prompt_of(qwen, user("Hello!")).ids
    prompt = qwen.tokenizer.decode(chat, clean_up_tokenization_spaces=False)
    body = {"prompt": prompt, "max_tokens": 12}
    found = server.post("/v1/completions", json=body).json()
    assert found["choices"][0]["text"].strip() == server.text("Hello!")
    text = server.post("/v1/completions", json={**body, "stream": True}).text
    chunks = [json.loads(line[6:]) for line in text.split("\n\n") if line and line != "data: [DONE]"]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == found["choices"][0]["text"]


def test_many_at_once_are_not_mixed_up(server: Served, qwen: Loaded, tmp_path: Path) -> None:
    """64 requests, each with a picture and a question of its own, bad ones between them."""
    rng = np.random.default_rng(3)
    asked = []
    for number in range(64):
        file = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((50 + number, 60)).save(file)
        asked.append((file, f"{number} " * (1 + number % 5)))
    expected = [Chat(qwen).ask(question, [file], max_new_tokens=12) for file, question in asked]
    assert len(set(expected)) > 48

    def one(number: int) -> Any:
        if number % 2:
            bad = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
            return server.ask(user(bad, "What?")).status_code
        file, question = asked[number // 2]
        ask = streamed if number % 4 else Served.text
        return ask(server, user(picture(file), question), max_tokens=12)

    with ThreadPoolExecutor(128) as pool:
        found = list(pool.map(one, range(128)))
    assert found[::2] == expected
    assert found[1::2] == [400] * 64
