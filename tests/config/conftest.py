"""Fixtures of the command-line tests: the flags that every run needs, and parsing behind them."""

from __future__ import annotations

from pathlib import Path

import pytest

from internvl_chat.config import library
from internvl_chat.config.parse import parse_arguments
from internvl_chat.errors import ConfigError
from tests.config.helpers import Parse, Refuse


@pytest.fixture
def required(tmp_path: Path) -> list[str]:
    (tmp_path / "meta.json").write_text("{}")
    return [
        *("--model_name_or_path", "pretrained/InternVL2_5-1B"),
        *("--meta_path", str(tmp_path / "meta.json")),
        *("--output_dir", str(tmp_path / "out")),
    ]


@pytest.fixture
def parse(required: list[str]) -> Parse:
    """The three argument groups of the required flags and the given words."""
    return lambda *words: parse_arguments([*required, *words])[:3]


@pytest.fixture
def all_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every optional package were installed."""
    monkeypatch.setattr(library, "find_spec", lambda module: module)


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if none were."""
    monkeypatch.setattr(library, "find_spec", lambda module: None)


@pytest.fixture
def refuse(required: list[str]) -> Refuse:
    """The problems, one per line, that the given words make."""

    def refused(*words: str) -> list[str]:
        with pytest.raises(ConfigError) as error:
            parse_arguments([*required, *words])
        return str(error.value).splitlines()

    return refused
