"""``internvl chat``: one question on the command line, a conversation, or a file of questions."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvl_chat.errors import ConfigError
from internvl_chat.infer.flags import add_model_flags, model_options
from internvl_chat.log import setup_logging

if TYPE_CHECKING:
    from internvl_chat.infer.loaded import Loaded

_FRAMES = 8  # of a video
# Of torch's generators; a process adds its number.
_SEEDS = range(2**63)
# Flags of a file of questions -> what they are without one.
_OF_FILES = {"output": None, "batch_size": 8, "image_root": None, "overwrite": False}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command ``internvl chat``."""
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="model folder, or LoRA adapter folder")
    add("question", nargs="?", help="what to ask; without it a conversation starts, line by line (/help)")
    add("--image", action="append", default=[], metavar="PATH", help="picture for the (first) question; repeatable")
    add("--video", metavar="PATH", help="video, GIF or folder of frames (its name ends in /) for the (first) question")
    add("--num_segments", type=int, default=_FRAMES, metavar="N", help="frames of a video (default: %(default)s)")
    add("--max_tiles", type=int, metavar="N", help="most tiles of a question's pictures (default: config.json's)")
    add("--system", metavar="MESSAGE", help="system message (default: the template's)")
    add(
        "--stats",
        action="store_true",
        help="tell tokens and speed after each answer (a conversation on a terminal does)",
    )
    _add_decoding(parser.add_argument_group("decoding"))
    add_model_flags(parser)
    add = parser.add_argument_group(
        "a file of questions (docs/chat.md); under torchrun or srun the processes share it"
    ).add_argument
    add("--input", metavar="QUESTIONS", help='JSONL: {"question": .., "image": ..} a line, or any training format')
    add("--output", metavar="ANSWERS", help="JSONL, a line for each; the same command goes on after it was stopped")
    add("--batch_size", type=int, default=8, metavar="N", help="questions at once (default: %(default)s)")
    add("--image_root", metavar="DIR", help="where paths in QUESTIONS begin (default: the current folder)")
    add("--overwrite", action="store_true", help="begin ANSWERS anew")
    _accept_question_after_flags(parser)


def _add_decoding(group: Any) -> None:
    add = group.add_argument
    add("--max_new_tokens", type=int, default=256, help="longest answer in tokens (default: %(default)s)")
    add("--temperature", type=float, default=0.0, help="0 = the likeliest token each time (default); above: sampling")
    add("--top_p", type=float, default=None, help="sample from the likeliest tokens that make up this share")
    add("--repetition_penalty", type=float, metavar="X", help="above 1: what was said already is less likely")
    add("--seed", type=int, metavar="N", help="of sampling (default: another one each time)")
    add("--generate", action="append", default=[], metavar="NAME=VALUE", help="an argument of generate; repeatable")


def run(args: argparse.Namespace) -> int:
    """Answer on stdout, hold a conversation, or answer a file. Returns the exit status."""
    from internvl_chat.infer.settings import check_settings, read_settings

    # Everything that can be wrong is told before the weights are read.
    generation = {"max_new_tokens": args.max_new_tokens, "temperature": args.temperature}
    for name in ("top_p", "repetition_penalty"):
        if getattr(args, name) is not None:
            generation[name] = getattr(args, name)
    generation |= read_settings(args.generate)
    check_settings(generation)
    _check_flags(args, generation)
    if args.input is not None:
        return _answer_file(args, generation)
    for name, default in _OF_FILES.items():
        if getattr(args, name) != default:
            raise ConfigError(f"--{name} belongs to a file of questions; give it with --input, or leave it out")
    if args.question is not None and args.video is None and args.num_segments != _FRAMES:
        raise ConfigError(
            f"--num_segments {args.num_segments} belongs to a video; give it with --video, or leave it out"
        )
    setup_logging()
    return _converse(args, generation)


def _check_flags(args: argparse.Namespace, generation: dict[str, Any]) -> None:
    """Raise ConfigError for values that cannot be used, and for flags that would be read by nothing."""
    from internvl_chat.infer.answer import generation_options

    for name in ("num_segments", "max_tiles", "batch_size"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ConfigError(f"--{name} {value}: at least 1")
    if args.seed is not None and args.seed not in _SEEDS:
        raise ConfigError(f"--seed {args.seed}: from 0 to {_SEEDS[-1]}")
    talks = args.question is None and args.input is None  # /set may make it sample
    for name in ("top_p", "seed"):
        if getattr(args, name) is not None and not talks and not generation_options(generation)["do_sample"]:
            raise ConfigError(
                f"--{name} {getattr(args, name)}: only what is sampled has one; add --temperature 0.7, or leave it out"
            )


def _converse(args: argparse.Namespace, generation: dict[str, Any]) -> int:
    """One question, or a conversation."""
    from internvl_chat.infer.chat import Chat
    from internvl_chat.infer.pictures import Video, place_pictures, read_picture, read_video
    from internvl_chat.infer.repl import Repl

    if args.question is not None:
        place_pictures(args.question, len(args.image))
    for path in args.image:
        read_picture(path)
    video = None if args.video is None else Video(args.video, args.num_segments)
    if video is not None:
        read_video(video)
    chat = Chat(_load(args, args.device), args.system)
    stats = args.stats or (args.question is None and sys.stdin.isatty())
    repl = Repl(chat, generation, args.image, video, num_segments=args.num_segments, stats=stats)
    if args.question is None:
        return repl.run()
    repl.answer(args.question)
    return 0


def _answer_file(args: argparse.Namespace, generation: dict[str, Any]) -> int:
    """A file of questions; this process's share of it under a launcher."""
    from internvl_chat.infer.ask_file import Asking, answer_file, tell
    from internvl_chat.infer.checkpoint import name_checkpoint
    from internvl_chat.infer.sharing import share_machine
    from internvl_chat.launch import find_launch, name_of_run

    if args.output is None:
        raise ConfigError("--input needs --output, the file that the answers go to")
    for name, given in (("a question", args.question), ("--image", args.image), ("--video", args.video)):
        if given:
            raise ConfigError(f"--input has the questions; leave {name} out")
    if args.stats:
        raise ConfigError("--stats belongs to a conversation; with --input the log has the speed, leave it out")
    if Path(args.output).resolve() == Path(args.input).resolve():
        raise ConfigError(f"--output {args.output} is the file of the questions")
    launch = find_launch(os.environ, resolve=str)
    if launch.world_size > 1:
        os.environ.update(launch.variables())
    if launch.local_world_size > 1 and args.device_map is not None:
        raise ConfigError("--device_map spreads a model over all GPUs, and each process has one; start one process")
    setup_logging()
    device = share_machine(launch, args.device) if args.device_map is None else args.device
    root = args.image_root or ""
    asking = Asking(
        Path(args.input), Path(args.output), generation, args.batch_size, root, args.num_segments, args.system,
        args.overwrite,
    )  # fmt: skip
    names = (
        "dtype", "load_in_8bit", "load_in_4bit", "image_backend", "conv_style", "max_tiles", "num_segments", "system",
        "seed", "image_root",
    )  # fmt: skip
    settings = {
        "checkpoint": name_checkpoint(args.checkpoint, args.base),
        **{name: getattr(args, name) for name in names},
        **generation,
    }
    try:
        outcome, total = answer_file(
            asking, lambda: _load(args, device, launch.rank), settings, launch, name_of_run(os.environ, launch)
        )
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on, {asking.output} is written at the end", file=sys.stderr)
        raise
    return tell(outcome, asking.output, total)


def _load(args: argparse.Namespace, device: str | None, rank: int = 0) -> Loaded:
    import torch
    from transformers.utils.logging import disable_progress_bar

    from internvl_chat.infer.load import load

    disable_progress_bar()
    if args.seed is not None:
        torch.manual_seed(args.seed + rank)
    loaded = load(args.checkpoint, **{**model_options(args), "device": device})
    if args.max_tiles is None:
        return loaded
    return replace(loaded, tiles=replace(loaded.tiles, max_tiles=args.max_tiles))


def _accept_question_after_flags(parser: argparse.ArgumentParser) -> None:
    """Let ``CKPT --image a.png "question"`` work: argparse before Python 3.12 gives up on ``question`` at a flag."""
    parse = parser.parse_known_args

    def parse_known_args(args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        found, rest = parse(args, namespace)
        if found.question is None and rest and not rest[0].startswith("-"):
            found.question = rest.pop(0)
        return found, rest

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign]
