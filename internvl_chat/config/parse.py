"""Command line or JSON file -> the three argument groups, with one clear message for whatever cannot be used."""

from __future__ import annotations

import dataclasses
import json
import re
from argparse import SUPPRESS, Action
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from internvl_chat.config.check import check_arguments
from internvl_chat.config.data import DataArguments
from internvl_chat.config.idle import idle_notes
from internvl_chat.config.model import ModelArguments
from internvl_chat.config.renamed import CHANGES, translate_flags, without_defaults
from internvl_chat.config.train import TrainArguments
from internvl_chat.config.zero import resolve_zero
from internvl_chat.errors import ConfigError, nearest


class _Parser(HfArgumentParser):
    """Raises instead of leaving the process, so that all entry points answer alike."""

    def error(self, message: str) -> Any:
        raise ConfigError(f"{message}; see internvl train --help")


def make_parser() -> HfArgumentParser:
    """Parser of all flags of ``internvl train``; its help does not offer those that are refused."""
    groups = (ModelArguments, DataArguments, TrainArguments)
    parser = _Parser(groups, prog="internvl train", allow_abbrev=False)  # type: ignore[arg-type]
    for action in parser._actions:
        if action.dest in CHANGES:
            action.help = SUPPRESS
    return parser


@dataclasses.dataclass(frozen=True)
class Flags:
    """A command line as read: ``values`` under today's names, notes about old ones, and all that is wrong with it."""

    values: dict[str, Any]
    notes: list[str]
    problems: list[str]

    def without_bad(self) -> Flags:
        """The flags that no problem begins with: what is left may stand for the run when other things are looked at."""
        bad = {found[1] for problem in self.problems if (found := re.match(r"--(\w+)", problem))}
        return Flags({name: value for name, value in self.values.items() if name not in bad}, self.notes, [])


Arguments = tuple[ModelArguments, DataArguments, TrainArguments]


def parse_arguments(
    argv: Sequence[str], start: bool = True
) -> tuple[ModelArguments, DataArguments, TrainArguments, list[str]]:
    """The checked arguments, and notes about old flags. ``argv`` may begin with a path that ends in .json.

    ``start`` False: only to be looked at; DeepSpeed is named in them, but not set up. Raises ConfigError with every
    problem found, one per line.
    """
    parser = make_parser()
    if any(flag in ("-h", "--help") for flag in argv):
        parser.parse_args(["--help"])
    flags = read_flags(argv)
    if flags.problems:
        raise ConfigError("\n".join(flags.problems))
    return (*build_arguments(flags.values, start), flags.notes)


def read_flags(argv: Sequence[str]) -> Flags:
    """The command line with all that the rules find wrong with it. Raises ConfigError for a file that is no JSON."""
    actions = _actions(make_parser())
    given, problems = _read_given(argv, actions)
    unknown, bare = _find_misuse(given, actions)
    problems += unknown + [f"--{name} needs a value" for name in bare]
    known = {name: value for name, value in given.items() if name in actions or name in CHANGES}
    flags, notes, refusals = translate_flags(without_defaults(known))
    notes += idle_notes(flags)
    problems += refusals
    if flags.get("eval_tasks") and flags.get("eval_steps") and "eval_strategy" not in flags:
        flags["eval_strategy"] = "steps"  # what else could be meant
    if "deepspeed" in flags and "deepspeed" not in bare:
        try:
            flags["deepspeed"] = resolve_zero(flags["deepspeed"])
        except ConfigError as error:
            problems.append(str(error))
    told = tuple(f"--{name} " for name in bare)
    problems += [problem for problem in check_arguments(flags) if not told or not problem.startswith(told)]
    return Flags(flags, notes, list(dict.fromkeys(problems)))


def given_flags(argv: Sequence[str]) -> dict[str, Any]:
    """The flags as they stand there, unchecked. Raises ConfigError for a file that is no JSON."""
    return _read_given(argv, _actions(make_parser()))[0]


def _read_given(argv: Sequence[str], actions: dict[str, Action]) -> tuple[dict[str, Any], list[str]]:
    has_file = bool(argv) and argv[0].endswith(".json") and not argv[0].startswith("--")
    given, problems = _read_words(argv[1:] if has_file else argv, actions)
    if has_file:
        given = {**_read_json(Path(argv[0])), **given}
    return _without_negations(given, actions), problems


def build_arguments(flags: dict[str, Any], start: bool = True) -> Arguments:
    """The three groups of flags without problems. Raises ConfigError for what the library's own checks refuse."""
    parser = make_parser()
    later = {} if start or "deepspeed" not in flags else {"deepspeed": flags["deepspeed"]}
    argv = _to_argv({name: value for name, value in flags.items() if name not in later})
    try:
        model, data, train = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    except (ValueError, TypeError, ArithmeticError, ImportError) as error:
        raise ConfigError(str(error)) from error
    for name, value in later.items():
        setattr(train, name, value)
    return model, data, train


def _actions(parser: HfArgumentParser) -> dict[str, Action]:
    """The action of each flag: of a switch that is on by default the parser has a second one, ``--no_x``."""
    return {action.dest: action for action in reversed(parser._actions)}


def _takes_many(name: str, actions: dict[str, Action]) -> bool:
    """``report_to`` is a list for the user, but one word for the library's parser."""
    return name == "report_to" or (name in actions and actions[name].nargs in ("+", "*"))


def _read_words(argv: Sequence[str], actions: dict[str, Action]) -> tuple[dict[str, Any], list[str]]:
    """``--name value``, ``--name=value`` and bare ``--switch``; a flag given twice keeps the last value."""
    flags: dict[str, Any] = {}
    problems: list[str] = []
    name: str | None = None
    for word in argv:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            name = name.replace("-", "_")
            flags[name] = value if "=" in word else True
        elif name is None:
            problems.append(f"{word!r} does not follow a flag; write --name value")
        elif flags[name] is True:
            flags[name] = word
        elif _takes_many(name, actions):
            flags[name] = [*(flags[name] if isinstance(flags[name], list) else [flags[name]]), word]
        else:
            problems.append(f"--{name} {flags[name]} is followed by {word!r}; a flag takes one value (quote it)")
    return flags, problems


def _without_negations(given: dict[str, Any], actions: dict[str, Action]) -> dict[str, Any]:
    """``--no_x`` is ``--x False`` for every switch x, as the help says."""
    flags: dict[str, Any] = {}
    for name, value in given.items():
        positive = name.removeprefix("no_")
        if name in actions or name in CHANGES or value is not True or positive not in actions:
            flags[name] = value
        else:
            flags[positive] = False
    return flags


def _find_misuse(given: dict[str, Any], actions: dict[str, Action]) -> tuple[list[str], list[str]]:
    """Messages about flags that do not exist, and the names of those that lack the value they need."""
    legal = [*actions, *CHANGES]
    unknown = [
        f"--{name} is not a flag{nearest('--' + name, ['--' + flag for flag in legal])}"
        for name in given
        if name not in legal
    ]
    bare = [name for name, value in given.items() if value is True and name in actions and name not in CHANGES]
    return unknown, [name for name in bare if actions[name].type is not string_to_bool]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must hold one object of flags")
    return {name.lstrip("-").replace("-", "_"): value for name, value in data.items() if value is not None}


def _to_argv(flags: dict[str, Any]) -> list[str]:
    """Flags as words, in a form that also takes values which begin with a dash."""
    argv: list[str] = []
    for name, value in flags.items():
        if isinstance(value, list):
            argv.append(f"--{name}={','.join(map(str, value))}")
        else:
            argv.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return argv


def argument_defaults() -> dict[str, Any]:
    """Default of every field of the three groups."""
    groups = (ModelArguments, DataArguments, TrainArguments)
    return {f.name: f.default for group in groups for f in dataclasses.fields(group)}
