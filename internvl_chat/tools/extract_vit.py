"""``internvl extract-vit``: the vision tower of a chat model as a folder of its own."""

from __future__ import annotations

import argparse
from pathlib import Path

from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.tools.card import CARD, write_card
from internvl_chat.tools.proof import add_dtype, add_folders, check_dtype, fresh_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command ``internvl extract-vit``."""
    add_folders(parser, "chat model folder, of either layout")
    parser.add_argument(
        "--select_layer",
        type=int,
        default=None,
        help="keep only the layers up to this hidden state; -1 is the last (default: all layers)",
    )
    add_dtype(parser)


def run(args: argparse.Namespace) -> int:
    """Write the tower, load it again, compare features of a picture. Returns the exit status."""
    out, dtype = fresh_folder(args.out), check_dtype(args.dtype)
    import torch

    from internvl_chat.model.build import load_model
    from internvl_chat.model.hub import find_folder
    from internvl_chat.model.parts import cut_tower, load_vision

    model = load_model(find_folder(args.checkpoint), dtype)
    tower = model.vision_model
    pixels = torch.randn(1, 3, *[tower.config.image_size] * 2, generator=torch.Generator().manual_seed(0))
    pixels = pixels.to(tower.dtype)
    layer = -1 if args.select_layer is None else args.select_layer
    if not -tower.config.num_hidden_layers <= layer <= tower.config.num_hidden_layers or layer == 0:
        raise ConfigError(f"--select_layer {layer}: the tower has {tower.config.num_hidden_layers} layers")
    with torch.inference_mode():
        expected = tower(pixels, select_layer=layer).last_hidden_state
    cut_tower(tower, layer)
    tower.config.architectures = ["InternVisionModel"]
    tower.save_pretrained(out)
    with torch.inference_mode():
        found = load_vision(out)(pixels).last_hidden_state
    if not torch.equal(found, expected):
        raise CheckpointError(f"{out}: the written tower computes other features; do not use it, and report this")
    layers = tower.config.num_hidden_layers
    write_card(
        out / CARD,
        f"vision tower of {Path(args.checkpoint).name}",
        {"chat model": args.checkpoint},
        {"layers": str(layers), "features, loaded afresh": "equal to the last bit"},
        f"internvl train --vision_path {out} --llm_path LLM --conv_style internvl2_5 ...",
    )
    print(f"wrote the vision tower to {out} ({layers} layers, {tower.dtype}); reloaded, its features are equal")
    return 0
