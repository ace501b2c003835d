"""Servers in threads of the test process: real sockets, real HTTP, models that the tests ask directly, too."""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from internvl_chat.infer.serve.app import METHODS, OneModel
from internvl_chat.infer.serve.gate import Gate

HELLO = [{"role": "user", "content": "Hello!"}]


def data_url(path: Path) -> str:
    """The file as a data URL."""
    return f"data:image/{path.suffix[1:]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def picture(path: Path, **more: str) -> dict[str, Any]:
    """The part of a message that shows a file."""
    return {"type": "image_url", "image_url": {"url": data_url(path), **more}}


def user(*content: Any) -> dict[str, Any]:
    """A message of the user: texts and parts."""
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    return {"role": "user", "content": parts}


@dataclass(eq=False)
class Served:
    """``base``: its address; ``app`` and ``manager``: what answers behind the gate."""

    base: str
    app: Any
    manager: OneModel
    client: httpx.Client = field(
        default_factory=lambda: httpx.Client(
            timeout=60, limits=httpx.Limits(), headers={"Content-Type": "application/json"}
        )
    )

    def post(self, path: str = "/v1/chat/completions", **request: Any) -> httpx.Response:
        """Response to a POST."""
        return self.client.post(self.base + path, **request)

    def ask(self, *messages: Any, **more: Any) -> httpx.Response:
        """Response to messages (a plain text is one of the user)."""
        turns = [user(message) if isinstance(message, str) else message for message in messages]
        body = {"messages": turns, "max_tokens": 12, **more}
        return self.post(json=body)

    def text(self, *messages: Any, **more: Any) -> str:
        """Text of a plain answer."""
        found = self.ask(*messages, **more)
        assert found.status_code == 200, found.text
        return str(found.json()["choices"][0]["message"]["content"])


@contextlib.contextmanager
def running(app: Any) -> Iterator[str]:
    """The address of an app while it is served in a thread."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, http="h11", ws="none", log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@contextlib.contextmanager
def guarded(server: Served, **options: Any) -> Iterator[Served]:
    """The same app behind another gate."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":  # it would take the model down with it
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": f"{message['type']}.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        await server.app(scope, receive, send)

    with running(Gate(app, METHODS, **options)) as base:
        yield Served(base, server.app, server.manager)


def connection(server: Served) -> socket.socket:
    """A connection that nothing was sent through."""
    host, port = server.base.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error object, which has all its fields."""
    error: dict[str, Any] = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error
