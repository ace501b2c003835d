"""In front of the app: sizes, keys, the line, and clients that send slowly or never."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from serving_tools import HELLO, Served, connection, error_of, guarded, picture, user

from internvl_chat.infer.serve import gate as gates
from internvl_chat.infer.serve.gate import Gate

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def test_a_large_body_is_refused(server: Served) -> None:
    content = b"x" * 200 * 2**20
    for body in (content, (content[at : at + 2**16] for at in range(0, len(content), 2**16))):
        response = server.post(content=body)
        assert response.status_code == 413
        assert "32 MB" in error_of(response)["message"]
    assert server.text("Hello!")


def test_a_large_body_is_not_read_on(server: Served) -> None:
    """Whoever sends on and on without saying how much is cut off soon behind the limit."""
    sent = 0
    with guarded(server, max_body=2**20) as small, connection(small) as line:
        line.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):
            while sent < 100 * 2**20:
                line.sendall(b"10000\r\n" + b"x" * 2**16 + b"\r\n")
                sent += 2**16
    assert 2**20 <= sent < 20 * 2**20


def test_a_body_at_the_limit_is_taken(server: Served) -> None:
    content = json.dumps({"messages": HELLO, "max_tokens": 1}).encode()
    with guarded(server, max_body=len(content)) as exact:
        assert exact.post(content=content).status_code == 200
        assert exact.post(content=content + b" ").status_code == 413


def test_a_body_that_does_not_come(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "SILENCE_S", 0.2)
    with connection(server) as line:
        line.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        assert line.recv(1000).startswith(b"HTTP/1.1 408")


def test_key(server: Served) -> None:
    with guarded(server, api_key="secret-ä") as locked:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret-ä".encode()}):
            for path, method in (("/v1/models", "GET"), ("/v1/chat/completions", "POST")):
                response = locked.client.request(method, locked.base + path, headers=headers)
                assert (response.status_code, error_of(response)["code"]) == (401, "invalid_api_key")
        key = {"Authorization": "Bearer secret-ä".encode()}
        assert locked.client.get(f"{locked.base}/v1/models", headers=key).status_code == 200
        body = {"messages": HELLO, "max_tokens": 1}
        assert locked.post(headers=key, json=body).status_code == 200
        assert locked.client.get(f"{locked.base}/health").status_code == 200


def test_too_many_waiting(server: Served) -> None:
    with guarded(server, max_waiting=1) as busy, ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda _: busy.ask("Hello!", max_tokens=100), range(12)))
        codes = [response.status_code for response in found]
        assert set(codes) == {200, 429}
        refused = next(response for response in found if response.status_code == 429)
        assert error_of(refused)["code"] == "queue_full"
        assert int(refused.headers["retry-after"]) > 0
        assert busy.ask("Hello!").status_code == 200


def test_slow_clients_leave_room_for_others(server: Served) -> None:
    """More requests that are begun and never sent than there are places in the line."""
    with guarded(server, max_waiting=2) as busy, contextlib.ExitStack() as lines:
        for _ in range(8):
            line = lines.enter_context(connection(busy))
            line.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        assert busy.ask("Hello!", max_tokens=1).status_code == 200


def test_requests_that_are_being_sent_have_a_limit_of_their_own(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gates, "UPLOADS_AT_ONCE", 3)
    monkeypatch.setattr(gates, "BODY_S", 1.0)
    with guarded(server) as busy, contextlib.ExitStack() as lines:
        slow = [lines.enter_context(connection(busy)) for _ in range(3)]
        for line in slow:
            line.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        found = [busy.ask("Hello!", max_tokens=1) for _ in range(2)]
        assert [error_of(response)["code"] for response in found] == ["queue_full"] * 2
        for line in slow:
            assert line.recv(1000).startswith(b"HTTP/1.1 408")
            while line.recv(1000):
                pass
        assert busy.ask("Hello!", max_tokens=1).status_code == 200


def test_a_body_that_comes_drop_by_drop(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte in time, all of them together not."""
    monkeypatch.setattr(gates, "BODY_S", 0.5)
    ended = threading.Event()
    with connection(server) as line:
        line.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")

        def drip() -> None:
            with contextlib.suppress(OSError):
                while not ended.wait(0.05):
                    line.sendall(b" ")

        thread = threading.Thread(target=drip)
        thread.start()
        found = b""
        while b"slowly" not in found and (piece := line.recv(1000)):
            found += piece
        ended.set()
        thread.join()
    assert found.startswith(b"HTTP/1.1 408")
    assert b"too slowly" in found


def test_a_slow_but_steady_body_is_taken(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than a body has, but not for its size."""
    monkeypatch.setattr(gates, "BODY_S", 0.3)
    monkeypatch.setattr(gates, "SLOWEST", 1000)
    content = json.dumps({"messages": HELLO, "max_tokens": 1}).encode().ljust(4000)
    with connection(server) as line:
        line.sendall(HEAD + b"Content-Length: 4000\r\n\r\n")
        for at in range(0, 4000, 400):
            threading.Event().wait(0.1)
            line.sendall(content[at : at + 400])
        assert line.recv(1000).startswith(b"HTTP/1.1 200")


def test_bodies_are_held_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many large ones that begin at the same time: those that fit are answered, the others refused, nothing leaks."""
    monkeypatch.setattr(gates, "ROOM", 0)
    at_once, size, piece = 100, 2**20, 2**16
    most = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        await asyncio.sleep(0.05)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"%d" % len(body)})

    gate = Gate(app, {"/x": ("POST",)}, max_body=size)

    async def ask() -> int:
        nonlocal most
        left, status = size, 0

        async def receive() -> Any:
            nonlocal left, most
            await asyncio.sleep(0)
            most = max(most, gate._held)
            if not left:
                await asyncio.Event().wait()
            left -= piece
            return {"type": "http.request", "body": b" " * piece, "more_body": left > 0}

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)

        length = str(size).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        await gate({"type": "http", "method": "POST", "path": "/x", "headers": headers}, receive, send)
        return status

    async def ask_all() -> list[int]:
        return await asyncio.gather(*(ask() for _ in range(at_once)))

    found = asyncio.run(ask_all())
    assert set(found) == {200, 429}
    assert gates.BODIES_AT_ONCE / 2 <= found.count(200) <= gates.BODIES_AT_ONCE
    assert most <= gates.BODIES_AT_ONCE * size
    assert gate._held == gate._uploads == gate._at_work == 0


def test_tiles_of_requests_that_wait_count_as_held(
    server: Served, qwen: Any, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that is alone is answered whatever it holds; what comes beside it waits for the memory."""
    monkeypatch.setattr(gates, "ROOM", 0)
    monkeypatch.setattr(gates, "BODIES_AT_ONCE", 1)
    shown = {"messages": [user(picture(pictures[1]), "Q")], "max_tokens": 7000}
    endless = {**shown, "logit_bias": {str(number): -100 for number in qwen.stop_ids}, "stream": True}
    size = 2 * len(json.dumps(endless))
    with guarded(server, max_body=size) as small:
        assert small.ask(*shown["messages"]).status_code == 200
        with small.client.stream("POST", f"{small.base}/v1/chat/completions", json=endless) as first:
            lines = first.iter_lines()
            next(lines)
            beside = small.ask(*shown["messages"])
            assert (beside.status_code, error_of(beside)["code"]) == (429, "queue_full")
            assert "memory" in error_of(beside)["message"]
        for _ in range(100):
            if (again := small.ask(*shown["messages"])).status_code == 200:
                break
            threading.Event().wait(0.05)
        assert again.status_code == 200, "what was held is given back"
