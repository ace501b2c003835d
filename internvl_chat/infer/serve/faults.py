"""What a client is told when its request cannot be answered: OpenAI's error object, with its HTTP status."""

from __future__ import annotations

import json
from typing import Any


class ApiError(Exception):
    """A request that ends in ``status``. ``param``: the field that is wrong, ``code``: a word for programs."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, headers: Any = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers: dict[str, str] = dict(headers or {})

    def object(self) -> dict[str, Any]:
        """``{"error": {"message", "type", "param", "code"}}``."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = "server_error" if self.status >= 500 else kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        """The object as JSON in ASCII, which holds half characters of the request too."""
        return json.dumps(self.object()).encode("ascii")


def wrong(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """The error of a request that the client has to change: 400."""
    return ApiError(400, message, param, code)
