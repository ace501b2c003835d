"""One thread for the tests of the data layer: they share the machine, and torch's pool does not outlive a fork."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
