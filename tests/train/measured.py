"""A training run with every tensor counted: what was alive at most in each step."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from internvl_chat.tools.tensor_memory import LiveTensors


def measure(out: str, argv: Sequence[str]) -> None:
    """Train; write {peaks: [bytes by step], rests: [bytes after each step]} to ``out``, rank 0 only."""
    from internvl_chat.train.main import train
    from internvl_chat.train.trainer import InternVLTrainer

    live, peaks, rests = LiveTensors(), [], []
    begin = InternVLTrainer.get_batch_samples

    def next_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        peaks.append(live.peak)
        rests.append(live.bytes)
        live.restart()
        return begin(self, *args, **kwargs)

    with mock.patch.object(InternVLTrainer, "get_batch_samples", next_step), live:
        train(list(argv))
    peaks.append(live.peak)
    if os.environ.get("RANK", "0") == "0":
        Path(out).write_text(json.dumps({"peaks": peaks[1:], "rests": rests[1:]}))
