"""A run goes on with another shape (packs per step, budgets, padding); every sample of the epoch is still seen once."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from internvl_chat import cli
from internvl_chat.train.state import MARKER, read_marker
from tests.train.runs import flags, log_of, losses

PACKED = {
    "use_packed_ds": True,
    "max_packed_tokens": 400,
    "num_train_epochs": 2,
    "save_strategy": "steps",
    "save_steps": 1,
    "lr_scheduler_type": "constant",
}


def samples_seen(out: Path) -> Counter[str]:
    """Samples of each data set over all steps of the log, which a resume has cut where the run goes on."""
    seen: Counter[str] = Counter()
    for record in log_of(out):
        seen.update({k.removeprefix("samples/"): int(v) for k, v in record.items() if k.startswith("samples/")})
    return seen


def steps_in_log(out: Path) -> list[int]:
    return [record["step"] for record in log_of(out) if "loss" in record]


@pytest.fixture(scope="module")
def whole(tiny: Path, mixed_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two packs per step, a checkpoint at each."""
    out = tmp_path_factory.mktemp("reshape") / "run"
    assert cli.main(["train", *flags(tiny, mixed_data, out, gradient_accumulation_steps=2, **PACKED)]) == 0
    return out


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_accumulation_steps": 1},
        {"gradient_accumulation_steps": 1, "max_packed_tokens": 900},
        {"use_packed_ds": False, "max_packed_tokens": None, "per_device_train_batch_size": 2},
    ],
    ids=["fewer", "larger-packs", "padded"],
)
def test_every_sample_is_seen_once_per_epoch(
    whole: Path,
    tiny: Path,
    mixed_data: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = samples_seen(whole)
    assert log_of(whole)[0]["epoch"] < 0.6, "the first step is not the whole epoch"
    assert set(expected.values()) - {0}
    out = tmp_path / "run"
    out.mkdir()
    shutil.copytree(whole / "checkpoint-1", out / "checkpoint-1")
    shutil.copy(whole / "train_log.jsonl", out)
    words = flags(tiny, mixed_data, out, **{**PACKED, "gradient_accumulation_steps": 2, **changes})
    assert cli.main(["train", *words]) == 0
    assert samples_seen(out) == expected
    assert losses(out)[0] == losses(whole)[0]
    steps = steps_in_log(out)
    assert steps == list(range(1, len(steps) + 1))
    assert log_of(out)[-2]["epoch"] == pytest.approx(2.0)
    assert (
        "what is left of this epoch is planned anew, every sample of it is still seen once" in capsys.readouterr().err
    )
    state = read_marker(out / f"checkpoint-{steps[-1]}")
    assert [segment.steps for segment in state.segments()] == [1, steps[-1] - 1]


@pytest.mark.slow
def test_other_data_is_refused_by_name_and_number(
    whole: Path, tiny: Path, mixed_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads(mixed_data.read_text())
    name = next(iter(manifest))
    lines = Path(manifest[name]["annotation"]).read_text().splitlines()
    (tmp_path / "less.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    manifest[name]["annotation"] = str(tmp_path / "less.jsonl")
    (tmp_path / "less.json").write_text(json.dumps(manifest))
    shutil.copytree(whole / "checkpoint-1", tmp_path / "run" / "checkpoint-1")
    words = flags(tiny, tmp_path / "less.json", tmp_path / "run", gradient_accumulation_steps=2, **PACKED)
    assert cli.main(["train", *words]) == 2
    error = capsys.readouterr().err
    assert f"data set {name!r}: {len(lines)} usable lines then, {len(lines) - 1} now" in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_a_finished_run_goes_on_at_the_rate_of_the_new_schedule(tiny: Path, mixed_data: Path, tmp_path: Path) -> None:
    """Its last rate was all but 0, and stayed so for a step; the summary at the end is one, not two."""
    words = {**PACKED, "lr_scheduler_type": "linear", "gradient_accumulation_steps": 2, "learning_rate": 0.01}
    assert cli.main(["train", *flags(tiny, mixed_data, tmp_path, **words, max_steps=2)]) == 0
    assert cli.main(["train", *flags(tiny, mixed_data, tmp_path, **words, max_steps=5)]) == 0
    rates = [record["learning_rate"] for record in log_of(tmp_path) if "loss" in record]
    assert rates == pytest.approx([0.01, 0.005, 0.006, 0.004, 0.002])
    assert [record["step"] for record in log_of(tmp_path) if "train_runtime" in record] == [5]
    assert cli.main(["train", *flags(tiny, mixed_data, tmp_path, **words, max_steps=5)]) == 0
    assert [record["step"] for record in log_of(tmp_path) if "train_runtime" in record] == [5]


@pytest.mark.slow
def test_the_last_checkpoint_of_an_epoch_is_written_once(
    tiny: Path, mixed_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library asks twice; the second time would delete what is complete, to write the same."""
    from internvl_chat.train import trainer

    begun: list[str] = []
    begin = trainer.begin_saving
    monkeypatch.setattr(trainer, "begin_saving", lambda folder: (begun.append(folder.name), begin(folder)))
    words = {**PACKED, "save_strategy": "epoch", "gradient_accumulation_steps": 4}
    assert cli.main(["train", *flags(tiny, mixed_data, tmp_path, **words)]) == 0
    assert len(begun) == len(set(begun)) == 2


@pytest.mark.slow
def test_data_sets_in_another_order_are_refused(
    tiny: Path, mixed_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Entries are numbered in the manifest's order: in another one samples would be lost and seen twice."""
    one = json.loads(mixed_data.read_text())
    ((name, entry),) = one.items()
    for path, names in (("ab", (name, "again")), ("ba", ("again", name))):
        (tmp_path / f"{path}.json").write_text(json.dumps(dict.fromkeys(names, entry)))
    words = {**PACKED, "max_steps": 2, "output_dir": tmp_path / "run"}
    assert cli.main(["train", *flags(tiny, tmp_path / "ab.json", tmp_path / "run", **words)]) == 0
    words["max_steps"] = 4
    assert cli.main(["train", *flags(tiny, tmp_path / "ba.json", tmp_path / "run", **words)]) == 2
    assert "the data sets stand in another order" in capsys.readouterr().err


@pytest.mark.slow
def test_steps_that_would_be_planned_otherwise_today_are_refused(
    whole: Path, tiny: Path, mixed_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole / "checkpoint-1", tmp_path / "checkpoint-1")
    marker = tmp_path / "checkpoint-1" / MARKER
    state = json.loads(marker.read_text())
    marker.write_text(json.dumps({**state, "plan": "of another version"}))
    assert cli.main(["train", *flags(tiny, mixed_data, tmp_path, gradient_accumulation_steps=2, **PACKED)]) == 2
    assert "this version of the program makes another plan of the steps that it has done" in capsys.readouterr().err


@pytest.mark.slow
def test_a_finished_run_that_is_started_again_leaves_its_last_checkpoint_alone(
    tiny: Path, mixed_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing it again would begin with deleting it, and a kill just then would leave nothing to go on from."""
    from internvl_chat.train import trainer

    words = flags(tiny, mixed_data, tmp_path, **{**PACKED, "save_strategy": "epoch", "save_total_limit": 1})
    assert cli.main(["train", *words]) == 0

    def refuse(folder: Path) -> None:
        raise AssertionError(f"{folder} is deleted")

    monkeypatch.setattr(trainer, "begin_saving", refuse)
    assert cli.main(["train", *words]) == 0
