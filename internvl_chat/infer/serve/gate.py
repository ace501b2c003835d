"""In front of the app: who may ask, how large a request may be, how many wait, and whether the client is there."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any

from internvl_chat.infer.serve.faults import ApiError, wrong
from internvl_chat.log import get_logger

logger = get_logger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]

# Set when the client of the request at hand has gone away.
GONE: ContextVar[asyncio.Event] = ContextVar("GONE")
# Counts more bytes that the request at hand holds up to its end. Raises ApiError if there is no memory left for them.
HOLD: ContextVar[Callable[[int], None]] = ContextVar("HOLD")
# A client that sends nothing for so long is given up. One that is refused is read on for so long (and up to the size of
# a request), unkept, because many clients look for the answer only when they have sent everything.
SILENCE_S, LINGER_S = 30.0, 1.0
# A body has so long in all, and a second more for each so many bytes that have come.
BODY_S, SLOWEST = 30.0, 64 * 2**10
# Requests in memory, their bodies and the tiles of their pictures: bytes, or so many times the limit of one body where
# that is more.
ROOM, BODIES_AT_ONCE = 2**30, 32
# Requests that are being sent at once. They hold no place in the line, so that slow clients do not fill it.
UPLOADS_AT_ONCE = 512


class Gate:
    """An ASGI app around another one. Bodies are read here, up to the limit, so that the app gets whole ones."""

    def __init__(
        self,
        app: App,
        methods: Mapping[str, tuple[str, ...]],
        api_key: str | None = None,
        max_body: int = 32 * 2**20,
        max_waiting: int = 128,
    ) -> None:
        """``methods`` of each path that is answered; ``max_body`` in bytes; ``max_waiting`` requests that are read."""
        self._app = app
        self._methods = methods
        self._key = None if api_key is None else api_key.encode()
        self._max_body = max_body
        self._max_waiting = max_waiting
        self._uploads = 0
        self._at_work = 0
        self._held = 0

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        try:
            self._admit(scope)
        except ApiError as error:
            await self._refuse(error, scope, receive, send)
            return
        if scope["method"] == "POST":
            await self._post(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _admit(self, scope: Any) -> None:
        """Raise ApiError unless the request may be read."""
        path, method = scope["path"], scope["method"]
        if path not in self._methods:
            raise ApiError(
                404, f"no such address: {path[:100]}; there are {', '.join(self._methods)}", code="not_found"
            )
        if self._key is not None and path != "/health" and not self._has_key(scope):
            message = "wrong or missing API key; send it as the header Authorization: Bearer KEY"
            raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        if method not in self._methods[path]:
            legal = ", ".join(self._methods[path])
            raise ApiError(405, f"{path} takes {legal}, not {method[:20]}", headers={"Allow": legal})
        if method != "POST":
            return
        kind = _header(scope, b"content-type").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            # Pages of other sites cannot send this type through a visitor's browser without being asked first.
            raise ApiError(415, "send the request as JSON, with the header Content-Type: application/json")
        length = _header(scope, b"content-length")
        if length.isdigit() and int(length[:20]) > self._max_body:
            raise self._too_large()
        self._check_line()
        if self._uploads >= UPLOADS_AT_ONCE:
            raise _full(f"{self._uploads} requests are being sent already")

    def _check_line(self) -> None:
        if self._at_work > self._max_waiting:  # one is at work; the others wait
            raise _full(f"{self._at_work} requests are waiting already")

    def _check_room(self, size: int) -> None:
        if self._held + size > max(ROOM, BODIES_AT_ONCE * self._max_body):
            raise _full("there is no memory left for requests that wait")

    def _has_key(self, scope: Any) -> bool:
        kind, _, given = _header(scope, b"authorization").partition(b" ")
        return kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._key or b"")

    def _too_large(self) -> ApiError:
        limit = f"{self._max_body / 2**20:g} MB"
        return ApiError(413, f"the request is larger than {limit}; send smaller pictures", code="request_too_large")

    async def _post(self, scope: Any, receive: Receive, send: Send) -> None:
        self._uploads += 1
        try:
            body = await self._read(receive)
        except ApiError as error:
            await self._refuse(error, scope, receive, send)
            return
        finally:
            self._uploads -= 1
        gone, held = asyncio.Event(), len(body)

        def hold(size: int) -> None:
            nonlocal held
            if self._held > held:  # one that is alone is always answered
                self._check_room(size)
            self._held, held = self._held + size, held + size

        GONE.set(gone)
        HOLD.set(hold)
        self._at_work += 1
        watch = asyncio.create_task(_watch(receive, gone))
        try:
            await self._answer(scope, _replay(body, gone), send)
        finally:
            watch.cancel()
            self._at_work -= 1
            self._held -= held

    async def _answer(self, scope: Any, receive: Receive, send: Send) -> None:
        """The app's answer. A fault of ours is logged; the connection goes on if the client was told all the same."""
        told = False

        async def sending(message: Message) -> None:
            nonlocal told
            await send(message)
            told = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await self._app(scope, receive, sending)
        except Exception:
            if not told:
                raise
            logger.exception("a request failed by our fault")

    async def _read(self, receive: Receive) -> bytes:
        """The body, which counts as held. Raises ApiError (too large, too slow, broken off, no room, line full)."""
        body = bytearray()
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            while True:
                left = began + BODY_S + len(body) / SLOWEST - clock()
                message = await asyncio.wait_for(receive(), max(0.0, min(SILENCE_S, left)))
                if message["type"] == "http.disconnect":
                    raise wrong("the request broke off")
                piece = message.get("body", b"")
                if len(body) + len(piece) > self._max_body:
                    raise self._too_large()
                self._check_room(len(piece))
                body += piece
                self._held += len(piece)
                if not message.get("more_body", False):
                    self._check_line()
                    return bytes(body)
        except BaseException as error:
            self._held -= len(body)
            if isinstance(error, asyncio.TimeoutError):
                slow = f"the request came too slowly: {len(body)} bytes in {clock() - began:.1f} s"
                raise ApiError(408, slow, code="timeout") from error
            raise

    async def _refuse(self, error: ApiError, scope: Any, receive: Receive, send: Send) -> None:
        """Send the error. The connection ends with it, for what is left of the request is not read."""
        content = error.body()
        headers = {"content-type": "application/json", "content-length": str(len(content)), **error.headers}
        unread = scope["method"] == "POST"
        if unread:
            headers["connection"] = "close"
        pairs = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": error.status, "headers": pairs})
        await send({"type": "http.response.body", "body": content, "more_body": unread})
        # Who waits for "100 Continue" must not get it: it sends nothing once it has the answer.
        if unread:
            if not _header(scope, b"expect"):
                await _drain(receive, self._max_body)
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _full(why: str) -> ApiError:
    return ApiError(429, f"{why}; ask again later", code="queue_full", headers={"Retry-After": "5"})


async def _drain(receive: Receive, limit: int) -> None:
    """Read and forget what a client still sends, for a while."""

    async def read() -> None:
        left = limit
        while left > 0 and (message := await receive())["type"] == "http.request" and message.get("more_body", False):
            left -= len(message.get("body", b""))

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read(), LINGER_S)


async def _watch(receive: Receive, gone: asyncio.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    gone.set()


def _replay(body: bytes, gone: asyncio.Event) -> Receive:
    """``receive`` that gives the whole body, then waits until the client has gone."""
    left = [body]

    async def receive() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    return receive


def _header(scope: Any, name: bytes) -> bytes:
    found: list[bytes] = [value for key, value in scope["headers"] if key == name]
    return found[0] if found else b""
