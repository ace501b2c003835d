"""Tiny models shared by the tests of the model layer: made once per session, loaded fresh where they are changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from internvl_chat.model.build import load_model
from internvl_chat.model.chat import InternVLChatModel
from internvl_chat.tools.tiny import make_tiny


@pytest.fixture(scope="session", autouse=True)
def _offline_single_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny_folder(llm, vision_norm)`` -> a model folder, made once. Weights are larger than a fresh start's, so that
    every part of the model shows in the output."""
    made: dict[tuple[str, str], Path] = {}

    def make(llm: str = "qwen2", vision_norm: str = "layer_norm") -> Path:
        key = (llm, vision_norm)
        if key not in made:
            folder = tmp_path_factory.mktemp("-".join(key))
            make_tiny(folder, llm, vision_hidden=32, llm_hidden=32, vocab_size=300, vision_norm=vision_norm, seed=3)
            model = load_model(folder, dtype=torch.float32)
            generator = torch.Generator().manual_seed(11)
            with torch.no_grad():
                for parameter in model.parameters():
                    spread = 0.1 if parameter.dim() == 1 else 1.0 / parameter[0].numel() ** 0.5
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
            model.save_pretrained(folder)
            made[key] = folder
        return made[key]

    return make


@pytest.fixture()
def tiny_model(tiny_folder: Callable[..., Path]) -> Callable[..., InternVLChatModel]:
    """``tiny_model(llm, attn, vision_norm)`` -> a freshly loaded float32 model in eval mode."""

    def load(llm: str = "qwen2", attn: str = "auto", vision_norm: str = "layer_norm", **overrides: object):
        return load_model(tiny_folder(llm, vision_norm), torch.float32, attn, config_overrides=overrides)

    return load


@pytest.fixture(scope="session")
def make_sample() -> Callable[..., dict[str, torch.Tensor]]:
    """``make_sample(model, length, tiles, seed)``: ids and labels (length,), tiles uint8 (tiles, 3, S, S)."""
    return _make_sample


@pytest.fixture(scope="session")
def pack() -> Callable[..., dict[str, torch.Tensor]]:
    """``pack(samples)``: one packed row, what the loader hands to ``forward``."""
    return _pack


def _make_sample(model: InternVLChatModel, length: int, tiles: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 200, (length,), generator=generator)
    start = 2
    count = tiles * model.config.num_image_token
    ids[start : start + count] = model.config.img_context_token_id
    labels = ids.clone()
    # The last third, or what the pictures leave of it, is supervised.
    labels[: max(start + count, length - length // 3)] = -100
    side = model.config.image_size
    pixels = torch.randint(0, 256, (tiles, 3, side, side), generator=generator, dtype=torch.uint8)
    return {"input_ids": ids, "labels": labels, "pixel_values": pixels}


def _pack(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    lengths = [len(s["input_ids"]) for s in samples]
    return {
        "input_ids": torch.cat([s["input_ids"] for s in samples])[None],
        "labels": torch.cat([s["labels"] for s in samples])[None],
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        "pixel_values": torch.cat([s["pixel_values"] for s in samples]),
    }
