"""What a written folder has to prove: read again from disk, it computes what the model in memory did."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvl_chat.errors import CheckpointError, ConfigError, nearest

if TYPE_CHECKING:
    import torch

    from internvl_chat.model.chat import InternVLChatModel
    from internvl_chat.model.config import InternVLChatConfig

DTYPES = ("float32", "bfloat16", "float16")


def add_folders(parser: argparse.ArgumentParser, source: str = "model folder") -> None:
    """The two arguments that all tools on model folders share."""
    parser.add_argument("checkpoint", metavar="CKPT", help=source)
    parser.add_argument("out", metavar="OUT", help="folder to write; must not exist, or be empty")


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """``--dtype``, default that of the folder."""
    parser.add_argument("--dtype", default="auto", help=f"{', '.join(DTYPES)}, or auto: as stored (default)")


def check_dtype(name: str) -> str:
    """The name, if it is a dtype to write. Raises ConfigError."""
    if name != "auto" and name not in DTYPES:
        raise ConfigError(f"--dtype {name!r}{nearest(name, DTYPES)}; legal: auto, {', '.join(DTYPES)}")
    return name


def fresh_folder(out: str) -> Path:
    """The folder to write. Raises ConfigError if there is something in it already."""
    folder = Path(out).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{out} exists already; choose another OUT, or delete it first")
    return folder


def probe_logits(model: Any, token: int, per_tile: int, side: int, vocabulary: int) -> torch.Tensor:
    """Logits (1, T, V) in float32 of a fixed question with one tile, by our model or transformers' own."""
    import torch

    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, vocabulary, (1, 12), generator=generator)
    words[words == token] = 0
    ids = torch.cat([words[:, :4], torch.full((1, per_tile), token), words[:, 4:]], dim=1)
    first = next(model.parameters())
    pixels = torch.randn(1, 3, side, side, generator=generator).to(first.device, first.dtype)
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids.to(first.device), pixel_values=pixels).logits
    return logits.float().cpu()


def logits_of(model: InternVLChatModel) -> torch.Tensor:
    """``probe_logits`` of a chat model."""
    config = model.config
    token = config.img_context_token_id
    assert token is not None
    return probe_logits(model.eval(), token, config.num_image_token, config.image_size, config.llm_config.vocab_size)


def prove(
    folder: Path, expected: torch.Tensor, config: InternVLChatConfig, dtype: torch.dtype, layout: str = "original"
) -> float:
    """Largest difference between ``expected`` and what the folder, loaded afresh, computes.

    ``config``, ``dtype``: of the model that gave ``expected``, which need not be in memory any more. The original
    layout must give the same bits; transformers' own model sums in another order. Raises CheckpointError if they differ
    by more.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    from internvl_chat.model.build import load_model

    if layout == "hf":
        native = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
        sizes = (config.num_image_token, config.image_size, config.llm_config.vocab_size)
        found = probe_logits(native, native.config.image_token_id, *sizes)
        # Rounding, as a share of what the logits span.
        allowed = float(expected.std()) * (1e-4 if dtype == torch.float32 else 0.1)
    else:
        found, allowed = logits_of(load_model(folder, dtype)), 0.0
    difference = float((found - expected).abs().max())
    if not difference <= allowed:
        raise CheckpointError(
            f"{folder}: what was written computes other logits than the model it came from (largest difference "
            f"{difference:.3g}, {allowed:.3g} allowed); do not use it, and report this"
        )
    return difference
