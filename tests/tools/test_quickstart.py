"""The quickstart, scaled down: what it leaves behind, that it learns, and that a seed says everything."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from internvl_chat.tools import quickstart
from tests.train import warm

KEYS = {"exact_match", "train_seconds", "peak_rss_mib", "first_loss", "final_loss", "steps", "samples"}


def go(root: Path, *words: str) -> int:
    parser = argparse.ArgumentParser()
    quickstart.add_arguments(parser)
    small = ["--train", "240", "--held_out", "40", "--epochs", "1", "--goal", "0", "0"]
    return quickstart.run(parser.parse_args(["--out", str(root / "out"), "--data", str(root / "data"), *small, *words]))


def losses(root: Path) -> list[float]:
    lines = (root / "out" / "train_log.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("quickstart")
    assert go(root) == 0
    return root


@pytest.mark.slow
def test_folder_has_all_that_is_promised(made: Path) -> None:
    out = made / "out"
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    assert set(summary) >= KEYS
    assert {"1", "2", "3", "4", "compare", "text"} >= set(summary["exact_match"]) >= {"1", "2", "3", "4"}
    assert summary["final_loss"] < summary["first_loss"]
    assert 0 < summary["peak_rss_mib"] < 4096
    assert (out / "model.safetensors").is_file()
    assert "<svg" in (out / "report.html").read_text()
    assert list(out.rglob("events.out.tfevents*"))


@pytest.mark.slow
def test_second_run_has_the_same_losses_to_the_last_bit(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reuses the data, replaces its own outputs, and misses a goal that cannot be reached.

    The first has shown that the command starts; here its ranks are forks.
    """
    monkeypatch.setattr(quickstart, "subprocess", SimpleNamespace(Popen=warm.Launched))
    first, stamp = losses(made), (made / "data" / "data" / "digits" / "made_with.json").stat().st_mtime_ns
    assert go(made, "--goal", "1.1", "1.1") == 1
    assert losses(made) == first
    assert (made / "data" / "data" / "digits" / "made_with.json").stat().st_mtime_ns == stamp
    assert len(list((made / "out").rglob("events.out.tfevents*"))) == 1


def test_a_missing_picture_is_noticed(tmp_path: Path) -> None:
    quickstart._make_data(tmp_path, quickstart.Size(train=8, held_out=8), seed=0)
    assert quickstart._is_complete(tmp_path)
    next((tmp_path / "data" / "digits" / "train").glob("*.jpg")).unlink()
    assert not quickstart._is_complete(tmp_path)
