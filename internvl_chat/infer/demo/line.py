"""Who is next: a line of those who wait for a model."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, Event


class Line:
    """One at a time, first come, first served."""

    def __init__(self) -> None:
        self._tickets: deque[object] = deque()
        self._moved = Condition()

    @contextmanager
    def turn(self, given_up: Event, on_wait: Callable[[], None] = lambda: None) -> Iterator[bool]:
        """True within, once all who came before are through; False if ``given_up`` was set before that.

        ``on_wait`` is called if somebody else is first.
        """
        ticket = object()
        with self._moved:
            self._tickets.append(ticket)
            if self._tickets[0] is not ticket:
                on_wait()
            while self._tickets[0] is not ticket and not given_up.is_set():
                self._moved.wait(0.1)
        try:
            yield not given_up.is_set()
        finally:
            with self._moved:
                self._tickets.remove(ticket)
                self._moved.notify_all()
