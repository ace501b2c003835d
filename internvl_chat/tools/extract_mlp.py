"""``internvl extract-mlp``: the projector of a chat model as a file, for ``--mlp_path``."""

from __future__ import annotations

import argparse
from pathlib import Path

from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.tools.card import write_card


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command ``internvl extract-mlp``."""
    parser.add_argument("checkpoint", metavar="CKPT", help="chat model folder, of either layout")
    parser.add_argument("out", metavar="OUT", help="file to write: .safetensors, or .pth as the original's")


def run(args: argparse.Namespace) -> int:
    """Write the projector, read it again, compare. Returns the exit status."""
    out = Path(args.out)
    if out.suffix not in (".safetensors", ".pth"):
        raise ConfigError(f"{out}: give a file that ends in .safetensors or .pth")
    card = out.with_name(f"{out.name}.md")
    for path in (out, card):
        if path.exists():
            raise ConfigError(f"{path} exists already; choose another OUT, or delete it first")
    import torch
    from safetensors.torch import save_file

    from internvl_chat.model.build import load_model
    from internvl_chat.model.hub import find_folder
    from internvl_chat.model.parts import load_projector
    from internvl_chat.model.projector import build_projector

    model = load_model(find_folder(args.checkpoint), "auto")
    config = model.config
    state = {name: tensor.detach().contiguous() for name, tensor in model.mlp1.state_dict().items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".pth":
        torch.save(state, out)
    else:
        save_file(state, out, metadata={"format": "pt", "made_from": str(args.checkpoint)})
    sizes = (config.vision_config.hidden_size, config.llm_config.hidden_size, config.downsample_ratio)
    again = build_projector(*sizes).to(model.dtype)
    load_projector(again, out)
    if any(not torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items()):
        raise CheckpointError(f"{out}: the written projector differs; do not use it, and report this")
    write_card(
        card,
        f"projector of {Path(args.checkpoint).name}",
        {"chat model": args.checkpoint},
        {"widths": f"{state['0.weight'].shape[0]} -> {sizes[1]}", "weights, loaded afresh": "equal to the last bit"},
        f"internvl train --vision_path VIT --llm_path LLM --mlp_path {out} --conv_style internvl2_5 ...",
    )
    print(
        f"wrote the projector to {out} ({sum(t.numel() for t in state.values()):,} parameters); reloaded, it is equal"
    )
    return 0
