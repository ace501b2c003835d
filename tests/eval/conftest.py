"""A tiny model that answers something else to each picture and question, and data for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from internvl_chat.tools.tiny import make_tiny
from tests.eval.mini.scienceqa import WRITERS
from tests.models import enliven


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny qwen2 chat model."""
    folder = tmp_path_factory.mktemp("models") / "lively"
    return enliven(make_tiny(folder, "qwen2", vision_hidden=32, llm_hidden=32, vocab_size=300, max_dynamic_patch=4))


@pytest.fixture()
def scienceqa(tmp_path: Path) -> Path:
    """A data folder with a miniature ScienceQA."""
    WRITERS["sqa_test"](tmp_path / "data")
    return tmp_path / "data"
