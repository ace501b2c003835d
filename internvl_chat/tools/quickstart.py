"""``internvl quickstart``: sample data, a tiny model, training, evaluation, report. (Being written.)"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``internvl quickstart``."""


def run(args: argparse.Namespace) -> int:
    """Not there yet."""
    raise NotImplementedError
