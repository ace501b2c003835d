"""``internvl resize-pos-embed``: a chat model for tiles of another size, position embedding interpolated for good."""

from __future__ import annotations

import argparse

from internvl_chat.errors import CheckpointError
from internvl_chat.tools.card import CARD, write_card
from internvl_chat.tools.proof import add_dtype, add_folders, check_dtype, fresh_folder, logits_of, prove


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command ``internvl resize-pos-embed``."""
    add_folders(parser, "chat model folder, of either layout")
    parser.add_argument("--image_size", type=int, required=True, help="side of a tile in pixels")
    add_dtype(parser)


def run(args: argparse.Namespace) -> int:
    """Resize, write, load again, compare. Returns the exit status."""
    out, dtype = fresh_folder(args.out), check_dtype(args.dtype)
    import torch

    from internvl_chat.folder import write_folder
    from internvl_chat.model.build import load_config, load_model
    from internvl_chat.model.draft import check_image_size
    from internvl_chat.model.hub import find_folder
    from internvl_chat.model.tokenizer import load_tokenizer

    source, size = find_folder(args.checkpoint), args.image_size
    old = load_config(source)
    check_image_size(size, old.vision_config.patch_size, old.downsample_ratio, "--image_size")
    before = load_model(source, dtype, config_overrides={"force_image_size": old.vision_config.image_size})
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(before.dtype)
    with torch.inference_mode():
        on_the_fly = before.vision_model(pixels).last_hidden_state
    del before
    model, tokenizer = load_model(source, dtype, config_overrides={"force_image_size": size}), load_tokenizer(source)
    with torch.inference_mode():
        if not torch.equal(model.vision_model(pixels).last_hidden_state, on_the_fly):
            raise CheckpointError(f"{source}: resizing changed the features; do not use the result, and report this")
    expected = logits_of(model)
    write_folder(model, tokenizer, out, source=source)
    config, kind = model.config, model.dtype
    del model  # two copies of a large model need not fit
    difference = prove(out, expected, config, kind)
    write_card(
        out / CARD,
        f"{source.name} for tiles of {size} pixels",
        {"model": str(source)},
        {
            "position embedding": f"{old.vision_config.image_size} -> {size} pixels, bicubic",
            "image tokens per tile": f"{old.num_image_token} -> {config.num_image_token}",
            "largest difference of logits, loaded afresh": f"{difference:.3g}",
        },
        f"internvl train --model_name_or_path {out} ...",
    )
    print(f"wrote {out}: tiles of {size} pixels, {config.num_image_token} tokens each; reloaded, its logits are equal")
    return 0
