"""Running tasks: the same answers and scores by one process, by two, one by one and in batches, killed and gone on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.errors import ConfigError, DataError
from internvl_chat.eval import run
from internvl_chat.eval.plan import Wishes, plan_jobs
from internvl_chat.eval.registry import resolve
from internvl_chat.eval.results import read_answers
from internvl_chat.eval.run import Setup, run_job
from internvl_chat.infer.chat import Chat
from internvl_chat.infer.load import load
from internvl_chat.infer.loaded import Loaded
from internvl_chat.launch import Launch
from tests.eval.mini.common import jsonl, picture

FILES = ("predictions.jsonl", "scored.jsonl", "metrics.json", "sqa_test.jsonl")


@pytest.fixture(scope="module")
def loaded(lively: Path) -> Loaded:
    return load(lively, device="cpu")


@pytest.fixture()
def data(tmp_path: Path) -> Path:
    """Eleven questions about four pictures."""
    root = tmp_path / "data"
    for number in range(4):
        picture(root / f"scienceqa/{number}.png", number, (60 + 40 * number, 100))
    records = [
        {
            "image": f"data/scienceqa/{number % 4}.png",
            "hint": "",
            "question": "What is it? " * (1 + number),
            "choices": ["a", "b", "c"],
            "answer": number % 3,
        }
        for number in range(11)
    ]
    jsonl(root / "scienceqa/scienceqa_test_img.jsonl", records)
    return root


def setup_of(out: Path, rank: int = 0, size: int = 1, **changes: Any) -> Setup:
    launch = Launch("torchrun", rank, size, rank, size) if size > 1 else Launch()
    return Setup(out, "tiny", {"checkpoint": "tiny 1"}, launch, changes.pop("run", "one"), **changes)


def job_of(data: Path, **wishes: Any) -> Any:
    tasks = [replace(task, count=None) for task in resolve(["scienceqa"])]  # all of it is here
    (job,) = plan_jobs(tasks, Wishes(data, max_new_tokens=8, **wishes), dynamic=True)
    return job


def content(out: Path, folder: str = "sqa_test+max_new_tokens=8") -> dict[str, bytes]:
    return {name: (out / "tiny" / folder / name).read_bytes() for name in FILES}


def test_answers_are_those_of_chat(tmp_path: Path, data: Path, loaded: Loaded) -> None:
    job = job_of(data)
    found = run_job(job, setup_of(tmp_path / "out", batch_size=4), lambda: loaded)
    assert found is not None
    assert found.complete
    answers = read_answers(found.folder / "predictions.jsonl")
    six_tiles = replace(loaded, tiles=replace(loaded.tiles, max_tiles=6))
    for item in job.items:
        (shown,) = item.shown
        answer = Chat(six_tiles).ask(item.text, [shown.source], max_new_tokens=8, min_new_tokens=1)
        assert answers[item.id] == answer, item.id
    assert len(set(answers.values())) > 4, "answers that are all alike prove nothing"


def test_batches_and_processes_make_no_difference(tmp_path: Path, data: Path, loaded: Loaded) -> None:
    job = job_of(data)
    run_job(job, setup_of(tmp_path / "one", batch_size=1), lambda: loaded)
    expected = content(tmp_path / "one")
    run_job(job, setup_of(tmp_path / "eight", batch_size=8, batch_tokens=600), lambda: loaded)
    assert content(tmp_path / "eight") == expected
    runs = [run_job(job, setup_of(tmp_path / "three", rank, 3), lambda: loaded) for rank in (2, 0, 1)]
    assert [found is not None for found in runs] == [False, False, True], "who ends last scores, and only that one"
    assert content(tmp_path / "three") == expected


def test_stopped_and_gone_on(tmp_path: Path, data: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(data)
    run_job(job, setup_of(tmp_path / "whole"), lambda: loaded)
    answers, asked = run.answers, []

    def broken(*given: Any, **named: Any) -> Iterator[Any]:
        for number, found in enumerate(answers(*given, **named)):
            if number == 5:
                raise KeyboardInterrupt
            asked.append(found)
            yield found

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run, "answers", broken)
        run_job(job, setup_of(tmp_path / "out", batch_size=2), lambda: loaded)
    folder = tmp_path / "out/tiny/sqa_test+max_new_tokens=8"
    assert not (folder / "metrics.json").exists(), "what is not whole has no score"
    assert not (folder / "run.json").exists()

    def counting(*given: Any, **named: Any) -> Iterator[Any]:
        for found in answers(*given, **named):
            asked.append(found)
            yield found

    monkeypatch.setattr(run, "answers", counting)
    run_job(job, setup_of(tmp_path / "out", run="two"), lambda: loaded)
    assert len(asked) == len(job.items), "what was answered is not asked again"
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def never() -> Loaded:
    raise AssertionError("the model is not needed")


def test_scored_again_without_a_model(tmp_path: Path, data: Path, loaded: Loaded) -> None:
    job = job_of(data)
    run_job(job, setup_of(tmp_path / "out"), lambda: loaded)
    before = content(tmp_path / "out")
    (tmp_path / "out/tiny/sqa_test+max_new_tokens=8/metrics.json").unlink()
    assert run_job(job, setup_of(tmp_path / "out", run="two"), never) is not None
    assert content(tmp_path / "out") == before


def test_a_picture_that_breaks_is_no_full_score(
    tmp_path: Path, data: Path, loaded: Loaded, caplog: pytest.LogCaptureFixture
) -> None:
    (data / "scienceqa/2.png").write_bytes(b"no picture")
    found = run_job(job_of(data), setup_of(tmp_path / "out"), lambda: loaded)
    assert found is not None
    assert not found.complete
    assert (found.manifest["answered"], found.manifest["failed"]) == (8, 3)
    assert json.loads((found.folder / "metrics.json").read_text())["complete"] is False
    lines = [json.loads(line) for line in (found.folder / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines if "error" in line] == ["2", "6", "10"]
    picture(data / "scienceqa/2.png", 2)
    mended = run_job(job_of(data), setup_of(tmp_path / "out", run="two"), lambda: loaded)
    assert mended is not None
    assert mended.complete


def test_the_first_items_are_no_full_score(tmp_path: Path, data: Path, loaded: Loaded) -> None:
    found = run_job(job_of(data, limit=3), setup_of(tmp_path / "out"), lambda: loaded)
    assert found is not None
    assert not found.complete
    assert found.folder.name == "sqa_test+max_new_tokens=8+limit=3"


def test_other_settings_do_not_meet(tmp_path: Path, data: Path, loaded: Loaded) -> None:
    first = run_job(job_of(data), setup_of(tmp_path / "out"), lambda: loaded)
    other = run_job(job_of(data, max_tiles=2), setup_of(tmp_path / "out"), lambda: loaded)
    assert first is not None and other is not None
    assert first.folder != other.folder
    changed = Setup(tmp_path / "out", "tiny", {"checkpoint": "tiny 2"}, Launch(), "three")
    with pytest.raises(ConfigError, match=r'checkpoint = "tiny 1", now it is "tiny 2"; --overwrite'):
        run_job(job_of(data), changed, never)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: (root / "scienceqa/scienceqa_test_img.jsonl").unlink(),
            r"not there: .*scienceqa_test_img\.jsonl",
        ),
        (
            lambda root: (root / "scienceqa/1.png").unlink(),
            r"1 pictures or videos are not there: .*1\.png \(item '1'\)",
        ),
        (lambda root: append(root, '{"image": "data/scienceqa/1.png"}\n'), r"record 12 is not what sqa_test has"),
        (lambda root: append(root, '{"image": "da'), r"scienceqa_test_img\.jsonl:12: no JSON"),
        (lambda root: (root / "scienceqa/scienceqa_test_img.jsonl").write_text(""), r"is empty"),
    ],
)
def test_bad_data(data: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(data)
    with pytest.raises(DataError, match=message):
        job_of(data)


def append(root: Path, line: str) -> None:
    with (root / "scienceqa/scienceqa_test_img.jsonl").open("a") as file:
        file.write(line)


def test_a_slip_in_a_task_does_not_end_the_data(data: Path) -> None:
    """StopIteration of an item's function is no end of the records."""
    (task,) = resolve(["scienceqa"])
    broken = replace(task, item=lambda record, ask: next(iter(())))
    with pytest.raises(DataError, match="record 1 is not what sqa_test has"):
        plan_jobs([broken], Wishes(data), dynamic=True)


def test_all_that_is_missing_is_told_at_once(data: Path) -> None:
    tasks = resolve(["scienceqa", "m3cot"])
    with pytest.raises(DataError, match=r"m3cot_test: not there.*\n--skip_missing"):
        plan_jobs(tasks, Wishes(data), dynamic=True)
    assert [job.task.name for job in plan_jobs(tasks, Wishes(data), True, skip_missing=True)] == ["sqa_test"]


def test_options(data: Path) -> None:
    job = job_of(data, options={"cot": "on"})
    assert job.folder == "sqa_test+cot=on+max_new_tokens=8"
    (plain,) = plan_jobs(resolve(["scienceqa"]), Wishes(data, options={"cot": "on"}), dynamic=True)
    assert plain.generation["max_new_tokens"] == 4096
    with pytest.raises(ConfigError, match="option 'cto': none of the tasks has it"):
        job_of(data, options={"cto": "on"})
    with pytest.raises(ConfigError, match=r"option cot='of'; legal: off, on"):
        job_of(data, options={"cot": "of"})
