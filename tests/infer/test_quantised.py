"""Weights in 8 and 4 bits through bitsandbytes, which runs on a CPU too."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from internvl_chat.errors import ConfigError
from internvl_chat.infer.chat import Chat
from internvl_chat.infer.load import load, quantization_of
from internvl_chat.model.build import load_config
from internvl_chat.model.catalogue import config_of, release
from internvl_chat.tools.tiny import make_tiny

bitsandbytes = pytest.importorskip("bitsandbytes")
KINDS = ("qwen2", "qwen3", "llama", "phi3", "internlm2")


def linears(model: torch.nn.Module) -> dict[str, str]:
    """Class of every linear layer."""
    return {name: type(part).__name__ for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}


@pytest.mark.parametrize("llm", KINDS)
@pytest.mark.parametrize(("bits", "kind"), [("load_in_8bit", "Linear8bitLt"), ("load_in_4bit", "Linear4bit")])
def test_a_quantised_model_answers(tmp_path: Path, pictures: list[Path], llm: str, bits: str, kind: str) -> None:
    """Linear layers are packed, but for projector and output; logits stay near those of the whole model."""
    folder = make_tiny(tmp_path / llm, llm, llm_hidden=128, vision_hidden=128)
    loaded = load(folder, device="cpu", **{bits: True})
    found = linears(loaded.model)
    whole = {name for name, found_kind in found.items() if found_kind != kind}
    assert {name.split(".")[0] for name in whole} == {"mlp1", "language_model"}
    assert {name for name in whole if name.startswith("language_model")} == {"language_model.lm_head"}
    assert any(name.startswith("vision_model") for name in found)
    chat = Chat(loaded)
    chat.ask("What number is written?", pictures[:1], max_new_tokens=8)
    chat.ask("And now?", max_new_tokens=8)
    assert len(chat.turns) == 4

    row = torch.from_numpy(loaded.encoder.encode_prompt(chat.turns, loaded_tiles(chat)))[None]
    pixels = torch.zeros(sum(loaded_tiles(chat)), 3, loaded.tiles.size, loaded.tiles.size)
    exact = load(folder, device="cpu", dtype="float32").model(input_ids=row, pixel_values=pixels).logits
    with torch.no_grad():
        packed = loaded.model(input_ids=row, pixel_values=pixels).logits.float()
    error = (packed - exact).norm() / exact.norm()
    assert 1e-4 < error < (0.05 if bits == "load_in_8bit" else 0.4)


def loaded_tiles(chat: Chat) -> tuple[int, ...]:
    return chat._said.tiles


def test_the_wide_tower_stays_in_16_bits_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="internvl_chat"):
        wide = quantization_of(config_of(release("InternVL2-26B")), False, True, torch.bfloat16)
    assert "vision tower stays in 16 bits: in fewer" in caplog.text
    assert wide.llm_int8_skip_modules == ["mlp1", "lm_head", "vision_model"]
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="internvl_chat"):
        slim = quantization_of(config_of(release("InternVL2-8B")), True, False, torch.bfloat16)
    assert slim.llm_int8_skip_modules == ["mlp1", "lm_head"]
    assert not caplog.text


def test_what_cannot_be(tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_folder("qwen2")
    with pytest.raises(ConfigError, match="choose one"):
        load(folder, load_in_8bit=True, load_in_4bit=True)
    monkeypatch.setattr("internvl_chat.model.bits.is_bitsandbytes_available", lambda: False)
    with pytest.raises(ConfigError, match=r"load_in_4bit needs the package bitsandbytes: pip install"):
        quantization_of(load_config(folder), False, True, torch.bfloat16)
