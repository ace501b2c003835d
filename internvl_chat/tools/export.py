"""``internvl export``: a model folder in either layout, in any dtype, or for a serving engine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.tools.card import CARD, write_card
from internvl_chat.tools.engines import ENGINES, command_line, problems
from internvl_chat.tools.proof import add_dtype, add_folders, check_dtype, fresh_folder, logits_of, prove


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command ``internvl export``."""
    add_folders(parser, "model folder, of either layout; with --for vllm also a LoRA adapter folder")
    parser.add_argument(
        "--format",
        choices=("hf", "original"),
        default=None,
        help="hf: what plain transformers, vLLM and others load; original: the published InternVL layout "
        "(default: hf, or what the engine of --for takes)",
    )
    parser.add_argument(
        "--for",
        dest="engine",
        choices=ENGINES,
        default=None,
        help="a serving engine (docs/deploy.md): the folder is checked against what it reads, and the command that "
        "starts it is printed",
    )
    parser.add_argument(
        "--base",
        default=None,
        help="with an adapter: the HF-native export of its base that is there already (default: written to OUT/base)",
    )
    add_dtype(parser)


def run(args: argparse.Namespace) -> int:
    """Load, write, load again, compare; check for the engine. Returns the exit status."""
    out, dtype = fresh_folder(args.out), check_dtype(args.dtype)
    from internvl_chat.model.hub import find_folder
    from internvl_chat.model.layout import ADAPTER_FILE

    source = find_folder(args.checkpoint)
    if args.engine is not None and (source / ADAPTER_FILE).is_file():
        from internvl_chat.tools.adapter_export import export_adapter

        if args.format == "original":
            raise ConfigError("--format original: an adapter is written for the HF-native layout only; leave it out")
        export_adapter(source, out, args.engine, args.base, dtype)
        return 0
    if args.base is not None:
        raise ConfigError("--base goes with an adapter folder and --for vllm; leave it out")
    _export_model(source, out, args.engine, args.format, dtype)
    return 0


def _export_model(source: Path, out: Path, engine: str | None, layout: Any, dtype: str) -> None:
    from internvl_chat.folder import write_folder
    from internvl_chat.model.build import load_model
    from internvl_chat.model.tokenizer import load_tokenizer
    from internvl_chat.tools.engine_fit import check_code, fit_tower, layout_from_config

    if engine is not None and layout == "original":
        check_code(source, engine)
    layout = layout or (layout_from_config(source, engine) if engine else "hf")
    model, tokenizer = load_model(source, dtype), load_tokenizer(source)
    expected = logits_of(model)
    if engine is not None:
        fit_tower(model)
    write_folder(model, tokenizer, out, layout=layout, source=source)
    config, kind = model.config, model.dtype
    del model  # two copies of a large model need not fit
    difference = prove(out, expected, config, kind, layout)
    command = command_line(engine, out) if engine else f"internvl chat {out}"
    write_card(
        out / CARD,
        f"{source.name}, {'HF-native' if layout == 'hf' else 'original'} layout",
        {"model": str(source)},
        {"largest difference of logits to it, loaded afresh": f"{difference:.3g}", "dtype": str(kind)},
        command,
    )
    print(f"wrote {out} ({layout} layout, {kind}); reloaded, its logits differ by at most {difference:.3g}")
    if engine is not None:
        report(out, engine, command)


def report(folder: Path, engine: str, command: str) -> None:
    """Say that the folder fits the engine, and how to start it. Raises CheckpointError with all that does not fit."""
    if found := problems(folder, engine):
        raise CheckpointError(f"{folder} is written, but {engine} would not serve it: {'; '.join(found)}")
    print(f"{engine} takes it (checked by its source, not run); start it with:\n{command}")
