"""``internvl export``: a model folder in the original or the HF-native layout, in any dtype."""

from __future__ import annotations

import argparse

from internvl_chat.tools.card import CARD, write_card
from internvl_chat.tools.proof import add_dtype, add_folders, check_dtype, fresh_folder, logits_of, prove


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command ``internvl export``."""
    add_folders(parser, "model folder, of either layout")
    parser.add_argument(
        "--format",
        choices=("hf", "original"),
        default="hf",
        help="hf: what plain transformers, vLLM and others load; original: the published InternVL layout (default: hf)",
    )
    add_dtype(parser)


def run(args: argparse.Namespace) -> int:
    """Load, write, load again, compare. Returns the exit status."""
    out, dtype = fresh_folder(args.out), check_dtype(args.dtype)
    from internvl_chat.folder import write_folder
    from internvl_chat.model.build import load_model
    from internvl_chat.model.hub import find_folder
    from internvl_chat.model.tokenizer import load_tokenizer

    source = find_folder(args.checkpoint)
    model, tokenizer = load_model(source, dtype), load_tokenizer(source)
    expected = logits_of(model)
    write_folder(model, tokenizer, out, layout=args.format, source=source)
    config, kind = model.config, model.dtype
    del model  # two copies of a large model need not fit
    difference = prove(out, expected, config, kind, args.format)
    usage = f"internvl chat {out}"
    write_card(
        out / CARD,
        f"{source.name}, {'HF-native' if args.format == 'hf' else 'original'} layout",
        {"model": str(source)},
        {"largest difference of logits to it, loaded afresh": f"{difference:.3g}", "dtype": str(kind)},
        usage,
    )
    print(f"wrote {out} ({args.format} layout, {kind}); reloaded, its logits differ by at most {difference:.3g}")
    return 0
