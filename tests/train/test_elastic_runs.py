"""A run goes on with another number of ranks, or another ZeRO stage, as if it had never stopped."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState

from internvl_chat.errors import CheckpointError
from internvl_chat.train import elastic
from internvl_chat.train.elastic import FreshRandomness, remove_universal
from tests.train import warm
from tests.train.runs import environment, flags, losses
from tests.train.test_zero import zero_config

# What DeepSpeed gets wrong by itself is seen only with decay, with rates of their own, and with several groups.
SHARED = {
    "num_train_epochs": 2,
    "save_strategy": "steps",
    "save_steps": 3,
    "weight_decay": 0.3,
    "vit_lr": 0.002,
    "warmup_steps": 2,
    "max_grad_norm": 1.0,
}
LORA = {**SHARED, "vit_lr": None, "use_llm_lora": 4, "lora_dropout": 0.0}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the runs, with the ZeRO configurations in it."""
    folder = tmp_path_factory.mktemp("elastic")
    for stage in ("zero1", "zero2", "zero3"):
        zero_config(stage, folder)
    return folder


class Runner:
    """Runs by name, each made once; of two ranks, or of one that accumulates twice: the same packs in a step."""

    def __init__(self, root: Path, model: Path, data: Path) -> None:
        self.root, self._model, self._data = root, model, data

    def start(self, name: str, ranks: int, stage: str | None, expected: int = 0, **changes: Any) -> str:
        """Run to the end; returns what was printed."""
        config = None if stage is None else self.root / f"{stage}.json"
        changes = {**SHARED, "gradient_accumulation_steps": 2 // ranks, "deepspeed": config, **changes}
        words = flags(self._model, self._data, self.root / name, **changes)
        processes = warm.start([words], ranks, self.root / f"log-{name}", environment())
        codes = processes.wait(120)
        processes.end()
        assert codes[0] == expected, processes.output()[-6000:]
        return processes.output()

    def first(self, name: str, ranks: int, stage: str | None, **changes: Any) -> str:
        """A run from the beginning."""
        if not (self.root / name).exists():
            self.start(name, ranks, stage, **changes)
        return name

    def branch(self, source: str, step: int, name: str) -> None:
        """A folder in which only one checkpoint of another run lies."""
        shutil.copytree(self.root / source / f"checkpoint-{step}", self.root / name / f"checkpoint-{step}")

    def resumed(self, source: str, step: int, name: str, ranks: int, stage: str | None, **changes: Any) -> str:
        """Go on from a checkpoint of another run; checks that the losses are those of the unbroken one."""
        self.branch(source, step, name)
        output = self.start(name, ranks, stage, **changes)
        expected = losses(self.root / source)[-(8 - step) :]
        assert len(losses(self.root / name)) == 8 - step
        assert losses(self.root / name) == pytest.approx(expected, rel=2e-6)
        left = {path.name for path in (self.root / name).rglob("*universal*")}
        assert left == set(), "the copy must go when a checkpoint of the new run is complete"
        return output


@pytest.fixture(scope="module")
def runner(root: Path, tiny: Path, mixed_data: Path) -> Runner:
    return Runner(root, tiny, mixed_data)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_two_ranks_then_one(runner: Runner, stage: str) -> None:
    source = runner.first(stage, 2, stage)
    assert len(losses(runner.root / source)) == 8
    output = runner.resumed(source, 3, f"{stage}-to-one", 1, stage)
    assert "rewriting the optimizer (2 ranks -> 1" in output
    assert "removing" in output


@pytest.mark.slow
def test_one_rank_then_two_in_another_stage(runner: Runner) -> None:
    source = runner.first("one", 1, "zero1")
    output = runner.resumed(source, 3, "one-to-two", 2, "zero3")
    assert "rewriting the optimizer (1 ranks -> 2" in output


@pytest.mark.slow
def test_zero1_and_zero2_read_each_other(runner: Runner) -> None:
    """Nothing is rewritten: what they save is alike."""
    output = runner.resumed(runner.first("one", 1, "zero1"), 3, "one-in-zero2", 1, "zero2")
    assert "rewriting" not in output


@pytest.mark.slow
def test_lora_with_fewer_ranks_in_another_stage(runner: Runner) -> None:
    """Its checkpoints hold no frozen weights."""
    source = runner.first("lora", 2, "zero3", **LORA)
    runner.resumed(source, 3, "lora-to-one", 1, "zero2", **LORA)


@pytest.mark.slow
def test_without_deepspeed_nothing_is_rewritten(runner: Runner) -> None:
    output = runner.resumed(runner.first("plain", 2, None), 3, "plain-to-one", 1, None)
    assert "rewriting" not in output


@pytest.mark.slow
def test_new_dropout_is_the_same_at_every_restart(runner: Runner) -> None:
    drops = {"drop_path_rate": 0.1}
    source = runner.first("drops", 2, None, **drops)
    for name in ("drops-a", "drops-b"):
        runner.branch(source, 3, name)
        runner.start(name, 1, None, **drops)
    assert losses(runner.root / "drops-a") == losses(runner.root / "drops-b")
    assert losses(runner.root / "drops-a") != losses(runner.root / source)[3:]


@pytest.mark.slow
@pytest.mark.parametrize(("then", "now"), [(None, "zero2"), ("zero2", None)])
def test_with_and_without_deepspeed_do_not_mix(runner: Runner, then: str | None, now: str | None) -> None:
    source = runner.first(then or "plain", 2, then)
    runner.branch(source, 3, f"{source}-mixed")
    output = runner.start(f"{source}-mixed", 1, now, expected=1)
    assert "keep the optimizer in different forms" in output
    assert "what trains" not in output, "found out too late: the model has been loaded"


# -- without a run ----------------------------------------------------------------------------------------------------


def fake(checkpoint: Path, shards: int, third: bool = False) -> Path:
    """The folder of a ZeRO checkpoint, with nothing in its files."""
    folder = checkpoint / "global_step3"
    folder.mkdir(parents=True)
    (checkpoint / "latest").write_text("global_step3")
    for rank in range(shards):
        (folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").write_bytes(b"x" * 1000)
        name = f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" if third else "mp_rank_00_model_states.pt"
        (folder / name).write_bytes(b"x")
    return checkpoint


def prepared(checkpoint: Path, then: int, now: int, stage: int | None, **zero: Any) -> str | None:
    args: Any = SimpleNamespace(hf_deepspeed_config=SimpleNamespace(config={"zero_optimization": zero}))
    return elastic._prepare_folder(checkpoint, then, now, stage, args)


def test_missing_files_of_other_nodes_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="of 2 ranks, but 4 wrote it"):
        prepared(fake(tmp_path, 2), 4, 2, 2)


def test_damaged_checkpoint_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"2 ranks -> 1.*resume with the number of ranks"):
        prepared(fake(tmp_path, 2), 2, 1, 2)
    assert not list(tmp_path.glob("*universal*"))


def test_full_disk_is_found_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=3000)
    monkeypatch.setattr(elastic.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"up to 0\.0 MB.*free there"):
        prepared(fake(tmp_path, 2), 2, 1, 2)


def test_optimizer_on_nvme_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="NVMe"):
        prepared(fake(tmp_path, 2, third=True), 2, 1, 3, offload_optimizer={"device": "nvme"})


def test_whole_copy_is_used_again_and_half_a_copy_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess[str]([], 1, stdout="no")
    monkeypatch.setattr(elastic.subprocess, "run", lambda *args, **options: failed)
    checkpoint = fake(tmp_path, 2)
    whole = checkpoint / "global_step3_universal_zero2"
    whole.mkdir()
    (checkpoint / "latest_universal").write_text(whole.name)
    assert prepared(checkpoint, 2, 1, 2) == whole.name
    (checkpoint / "latest_universal").unlink()
    with pytest.raises(CheckpointError, match="cannot rewrite"):
        prepared(checkpoint, 2, 1, 2)
    assert not whole.exists()


def test_copy_of_an_earlier_attempt_goes_when_it_is_not_needed(tmp_path: Path) -> None:
    checkpoint = fake(tmp_path, 2)
    (checkpoint / "global_step3_universal_zero2").mkdir()
    (checkpoint / "universal.tmp").mkdir()
    (checkpoint / "latest_universal").write_text("global_step3_universal_zero2")
    assert prepared(checkpoint, 2, 2, 2) is None
    assert sorted(path.name for path in checkpoint.iterdir()) == ["global_step3", "latest"]
    remove_universal(checkpoint)


def test_every_rank_and_step_has_randomness_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(rank: int, step: int) -> float:
        monkeypatch.setattr(elastic.dist, "rank", lambda: rank)
        callback = FreshRandomness(7, step)
        callback.on_step_begin(None, TrainerState(), TrainerControl())  # type: ignore[arg-type]
        value = float(torch.rand(()))
        callback.on_step_begin(None, TrainerState(), TrainerControl())  # type: ignore[arg-type]
        assert float(torch.rand(())) != value, "only before the first step"
        return value

    with torch.random.fork_rng():
        values = [draw(rank, step) for rank in (0, 1) for step in (3, 4)]
        assert len(set(values)) == 4
        assert draw(0, 3) == values[0]
