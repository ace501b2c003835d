"""The benchmarks of training run: each variant does the same work and gets the same numbers, or says why it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def run(*arguments: str) -> str:
    """A script of bench/ as its user starts it."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / arguments[0]), *arguments[1:]],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        },
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_step_time_and_memory_are_compared_over_the_same_work() -> None:
    ours, theirs = "ours, packed, chunked loss", "transformers, padded, full logits"
    text = run("train_cpu.py", "--samples", "5", "--repeats", "1", "--json", "--variants", theirs, ours)
    report: dict[str, Any] = json.loads(text[text.index("{\n") :])  # a library may have said something before
    found = report["results"]
    rows, numerics = found["rows"], found["numerics"]
    assert report["baseline"] == theirs
    assert rows[ours]["supervised tokens"] == rows[theirs]["supervised tokens"] > 0
    assert rows[ours]["padding"] == 0.0 < rows[theirs]["padding"]
    assert numerics[ours]["loss"] == pytest.approx(numerics[theirs]["loss"], rel=1e-4)
    assert numerics[ours]["gradient norm"] == pytest.approx(numerics[theirs]["gradient norm"], rel=1e-4)
    # Of a step's time a busy machine says little; its memory does not depend on the others.
    assert found["against the baseline"][ours]["memory of model and step"] < 0.9


def test_every_switch_of_the_gpu_benchmark_gives_the_numbers_of_the_first(tmp_path: Path) -> None:
    lines = tmp_path / "rows.jsonl"
    switches = ("default", "attention: sdpa, mask", "attention: flex", "full logits")
    text = run(
        "train_gpu.py", "--dry-run", "--models", "1b", "8b-lora", "--json", str(lines),
        "--variants", *switches, "transformers, padded",
    )  # fmt: skip
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert len(rows) == 10
    for row in rows:
        if row["variant"] == "attention: flex":
            assert row["not available"] == "flex_attention has no backward pass on a CPU"
        else:
            assert row["numbers"] == "same" and row["tokens/s"] > 0 and row["ViT TFLOP/s"] > 0, row
            assert row["versions"]["torch"]
    assert text.count("| 8b-lora |") == 5
