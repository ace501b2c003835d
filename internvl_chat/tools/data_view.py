"""What check, preview and repair share: ``META`` and the flags of a run -> the data sets as that run would see them.

Config and tokenizer of the checkpoint are read, never its weights; nothing is written but indexes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvl_chat.errors import ConfigError
from internvl_chat.log import get_logger, setup_logging

if TYPE_CHECKING:
    from internvl_chat.config.data import DataArguments
    from internvl_chat.config.train import TrainArguments
    from internvl_chat.data.index import LineIndex
    from internvl_chat.data.manifest import DatasetSpec
    from internvl_chat.data.sample import SampleMaker
    from internvl_chat.model.config import InternVLChatConfig
    from internvl_chat.model.flops import Trains

log = get_logger(__name__)

_NO_MODEL = (
    "--model_name_or_path is missing: sizes depend on template, tokenizer and tiles. Any checkpoint folder will do "
    "that has a config and a tokenizer, weights are not read (`internvl tiny pretrained/tiny` makes one)"
)
_MISSING = "--model_name_or_path is missing"
# Wanted by the rules of a run; nothing is ever written there.
_NO_OUTPUT = "not-written"


@dataclass(frozen=True, eq=False)
class View:
    """The data of a run that is not started."""

    manifest: Path
    specs: tuple[DatasetSpec, ...]
    maker: SampleMaker
    config: InternVLChatConfig
    tokenizer: Any
    data: DataArguments
    train: TrainArguments
    trains: Trains
    index_dir: Path
    workers: int

    def open(self, spec: DatasetSpec, look_again: bool = True) -> LineIndex:
        """The index of a data set, built if need be. Raises DataError."""
        from internvl_chat.data.index import open_index

        return open_index(spec, self.maker, self.index_dir, self.workers, self.data.rebuild_index, look_again)

    def only(self, name: str) -> View:
        """The view of one data set. Raises ConfigError if the manifest has none of that name."""
        from internvl_chat.errors import nearest

        found = tuple(spec for spec in self.specs if spec.name == name)
        if not found:
            names = [spec.name for spec in self.specs]
            legal = ", ".join(map(repr, names[:20]))
            raise ConfigError(f"--dataset {name!r} is not in {self.manifest}{nearest(name, names)}; it has {legal}")
        return replace(self, specs=found)


def add_meta(
    parser: argparse.ArgumentParser,
    add_own: Callable[[argparse.ArgumentParser], None],
    extra: tuple[str, str, str] | None = None,
) -> None:
    """``META``, the tool's own flags, and behind them any flag of ``internvl train``.

    ``extra``: (name, metavar, help) of one more argument behind META.
    """
    parser.add_argument("meta", metavar="META", help="manifest (JSON or YAML) that names the annotations")
    if extra is not None:
        parser.add_argument(extra[0], metavar=extra[1], help=extra[2])
    add_own(parser)
    parser.add_argument(
        "flags",
        metavar="--model_name_or_path CHECKPOINT [FLAG ...]",
        nargs=argparse.REMAINDER,
        help="flags of `internvl train`; the checkpoint's config and tokenizer are read, never its weights",
    )


def read_own(
    args: argparse.Namespace, command: str, add_own: Callable[[argparse.ArgumentParser], None]
) -> tuple[argparse.Namespace, list[str]]:
    """The tool's own flags, wherever they stand, and the flags of the run, which are left."""
    parser = argparse.ArgumentParser(
        f"internvl {command} {args.meta}",
        allow_abbrev=False,
        epilog="Beside these: every flag of `internvl train`, of which --model_name_or_path is needed.",
    )
    add_own(parser)
    # argparse keeps what was given before META: defaults do not replace what is there.
    return parser.parse_known_args(list(args.flags), args)


def read_view(meta: str, flags: Sequence[str]) -> View:
    """The data sets of a manifest under these flags. Raises InternVLError with all that is wrong."""
    from transformers.utils import logging as library_logging

    from internvl_chat.data.manifest import load_manifest
    from internvl_chat.model.build import load_config
    from internvl_chat.model.hub import find_folder
    from internvl_chat.model.parts import check_image_size
    from internvl_chat.model.tokenizer import load_tokenizer
    from internvl_chat.train.setup import build_maker, cores, index_folder
    from internvl_chat.train.source import checkpoint_overrides, tuning_of, what_trains

    setup_logging()
    library_logging.set_verbosity_warning()
    model, data, train = _read_flags(meta, flags)
    specs = load_manifest(meta)
    folder = find_folder(str(model.model_name_or_path), weights=False)
    config = load_config(folder, checkpoint_overrides(model, data))
    check_image_size(config.image_size, config.vision_config.patch_size, config.downsample_ratio)
    tokenizer = load_tokenizer(folder)
    maker = build_maker(specs, config, tokenizer, data, train.seed)
    workers = data.index_workers or cores()
    trains = what_trains(config, model, tuning_of(model))
    return View(Path(meta), tuple(specs), maker, config, tokenizer, data, train, trains, index_folder(data), workers)


def _read_flags(meta: str, flags: Sequence[str]) -> tuple[Any, DataArguments, TrainArguments]:
    from internvl_chat.config.parse import parse_arguments

    try:
        model, data, train, notes = parse_arguments([*flags, f"--output_dir={_NO_OUTPUT}", f"--meta_path={meta}"])
    except ConfigError as error:
        lines = [_NO_MODEL if line.startswith(_MISSING) else line for line in str(error).splitlines()]
        raise ConfigError("\n".join(lines)) from error
    if model.model_name_or_path is None:
        raise ConfigError(
            "--vision_path and --llm_path: parts are built into a checkpoint when training starts, not here; give that "
            "(OUTPUT_DIR/assembled), or another one of the same tokenizer and tile size, as --model_name_or_path"
        )
    for note in notes:
        log.info("%s", note)
    return model, data, train
