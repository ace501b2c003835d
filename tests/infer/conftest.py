"""Tiny models whose random weights are large enough that pictures, questions and history all show in the answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from internvl_chat.infer.load import Loaded, load
from internvl_chat.tools.tiny import make_tiny
from tests.models import enliven

KINDS = ("qwen2", "qwen3", "qwen3_moe", "llama", "phi3", "internlm2")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``tiny_folder(llm)`` -> a model folder, made once."""
    made: dict[str, Path] = {}

    def make(llm: str) -> Path:
        if llm not in made:
            folder = make_tiny(tmp_path_factory.mktemp(llm), llm, vision_hidden=32, llm_hidden=32, vocab_size=300)
            enliven(folder)
            made[llm] = folder
        return made[llm]

    return make


@pytest.fixture(scope="session")
def loaded_of(tiny_folder: Callable[[str], Path]) -> Callable[[str], Loaded]:
    """``loaded_of(llm)``: shared by the tests, which do not change it."""
    made: dict[str, Loaded] = {}

    def get(llm: str) -> Loaded:
        if llm not in made:
            made[llm] = load(tiny_folder(llm), device="cpu")
        return made[llm]

    return get


@pytest.fixture(params=KINDS)
def loaded(request: pytest.FixtureRequest, loaded_of: Callable[[str], Loaded]) -> Loaded:
    """A model of each kind of language model."""
    return loaded_of(request.param)


@pytest.fixture()
def qwen(loaded_of: Callable[[str], Loaded]) -> Loaded:
    """One model, where the kind makes no difference."""
    return loaded_of("qwen2")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four picture files: wide, tall, JPEG, grey with alpha; each of another content and number of tiles."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(1)
    files = []
    for name, (width, height), mode in (
        ("wide.png", (230, 110), "RGB"),
        ("tall.png", (60, 190), "RGB"),
        ("photo.jpg", (131, 127), "RGB"),
        ("grey.png", (50, 40), "LA"),
    ):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((width, height)).convert(mode).save(folder / name)
        files.append(folder / name)
    return files


@pytest.fixture()
def seen(monkeypatch: pytest.MonkeyPatch) -> Callable[[Loaded], dict[str, list[torch.Tensor]]]:
    """``seen(loaded)`` -> lists that fill with the tiles and the prompt ids that the model is given."""

    def watch(loaded: Loaded) -> dict[str, list[torch.Tensor]]:
        calls: dict[str, list[torch.Tensor]] = {"tiles": [], "ids": []}
        extract, generate = loaded.model.extract_feature, loaded.model.generate

        def extract_feature(pixels: torch.Tensor) -> torch.Tensor:
            calls["tiles"].append(pixels)
            return extract(pixels)

        def generate_spy(**kwargs: object) -> torch.Tensor:
            calls["ids"].append(kwargs["input_ids"])  # type: ignore[arg-type]
            return generate(**kwargs)

        monkeypatch.setattr(loaded.model, "extract_feature", extract_feature)
        monkeypatch.setattr(loaded.model, "generate", generate_spy)
        return calls

    return watch
