"""A killed run goes on as if nothing had happened: same batches, losses and weights, to the last bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from internvl_chat import cli
from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.train.state import (
    MARKER,
    DataState,
    complete_checkpoints,
    find_resume,
    keep_newest,
    write_marker,
)
from tests.train.runs import environment, flags, log_of, losses, run_all, weights
from tests.train.test_zero import zero_config

SHARED = {
    "num_train_epochs": 3,
    "drop_path_rate": 0.1,
    "save_strategy": "steps",
    "save_steps": 2,
    "lr_scheduler_type": "cosine",
}
PACKED = {"use_packed_ds": True, "max_packed_tokens": 700}


def start_two_processes(words: list[str]) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "internvl_chat.train",
    ]
    return subprocess.Popen(
        [*command, *words],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def kill_after_checkpoint(words: list[str], out: Path, step: int, timeout: float = 120) -> None:
    """SIGKILL to every process of the run as soon as the checkpoint of ``step`` is complete."""
    process = start_two_processes(words)
    deadline = time.monotonic() + timeout
    while not (out / f"checkpoint-{step}" / MARKER).is_file():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_kill_nine_then_resume_with_other_workers(tiny: Path, mixed_data: Path, tmp_path: Path) -> None:
    """ZeRO-2, two processes; the first attempt has no loader workers, the second has two."""
    config = zero_config("zero2", tmp_path)
    shared = {**SHARED, "deepspeed": config, "num_train_epochs": 6}
    run_all([flags(tiny, mixed_data, tmp_path / "whole", **shared)], processes=2)
    out = tmp_path / "killed"
    kill_after_checkpoint(flags(tiny, mixed_data, out, **shared), out, step=4)
    reached = complete_checkpoints(out)[-1].name
    assert not (out / "model.safetensors").exists()
    run_all([flags(tiny, mixed_data, out, **{**shared, "dataloader_num_workers": 2})], processes=2)
    assert losses(out) == losses(tmp_path / "whole"), f"resumed from {reached}"
    assert [r["epoch"] for r in log_of(out) if "loss" in r] == [
        r["epoch"] for r in log_of(tmp_path / "whole") if "loss" in r
    ]
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(out)[name]), name


@pytest.fixture(scope="module")
def whole(tiny: Path, mixed_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, packed, six steps, a checkpoint every two."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run_all([flags(tiny, mixed_data, out, **SHARED, **PACKED)])
    return out


@pytest.mark.slow
def test_every_checkpoint_resumes_to_the_same_end(whole: Path, tiny: Path, mixed_data: Path, tmp_path: Path) -> None:
    checkpoints = complete_checkpoints(whole)
    jobs = []
    for checkpoint in checkpoints:
        out = tmp_path / checkpoint.name
        jobs += [
            ["copy", str(checkpoint), str(out / checkpoint.name)],
            flags(tiny, mixed_data, out, **{**SHARED, **PACKED, "dataloader_num_workers": 1}),
        ]
    run_all(jobs)
    assert len(checkpoints) >= 3
    for checkpoint in checkpoints:
        step = int(checkpoint.name.split("-")[1])
        assert losses(tmp_path / checkpoint.name) == losses(whole)[step:]
        for name, tensor in weights(whole).items():
            assert torch.equal(tensor, weights(tmp_path / checkpoint.name)[name]), (checkpoint.name, name)


def test_checkpoint_without_marker_is_ignored(tmp_path: Path) -> None:
    for step in (2, 4, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (2, 4):
        write_marker(tmp_path / f"checkpoint-{step}", DataState(step, 0, 1, "x"))
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
    assert find_resume(tmp_path, overwrite=False, requested=None) == tmp_path / "checkpoint-4"
    assert find_resume(tmp_path, overwrite=True, requested=None) is None
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        find_resume(tmp_path, overwrite=False, requested=str(tmp_path / "checkpoint-10"))


def test_resume_true_needs_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no complete checkpoint"):
        find_resume(tmp_path, overwrite=False, requested="True")


def test_old_checkpoints_are_deleted_oldest_first(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        write_marker(tmp_path / f"checkpoint-{step}", DataState(step, 0, 1, "x"))
    keep_newest(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-100"]


@pytest.mark.slow
def test_another_seed_is_refused(
    whole: Path, tiny: Path, mixed_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole / "checkpoint-2", tmp_path / "checkpoint-2")
    words = flags(tiny, mixed_data, tmp_path, seed=7, **SHARED, **PACKED)
    assert cli.main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert "seed: 42 then, 7 now" in error
    assert "--model_name_or_path" in error


@pytest.mark.slow
def test_finished_run_started_again_changes_nothing(whole: Path, tiny: Path, mixed_data: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "again")
    assert cli.main(["train", *flags(tiny, mixed_data, tmp_path / "again", **SHARED, **PACKED)]) == 0
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(tmp_path / "again")[name])
    assert losses(tmp_path / "again") == losses(whole)


@pytest.mark.slow
def test_final_folder_loads_in_a_fresh_process(whole: Path) -> None:
    """With plain from_pretrained, and every tensor as it was in the last checkpoint."""
    code = (
        "import sys, torch; from internvl_chat.model.chat import InternVLChatModel;"
        "a, b = (InternVLChatModel.from_pretrained(p, dtype=torch.float32) for p in sys.argv[1:]);"
        "ids = torch.arange(20)[None] % 200; print(torch.equal(a(input_ids=ids).logits, b(input_ids=ids).logits))"
    )
    last = complete_checkpoints(whole)[-1]
    done = subprocess.run(
        [sys.executable, "-c", code, str(whole), str(last)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
    )
    assert done.stdout.strip().endswith("True"), done.stderr[-2000:]
    saved = json.loads((whole / "generation_config.json").read_text())
    assert saved["eos_token_id"], "the stop marker of the template must end an answer"
