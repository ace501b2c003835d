"""A run that is told to stop saves at the end of its step and goes on later with the same bits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from internvl_chat.train.preempt import Stopped, StopRequest, heed_signals, job_end
from tests.train import warm
from tests.train.runs import environment, flags, losses, run_all, weights

AGAIN = 75


# -- one process, no training -----------------------------------------------------------------------------------------


def test_before_training_a_signal_stops_at_once() -> None:
    request = StopRequest()
    with heed_signals(request), pytest.raises(Stopped, match="signal SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    with heed_signals(request):  # it stops already
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_while_training_it_is_noted() -> None:
    request = StopRequest()
    with heed_signals(request), request.training():
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0)
        assert request.reason == "signal SIGUSR1"
    assert not request.agreed


def test_the_clock() -> None:
    def clock(end_s: float | None, margin_s: float | None = None) -> StopRequest:
        request = StopRequest()
        request.watch(end_s, margin_s, lambda reason: None)
        return request

    request = clock(1000.0)
    request.took("save", 20.0)
    request.took("evaluation", 5.0)
    assert request.margin_s() == 2 * 20 + 5 + 30
    request.look_at_clock(now_s=924.0)
    assert request.reason is None
    request.look_at_clock(now_s=931.0)
    assert request.reason == "the job's time ends in 69 s"
    for other, now in ((clock(1000.0, 0.0), 999.0), (clock(1000.0, 50.0), 949.0), (clock(None), 9e9)):
        other.look_at_clock(now_s=now)
        assert other.reason is None


def test_after_the_last_step_word_is_left_and_the_rest_is_done() -> None:
    request, told = StopRequest(), list[str | None]()
    request.watch(None, None, told.append)
    with heed_signals(request):
        with request.training():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)
    assert told == ["signal SIGTERM while the final model was written"]


def test_when_a_job_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert job_end({}) is None
    assert job_end({"SLURM_JOB_END_TIME": "1700000000", "SLURM_JOB_ID": "1"}) == 1.7e9
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    fake = tmp_path / "scontrol"
    fake.write_text("#!/bin/sh\necho JobId=$3 StartTime=2023-11-14T22:00:00 EndTime=2023-11-14T22:13:20 Deadline=N/A\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert job_end({"SLURM_JOB_ID": "1"}) == 1.7e9
    fake.write_text("#!/bin/sh\necho JobId=$3 EndTime=Unknown\n")
    assert job_end({"SLURM_JOB_ID": "1"}) is None
    fake.write_text("#!/bin/sh\nexit 1\n")
    assert job_end({"SLURM_JOB_ID": "1"}) is None


# -- runs -------------------------------------------------------------------------------------------------------------


def steps_of(out: Path) -> int:
    file = out / "train_log.jsonl"
    return sum('"loss"' in line for line in file.read_text().splitlines()) if file.exists() else 0


def start(words: list[str], processes: int, folder: Path, **env: str) -> warm.Ranks:
    return warm.start([["run", *words]], processes, folder, {**environment(), **env})


def wait_for_steps(ranks: warm.Ranks, out: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while steps_of(out) < count:
        assert None in ranks.codes(), ranks.output()
        assert time.monotonic() < deadline, ranks.output()
        time.sleep(0.005)


@pytest.fixture
def many_steps(tiny: Path, mixed_data: Path, tmp_path: Path) -> Iterator[list[str]]:
    """Flags of a run of 24 steps with dropout of whole vision layers, so that random states matter."""
    yield flags(tiny, mixed_data, tmp_path / "out", max_steps=24, drop_path_rate=0.2, dataloader_num_workers=1)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [None, "zero3"])
def test_a_signal_to_one_rank_stops_all_and_the_rest_has_the_same_bits(
    zero: str | None, many_steps: list[str], tmp_path: Path
) -> None:
    words = many_steps + (["--deepspeed", zero, "--max_steps", "12"] if zero else [])  # its steps take their time
    out, undisturbed = tmp_path / "out", tmp_path / "undisturbed"
    run_all([[*words, "--output_dir", str(undisturbed)]], 2)
    ranks = start(words, 2, tmp_path / "logs")
    wait_for_steps(ranks, out, 4)
    os.kill(ranks.pids[1], signal.SIGTERM)
    assert ranks.ended(120) == [AGAIN, AGAIN], ranks.output()
    saved = sorted(out.glob("checkpoint-*"))
    assert len(saved) == 1, "one checkpoint, of the step at whose end they agreed"
    step = int(saved[0].name.split("-")[1])
    assert 4 <= step < (12 if zero else 24)
    assert json.loads((out / "start_again.json").read_text())["step"] == step
    assert f"goes on from {saved[0]}" in ranks.output()
    assert not (out / "model.safetensors").exists(), "a model that is not done must not look as if it were"
    again = start([*words, "--overwrite_output_dir", "True"], 2, tmp_path / "logs2", SLURM_RESTART_COUNT="1")
    assert again.ended(200) == [0, 0], again.output()
    assert not (out / "start_again.json").exists()
    assert losses(out) == losses(undisturbed)
    mine, theirs = weights(out), weights(undisturbed)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_loader_workers_survive_a_signal_to_the_whole_job(many_steps: list[str], tmp_path: Path) -> None:
    """SLURM signals every process of a step, the ranks' workers too, in whatever thread of theirs that arrives.

    Without OMP_NUM_THREADS accelerate sets a number of threads, and torch starts its own in every worker.
    """
    env = {name: value for name, value in environment().items() if name != "OMP_NUM_THREADS"}
    ranks = warm.start([["run", *many_steps, "--deepspeed", "zero1"]], 1, tmp_path / "logs", env)
    wait_for_steps(ranks, tmp_path / "out", 3)
    children = Path(f"/proc/{ranks.pids[0]}/task/{ranks.pids[0]}/children").read_text().split()
    assert children, "the run has no worker"
    for process in [*map(int, children), ranks.pids[0]]:
        os.kill(process, signal.SIGTERM)
    assert ranks.ended(60) == [AGAIN], ranks.output()
    assert "killed by signal" not in ranks.output()
    assert len(list((tmp_path / "out").glob("checkpoint-*"))) == 1
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{child}/cmdline").exists() for child in children):
        assert time.monotonic() < deadline, "a worker outlives its rank"
        time.sleep(0.05)


@pytest.mark.slow
def test_the_end_of_the_job_is_noticed_in_time(many_steps: list[str], tmp_path: Path) -> None:
    end = str(int(time.time()) + 1000)
    ranks = start([*many_steps, "--stop_before_end", "999.5"], 1, tmp_path / "logs", SLURM_JOB_END_TIME=end)
    assert ranks.ended(100) == [AGAIN], ranks.output()
    assert "the job's time ends in" in ranks.output()
    assert 0 < steps_of(tmp_path / "out") < 24
    shutil.rmtree(tmp_path / "out")
    # Without a clock to look at, or a limit that is far away, it runs to its end.
    ranks = start([*many_steps, "--max_steps", "3"], 1, tmp_path / "logs", SLURM_JOB_END_TIME=end)
    assert ranks.ended(100) == [0], ranks.output()


@pytest.mark.slow
def test_nothing_to_go_on_from_is_said(many_steps: list[str], tmp_path: Path) -> None:
    ranks = start([*many_steps, "--save_only_model", "True"], 1, tmp_path / "logs")
    wait_for_steps(ranks, tmp_path / "out", 3)
    os.kill(ranks.pids[0], signal.SIGTERM)
    assert ranks.ended(60) == [AGAIN], ranks.output()
    assert "--save_only_model" in ranks.output()
    assert not (tmp_path / "out" / "start_again.json").exists()
