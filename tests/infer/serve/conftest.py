"""One server per file of tests and kind of model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from serving_tools import Served, running

from internvl_chat.infer.serve.app import METHODS, OneModel, Settings, build_app
from internvl_chat.infer.serve.export import describe, served_folder
from internvl_chat.infer.serve.gate import Gate


@pytest.fixture(scope="module")
def served_of(tiny_folder: Callable[[str], Path]) -> Iterator[Callable[[str], Served]]:
    """``served_of(llm)``: a server of the tiny model, started once per file of tests."""
    made: dict[str, Served] = {}
    with contextlib.ExitStack() as stack:

        def get(llm: str) -> Served:
            if llm not in made:
                folder = served_folder(tiny_folder(llm))
                loaded = describe(folder)
                manager = OneModel(Settings(folder, (llm, str(tiny_folder(llm)))), loaded)
                app = build_app(manager)
                made[llm] = Served(stack.enter_context(running(Gate(app, METHODS))), app, manager)
            return made[llm]

        yield get


@pytest.fixture()
def server(served_of: Callable[[str], Served]) -> Served:
    """The server of one model, where the kind makes no difference."""
    return served_of("qwen2")
