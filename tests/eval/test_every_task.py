"""Every task end to end with a tiny model on miniature data: whole, stopped and gone on, by one process and by two."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.cli import main
from internvl_chat.eval import run
from internvl_chat.eval.plan import Wishes, plan_jobs
from internvl_chat.eval.registry import keys, tasks
from internvl_chat.eval.run import Setup, run_job
from internvl_chat.infer.load import load
from internvl_chat.infer.loaded import Loaded
from internvl_chat.launch import Launch
from tests.eval.judges import FakeJudge
from tests.eval.mini import write_task


@pytest.fixture(scope="module")
def loaded(lively: Path) -> Loaded:
    return load(lively, device="cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One data folder with the miniature data of all tasks, as a user has it."""
    folder = tmp_path_factory.mktemp("all") / "benchmarks"
    for name in tasks():
        write_task(name, folder)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """All that a run leaves, but for times, sheets (which hold one) and the judge's replies."""
    left_out = ("run.json", "judge.jsonl", "predictions.jsonl.settings.json")
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name not in left_out and path.suffix != ".xlsx"
    }


def setup_of(out: Path, rank: int, size: int, run: str, judge: Any) -> Setup:
    launch = Launch("torchrun", rank, size, rank, size) if size > 1 else Launch()
    return Setup(out, "tiny", {"checkpoint": "tiny"}, launch, run, batch_size=2, judge=lambda folder: judge)


@pytest.mark.parametrize("name", sorted(tasks()))
def test_two_processes_after_a_stop_leave_what_one_does(
    name: str, root: Path, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = plan_jobs([tasks()[name]], Wishes(root, max_new_tokens=3), dynamic=True)
    judge = FakeJudge({"": "0.5 0.5"}) if job.task.judged == "optional" else None
    whole = run_job(job, setup_of(tmp_path / "one", 0, 1, "one", judge), lambda: loaded)
    assert whole is not None
    assert whole.manifest["answered"] == len(job.items)
    answers = run.answers

    def stopped(*given: Any, **named: Any) -> Iterator[Any]:
        for number, found in enumerate(answers(*given, **named)):
            if number:
                raise KeyboardInterrupt
            yield found

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run, "answers", stopped)
        run_job(job, setup_of(tmp_path / "two", 0, 1, "two", judge), lambda: loaded)
    ends = [run_job(job, setup_of(tmp_path / "two", rank, 2, "three", judge), lambda: loaded) for rank in (1, 0)]
    assert any(end is not None for end in ends)
    assert content(tmp_path / "two/tiny" / job.folder) == content(tmp_path / "one/tiny" / job.folder)


@pytest.mark.parametrize("key", sorted(keys()))
def test_keys_as_they_are_typed(
    key: str, root: Path, lively: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """``evaluate.sh CKPT KEY --dynamic`` ends in this call (tests/shell/test_evaluate.py)."""
    monkeypatch.chdir(root.parent)
    shorter = ["--data_root", root.name, "--max_new_tokens", "2", "--no_judge", "--out-dir", str(tmp_path)]
    assert main(["eval", str(lively), key, "--dynamic", *shorter]) == 0
    out = capsys.readouterr().out
    for name in keys()[key]:
        (folder,) = (tmp_path / lively.name).glob(f"{name}+*")
        manifest = json.loads((folder / "run.json").read_text())
        assert manifest["answered"] == manifest["there"] > 0, out
        assert f"== {name}: " in out
