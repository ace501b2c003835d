"""A step that is not finite is never applied: not on one process, not with DDP, not with ZeRO; by policy it ends the
run, or is written down and left out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from internvl_chat.data.address import Address
from internvl_chat.errors import ConfigError, DataError
from internvl_chat.train.nonfinite import (
    MAX_IN_A_ROW,
    StepGuard,
    Suspect,
    check_deepspeed,
    forget_after,
    ledger_path,
    poison,
)
from tests.train.runs import flags, log_of, run_all
from tests.train.test_zero import zero_config

SHARED = {"num_train_epochs": 3, "gradient_accumulation_steps": 2, "weight_decay": 0.1, "nonfinite_step": "skip"}
# Of six steps the second has an infinite loss in its first micro-batch, the fourth an infinite gradient in its last.
BAD = {1: ["loss", 1, 0], 3: ["gradient", 0, 1]}
KINDS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "zero1": {"stage": "zero1"},
    "zero2": {"stage": "zero2"},
    "zero3": {"stage": "zero3"},
    "zero1 bf16": {"stage": "zero1", "bf16": True},
    "zero2 bf16": {"stage": "zero2", "bf16": True},
    "zero3 bf16": {"stage": "zero3", "bf16": True},
    "zero3_offload bf16": {"stage": "zero3_offload", "bf16": True},
}
STOPS = ("ddp", "zero2", "zero3")


@pytest.fixture(scope="module")
def runs(tiny: Path, mixed_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("nonfinite")

    def job(name: str, bad: dict[int, list[Any]], **changes: Any) -> list[str]:
        stage = changes.pop("stage", None)
        config = {"deepspeed": zero_config(stage, root)} if stage else {}
        argv = flags(tiny, mixed_data, root / name, **{**SHARED, **config, **changes})
        return ["poison", json.dumps(bad), str(root / f"{name}.report"), *argv]

    one = {1: ["loss", 0, 0], 3: ["gradient", 0, 1]}
    run_all([job("one", one, num_train_epochs=2), job("one stops", {2: ["loss", 0, 1]}, nonfinite_step="stop")])
    jobs = [job(name, BAD, **changes) for name, changes in KINDS.items()]
    jobs += [job(f"{name} stops", {1: BAD[1]}, nonfinite_step="stop", **KINDS[name]) for name in STOPS]
    run_all(jobs, processes=2)
    return root


def report(runs: Path, name: str, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((runs / f"{name}.report.{rank}.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one", *KINDS])
def test_a_step_that_is_not_finite_moves_nothing(runs: Path, name: str) -> None:
    for rank in range(1 if name == "one" else 2):
        found = report(runs, name, rank)
        assert found["error"] is None and len(found["after"]) >= 6
        moved = [a != b for a, b in zip(found["before"], found["after"], strict=True)]
        assert [step for step, there in enumerate(moved) if not there] == [1, 3]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one", *KINDS])
def test_it_is_counted_written_down_and_not_in_the_loss(runs: Path, name: str) -> None:
    records = [record for record in log_of(runs / name) if "steps_skipped" in record]
    assert [record["steps_skipped"] for record in records][:6] == [0, 1, 1, 2, 2, 2]
    assert [index for index, record in enumerate(records) if "loss" not in record] == [1, 3]
    assert all(math.isfinite(value) for record in records for value in record.values())
    assert math.isfinite(log_of(runs / name)[-1]["train_loss"])
    for rank in range(1 if name == "one" else 2):
        lines = [json.loads(line) for line in ledger_path(runs / name, rank).read_text().splitlines()]
        assert {line["step"] for line in lines} == {2, 4} and len(lines) == 4
        assert all(line["rank"] == rank and not line["applied"] and line["dataset"] == "mixed" for line in lines)
    blamed = 0 if name == "one" else 1
    lines = [json.loads(line) for line in ledger_path(runs / name, blamed).read_text().splitlines()]
    (found,) = [line["loss"] for line in lines if line["step"] == 2 and line["micro_batch"] == 0]
    assert found in ("inf", "nan")
    assert all(isinstance(line["loss"], float) for line in lines if line["step"] == 4 or line["micro_batch"] == 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(KINDS)[1:])
def test_learning_rate_follows_the_step_also_with_deepspeed(runs: Path, name: str) -> None:
    def rates(run: str) -> list[float]:
        return [record["learning_rate"] for record in log_of(runs / run) if "steps_skipped" in record]

    assert rates(name) == pytest.approx(rates("ddp")) and len(set(rates(name))) == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one stops", *(f"{name} stops" for name in STOPS)])
def test_stop_ends_the_run_on_every_rank_with_the_weights_untouched(runs: Path, name: str) -> None:
    for rank in range(1 if name == "one stops" else 2):
        found = report(runs, name, rank)
        assert str(ledger_path(runs / name, rank)) in found["error"]
        assert "--nonfinite_step skip" in found["error"] and "mixed:" in found["error"]
        assert len(found["before"]) == len(found["after"]) + 1
    assert not (runs / name / "model.safetensors").exists()


def test_poison_changes_no_bit_of_a_good_loss_and_all_of_a_bad_gradient() -> None:
    value = torch.tensor(0.1, requires_grad=True)
    loss = poison(value * 3)
    assert loss.item() == (value * 3).item()
    loss.backward()
    assert value.grad is not None and value.grad.item() == 3
    bad = torch.tensor(1.0, requires_grad=True)
    poison(bad * 2 + math.inf).backward()  # the sum's own gradient would be 2
    assert bad.grad is not None and math.isnan(bad.grad.item())


def test_twenty_in_a_row_are_the_end(tmp_path: Path) -> None:
    guard = StepGuard("skip", tmp_path / "nonfinite.jsonl", 0)
    suspects = [Suspect([Address("cats", 4)], math.nan), Suspect([Address("dogs", 1)], 0.5)]
    for step in range(MAX_IN_A_ROW - 1):
        guard.refuse(step + 1, "loss is nan", suspects)
    guard.passed()
    for step in range(MAX_IN_A_ROW - 1):
        guard.refuse(step + 30, "loss is nan", suspects)
    with pytest.raises(DataError, match=r"20 steps in a row .*nonfinite\.jsonl"):
        guard.refuse(99, "loss is nan", suspects)
    assert len((tmp_path / "nonfinite.jsonl").read_text().splitlines()) == 2 * (2 * MAX_IN_A_ROW - 1)
    with pytest.raises(DataError, match="samples: cats:5 "):
        StepGuard("stop", tmp_path / "other.jsonl", 0).refuse(1, "loss is nan", suspects)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"zero_optimization": {"stage": 2}, "bf16": {"enabled": True, "check_grad_overflow": False}}, "check_grad"),
        ({"zero_optimization": {"stage": 1, "compute_grad_norm": False}}, "compute_grad_norm"),
        ({}, "stage 0"),
    ],
)
def test_configurations_that_would_not_look_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_deepspeed(config)


def test_steps_that_are_made_again_are_written_once(tmp_path: Path) -> None:
    suspects = [Suspect([Address("notes", 3)], math.nan)]
    for rank in range(2):
        guard = StepGuard("skip", ledger_path(tmp_path, rank), rank)
        for step in (2, 5, 9):
            guard.refuse(step, "loss is nan", suspects)
        with guard.path.open("a") as file:
            file.write('{"step": 1')  # killed while it was written
    forget_after(tmp_path, 5)
    for rank in range(2):
        lines = ledger_path(tmp_path, rank).read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [2, 5]


def test_shipped_configurations_look() -> None:
    for stage in (1, 2, 3):
        for half in ({}, {"bf16": {"enabled": True}}, {"fp16": {"enabled": True}}):
            check_deepspeed({"zero_optimization": {"stage": stage}, **half})
