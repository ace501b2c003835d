"""Command line or JSON file -> the three argument groups, with one clear message for whatever cannot be used."""

from __future__ import annotations

import dataclasses
import json
from argparse import Action
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from internvl_chat.config.check import check_arguments
from internvl_chat.config.data import DataArguments
from internvl_chat.config.model import ModelArguments
from internvl_chat.config.renamed import CHANGES, translate_flags
from internvl_chat.config.train import TrainArguments
from internvl_chat.config.zero import resolve_zero
from internvl_chat.errors import ConfigError, nearest


class _Parser(HfArgumentParser):
    """Raises instead of leaving the process, so that all entry points answer alike."""

    def error(self, message: str) -> Any:
        raise ConfigError(f"{message}; see internvl train --help")


def make_parser() -> HfArgumentParser:
    """Parser of all flags of ``internvl train``."""
    return _Parser((ModelArguments, DataArguments, TrainArguments), prog="internvl train", allow_abbrev=False)  # type: ignore[arg-type]


def parse_arguments(argv: Sequence[str]) -> tuple[ModelArguments, DataArguments, TrainArguments, list[str]]:
    """The checked arguments, and notes about old flags. ``argv`` may be one path that ends in .json.

    Raises ConfigError with every problem found, one per line.
    """
    parser = make_parser()
    if any(flag in ("-h", "--help") for flag in argv):
        parser.parse_args(["--help"])
    if len(argv) == 1 and argv[0].endswith(".json"):
        given = _read_json(Path(argv[0]))
    else:
        given = _read_flags(argv, {action.dest: action for action in parser._actions})
    known = {action.dest for action in parser._actions}
    unknown = [name for name in given if name not in known and name not in CHANGES]
    if unknown:
        legal = [*known, *CHANGES]
        raise ConfigError("\n".join(f"--{name} is not a flag{nearest(name, legal)}" for name in unknown))
    flags, notes = translate_flags(given)
    if "deepspeed" in flags:
        flags["deepspeed"] = resolve_zero(flags["deepspeed"])
    problems = check_arguments(flags)
    if problems:
        raise ConfigError("\n".join(problems))
    try:
        model, data, train = parser.parse_args_into_dataclasses(_to_argv(flags), look_for_args_file=False)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return model, data, train, notes


def _read_flags(argv: Sequence[str], actions: dict[str, Action]) -> dict[str, Any]:
    """``--name value``, ``--name=value`` and bare ``--switch``; a flag given twice keeps the last value."""
    flags: dict[str, Any] = {}
    name: str | None = None
    for word in argv:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            name = name.replace("-", "_")
            flags[name] = value if "=" in word else True
        elif name is None:
            raise ConfigError(f"{word!r} does not follow a flag; write --name value")
        elif flags[name] is True:
            flags[name] = word
        elif name in actions and actions[name].nargs in ("+", "*"):
            flags[name] = [*(flags[name] if isinstance(flags[name], list) else [flags[name]]), word]
        else:
            raise ConfigError(f"--{name} {flags[name]} is followed by {word!r}; a flag takes one value (quote it)")
    return flags


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must hold one object of flags")
    return {name.lstrip("-"): value for name, value in data.items() if value is not None}


def _to_argv(flags: dict[str, Any]) -> list[str]:
    """Flags as words. ``True`` for a bare switch works for every boolean of the parser."""
    argv: list[str] = []
    for name, value in flags.items():
        words = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else str(value)]
        argv += [f"--{name}", *map(str, words)]
    return argv


def argument_defaults() -> dict[str, Any]:
    """Default of every field of the three groups."""
    groups = (ModelArguments, DataArguments, TrainArguments)
    return {f.name: f.default for group in groups for f in dataclasses.fields(group)}
