"""How far it is, in the log."""

from __future__ import annotations

import time

from internvl_chat.log import get_logger

logger = get_logger(__name__)

_REPORT_S = 10.0


class Progress:
    """A line in the log every few seconds."""

    def __init__(self, total: int, what: str) -> None:
        """``what``: the things of which there are ``total``."""
        self._what = what
        self._total, self._done, self._failed, self._tokens = total, 0, 0, 0
        self._start = self._told = time.monotonic()

    def add(self, tokens: int, failed: bool = False) -> None:
        """One more is done, with an answer of so many tokens, or it failed."""
        self._done, self._failed, self._tokens = self._done + 1, self._failed + failed, self._tokens + tokens
        now = time.monotonic()
        if now - self._told >= _REPORT_S or self._done == self._total:
            self._told = now
            left = (now - self._start) / self._done * (self._total - self._done)
            logger.info(
                "%d of %d %s, %d failed, %.1f tokens/s, %.0f s to go",
                self._done, self._total, self._what, self._failed, self._tokens / max(now - self._start, 1e-9), left,
            )  # fmt: skip
