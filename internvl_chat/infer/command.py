"""``internvl chat``: one question on the command line, or a conversation line by line."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from internvl_chat.errors import InternVLError, nearest
from internvl_chat.log import setup_logging

if TYPE_CHECKING:
    from PIL import Image

    from internvl_chat.infer.chat import Chat

HELP = {
    "/image": "/image PATH   attach a picture to the next question; `<image>` in it says where (more pictures: again)",
    "/clear": "/clear        forget the conversation and what is attached",
    "/help": "/help         these lines",
    "/quit": "/quit         leave (also Ctrl-D; Ctrl-C stops an answer, or leaves)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command ``internvl chat``."""
    add = parser.add_argument
    add("checkpoint", metavar="CKPT", help="model folder, or LoRA adapter folder")
    add("question", nargs="?", help="what to ask; without it a conversation starts, line by line (/help)")
    add("--image", action="append", default=[], metavar="PATH", help="picture for the (first) question; repeatable")
    add("--max_new_tokens", type=int, default=256, help="longest answer in tokens (default: %(default)s)")
    add("--temperature", type=float, default=0.0, help="0 = the likeliest token each time (default); above: sampling")
    add("--top_p", type=float, default=None, help="sample from the likeliest tokens that make up this share")
    add("--conv_style", default=None, help="template of the conversation (default: the one in config.json)")
    add("--base", default=None, help="of a LoRA adapter: the folder of its base (default: where it was trained)")
    add("--device", default=None, help="cpu, cuda, cuda:1, ... (default: an accelerator if there is one)")
    add("--dtype", default=None, help="bfloat16, float16, float32, auto (default: bfloat16, on a CPU float32)")
    add("--image_backend", choices=("torch", "pillow"), default="torch", help="who resizes pictures (default: torch)")
    _accept_question_after_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Answer the question on stdout, or hold a conversation. Returns the exit status."""
    from internvl_chat.infer.answer import generation_options
    from internvl_chat.infer.pictures import place_pictures, read_picture

    setup_logging()
    generation = {"max_new_tokens": args.max_new_tokens, "temperature": args.temperature}
    if args.top_p is not None:
        generation["top_p"] = args.top_p
    # Everything that can be wrong is told before the weights are read.
    generation_options(generation)
    if args.question is not None:
        place_pictures(args.question, len(args.image))
    pictures = [read_picture(path) for path in args.image]
    repl = Repl(_open(args), generation, pictures)
    if args.question is None:
        return repl.run()
    repl.answer(args.question)
    return 0


def _open(args: argparse.Namespace) -> Chat:
    from transformers.utils.logging import disable_progress_bar

    from internvl_chat.infer.chat import Chat
    from internvl_chat.infer.load import load

    disable_progress_bar()
    loaded = load(
        args.checkpoint,
        dtype=args.dtype,
        device=args.device,
        conv_style=args.conv_style,
        image_backend=args.image_backend,
        base=args.base,
    )
    return Chat(loaded)


class Repl:
    """A conversation on stdin and stdout. Commands start with a slash; errors go to stderr and end nothing."""

    def __init__(self, chat: Chat, generation: Mapping[str, Any], pictures: Sequence[Image.Image] = ()) -> None:
        self._chat = chat
        self._generation = generation
        self._pictures = list(pictures)

    def run(self) -> int:
        """Read and answer lines until the end. Returns the exit status."""
        prompt = "> " if sys.stdin.isatty() else ""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (arrow keys and history in input())
        if prompt:
            print("Ask away; /help lists the commands.")
        while True:
            try:
                line = input(prompt).strip()
                if line in ("/quit", "/exit"):
                    return 0
                if line:
                    self._take(line)
            except (EOFError, KeyboardInterrupt):
                if prompt:
                    print()
                return 0

    def answer(self, question: str) -> None:
        """Stream the answer to stdout. What is attached is used up by an answer that came to its end."""
        with contextlib.closing(self._chat.ask(question, self._pictures, stream=True, **self._generation)) as pieces:
            for piece in pieces:
                print(piece, end="", flush=True)
        print(flush=True)
        self._pictures.clear()

    def _take(self, line: str) -> None:
        try:
            if line.startswith("/"):
                self._command(*line.split(maxsplit=1))
            else:
                self._answer_until_interrupted(line)
        except InternVLError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)

    def _answer_until_interrupted(self, question: str) -> None:
        try:
            self.answer(question)
        except KeyboardInterrupt:
            print("\n[stopped; the question is forgotten]", flush=True)

    def _command(self, name: str, rest: str = "") -> None:
        if name == "/image":
            self._attach(rest.strip().strip("'\""))
        elif name == "/clear":
            self._chat.clear()
            self._pictures.clear()
        elif name == "/help":
            print("\n".join(HELP.values()), flush=True)
        else:
            raise InternVLError(f"{name} is no command{nearest(name, HELP)}; /help lists them")

    def _attach(self, path: str) -> None:
        from internvl_chat.infer.pictures import read_picture

        if not path:
            raise InternVLError("/image needs a path")
        self._pictures.append(read_picture(path))
        width, height = self._pictures[-1].size
        print(f"[picture {len(self._pictures)}: {width} x {height}]", flush=True)


def _accept_question_after_flags(parser: argparse.ArgumentParser) -> None:
    """Let ``CKPT --image a.png "question"`` work: argparse before Python 3.12 gives up on ``question`` at a flag."""
    parse = parser.parse_known_args

    def parse_known_args(args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        found, rest = parse(args, namespace)
        if found.question is None and rest and not rest[0].startswith("-"):
            found.question = rest.pop(0)
        return found, rest

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign]
