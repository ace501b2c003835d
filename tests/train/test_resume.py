"""A killed run goes on as if nothing had happened: same batches, losses and weights, to the last bit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image

from internvl_chat import cli
from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.train.state import (
    MARKER,
    DataState,
    begin_saving,
    check_model_survives,
    clear_old_run,
    clear_unfinished,
    complete_checkpoints,
    find_resume,
    finish_saving,
    keep_newest,
)
from tests.train import warm
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


def kill_after_checkpoint(words: list[str], out: Path, step: int, logs: Path, timeout: float = 120) -> None:
    """SIGKILL to every rank of a run of two as soon as the checkpoint of ``step`` is complete."""
    ranks = warm.start([words], 2, logs, environment())
    deadline = time.monotonic() + timeout
    while not (out / f"checkpoint-{step}" / MARKER).is_file():
        assert ranks.codes() == [None, None], f"the run ended before it could be killed: {ranks.output()[-4000:]}"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    ranks.kill()
    ranks.end()
    assert -9 in ranks.codes()


@pytest.mark.slow
def test_kill_nine_then_resume_with_other_workers(tiny: Path, mixed_data: Path, tmp_path: Path) -> None:
    """ZeRO-2, two processes; the first attempt has no loader workers, the second has two."""
    config = zero_config("zero2", tmp_path)
    shared = {**SHARED, "deepspeed": config, "num_train_epochs": 10, "save_steps": 8}
    run_all([flags(tiny, mixed_data, tmp_path / "whole", **shared)], processes=2)
    out = tmp_path / "killed"
    kill_after_checkpoint(flags(tiny, mixed_data, out, **shared), out, step=8, logs=tmp_path / "logs")
    reached = complete_checkpoints(out)[-1].name
    assert not (out / "model.safetensors").exists()
    assert reached != "checkpoint-40", "the kill came too late to show anything"
    run_all([flags(tiny, mixed_data, out, **{**shared, "dataloader_num_workers": 2})], processes=2)
    assert losses(out) == losses(tmp_path / "whole"), f"resumed from {reached}"
    assert [r["epoch"] for r in log_of(out) if "loss" in r] == [
        r["epoch"] for r in log_of(tmp_path / "whole") if "loss" in r
    ]
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(out)[name]), name


@pytest.fixture(scope="module")
def whole(tiny: Path, mixed_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, packed, nine steps, a checkpoint every two."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run_all([flags(tiny, mixed_data, out, **SHARED, **PACKED)])
    return out


@pytest.mark.slow
def test_every_checkpoint_resumes_to_the_same_end(whole: Path, tiny: Path, mixed_data: Path, tmp_path: Path) -> None:
    checkpoints = complete_checkpoints(whole)
    other = tmp_path / "other"
    jobs = [
        ["copy", str(checkpoints[0]), str(other / checkpoints[0].name)],
        flags(tiny, mixed_data, other, **{**SHARED, **PACKED, "logging_steps": 4, "save_steps": 3}),
    ]
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
    assert [record["step"] for record in log_of(other) if "loss" in record] == [4, 8], "as given now"
    assert names(other) == ["checkpoint-2", "checkpoint-3", "checkpoint-6", "checkpoint-9"]


def make_checkpoint(folder: Path, step: int, complete: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    begin_saving(checkpoint)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    if complete:
        finish_saving(checkpoint, DataState(step, [], "", {}, 100, 1))
    return checkpoint


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def test_interrupted_save_is_ignored_and_removed(tmp_path: Path) -> None:
    for step in (2, 4):
        make_checkpoint(tmp_path, step)
    make_checkpoint(tmp_path, 10, complete=False)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
    found = find_resume(tmp_path, overwrite=False, requested=None)
    assert found is not None
    assert found[0].name == "checkpoint-4"
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        find_resume(tmp_path, overwrite=False, requested=str(tmp_path / "checkpoint-10"))
    clear_unfinished(tmp_path)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4"]


def test_overwrite_starts_again_but_a_requeued_job_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path, 4)
    assert find_resume(tmp_path, overwrite=True, requested=None) is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    found = find_resume(tmp_path, overwrite=True, requested=None)
    assert found is not None
    assert found[1].step == 4


def test_checkpoints_of_another_program_are_never_touched(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-1000").mkdir()
    (tmp_path / "checkpoint-1000" / "model.safetensors").write_bytes(b"precious")
    with pytest.raises(ConfigError, match="already holds checkpoint-1000"):
        find_resume(tmp_path, overwrite=False, requested=None)
    clear_old_run(tmp_path, overwrite=False)
    clear_unfinished(tmp_path)
    assert names(tmp_path) == ["checkpoint-1000"]
    clear_old_run(tmp_path, overwrite=True)
    assert names(tmp_path) == []


def test_model_to_start_from_is_not_overwritten(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, 3)
    with pytest.raises(ConfigError, match="would delete"):
        check_model_survives(tmp_path, checkpoint, fresh=True)
    check_model_survives(tmp_path, checkpoint, fresh=False)
    check_model_survives(tmp_path / "other", checkpoint, fresh=True)


def test_going_back_to_an_older_checkpoint_wants_the_later_ones_away(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        make_checkpoint(tmp_path, step)
    with pytest.raises(ConfigError, match="checkpoint-2, checkpoint-3"):
        find_resume(tmp_path, overwrite=False, requested=str(tmp_path / "checkpoint-1"))
    assert find_resume(tmp_path / "new", overwrite=False, requested=str(tmp_path / "checkpoint-1")) is not None


def test_resume_true_needs_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no complete checkpoint"):
        find_resume(tmp_path, overwrite=False, requested="True")


def test_old_checkpoints_are_deleted_oldest_first(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        make_checkpoint(tmp_path, step)
    make_checkpoint(tmp_path, 11, complete=False)
    keep_newest(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-100", "checkpoint-11"]


def test_saving_again_starts_from_an_empty_folder(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, 5, complete=False)
    begin_saving(checkpoint)
    assert not (checkpoint / "model.safetensors").exists()


@pytest.mark.slow
def test_another_seed_is_refused(
    whole: Path, tiny: Path, mixed_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole / "checkpoint-2", tmp_path / "checkpoint-2")
    words = flags(tiny, mixed_data, tmp_path, seed=7, **SHARED, **PACKED)
    assert cli.main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert "seed: 42 then, 7 now" in error
    assert "another --output_dir" in error


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


@pytest.mark.slow
@pytest.mark.parametrize("checked", [False, True], ids=["mended", "mended-and-checked"])
def test_mended_picture_does_not_stop_a_resumed_run(tiny: Path, tmp_path: Path, checked: bool) -> None:
    """A line that was faulty when the run began stays out of it, also when its picture has come back since."""
    lines = [
        {"image": f"{number}.png", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]}
        for number in range(4)
    ]
    for number in range(3):
        Image.new("RGB", (30, 30)).save(tmp_path / f"{number}.png")
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "a.json").write_text(
        json.dumps({"a": {"root": str(tmp_path), "annotation": str(tmp_path / "a.jsonl")}})
    )
    words = flags(
        tiny, tmp_path / "a.json", tmp_path / "out", max_fault_share=0.5, save_strategy="steps", save_steps=1,
        num_train_epochs=2, save_total_limit=2, index_dir=tmp_path / "index",
    )  # fmt: skip
    assert cli.main(["train", *words]) == 0
    whole = losses(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "checkpoint-6")
    Image.new("RGB", (30, 30)).save(tmp_path / "3.png")
    if checked:  # which measures the picture, and writes it into the index
        index = str(next(value for name, value in pairwise(words) if name == "--index_dir"))
        look = ["--model_name_or_path", str(tiny), "--index_dir", index, "--max_seq_length", "400"]
        assert cli.main(["check", str(tmp_path / "a.json"), *look]) == 0
    assert cli.main(["train", *words]) == 0
    assert losses(tmp_path / "out") == whole
    assert names(tmp_path / "out") == ["checkpoint-5", "checkpoint-6"]


@pytest.mark.slow
def test_checkpoints_without_optimizer_are_not_resumed(tiny: Path, mixed_data: Path, tmp_path: Path) -> None:
    words = flags(tiny, mixed_data, tmp_path, save_strategy="epoch", save_only_model=True, num_train_epochs=2)
    assert cli.main(["train", *words]) == 0
    assert names(tmp_path) == ["checkpoint-16", "checkpoint-8"], "one at the end of each epoch"
    assert complete_checkpoints(tmp_path) == []
    assert (tmp_path / "checkpoint-8" / "model.safetensors").is_file()
