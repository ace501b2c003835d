"""What a server must refuse, and survive: wrong requests, clients that leave, generation that fails."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import random
import struct
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image
from serving_tools import HELLO, Served, data_url, error_of, picture, user

from internvl_chat.infer.serve.engine import Stops


def image(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def as_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def bomb() -> bytes:
    """The head of a PNG of 10^10 pixels."""
    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def cut_off() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(file, "JPEG")
    return file.getvalue()[:600]


def of_format(name: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 9)).save(file, name)
    return file.getvalue()


DEEP: Any = "end"
for _ in range(200):
    DEEP = [DEEP]

# name -> (fields besides the messages of HELLO, status, what the message must hold)
BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "no messages": ({"messages": None}, 400, "messages"),
    "empty messages": ({"messages": []}, 400, "messages"),
    "messages a text": ({"messages": "Hello!"}, 400, "messages"),
    "a message that is a number": ({"messages": [1]}, 400, "messages[0]"),
    "unknown role": ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages[0].role"),
    "role a list": ({"messages": [{"role": ["user"], "content": "x"}]}, 400, "messages[0].role"),
    "late system": ({"messages": [*HELLO, {"role": "system", "content": "x"}, *HELLO]}, 400, "messages[1]"),
    "last is an answer": ({"messages": [*HELLO, {"role": "assistant", "content": "x"}]}, 400, "last"),
    "content a number": ({"messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content"),
    "content empty": ({"messages": [{"role": "user", "content": []}]}, 400, "messages[0].content"),
    "part a number": ({"messages": [user(5)]}, 400, "messages[0].content[0]"),
    "part of audio": ({"messages": [user({"type": "input_audio", "input_audio": {}})]}, 400, "content[0]"),
    "text a number": ({"messages": [user({"type": "text", "text": 5})]}, 400, "content[0]"),
    "deep": ({"messages": [{"role": "user", "content": DEEP}]}, 400, "content[0]"),
    "half a character": ({"messages": [user("ok \ud83d")]}, 400, "half a character"),
    "tool calls": ({"messages": [{"role": "assistant", "tool_calls": [{}]}, *HELLO]}, 400, "tools"),
    "image without url": ({"messages": [user("a", {"type": "image_url"})]}, 400, "messages[0].content[1]"),
    "url a number": ({"messages": [user(image(7))]}, 400, "messages[0].content[0]"),
    "url of a file": ({"messages": [user(image("file:///etc/hostname"))]}, 400, "data URL"),
    "url a path": ({"messages": [user(image("/etc/hostname"))]}, 400, "data URL"),
    "url in the web": ({"messages": [user(image("http://127.0.0.1:9/a.png"))]}, 400, "data URL"),
    "no base64": ({"messages": [user(image("data:image/png,xyz"))]}, 400, "base64"),
    "broken base64": ({"messages": [user("x", image("data:image/png;base64,@@@"))]}, 400, "messages[0].content[1]"),
    "not a picture": ({"messages": [user(image(as_url(b"hello, hello, hello")))]}, 400, "not a picture"),
    "a bomb": ({"messages": [user("a", image(as_url(bomb())))]}, 400, "messages[0].content[1]"),
    "cut off": ({"messages": [user("a", "b", image(as_url(cut_off())))]}, 400, "messages[0].content[2]"),
    "postscript": ({"messages": [user(image(as_url(of_format("EPS"))))]}, 400, "EPS"),
    "picture of an answer": ({"messages": [{**user(image("data:,")), "role": "assistant"}, *HELLO]}, 400, "user"),
    "wrong detail": ({"messages": [user({"type": "image_url", "image_url": {"url": "data:,", "detail": "x"}})]}, 400,
                     "detail"),
    "tag without picture": ({"messages": [user("What is <image>?")]}, 400, "messages[0]"),
    "too many tags": ({"messages": [user(image(as_url(of_format("PNG"))), "<image> <image>")]}, 400, "messages[0]"),
    "unknown model": ({"model": "gpt-9"}, 404, "gpt-9"),
    "model a list": ({"model": []}, 400, "model"),
    "unknown field": ({"max_tokns": 3}, 422, "max_tokns"),
    "hot": ({"temperature": "hot"}, 400, "temperature"),
    "temperature nan": ({"temperature": float("nan")}, 400, "temperature"),
    "temperature true": ({"temperature": True}, 400, "temperature"),
    "temperature huge": ({"temperature": 10**400}, 400, "temperature"),
    "top_p": ({"top_p": 0}, 400, "top_p"),
    "negative tokens": ({"max_tokens": -1}, 400, "max_tokens"),
    "half tokens": ({"max_tokens": 1.5}, 400, "max_tokens"),
    "too many tokens": ({"max_tokens": 9000}, 400, "8192"),
    "prompt too long": ({"messages": [user("word " * 9000)]}, 400, "8192"),
    "hopelessly long": ({"messages": [user("x" * 500_000)]}, 400, "8192"),
    "too many pictures": ({"messages": [user(*[image("data:,")] * 9000)]}, 400, "pictures"),
    "huge n": ({"n": 10**9}, 400, "n:"),
    "n a text": ({"n": "1"}, 400, "n:"),
    "stream a text": ({"stream": "yes"}, 400, "stream"),
    "stop a number": ({"stop": 5}, 400, "stop"),
    "empty stop": ({"stop": ""}, 400, "stop"),
    "seed": ({"seed": 2**70}, 400, "seed"),
    "logit_bias a list": ({"logit_bias": []}, 400, "logit_bias"),
    "logit_bias of no token": ({"logit_bias": {"99999": 1}}, 400, "logit_bias"),
    "logit_bias a text": ({"logit_bias": {"1": "x"}}, 400, "logit_bias"),
    "penalty": ({"frequency_penalty": -2}, 400, "frequency_penalty"),
    "presence": ({"presence_penalty": 1}, 400, "presence_penalty"),
    "format": ({"response_format": {"type": "json_object"}}, 400, "response_format"),
    "generation_config": ({"generation_config": "{}"}, 400, "generation_config"),
    "tools": ({"tools": [{}]}, 400, "tools"),
    "stream_options": ({"stream": True, "stream_options": 1}, 400, "stream_options"),
    "stream_options, no stream": ({"stream_options": {"include_usage": True}}, 400, '"stream": true'),
    "include_usage": ({"stream": True, "stream_options": {"include_usage": 1}}, 400, "stream_options.include_usage"),
    "obfuscation": ({"stream": True, "stream_options": {"include_obfuscation": True}}, 400, "include_obfuscation"),
    "unknown option": ({"stream": True, "stream_options": {"include_usge": True}}, 422, "include_usge"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_wrong_requests(name: str, server: Served) -> None:
    fields, status, said = BAD[name]
    content = json.dumps({"messages": HELLO, "max_tokens": 2, **fields})
    response = server.post(content=content)
    assert response.status_code == status, response.text
    assert said in error_of(response)["message"]


@pytest.mark.parametrize(
    ("content", "reason"),
    (("", ""), ("null", ""), ("[1]", ""), ('"x"', ""), ("{", "at character 1"), ('{"a": 1,}', "at character 8"),
     (b"\xff\xfe", ""), ("[" * 100_000, "recursion"), ("9" * 9000, "digits"), (b'"\xff"', "codec"), (b"\0", "0")),
)  # fmt: skip
def test_bodies_that_are_no_object(content: Any, reason: str, server: Served) -> None:
    response = server.post(content=content)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_json")
    assert error["message"].startswith("the body must be a JSON object in UTF-8")
    assert reason in error["message"]


def test_other_addresses_and_methods(server: Served) -> None:
    for path in ("/load_model", "/reset", "/v1/responses", "/v1/systemone", "/v1/audio/transcriptions", "/docs", "/x"):
        response = server.post(path, json={})
        assert (response.status_code, error_of(response)["code"]) == (404, "not_found")
    assert server.client.get(f"{server.base}/openapi.json").status_code == 404
    response = server.client.get(f"{server.base}/v1/chat/completions")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert server.client.delete(f"{server.base}/v1/models").status_code == 405
    assert server.client.get(f"{server.base}/health").json() == {"status": "ok"}
    assert [model["id"] for model in server.client.get(f"{server.base}/v1/models").json()["data"]] == ["qwen2"]


def test_only_json_is_taken(server: Served) -> None:
    """What a page of another site can send through a visitor's browser is not."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        response = server.post(content=json.dumps({"messages": HELLO}), headers={"Content-Type": kind})
        assert response.status_code == 415
    header = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert server.post(content=json.dumps({"messages": HELLO, "max_tokens": 1}), headers=header).status_code == 200


def test_the_path_is_a_name_too(server: Served) -> None:
    path = server.manager.settings.names[1]
    assert server.text("Hello!", model=path) == server.text("Hello!", model="qwen2") == server.text("Hello!")


def test_any_json_is_answered(server: Served, pictures: list[Path]) -> None:
    """Requests with parts exchanged for junk end in an answer or in an error of the client, never in ours."""
    draw = random.Random(0)
    good = {
        "messages": [{"role": "system", "content": "x"}, user("a", picture(pictures[3]), "b")],
        "temperature": 0.5, "top_p": 0.5, "seed": 1, "stop": ["x"], "logit_bias": {"1": 2}, "stream": False, "n": 1,
        "model": "qwen2", "frequency_penalty": 0.1, "stream_options": {}, "user": "me", "metadata": {},
    }  # fmt: skip
    junk = [None, True, 0, -1, 1e308, 10**30, "", "x", "\ud800", "<image>", "data:", [], [[]], {}, {"type": "text"}]

    def spoil(value: Any) -> Any:
        if draw.random() < 0.02:
            return draw.choice(junk)
        if isinstance(value, dict):
            return {key: spoil(inner) for key, inner in value.items() if draw.random() > 0.02}
        return [spoil(inner) for inner in value] if isinstance(value, list) else value

    seen = []
    for _ in range(250):
        body = {key: spoil(value) for key, value in good.items()}
        seen.append(server.post(content=json.dumps({**body, "max_tokens": 1})).status_code)
    assert set(seen) <= {200, 400, 404, 422}
    assert min(seen.count(200), seen.count(400)) > 10


# -- clients that leave, generation that fails ------------------------------------------------------------------------


def wait_until_idle(server: Served, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while server.manager.engine._open:
        assert time.monotonic() < end, "an answer goes on that nobody reads"
        time.sleep(0.02)


@pytest.mark.parametrize("stream", (True, False))
def test_a_client_that_leaves_ends_its_answer(stream: bool, server: Served, qwen: Any) -> None:
    endless = {str(number): -100 for number in qwen.stop_ids}
    body = {"messages": HELLO, "max_tokens": 7000, "logit_bias": endless, "stream": stream}
    threads = threading.active_count()
    with contextlib.suppress(httpx.ReadTimeout), server.client.stream(
        "POST", f"{server.base}/v1/chat/completions", json=body, timeout=httpx.Timeout(10, read=None if stream else 0.7)
    ) as response:  # fmt: skip
        assert stream, "a plain answer is not there yet"
        for line in response.iter_lines():
            if '"content":"' in line:
                break
        assert len(server.manager.engine._open) == 1
    wait_until_idle(server)
    assert server.text("Hello!", max_tokens=2) is not None
    assert threading.active_count() <= threads + 3


def test_generation_that_fails(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain: 500. Stream: what there was, then an error event. The next one is answered."""
    whole = server.text("Hello!")
    generate = server.manager.model.generate

    def fail_late(**arguments: Any) -> Any:
        arguments["generation_config"].max_new_tokens = 4
        streamer = arguments.pop("streamer")
        monkeypatch.setattr(streamer, "end", lambda: None)
        generate(streamer=streamer, **arguments)
        raise torch.OutOfMemoryError('out of "memory"\nreally')

    with monkeypatch.context() as patch:
        patch.setattr(server.manager.model, "generate", fail_late)
        plain = server.ask("Hello!")
        assert (plain.status_code, error_of(plain)["type"]) == (500, "server_error")
        lines = [line for line in server.ask("Hello!", stream=True).text.split("\n\n") if line]
    last = json.loads(lines[-1].removeprefix("data: "))["error"]
    assert 'out of "memory"' in last["message"]
    text = "".join(json.loads(line[6:])["choices"][0]["delta"]["content"] for line in lines[:-1])
    assert text
    assert whole.startswith(text)
    assert server.text("Hello!") == whole


def test_a_fault_of_ours_is_a_500(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(server.manager.engine), "start", lambda *_: 1 / 0)
    response = server.ask("Hello!")
    assert (response.status_code, error_of(response)["type"]) == (500, "server_error")
    assert "division" not in response.text


def test_stop_texts_in_pieces() -> None:
    """Whatever the pieces, the text before the first stop text comes out, and nothing that belongs to one."""
    draw = random.Random(1)
    for _ in range(500):
        text = "".join(draw.choices("ab", k=12))
        stops = tuple("".join(draw.choices("ab", k=draw.randint(1, 4))) for _ in range(draw.randint(1, 3)))
        ends = [text.find(stop) for stop in stops if stop in text]
        found, left, cutter = "", text, Stops(stops)
        while left:
            size = draw.randint(1, 4)
            found, left = found + cutter.add(left[:size]), left[size:]
        found += cutter.add("", last=True)
        # A longer stop text may only be seen to begin earlier when a shorter one inside it has ended already.
        assert text.startswith(found)
        assert cutter.found == bool(ends)
        assert len(found) >= min(ends, default=len(text))
        assert not any(stop in found for stop in stops)


def test_urls_of_pictures_are_taken_in_any_case(server: Served, pictures: list[Path]) -> None:
    url = data_url(pictures[3])
    assert server.text(user(image("DATA:" + url[5:]), "Q")) == server.text(user(image(url), "Q"))
    assert server.text(user({"type": "image_url", "image_url": url}, "Q")) == server.text(user(image(url), "Q"))
