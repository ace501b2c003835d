"""``internvl replace-llm``: vision tower (and projector, where it fits) of a chat model with another language model."""

from __future__ import annotations

import argparse
from pathlib import Path

from internvl_chat.errors import CheckpointError
from internvl_chat.tools.card import CARD, write_card
from internvl_chat.tools.proof import add_folders, fresh_folder, logits_of, prove

# What of the chat model's config goes over to the new one.
_KEPT: tuple[str, ...] = (
    "select_layer",
    "downsample_ratio",
    "ps_version",
    "dynamic_image_size",
    "use_thumbnail",
    "min_dynamic_patch",
)
_KEPT += ("max_dynamic_patch", "pad2square", "normalize_type", "force_image_size", "system_message")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command ``internvl replace-llm``."""
    add_folders(parser, "chat model folder in the original layout, whose vision tower is taken")
    parser.add_argument("--llm", required=True, metavar="FOLDER", help="language model with its tokenizer")
    parser.add_argument("--template", required=True, help="conversation template of the new model, e.g. internvl2_5")
    parser.add_argument(
        "--fresh_mlp", action="store_true", help="start with a new projector, as one of another width must"
    )


def run(args: argparse.Namespace) -> int:
    """Build, write, load again, compare. Returns the exit status."""
    out = fresh_folder(args.out)
    from internvl_chat.data.template import OWN_TEMPLATE, get_template
    from internvl_chat.folder import write_folder
    from internvl_chat.model.build import load_config, load_model
    from internvl_chat.model.draft import Parts
    from internvl_chat.model.hub import find_folder
    from internvl_chat.model.parts import added_tokens, assemble
    from internvl_chat.model.tokenizer import load_tokenizer

    source = find_folder(args.checkpoint)
    config = load_config(source)
    settings = {name: getattr(config, name) for name in _KEPT}
    settings["template"] = args.template if args.template == OWN_TEMPLATE else get_template(args.template).name
    parts = Parts(source, find_folder(args.llm), None if args.fresh_mlp else source, settings=settings)
    try:
        assemble(parts, out)
    except CheckpointError as error:
        if "projector" not in str(error):
            raise
        raise CheckpointError(f"{error}".replace("leave --mlp_path out", "give --fresh_mlp")) from error
    model, tokenizer = load_model(out, "auto"), load_tokenizer(out)
    expected = logits_of(model)
    write_folder(model, tokenizer, out)
    config, kind = model.config, model.dtype
    del model  # two copies of a large model need not fit
    difference = prove(out, expected, config, kind)
    added = added_tokens(out) or []
    write_card(
        out / CARD,
        f"{source.name} with {Path(args.llm).name}",
        {"vision tower" + ("" if args.fresh_mlp else " and projector"): str(source), "language model": args.llm},
        {
            "tokens added": str(len(added)),
            "projector": "fresh, train it first (--freeze_llm True --freeze_backbone True)"
            if args.fresh_mlp
            else "kept",
            "largest difference of logits, loaded afresh": f"{difference:.3g}",
        },
        f"internvl train --model_name_or_path {out} ...",
    )
    print(f"wrote {out}: {len(added)} tokens added; reloaded, its logits are equal. It has to be trained")
    return 0
