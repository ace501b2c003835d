"""``internvl merge-lora``: an adapter, or a checkpoint with LoRA inside, becomes a plain model folder."""

from __future__ import annotations

import argparse

from internvl_chat.errors import ConfigError
from internvl_chat.tools.card import CARD, write_card
from internvl_chat.tools.proof import add_dtype, add_folders, check_dtype, fresh_folder, logits_of, prove


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command ``internvl merge-lora``."""
    add_folders(parser, "adapter folder (adapter_config.json), or a full checkpoint with LoRA inside the model")
    parser.add_argument("--base", default=None, help="base model of the adapter (default: where it was trained)")
    parser.add_argument("--format", choices=("original", "hf"), default="original", help="layout (default: original)")
    add_dtype(parser)


def run(args: argparse.Namespace) -> int:
    """Merge, write, load again, compare. Returns the exit status."""
    out, dtype = fresh_folder(args.out), check_dtype(args.dtype)
    from internvl_chat.folder import write_folder
    from internvl_chat.model.adapter import read_origin
    from internvl_chat.model.hub import find_folder
    from internvl_chat.model.layout import ADAPTER_FILE
    from internvl_chat.model.merge import load_merged, load_unwrapped

    source = find_folder(args.checkpoint)
    if (source / ADAPTER_FILE).is_file():
        base = read_origin(source, args.base).base
        model, tokenizer = load_merged(source, args.base, dtype)
        parents = {"adapter": str(source), "base": str(base)}
    else:
        if args.base is not None:
            raise ConfigError(f"--base: {source} is no adapter folder, it holds its base itself; leave --base out")
        base, parents = source, {"checkpoint with LoRA": str(source)}
        model, tokenizer = load_unwrapped(source, dtype)
    expected = logits_of(model)
    write_folder(model, tokenizer, out, layout=args.format, source=base)
    config, kind = model.config, model.dtype
    del model  # two copies of a large model need not fit
    difference = prove(out, expected, config, kind, args.format)
    write_card(
        out / CARD,
        f"{source.name}, LoRA merged",
        parents,
        {"largest difference of logits, loaded afresh": f"{difference:.3g}", "dtype": str(kind)},
        f"internvl chat {out}",
    )
    print(f"wrote {out} ({args.format} layout, {kind}); reloaded, its logits differ by at most {difference:.3g}")
    return 0
