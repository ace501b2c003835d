"""The conversations of all visitors: one each, found by a key that only its visitor has."""

from __future__ import annotations

import secrets
import shutil
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import RLock, Timer

from internvl_chat.infer.demo.session import Model, Session

# Conversations that are kept. Each holds the features of its pictures, which lie where the model is.
MOST_SESSIONS = 64
# Of these, the ones whose text the models hold as they read it, which costs far more: 130 kB a token in an 8B model.
MOST_READ = 4
# Seconds without any visitor, after which none does.
IDLE = 3600.0


class Visitors:
    """Key -> ``Session``. Beyond ``most``, the one that was quiet for longest is forgotten."""

    def __init__(self, models: Sequence[Model], folder: Path, most: int = MOST_SESSIONS) -> None:
        """``folder``: where sessions write pictures, each in a folder of its own."""
        self.models = tuple(models)
        self._folder = folder
        self._most = most
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        # Not a plain lock: an answer that was given up ends wherever it is collected, here too.
        self._lock = RLock()
        self._timer: Timer | None = None

    @staticmethod
    def new_key() -> str:
        """A key that nobody can guess."""
        return secrets.token_urlsafe(24)

    def session(self, key: str) -> Session:
        """The conversation of a key, a new one for a new key."""
        with self._lock:
            if key not in self._sessions:
                self._sessions[key] = Session(self.models, self._folder / key, self._forget_most)
            self._sessions.move_to_end(key)
            quiet = [other for other, session in self._sessions.items() if other != key and not session.busy]
            too_many = quiet[: max(0, len(self._sessions) - self._most)]
            found = self._sessions[key]
            self._wait_for_quiet()
        self._forget_most()
        for other in too_many:
            self.drop(other)
        return found

    def _forget_most(self) -> None:
        """Also called when an answer has ended: others may have come meanwhile."""
        with self._lock:
            for session in list(self._sessions.values())[:-MOST_READ]:
                session.forget_read()

    def _wait_for_quiet(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = Timer(IDLE, self._forget_read)
        self._timer.daemon = True
        self._timer.start()

    def _forget_read(self) -> None:
        with self._lock:
            for session in self._sessions.values():
                session.forget_read()

    def drop(self, key: str) -> None:
        """Stop and forget a conversation, and delete its pictures; nothing for a key that is not known."""
        with self._lock:
            session = self._sessions.pop(key, None)
        if session is not None:
            session.stop()
            shutil.rmtree(self._folder / key, ignore_errors=True)
