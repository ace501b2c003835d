"""Models for tests."""

from __future__ import annotations

from pathlib import Path

import torch

from internvl_chat.model.build import load_model


def enliven(folder: Path) -> Path:
    """Make a tiny model's weights so large that pictures, questions and history all show in its answers."""
    model = load_model(folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.1 if parameter.dim() == 1 else 2.0 / parameter[0].numel() ** 0.5
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
    model.save_pretrained(folder)
    return folder
