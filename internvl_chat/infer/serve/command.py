"""``internvl serve``: a checkpoint over HTTP in OpenAI's protocol, through transformers' own serving app."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
from types import FrameType
from typing import Any

from internvl_chat.errors import ConfigError
from internvl_chat.infer.address import is_loopback, listen_at
from internvl_chat.infer.flags import add_model_flags, model_name
from internvl_chat.log import get_logger, setup_logging

logger = get_logger(__name__)

KEY = "INTERNVL_API_KEY"
# So long may answers that are being made go on when the server is told to end.
GRACE_S = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command ``internvl serve``."""
    add = parser.add_argument
    parser.epilog = (
        "Answers are made one after another, as transformers does for models that see; for many users at once see "
        "docs/deploy.md (vLLM, LMDeploy, SGLang)."
    )
    add("checkpoint", metavar="CKPT", help="model folder of either layout, or LoRA adapter folder")
    add("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 = all (default: %(default)s, this machine)")
    add("--port", type=int, default=8000, help="port to listen at; 0 = any free one (default: %(default)s)")
    add("--api_key", default=None, help=f"key that clients must send (default: ${KEY}, else none is asked for)")
    add("--name", default=None, help="name of the model for clients (default: that of the folder)")
    add("--max_new_tokens", type=int, default=1024, help="longest answer where a request sets none (default: 1024)")
    add("--max_body_mb", type=float, default=32.0, help="largest request in MB, pictures included (default: 32)")
    add("--max_waiting", type=int, default=128, help="requests that may wait; more are told 429 (default: 128)")
    add_model_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal ends it. Returns the exit status."""
    from transformers.utils import logging as theirs
    from transformers.utils.import_utils import is_serve_available

    setup_logging()
    _check(args)
    if not is_serve_available():
        raise ConfigError("internvl serve needs more packages; pip install fastapi uvicorn openai rich pydantic")
    theirs.disable_progress_bar()
    theirs.set_verbosity_error()
    before = signal.signal(signal.SIGTERM, _end)
    try:
        # Taken before the weights are read: nobody waits minutes for a port that is not free.
        with listen_at(args.host, args.port) as place:
            _serve(args, place)
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _serve(args: argparse.Namespace, place: socket.socket) -> None:
    import uvicorn

    from internvl_chat.infer.load import resolve_device, resolve_dtype
    from internvl_chat.infer.serve.app import METHODS, OneModel, Settings, build_app
    from internvl_chat.infer.serve.export import describe, served_folder
    from internvl_chat.infer.serve.gate import Gate

    key = _key(args.api_key)
    device = resolve_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    if key is None and not is_loopback(args.host):
        logger.warning("everyone who reaches %s may ask: no key is set (--api_key, or $%s)", args.host, KEY)
    folder = served_folder(args.checkpoint, args.conv_style, args.base)
    name = args.name or model_name(args.checkpoint)
    settings = Settings(
        folder=folder,
        names=tuple(dict.fromkeys([name, str(args.checkpoint)])),
        device=str(device),
        spread=args.device_map is not None,
        dtype=dtype,
        bits=8 if args.load_in_8bit else 4 if args.load_in_4bit else None,
        max_new_tokens=args.max_new_tokens,
    )
    loaded = describe(folder, args.conv_style, image_backend=args.image_backend)
    manager = OneModel(settings, loaded)
    gate = Gate(
        build_app(manager),
        METHODS,
        api_key=key,
        max_body=int(args.max_body_mb * 2**20),
        max_waiting=args.max_waiting,
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                _say_ready(place, name, key is not None)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            asyncio.get_running_loop().call_later(GRACE_S, manager.engine.give_up)
            await super().shutdown(sockets)

    config = uvicorn.Config(
        gate,
        http="h11",
        ws="none",
        lifespan="on",
        log_level="error",
        access_log=False,
        timeout_graceful_shutdown=2 * GRACE_S,
    )
    try:
        Server(config).run(sockets=[place])
    finally:
        logger.info("the server has ended")


def _check(args: argparse.Namespace) -> None:
    """All that can be wrong with the flags alone. Raises ConfigError."""
    if not 0 <= args.port < 2**16:
        raise ConfigError(f"--port {args.port}: a port is between 1 and 65535 (0 = any free one)")
    _key(args.api_key)
    if args.name is not None and not args.name.strip():
        raise ConfigError("--name is empty")
    if args.device_map == "card":
        raise ConfigError("--device_map card: transformers' own model is spread evenly; use --device_map auto")
    if args.device_map is not None and args.device is not None:
        raise ConfigError("give --device, or --device_map, not both")
    if args.load_in_8bit and args.load_in_4bit:
        raise ConfigError("--load_in_8bit and --load_in_4bit: choose one")
    for name, least in (("max_new_tokens", 1), ("max_waiting", 0)):
        if getattr(args, name) < least:
            raise ConfigError(f"--{name} {getattr(args, name)}: at least {least}")
    if not 2**-10 <= args.max_body_mb <= 2**12:
        raise ConfigError(f"--max_body_mb {args.max_body_mb:g}: between 0.001 and 4096")


def _key(given: str | None) -> str | None:
    """The key of the flag, else of the environment, else None: none is asked for. Raises ConfigError."""
    source, key = (f"${KEY}", os.environ.get(KEY)) if given is None else ("--api_key", given)
    if key is None:
        return None
    key = key.strip()  # the line end of a file, say: no client can send it
    if not key:
        other = f"leave it out (then ${KEY} counts)" if given is not None else "unset it to ask for none"
        raise ConfigError(f"{source} is empty; give a key, or {other}")
    if not key.isprintable():
        raise ConfigError(f"{source} has characters that no header can hold; choose a key of one line of letters")
    return key


def _say_ready(place: socket.socket, name: str, has_key: bool) -> None:
    host, port = place.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    key = " -H 'Authorization: Bearer KEY'" if has_key else ""
    example = '{"messages": [{"role": "user", "content": "Hello!"}]}'
    logger.info("ready: %s/v1, model %s; end it with Ctrl-C. To ask:", url, name)
    logger.info("curl %s/v1/chat/completions%s -H 'Content-Type: application/json' -d '%s'", url, key, example)


def _end(number: int, frame: FrameType | None) -> Any:
    """SIGTERM is the usual way to end a server, no failure."""
    raise SystemExit(0)
