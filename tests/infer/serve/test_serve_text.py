"""What becomes of an answer's text on its way out: white space, stop texts, the count of tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from serving_tools import HELLO, Served

from internvl_chat.infer.load import Loaded

Says = Callable[[str], None]


@pytest.fixture()
def says(server: Served, qwen: Loaded, monkeypatch: pytest.MonkeyPatch) -> Says:
    """``says(text)``: from now on the model answers with this, letter by letter, unless it is stopped."""

    def set_text(text: str) -> None:
        ids = [number for letter in text for number in qwen.encoder.text_ids(letter)]

        def generate(input_ids: Any, streamer: Any, stopping_criteria: Any, **_: Any) -> None:
            streamer.put(input_ids)
            for number in [*ids, qwen.stop_ids[0]]:
                streamer.put(torch.tensor([number]))
                if stopping_criteria(input_ids, None).any():
                    break
            streamer.end()

        monkeypatch.setattr(server.manager.model, "generate", generate)

    return set_text


def completed(server: Served, **more: Any) -> str:
    """Text of ``/v1/completions``, which is the same in a stream."""
    body = {"prompt": "Once upon", **more}
    found = server.post("/v1/completions", json=body).json()["choices"][0]["text"]
    lines = server.post("/v1/completions", json={**body, "stream": True}).text.split("\n\n")
    chunks = [json.loads(line[6:]) for line in lines if line and line != "data: [DONE]"]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == found
    return str(found)


@pytest.mark.parametrize("text", (" a time", "\n\n  a time 你好 \n", "   ", "\n", "", "<ref>a</ref> "))
def test_a_completion_keeps_its_white_space(text: str, server: Served, says: Says) -> None:
    says(text)
    assert completed(server) == text
    assert server.text("Hello!") == text.strip()


@pytest.mark.parametrize(
    ("text", "stop", "raw", "reason", "tokens"),
    (
        ("\nHello", "\n", "", "stop", 1),
        (" Hello\nmore", "\n", " Hello", "stop", 7),
        ("Hello ", " ", "Hello", "stop", 6),
        ("Hello\n\n\nmore", "\n\n", "Hello", "stop", 7),
        ("  a\n b", ["\n ", "x"], "  a", "stop", 5),
        ("Hello", "\n", "Hello", "stop", 6),
    ),
)
def test_stop_texts_of_white_space(
    text: str, stop: Any, raw: str, reason: str, tokens: int, server: Served, says: Says
) -> None:
    """They are found where they stand, at once."""
    says(text)
    assert completed(server, stop=stop) == raw
    found = server.ask("Hello!", stop=stop).json()
    assert found["choices"][0]["message"]["content"] == raw.strip()
    assert found["choices"][0]["finish_reason"] == reason
    assert found["usage"]["completion_tokens"] == tokens


@pytest.mark.parametrize("kind", ("chat", "text"))
def test_usage_of_a_stream(kind: str, server: Served) -> None:
    """In a piece of its own behind the last one if it is asked for, nowhere if not; the official client reads it."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{server.base}/v1", api_key="none", max_retries=0)

    def stream(**more: Any) -> list[Any]:
        asking: dict[str, Any] = {"model": "qwen2", "max_tokens": 5, "stream": True, **more}
        if kind == "chat":
            return list(client.chat.completions.create(messages=HELLO, **asking))  # type: ignore[call-overload]
        return list(client.completions.create(prompt="Hello!", **asking))

    asked = stream(stream_options={"include_usage": True})
    assert [len(chunk.choices) for chunk in asked] == [1] * (len(asked) - 1) + [0]
    assert [chunk.usage for chunk in asked[:-1]] == [None] * (len(asked) - 1)
    usage = asked[-1].usage
    assert usage.completion_tokens == 5
    assert usage.total_tokens == usage.prompt_tokens + 5
    assert asked[-2].choices[0].finish_reason == "length"
    assert {(chunk.id, chunk.object, chunk.model) for chunk in asked} == {(asked[0].id, asked[0].object, "qwen2")}
    unasked = stream(stream_options={"include_usage": False})
    assert [len(chunk.choices) for chunk in unasked] == [1] * (len(asked) - 1)
    assert all(chunk.usage is None for chunk in unasked)
    for silent in (stream(), stream(stream_options={})):
        assert silent[-1].usage == usage
        assert silent[-1].choices[0].finish_reason == "length"
