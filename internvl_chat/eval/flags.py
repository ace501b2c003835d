"""Flags of ``internvl eval`` and ``evaluate.sh``; the original's spellings are accepted beside ours."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvl_chat.constants import BATCH_TOKENS, READERS
from internvl_chat.errors import ConfigError
from internvl_chat.infer.flags import add_model_flags

if TYPE_CHECKING:
    from internvl_chat.eval.plan import Wishes

# Flags that change what the model answers to all tasks -> what they are unless set.
OF_MODEL = {
    "dtype": None, "load_in_8bit": False, "load_in_4bit": False, "image_backend": "torch", "conv_style": None,
    "system": None,
}  # fmt: skip
# What "1", "yes", ... after a flag that needs no value means.
_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command ``internvl eval``."""
    parser.add_argument(
        "names", nargs="*", metavar="CKPT TASK", help="model or adapter folder, then tasks, groups or YAML files"
    )
    add = parser.add_argument_group("instead of asking a checkpoint (names are tasks then)").add_argument
    add("--list", action="store_true", help="all tasks and groups, and whose data are there")
    add(
        "--verify", action="store_true", help="check files, hashes, counts and pictures; say what is missing, and where"
    )
    add("--prepare", action="store_true", help="turn a public release that is there into the guide's layout")
    add("--predictions", metavar="FILE", help='score answers of somebody else: {"id": .., "answer": ..} a line')
    add("--report", metavar="DIR", help="one HTML page about all evaluations below DIR")
    add("--vlm_table", metavar="TSV", help="names are folders of finished evaluations: write VLMEvalKit's xlsx")
    _add_asking(parser.add_argument_group("how it is asked (all of it is recorded with the score)"))
    _add_running(parser.add_argument_group("how it runs, and what it leaves"))
    _add_judge(parser.add_argument_group("judges, through any server of OpenAI's protocol"))
    add_model_flags(parser)
    parser.add_argument("--auto", action="store_true", help="the original's word for --device_map auto")


def _add_asking(group: Any) -> None:
    add = group.add_argument
    add("--data_root", "--data-root", default="data", metavar="DIR", help="where the data lie (default: %(default)s)")
    add(
        "--dynamic", nargs="?", const=True, type=_truth, metavar="True|False",
        help="cut pictures into tiles (default: as the checkpoint was trained)",
    )  # fmt: skip
    add("--max_tiles", "--max-num", "--max_num", type=int, metavar="N", help="tile limit (default: the task's)")
    add("--max_new_tokens", type=int, metavar="N", help="longest answer in tokens (default: the task's)")
    add("--num_beams", "--num-beams", type=int, metavar="N", help="beams (default: 1)")
    add("--temperature", type=float, default=0.0, help="0 = the likeliest token each time (default); above: sampling")
    add("--seed", type=int, default=0, metavar="N", help="of sampling (default: %(default)s)")
    add("--system", metavar="MESSAGE", help="system message (default: the checkpoint's)")
    add("--option", action="append", default=[], metavar="NAME=VALUE", help="of tasks (--list names them); repeatable")
    add("--cot", action="store_true", help="reason before the answer: the same as --option cot=on")
    add("--num_segments", "--num-segments", type=int, metavar="N", help="frames of a video: --option num_segments=N")
    add("--limit", type=int, metavar="N", help="the first N items only; never reported as a full score")


def _add_running(group: Any) -> None:
    add = group.add_argument
    add("--out_dir", "--out-dir", default="results", metavar="DIR", help="where results go (default: %(default)s)")
    add(
        "--name",
        metavar="NAME",
        help="what the checkpoint is called in results (default: its folder, of a run the run)",
    )
    add("--datasets", metavar="A,B", help="of the tasks of a key only these")
    add("--skip_missing", action="store_true", help="ask the tasks whose data are there, name the others, exit with 1")
    add("--overwrite", action="store_true", help="begin anew; otherwise the same command goes on")
    add("--batch_size", "--batch-size", type=int, default=8, metavar="N", help="at once (default: %(default)s)")
    add("--batch_tokens", type=int, default=BATCH_TOKENS, metavar="N", help="tokens of a batch (default: %(default)s)")
    add(
        "--num_workers", "--num-workers", type=int, default=READERS, metavar="N",
        help="threads that read and cut pictures, at least one (default: %(default)s)",
    )  # fmt: skip
    add("--tensorboard", metavar="DIR", help="also write eval/<task>/<figure> for TensorBoard")
    add("--step", type=int, default=0, metavar="N", help="the step in TensorBoard (default: %(default)s)")


def _add_judge(group: Any) -> None:
    add = group.add_argument
    add("--judge", metavar="MODEL", help="who judges; key: OPENAI_API_KEY, address: OPENAI_BASE_URL")
    add("--no_judge", action="store_true", help="answers only, where a task needs a judge")


def _truth(text: str) -> bool:
    if text.lower() not in _TRUTHS:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return _TRUTHS[text.lower()]


def check_numbers(args: argparse.Namespace) -> None:
    """Raises ConfigError for a number that cannot be meant."""
    for name in ("max_tiles", "max_new_tokens", "num_beams", "num_segments", "limit", "batch_size", "batch_tokens"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value}: at least 1")
    if args.num_workers < 0:
        raise ConfigError(f"--num_workers {args.num_workers}: at least 0")
    if not 0 <= args.temperature < math.inf:
        raise ConfigError(f"--temperature {args.temperature}: 0 = the likeliest token each time, 0.2 to 1 = sampling")


def wishes_of(args: argparse.Namespace) -> Wishes:
    """What the user sets. Raises ConfigError."""
    from internvl_chat.eval.plan import Wishes  # torch is not needed to tell what a flag means

    check_numbers(args)
    options = {}
    for text in args.option:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--option {text}: write NAME=VALUE")
        options[name] = value
    if args.cot:
        options["cot"] = "on"
    if args.num_segments is not None:
        options["num_segments"] = str(args.num_segments)
    generation: dict[str, Any] = {"num_beams": args.num_beams if args.num_beams != 1 else None}
    if args.temperature:
        generation |= {"temperature": args.temperature}
    shared = {name: getattr(args, name) for name, usual in OF_MODEL.items() if getattr(args, name) != usual}
    if args.temperature and args.seed:
        shared["seed"] = args.seed
    return Wishes(
        Path(args.data_root), args.max_tiles, args.dynamic, args.max_new_tokens, options, generation, args.limit, shared
    )
