"""How a run of several ranks ends when one of them does: what is said, once, and with which exit status."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from internvl_chat.cli import main
from internvl_chat.train.ending import is_loss
from tests.conftest import ROOT
from tests.train.runs import environment, flags
from tests.train.test_preempt import AGAIN, start, wait_for_steps


def test_what_a_lost_rank_sounds_like() -> None:
    assert is_loss(RuntimeError("[pair.cc:537] Read error [127.0.0.1]:2: Connection reset by peer. This is"))
    assert is_loss(RuntimeError("[unbound_buffer.cc:81] Timed out waiting 1800000ms for recv operation to complete"))
    assert not is_loss(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_loss(ValueError("connection reset by peer"))


@pytest.fixture
def many_steps(tiny: Path, mixed_data: Path, tmp_path: Path) -> list[str]:
    return flags(tiny, mixed_data, tmp_path / "out", max_steps=2000, logging_steps=5, late_after=4, save_steps=10)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_is_killed_is_named_and_the_run_is_to_start_again(
    killed: int, many_steps: list[str], tmp_path: Path
) -> None:
    ranks = start([*many_steps, "--save_strategy", "steps"], 2, tmp_path / "logs", SLURMD_NODENAME="node7")
    wait_for_steps(ranks, tmp_path / "out", 4)
    ranks.kill(killed)
    ranks.ended(60)
    assert ranks.codes()[1 - killed] == AGAIN, ranks.output()
    # The store lives with rank 0.
    told = "rank 1 on node7 gone without a word" if killed else "rank 0 is gone, or its node"
    log = ranks.logs[1 - killed].read_text()
    assert log.count(told) == 1, log
    assert "the same command goes on from" in log
    assert "Traceback" not in log
    assert told.split(",")[0] in json.loads((tmp_path / "out" / "start_again.json").read_text())["reason"]


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_fails_by_itself_ends_the_run_for_good(failing: int, many_steps: list[str], tmp_path: Path) -> None:
    """Started again it would fail again; rank 0 serves what the others look into."""
    ranks = start(many_steps, 2, tmp_path / "logs", FAILING_RANK=str(failing), SLURMD_NODENAME="node7")
    assert ranks.ended(60) == [1, 1], ranks.output()
    other = ranks.logs[1 - failing].read_text()
    assert f"rank {failing} failed: AssertionError on node7: this rank has a fault of its own" in other
    assert "Traceback" not in other
    assert "Traceback" in ranks.logs[failing].read_text()
    assert not (tmp_path / "out" / "start_again.json").exists()


@pytest.mark.slow
def test_a_rank_that_fails_in_its_first_step(many_steps: list[str], tmp_path: Path) -> None:
    env = {"FAILING_RANK": "0", "FAILING_STEP": "1"}
    ranks = start([*many_steps, "--late_after", "0", "--deepspeed", "zero2"], 2, tmp_path / "logs", **env)
    assert ranks.ended(60) == [1, 1], ranks.output()
    assert "rank 0 failed: AssertionError" in ranks.logs[1].read_text()
    assert not (tmp_path / "out" / "start_again.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "slow_in", "others_in"),
    [
        ("_micro_batch", "'batch' of step 3", "'exchange' of step 3"),
        ("compute_loss", "'forward' of step 3", "'backward' of step 3"),
        ("save_model", "'finish'", "'end'"),
    ],
)
def test_a_rank_that_others_wait_for_is_named(
    method: str, slow_in: str, others_in: str, tiny: Path, mixed_data: Path, tmp_path: Path
) -> None:
    words = flags(tiny, mixed_data, tmp_path / "out", max_steps=4, late_after=2)
    env = {"SLOW_RANK": "1", "SLOW_IN": method, "SLURMD_NODENAME": "node7"}
    ranks = start(words, 2, tmp_path / "logs", **env)
    assert ranks.ended(60) == [0, 0], ranks.output()
    log = ranks.logs[0].read_text()
    found = re.search(r"rank 1 on node7 late: for \d s in (.*), while others are in (.*)", log)
    assert found, log
    assert found.groups() == (slow_in, others_in)
    assert not (tmp_path / "out" / "start_again.json").exists()


@pytest.mark.slow
def test_a_signal_while_python_starts(many_steps: list[str], tmp_path: Path) -> None:
    """It waits until it is understood, then stops the run at once; what an old run has left counts no more."""
    (tmp_path / "out").mkdir()
    run = subprocess.Popen(
        [sys.executable, "-m", "internvl_chat.train", *many_steps], env=environment(), cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    time.sleep(1)
    run.send_signal(signal.SIGTERM)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == AGAIN, output
    assert "Traceback" not in output
    assert json.loads((tmp_path / "out" / "start_again.json").read_text())["reason"] == "signal SIGTERM"
    assert main(["train", *many_steps, "--learning_rate", "much"]) == 2
    assert not (tmp_path / "out" / "start_again.json").exists()


@pytest.mark.slow
def test_what_all_ranks_have_to_say_is_said_once(many_steps: list[str], tmp_path: Path) -> None:
    ranks = start([*many_steps, "--learning_rate", "much"], 2, tmp_path / "logs")
    ranks.ended(60)
    assert ranks.codes() == [2, 2], ranks.output()
    assert ranks.output().count("--learning_rate") == 1, ranks.output()


@pytest.mark.slow
def test_ctrl_c_says_where_to_go_on(many_steps: list[str], tmp_path: Path) -> None:
    ranks = start([*many_steps, "--save_strategy", "steps"], 1, tmp_path / "logs")
    wait_for_steps(ranks, tmp_path / "out", 4)
    os.kill(ranks.pids[0], signal.SIGINT)
    assert ranks.ended(60) == [130], ranks.output()
    assert "stopped by Ctrl-C; the same command goes on from" in ranks.output()
    assert "Traceback" not in ranks.output()


@pytest.mark.slow
def test_a_collective_that_takes_too_long_ends_the_run(many_steps: list[str], tmp_path: Path) -> None:
    """``--ddp_timeout`` counts, also between CPUs; the rank that stands still is named."""
    ranks = start([*many_steps, "--ddp_timeout", "6"], 2, tmp_path / "logs")
    wait_for_steps(ranks, tmp_path / "out", 4)
    os.kill(ranks.pids[1], signal.SIGSTOP)
    try:
        assert ranks.wait(60)[0] == AGAIN, ranks.output()
        assert "rank 1 on" in ranks.logs[0].read_text()
        assert "gone without a word" in ranks.logs[0].read_text()
    finally:
        ranks.end()


def test_a_user_error_of_one_process(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "--output_dir", str(tmp_path)]) == 2
    assert "error: --model_name_or_path is missing" in capsys.readouterr().err
