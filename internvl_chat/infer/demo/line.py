"""Who is next: a line of those who wait for a model, and what ends an answer that nobody wants any more."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition, Event
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria


class Line:
    """One at a time, first come, first served."""

    def __init__(self) -> None:
        self._tickets: deque[object] = deque()
        self._moved = Condition()

    def __len__(self) -> int:
        return len(self._tickets)

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


class StopsWhen(StoppingCriteria):
    """Ends ``generate`` at the token after ``event`` was set, also where tokens make no text that could be shown."""

    def __init__(self, event: Event) -> None:
        self._event = event

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self._event.is_set(), dtype=torch.bool, device=input_ids.device)
