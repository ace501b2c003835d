"""What is logged: sums over ranks, the loss by data set, shares of time, MFU; of a real run, and of numbers by hand."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from internvl_chat.model.build import load_model
from internvl_chat.model.flops import TowerFlops, Work, tower_flops, trains_of
from internvl_chat.train.metrics import COLUMNS, Meter
from internvl_chat.train.timing import PHASES, PhaseClock, peak_memory
from tests.train.runs import flags, log_of, run_all

RUN = {"num_train_epochs": 2, "gradient_accumulation_steps": 2, "logging_steps": 2, "loss_reduction": "square"}


@pytest.fixture(scope="module")
def runs(tiny: Path, mixed_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets on one process and on two; the first alone is logged to TensorBoard."""
    root = tmp_path_factory.mktemp("metrics")
    folder = mixed_data.parent
    lines = (folder / "mixed.jsonl").read_text().splitlines()
    manifest = {}
    for name, part in (("cats", lines[:5]), ("dogs", lines[5:])):
        (folder / f"{name}.jsonl").write_text("\n".join(part) + "\n")
        manifest[name] = {"root": str(folder), "annotation": str(folder / f"{name}.jsonl")}
    (root / "two.json").write_text(json.dumps(manifest))
    shared = {**RUN, "peak_tflops": 0.001}
    run_all([flags(tiny, root / "two.json", root / "one", **{**shared, "gradient_accumulation_steps": 4,
                   "report_to": "tensorboard"})])  # fmt: skip
    run_all([flags(tiny, root / "two.json", root / "ddp", **shared)], processes=2)
    return root


def records(out: Path) -> list[dict[str, Any]]:
    return [record for record in log_of(out) if "loss" in record]


@pytest.mark.slow
@pytest.mark.parametrize("run", ["one", "ddp"])
def test_data_sets_sum_up_to_the_loss(runs: Path, run: str) -> None:
    found = records(runs / run)
    assert [record["step"] for record in found] == [1, 2, 4]
    for record in found:
        parts = [name for name in ("cats", "dogs") if f"loss/{name}" in record]
        assert sum(record[f"weight/{name}"] for name in parts) == pytest.approx(1, abs=1e-6)
        by_set = sum(record[f"weight/{name}"] * record[f"loss/{name}"] for name in parts)
        assert by_set == pytest.approx(record["loss"], rel=1e-5)
    samples = {name: sum(r.get(f"samples/{name}", 0) for r in found) for name in ("cats", "dogs")}
    assert samples == {"cats": 10, "dogs": 6}, "two epochs"
    assert all(type(value) in (int, float) for record in found for value in record.values())


@pytest.mark.slow
def test_two_ranks_log_what_one_does(runs: Path) -> None:
    same = ("loss/", "weight/", "tokens/", "samples/", "tiles/")
    for one, two in zip(records(runs / "one"), records(runs / "ddp"), strict=True):
        found = {key: value for key, value in one.items() if key.startswith(same)}
        assert len(found) >= 5
        assert found == pytest.approx({key: value for key, value in two.items() if key.startswith(same)}, rel=1e-5)


@pytest.mark.slow
def test_times_rates_and_memory_are_plausible(runs: Path, tiny: Path) -> None:
    model = load_model(tiny, torch.float32)
    flops = tower_flops(model.config, trains_of(model, vision_recompute=True))
    for record in records(runs / "one"):
        shares = {name: record[f"time/{name}"] for name in PHASES}
        assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) > 0
        assert record["mfu"] == pytest.approx(record["vit_mfu"] + record["llm_mfu"])
        assert record["mfu"] == pytest.approx(record["tflops"] / 0.001)
        again = record["vit_mfu"] * flops.vit_again.tile / flops.vit.tile
        assert record["hfu"] == pytest.approx(record["mfu"] + again), "of this run the vision tower is recomputed"
        assert record["vit_tflops"] == pytest.approx(record["tiles_per_second"] * flops.vit.tile / 1e12, rel=0.01)
        assert 0.1 < record["memory_rss_gib"] < 20 and 0 <= record["idle_share"] < 1
        assert record["steps_skipped"] == 0 and 0 < record["step_seconds"] < 60


@pytest.mark.slow
def test_tensorboard_has_every_number(runs: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = [file.parent for file in (runs / "one").rglob("events.out.tfevents*")]
    board = EventAccumulator(str(events[0]))
    board.Reload()
    tags = set(board.Tags()["scalars"])
    wanted = set().union(*(record.keys() for record in records(runs / "one"))) - {"step"}
    assert {f"train/{key}" for key in wanted} <= tags
    assert "train/loss/cats" in tags


def counts(**values: float) -> torch.Tensor:
    return torch.tensor([values.get(name, 0.0) for name in COLUMNS], dtype=torch.float64)


def meter_with_losses() -> Meter:
    meter = Meter(1, ("a", "b"))
    meter.add(counts(weight=4))
    meter._step_weights += torch.tensor([0.25, 0.75])
    groups, weights = torch.tensor([0, 1, 1]), torch.tensor([1.0, 1.0, 2.0])
    meter.add_losses(torch.tensor([8.0, 2.0, 1.0]), weights, groups, torch.tensor(4.0))
    return meter


def test_refused_step_leaves_no_trace_in_the_loss() -> None:
    meter = meter_with_losses()
    meter.applied()
    meter.add(counts(weight=1))
    meter.add_losses(torch.tensor([torch.inf]), torch.ones(1), torch.tensor([0]), 1.0)
    meter.refused()
    assert not meter.complete
    logs = meter.drain()
    assert logs["loss"] == 3.0 and logs["loss/a"] == 8.0 and logs["loss/b"] == pytest.approx(4 / 3)
    assert (logs["weight/a"], logs["weight/b"], logs["steps_skipped"]) == (0.25, 0.75, 1.0)
    assert meter.mean_loss() == 3.0
    meter.add(counts())
    meter.refused()
    assert "loss" not in meter.drain() and meter.mean_loss() == 3.0


def test_counts_go_on_after_a_resume() -> None:
    meter = Meter(1)
    meter.add(counts(faults=3))
    meter.refused()
    state = json.loads(json.dumps(meter.state_dict()))
    again = Meter(1)
    again.load_state_dict(state)
    again.add(counts(faults=2))
    assert (again.faults_in_all, again.steps_skipped) == (5, 1)
    again.load_state_dict({})
    assert again.faults_in_all == 0


def test_mfu_by_hand() -> None:
    tower = TowerFlops(vit=Work(tile=10e12), llm=Work(1e12, 0.5e12, 2e12), vit_again=Work(tile=5e12), llm_again=Work())
    meter = Meter(1, flops=tower, peak=1e12)
    meter.add(counts(tokens=4, squares=8, supervised=1, tiles=2))
    meter._since -= 10
    logs = meter.drain()
    assert logs["llm_tflops"] == pytest.approx(1.0, rel=0.01)  # (4 + 4 + 2) / 10 s
    assert logs["vit_mfu"] == pytest.approx(2.0, rel=0.01) and logs["hfu"] == pytest.approx(4.0, rel=0.01)
    assert "mfu" not in Meter(1, flops=tower).drain(), "unknown device"


def test_clock_attributes_every_second_once() -> None:
    clock = PhaseClock(torch.device("cpu"))
    for phase in ("forward", "backward", "backward", "other"):
        clock.enter(phase)
        time.sleep(0.01)
    found = dict(zip(PHASES, clock.drain(), strict=True))
    assert found["data"] == found["optimizer"] == 0
    assert found["forward"] >= 0.01 and found["backward"] >= 0.02 and found["other"] >= 0.01
    clock.skip(5)
    assert sum(clock.drain()) == 0
    assert peak_memory(torch.device("cpu"))["memory_rss_gib"] > 0.05
