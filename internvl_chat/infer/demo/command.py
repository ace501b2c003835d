"""``internvl demo``: a page in the browser to talk to a model, or to two models side by side."""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from internvl_chat.errors import ConfigError
from internvl_chat.infer.address import is_loopback, listen_at
from internvl_chat.infer.flags import add_model_flags, model_name, model_options, named_folder
from internvl_chat.log import get_logger, setup_logging

if TYPE_CHECKING:
    from internvl_chat.infer.demo.session import Model, Settings

AUTH_VARIABLE = "INTERNVL_DEMO_AUTH"

logger = get_logger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command ``internvl demo``."""
    add = parser.add_argument
    add("checkpoint", nargs="+", metavar="CKPT", help="model or LoRA adapter folder; two: answers side by side")
    add("--host", default="127.0.0.1", help="address to serve on (default: %(default)s, this machine only)")
    add("--port", type=int, default=7860, help="port to serve on; 0: any free one (default: %(default)s)")
    add("--auth", default=None, metavar="USER:PASSWORD", help=f"ask visitors for these; safer: in {AUTH_VARIABLE}")
    add("--share", action="store_true", help="also serve the page to the internet, through gradio's servers")
    add("--max_upload_mb", type=int, default=200, help="largest file that is taken (default: %(default)s MB)")
    add("--max_new_tokens", type=int, default=512, help="longest answer in tokens (default: %(default)s)")
    add("--temperature", type=float, default=0.0, help="0 = the likeliest token each time (default); above: sampling")
    add("--top_p", type=float, default=1.0, help="sample from the likeliest tokens that make up this share")
    add(
        "--max_tiles",
        type=int,
        default=None,
        help="most tiles of a question (default: the model's own limit)",
    )
    add("--num_segments", type=int, default=8, help="frames of a video (default: %(default)s)")
    add_model_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Serve the page until it is interrupted. Returns the exit status."""
    from internvl_chat.infer.demo.page import import_gradio, launch, make_page
    from internvl_chat.infer.demo.visitors import Visitors

    setup_logging()
    # Everything that can be wrong is told before the weights are read.
    auth = read_auth(args.auth if args.auth is not None else os.environ.get(AUTH_VARIABLE))
    check_arguments(args)
    with upload_folder() as folder:
        import_gradio()
        port = free_port(args.host, args.port)
        models = _load(args)
        _warn(args, auth)
        page = make_page(Visitors(models, folder / "drawn"), _start(args, models))
        address = launch(page, args.host, port, auth, args.share, args.max_upload_mb)
        try:
            logger.info("open %s", address.rstrip("/"))
            wait_for_the_end()
        finally:
            page.close(verbose=False)
    return 0


def read_auth(given: str | None) -> tuple[str, str] | None:
    """(user, password) of ``USER:PASSWORD``. Raises ConfigError, without the password in it."""
    if given is None:
        return None
    user, colon, password = given.partition(":")
    if not (user and colon and password):
        raise ConfigError(f"--auth (or {AUTH_VARIABLE}) is not of the form USER:PASSWORD")
    return user, password


def check_arguments(args: argparse.Namespace) -> None:
    """Raises ConfigError for values that cannot be used."""
    from internvl_chat.infer.answer import generation_options

    if len(args.checkpoint) > 2:
        raise ConfigError(f"{len(args.checkpoint)} checkpoints are given; one or two fit on the page")
    generation_options({"max_new_tokens": args.max_new_tokens, "temperature": args.temperature, "top_p": args.top_p})
    for name in ("max_upload_mb", "num_segments", "max_tiles"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} {value}: at least 1")


@contextmanager
def upload_folder() -> Iterator[Path]:
    """A folder for uploads that only this user can read, gone at the end. gradio is told of it by the environment."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="internvl_demo_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield Path(folder).resolve()
        finally:
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def free_port(host: str, port: int) -> int:
    """The port, or a free one for 0. Raises ConfigError if it cannot be had."""
    with listen_at(host, port) as place:
        return int(place.getsockname()[1])


def names_of(folders: Sequence[str]) -> list[str]:
    """What the page calls the models: by their names, else by as many parts of their paths as tell them apart."""
    short = [model_name(folder) for folder in folders]
    parts = [named_folder(folder).parts for folder in folders]
    longer = (["/".join(part[-length:]) for part in parts] for length in range(2, max(map(len, parts)) + 1))
    for names in (short, *longer):
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(short, 1)]


def _load(args: argparse.Namespace) -> list[Model]:
    from transformers.utils.logging import disable_progress_bar

    from internvl_chat.infer.checkpoint import config_of_checkpoint
    from internvl_chat.infer.demo.session import Model
    from internvl_chat.infer.load import load

    disable_progress_bar()
    for folder in args.checkpoint:  # the second one's fault is told before the first is read
        config_of_checkpoint(folder, args.base, args.conv_style)
    models = []
    for name, folder in zip(names_of(args.checkpoint), args.checkpoint, strict=True):
        logger.info("loading %s", folder)
        models.append(Model(name, load(folder, **model_options(args))))
    return models


def _start(args: argparse.Namespace, models: Sequence[Model]) -> Settings:
    from internvl_chat.infer.demo.session import Settings

    max_tiles = args.max_tiles or max(model.loaded.tiles.max_tiles for model in models)
    return Settings(args.temperature, args.top_p, args.max_new_tokens, max_tiles, args.num_segments)


def _warn(args: argparse.Namespace, auth: tuple[str, str] | None) -> None:
    if auth is None and (args.share or not is_loopback(args.host)):
        who = "the internet" if args.share else "everyone who reaches this machine"
        logger.warning("the page is open to %s; --auth USER:PASSWORD asks visitors for a password", who)


def wait_for_the_end() -> None:
    """Return on Ctrl-C and on SIGTERM."""
    over = threading.Event()
    before = {number: signal.signal(number, lambda *_: over.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not over.wait(1.0):
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
