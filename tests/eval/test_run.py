"""Running tasks: the same answers and scores by one process, by two, one by one and in batches, killed and gone on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.errors import ConfigError, DataError
from internvl_chat.eval import run
from internvl_chat.eval.plan import Job, Wishes, plan_jobs
from internvl_chat.eval.registry import resolve
from internvl_chat.eval.results import Run, partial_of, read_answers, write_whole
from internvl_chat.eval.run import Setup, run_job, write_down
from internvl_chat.eval.task import Answered, OutputFile, Result
from internvl_chat.infer.chat import Chat
from internvl_chat.infer.load import load
from internvl_chat.infer.loaded import Loaded
from internvl_chat.launch import Launch
from tests.eval.judges import FakeJudge
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
    assert found.manifest["complete"]
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


def test_one_process_of_each_run_scores(tmp_path: Path, data: Path, loaded: Loaded) -> None:
    """Also where another one's share is from an earlier run, or all of it is."""
    job = job_of(data)

    def scored(rank: int, name: str) -> bool:
        return run_job(job, setup_of(tmp_path, rank, 2, run=name), lambda: loaded) is not None

    assert not scored(0, "a")
    assert [scored(rank, "b") for rank in (1, 0)] == [True, False]
    assert [scored(rank, "c") for rank in (1, 0)] == [False, True]


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
    assert not found.manifest["complete"]
    assert (found.manifest["answered"], found.manifest["failed"]) == (8, 3)
    assert json.loads((found.folder / "metrics.json").read_text())["complete"] is False
    lines = [json.loads(line) for line in (found.folder / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines if "error" in line] == ["2", "6", "10"]
    picture(data / "scienceqa/2.png", 2)
    mended = run_job(job_of(data), setup_of(tmp_path / "out", run="two"), lambda: loaded)
    assert mended is not None
    assert mended.manifest["complete"]


def test_the_first_items_are_no_full_score(tmp_path: Path, data: Path, loaded: Loaded) -> None:
    found = run_job(job_of(data, limit=3), setup_of(tmp_path / "out"), lambda: loaded)
    assert found is not None
    assert not found.manifest["complete"]
    assert found.folder.name == "sqa_test+max_new_tokens=8+limit=3"
    assert job_of(data, limit=10).whole is False
    assert job_of(data, limit=11).whole, "a limit that leaves nothing out"


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


def test_packages_that_are_not_there_are_told_first(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (task,) = resolve(["scienceqa"])
    needy = replace(task, needs=("json", "openpyxl"))
    assert plan_jobs([replace(task, needs=("json",))], Wishes(data), dynamic=True)
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(ConfigError, match=r"sqa_test: its files need openpyxl; pip install openpyxl"):
        plan_jobs([needy], Wishes(data), dynamic=True)


# -- what is left -----------------------------------------------------------------------------------------------------


def written(job: Job, out: Path, answer: str = "A", **changes: Any) -> Run:
    """What is left of answers that are all alike."""
    job = replace(job, task=replace(job.task, **changes))
    return write_down(job, setup_of(out), {item.id: answer for item in job.items}, {})


@pytest.mark.parametrize("error", [DataError("no such sheet"), KeyError("column"), "\ud83d".encode])
def test_files_that_cannot_be_made_cost_no_score(tmp_path: Path, data: Path, error: Any) -> None:
    def files(answered: Answered) -> list[OutputFile]:
        if isinstance(error, Exception):
            raise error
        return [OutputFile("a", error())]

    found = written(job_of(data), tmp_path, files=files)
    assert json.loads((found.folder / "metrics.json").read_text())["figures"] == found.metrics["figures"]
    manifest = json.loads((found.folder / "run.json").read_text())
    kind = type(error).__name__ if isinstance(error, Exception) else "UnicodeEncodeError"
    assert manifest["files_failed"].startswith(f"{kind}: ")
    assert (manifest["files"], manifest["complete"]) == ([], True)
    assert written(job_of(data), tmp_path).manifest["files_failed"] is None


def test_a_score_without_parts_of_the_data_is_partial(
    tmp_path: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def score(answered: Answered) -> Result:
        return Result({"accuracy": 0.5}, "accuracy", missing=("A", "B"), notes={"odd": 99, "none": 0})

    with caplog.at_level("INFO", "internvl_chat"):
        found = written(job_of(data), tmp_path, score=score)
    assert (found.manifest["complete"], found.manifest["missing"]) == (False, ["A", "B"])
    assert partial_of(found.manifest) == "partial: without A, B"
    assert json.loads((found.folder / "metrics.json").read_text())["complete"] is False
    assert caplog.text.count("the score is partial, the data here are without A, B") == 1
    assert "sqa_test: odd: 99\n" in caplog.text and "none" not in caplog.text


def test_a_scorer_that_cannot_go_on_is_told(tmp_path: Path, data: Path) -> None:
    def score(answered: Answered) -> Result:
        raise ConfigError("no Java here")

    assert written(job_of(data), tmp_path, score=score).manifest["unjudged"] == "ConfigError: no Java here"


def test_a_scorer_that_stumbles_is_told(tmp_path: Path, data: Path) -> None:
    found = written(job_of(data), tmp_path, score=lambda answered: Result({"a": 1 / 0}, "a"))
    assert found.manifest["unjudged"] == "ZeroDivisionError: division by zero"
    assert not (found.folder / "metrics.json").exists()


def test_a_judge_that_says_nothing_gives_no_score(tmp_path: Path, data: Path) -> None:
    def score(run: Answered) -> Result:
        assert run.judge is not None
        return Result({"a": float(run.judge.ask("1") == "yes")}, "a")

    job = job_of(data)
    job = replace(job, task=replace(job.task, score=score, judged="optional"))
    for reply, figure in (("yes", 1.0), ("no", 0.0), ("", None)):
        setup = replace(setup_of(tmp_path), judge=lambda folder, reply=reply: FakeJudge({"": reply}))
        found = write_down(job, setup, {item.id: "A" for item in job.items}, {})
        assert found.metrics.get("figures") == (None if figure is None else {"a": figure})
    assert found.manifest["unjudged"].startswith("sqa_test: all 1 replies of fake are empty")


def test_half_an_emoji_breaks_no_file(tmp_path: Path, data: Path) -> None:
    found = written(job_of(data), tmp_path, "B \ud83d", title="\ud83d")
    assert found.manifest["files_failed"] is None
    assert json.loads((found.folder / "run.json").read_text())["title"] == "\ud83d"


def test_a_disk_without_room_is_the_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        path.touch()
        raise OSError(28, "No space left on device", str(path))

    path = tmp_path / "new/table.md"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(ConfigError, match=r"new/table.md cannot be written \(.*No space.* make room .* goes on"):
            write_whole(path, b"x")
    assert not list(path.parent.iterdir()), "no part is left"
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/table.md cannot be written"):
        write_whole(tmp_path / "file/table.md", b"x")


def test_two_processes_may_write_the_same_file(tmp_path: Path) -> None:
    """None takes another's part away."""
    path = tmp_path / "table.md"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: write_whole(path, f"{number}".encode() * 1000), range(400)))
    assert len(set(path.read_text())) <= 3
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"question": "What  is it?"}, None),  # without the words around it
        ({"error": None}, None),
        ({"line": 3, "digest": "of another kind"}, None),
        ({"id": 12}, r"a.jsonl:3: sqa_test has no item '12' \(its first is '0'\); are these the answers to another"),
        ({"question": "How many?"}, r"a.jsonl:3: item '2' was asked 'How many\?', that of sqa_test is 'What is it"),
        ({"digest": "0"}, r"a.jsonl:3: item '2' had another digest: .*--max_tiles"),
    ],
)
def test_answers_of_others_are_to_the_same_questions(
    tmp_path: Path, data: Path, change: dict[str, Any], message: str | None
) -> None:
    job = job_of(data)
    lines = [
        {"id": item.id, "question": f"<image>\n{item.text}", "answer": "A", "digest": job.digests[item.id]}
        for item in job.items
    ]
    lines[2] |= change
    path = jsonl(tmp_path / "a.jsonl", lines)
    if message is None:
        assert read_answers(path, job) == {item.id: "A" for item in job.items}
    else:
        with pytest.raises(DataError, match=message):
            read_answers(path, job)


def test_what_could_not_be_asked_is_no_answer(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"id": "1", "error": "broken"}, {"id": "2", "answer": "A", "error": None}])
    assert read_answers(path) == {"2": "A"}
