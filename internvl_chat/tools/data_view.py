"""What check, preview and repair share: ``META`` and the flags of a run -> the data sets as that run would see them.

Config and tokenizer of the checkpoint are read, never its weights; nothing is written but indexes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvl_chat.errors import ConfigError
from internvl_chat.log import get_logger, setup_logging

if TYPE_CHECKING:
    from internvl_chat.config.data import DataArguments
    from internvl_chat.config.model import ModelArguments
    from internvl_chat.config.parse import Arguments, Flags
    from internvl_chat.config.train import TrainArguments
    from internvl_chat.data.index import LineIndex
    from internvl_chat.data.manifest import DatasetSpec
    from internvl_chat.data.sample import SampleMaker
    from internvl_chat.model.config import InternVLChatConfig
    from internvl_chat.model.flops import Trains
    from internvl_chat.train.source import Draft

log = get_logger(__name__)

_NO_MODEL = (
    "--model_name_or_path is missing: sizes depend on template, tokenizer and tiles. Any checkpoint folder will do "
    "that has a config and a tokenizer, weights are not read (`internvl tiny pretrained/tiny` makes one)"
)
_MISSING = "--model_name_or_path is missing"
# Wanted by the rules of a run where the user names no folder; nothing is ever written there.
NO_OUTPUT = "not-written"
_NAMES_OF_RUNS = ("meta_path", "model_name_or_path", "llm_path", "output_dir")


@dataclass(frozen=True, eq=False)
class View:
    """The data of a run that is not started."""

    manifest: Path
    specs: tuple[DatasetSpec, ...]
    maker: SampleMaker
    config: InternVLChatConfig
    tokenizer: Any
    model: ModelArguments
    data: DataArguments
    train: TrainArguments
    trains: Trains
    index_dir: Path
    workers: int
    built: bool  # from parts, when training starts

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


def add_meta(parser: argparse.ArgumentParser) -> None:
    """All words behind the command, as they are: ``read_own`` knows what is the tool's own, and what the run's."""
    parser.prefix_chars = "\0"  # else argparse stops at a flag of the run that stands before META
    parser.add_argument("flags", nargs=argparse.REMAINDER)


def read_own(
    args: argparse.Namespace,
    command: str,
    add_own: Callable[[argparse.ArgumentParser], None],
    extra: tuple[str, str] | None = None,
) -> tuple[argparse.Namespace, list[str]]:
    """``[META] [EXTRA] [FLAG ...]``: the tool's own flags, wherever they stand, and the flags of the run, the rest.

    ``extra``: (metavar, help) of one more argument, behind META. The two are ``meta`` (None: ``--meta_path`` among the
    flags names it) and ``extra`` of what is returned. The words may begin with the JSON file of flags that
    ``internvl train`` takes.
    """
    name = "" if extra is None else f" {extra[0]}"
    usage = f"internvl {command} [FLAGS.json] [META]{name} [--meta_path META] --model_name_or_path MODEL [FLAG ...]"
    parser = argparse.ArgumentParser(
        usage=usage,
        description=None if extra is None else f"{extra[0]}: {extra[1]}",
        allow_abbrev=False,
        epilog="META: manifest (JSON or YAML) that names the annotations; or as --meta_path. Beside these: every flag "
        "of `internvl train`, of which --model_name_or_path (or --vision_path and --llm_path) is needed; config and "
        "tokenizer are read, never weights. FLAGS.json: the object of flags that `internvl train` takes too.",
    )
    add_own(parser)
    own, words = parser.parse_known_args(list(args.flags))
    first = next((number for number, word in enumerate(words) if word.startswith("--")), len(words))
    file = words[: 1 if first and _holds_flags(Path(words[0])) else 0]
    named, wanted = words[len(file) : first], 1 if extra is None else 2
    if extra is not None and not named:
        raise ConfigError(f"{extra[0]} is missing: {extra[1]}; internvl {command} [META] {extra[0]} [FLAG ...]")
    own.extra = named[min(len(named), wanted) - 1] if extra is not None else None
    own.meta = named[0] if len(named) >= wanted else None
    return own, [*file, *words[len(file) + min(len(named), wanted) :]]


def _holds_flags(path: Path) -> bool:
    """Whether it is an object of flags, not a manifest, whose values are objects; what cannot be read is told later."""
    if path.suffix != ".json":
        return False
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and any(isinstance(found.get(name), str) for name in _NAMES_OF_RUNS)


def read_view(meta: str | None, flags: Sequence[str]) -> View:
    """The data sets of a manifest under these flags. Raises InternVLError with all that is wrong."""
    from internvl_chat.data.manifest import load_manifest
    from internvl_chat.train.source import draft_source

    model, data, train = read_flags(flags, meta)
    specs = load_manifest(str(data.meta_path))
    return view_of(tuple(specs), draft_source(model, data, train), model, data, train)


def view_of(
    specs: tuple[DatasetSpec, ...], draft: Draft, model: ModelArguments, data: DataArguments, train: TrainArguments
) -> View:
    """What these data sets are to a run. Raises ConfigError for settings that do not go with them."""
    from internvl_chat.train.setup import build_maker, cores, index_folder
    from internvl_chat.train.source import tuning_of, what_trains

    maker = build_maker(specs, draft.config, draft.tokenizer, data, train.seed)
    trains = what_trains(draft.config, model, tuning_of(model, draft.new_token_ids))
    return View(
        Path(str(data.meta_path)),
        specs,
        maker,
        draft.config,
        draft.tokenizer,
        model,
        data,
        train,
        trains,
        index_folder(data),
        data.index_workers or cores(),
        draft.built,
    )


def read_flags(flags: Sequence[str], meta: str | None = None) -> Arguments:
    """The arguments of a run that is only looked at; nothing is set up for it. Notes about old flags are logged.

    ``meta``: the manifest, where ``--meta_path`` does not name it. Raises ConfigError with all that is wrong.
    """
    from internvl_chat.config.parse import build_arguments

    found = scan_flags(flags, meta)
    if found.problems:
        raise ConfigError("\n".join(found.problems))
    return build_arguments(found.values, start=False)


def scan_flags(flags: Sequence[str], meta: str | None = None) -> Flags:
    """The flags of a run, and all that is wrong with them, in words for a tool."""
    from transformers.utils import logging as library_logging

    from internvl_chat.config import parse

    setup_logging()
    library_logging.set_verbosity_warning()
    named = parse.given_flags(flags)
    added = [] if "output_dir" in named else [f"--output_dir={NO_OUTPUT}"]
    problems = []
    if meta is not None:
        if Path(str(named.get("meta_path", meta))) != Path(meta) and not _of_file(flags, "meta_path"):
            problems.append(f"META {meta} and --meta_path {named['meta_path']} are two manifests; give one of them")
        added.append(f"--meta_path={meta}")
    found = parse.read_flags([*flags, *added])
    problems += [_NO_MODEL if problem.startswith(_MISSING) else problem for problem in found.problems]
    for note in found.notes:
        log.info("%s", note)
    return parse.Flags(found.values, found.notes, problems)


def _of_file(flags: Sequence[str], name: str) -> bool:
    """Whether a flag comes from a file of flags alone, which META overrules."""
    return not any(word == f"--{name}" or word.startswith(f"--{name}=") for word in flags)
