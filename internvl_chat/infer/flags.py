"""Flags that say which model answers and where it runs: the same words in ``chat``, ``demo`` and ``serve``."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

_CHECKPOINT = re.compile(r"checkpoint-\d+")
# Flags that ``load`` knows under the same names.
_OF_LOAD = ("dtype", "device", "device_map", "load_in_8bit", "load_in_4bit", "conv_style", "image_backend", "base")


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add them, as a group of their own."""
    add = parser.add_argument_group("the model and where it runs").add_argument
    add("--conv_style", help="template of the conversation (default: the one in config.json)")
    add("--base", help="of a LoRA adapter: the folder of its base (default: where it was trained)")
    add("--device", help="cpu, cuda, cuda:1, ... (default: an accelerator if there is one)")
    add("--device_map", choices=("auto", "card"), help="spread over all GPUs: evenly, or by the model cards' rule")
    add("--dtype", help="bfloat16, float16, float32, auto (default: bfloat16, on a CPU float32)")
    add("--load_in_8bit", "--load-in-8bit", action="store_true", help="weights in 8 bits, through bitsandbytes")
    add("--load_in_4bit", "--load-in-4bit", action="store_true", help="weights in 4 bits, through bitsandbytes")
    add("--image_backend", choices=("torch", "pillow"), default="torch", help="who resizes pictures (default: torch)")


def model_name(path: str | Path) -> str:
    """What a model is called where its folder is all that is known: the folder's name.

    Of an adapter it is its run's; of a checkpoint within a run, both.
    """
    folder = named_folder(path)
    return f"{folder.parent.name}-{folder.name}" if _CHECKPOINT.fullmatch(folder.name) else folder.name


def named_folder(path: str | Path) -> Path:
    """The folder whose name says which model it is: adapters all have the same name, that of their run says more."""
    folder = Path(path).expanduser().absolute()
    return folder.parent if folder.name == "adapter" else folder


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of ``load``."""
    return {name: getattr(args, name) for name in _OF_LOAD}
