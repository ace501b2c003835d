"""``internvl eval``: what it prints, writes and returns; real processes, killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from internvl_chat.cli import main
from internvl_chat.errors import DataError
from internvl_chat.eval import command
from internvl_chat.eval.command import parse
from internvl_chat.eval.flags import wishes_of
from internvl_chat.eval.plan import Wishes, plan_jobs
from internvl_chat.eval.registry import resolve
from internvl_chat.eval.task import OutputFile
from tests.eval.mini import write_task
from tests.eval.mini.common import jsonl, picture

SHORT = ("--max_new_tokens", "4")


@pytest.fixture()
def here(tmp_path: Path, scienceqa: Path, lively: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with ``data`` and a model called ``tiny``."""
    (tmp_path / "tiny").symlink_to(lively)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_score_with_its_manifest(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "tiny", "scienceqa", *SHORT]) == 0
    out = capsys.readouterr().out
    folder = here / "results/tiny/sqa_test+max_new_tokens=4"
    metrics = json.loads((folder / "metrics.json").read_text())
    manifest = json.loads((folder / "run.json").read_text())
    assert f"Acc@1: {metrics['figures']['accuracy']}" in out
    assert (manifest["complete"], manifest["answered"], manifest["there"], manifest["count"]) == (False, 3, 3, 2017)
    assert "PARTIAL: 3 of 2017 (the data here have 3); this is no score" in out
    assert manifest["checkpoint"].startswith(f"{(here / 'tiny').resolve().name} ")
    assert manifest["settings"]["generation"] == {"max_new_tokens": 4, "min_new_tokens": 1}
    assert manifest["settings"]["template"] == "internvl2_5"
    assert manifest["versions"].keys() >= {"internvl_chat", "torch", "transformers"}
    assert len(manifest["data"]["sha256"]) == 64
    assert "| sqa_test" in (here / "results/tiny/table.md").read_text()
    assert "partial: 3 of 2017" in (here / "results/tiny/table.md").read_text()
    assert main(["eval", "tiny", "scienceqa", *SHORT]) == 0, "once more: nothing to ask"
    assert json.loads((folder / "metrics.json").read_text()) == metrics


def test_a_limit_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "tiny", "scienceqa", *SHORT, "--limit", "2"]) == 0
    assert "PARTIAL: 2 of 2017 (--limit 2, the data here have 3); this is no score" in capsys.readouterr().out
    assert "(partial: 2 of 2017)" in (here / "results/tiny/table.md").read_text()


def test_items_that_fail_are_an_exit_status(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "data/scienceqa/images/b.png").write_bytes(b"")
    assert main(["eval", "tiny", "scienceqa", *SHORT]) == 1
    assert "PARTIAL: 2 of 2017 (1 without an answer, the data here have 3); this" in capsys.readouterr().out


def test_not_as_it_was_trained(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "tiny", "scienceqa", *SHORT, "--dynamic", "False"]) == 0
    assert "NOTE: --dynamic False is not how this checkpoint was trained" in capsys.readouterr().out
    assert (here / "results/tiny/sqa_test+dynamic=False+max_new_tokens=4/run.json").is_file()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["tiny", "sciencqa"], "no task 'sciencqa'; did you mean 'scienceqa'"),
        (["tiny"], "no task is named"),
        ([], "name a checkpoint and tasks"),
        (["nowhere", "scienceqa"], "nowhere"),
        (["tiny", "scienceqa", "--data_root", "elsewhere"], "the data folder elsewhere does not exist"),
        (["tiny", "scienceqa", "--batch_size", "0"], "--batch_size 0: at least 1"),
        (["tiny", "scienceqa", "--option", "cot"], "--option cot: write NAME=VALUE"),
        (["tiny", "scienceqa", "--datasets", "m3cot_test"], "--datasets m3cot_test: not one of sqa_test"),
        (["--list", "--report", "x"], "--list and --report: one at a time"),
        (["--report", "data"], "no finished evaluation in it"),
        (["tiny", "scienceqa", "--report", "data"], "--report data stands alone"),
        (["tiny", "scienceqa", "--list"], "--list shows all tasks"),
        (["tiny", "scienceqa", "--datasets", ","], "--datasets ,: names of tasks"),
        (["tiny", "scienceqa", "--temperature", "nan"], "--temperature nan"),
        (["tiny", "scienceqa", "--judge", "gpt"], "--judge gpt: set OPENAI_API_KEY"),
    ],
)
def test_one_message(here: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    assert main(["eval", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_own_data_and_what_is_left_of_them(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of it is there, so it is a full score, and one for TensorBoard."""
    jsonl(here / "own.jsonl", ({"question": f"{n}?", "answer": "a", "id": n} for n in range(3)))
    (here / "own.yaml").write_text("name: own\ndata: own.jsonl\nmetric: exact_match\n")
    assert main(["eval", "tiny", "own.yaml", "scienceqa", *SHORT, "--tensorboard", "tb", "--step", "7"]) == 0
    out = capsys.readouterr().out
    folder = here / "results/tiny/own+max_new_tokens=4"
    assert json.loads((folder / "run.json").read_text())["complete"] is True
    assert "PARTIAL" not in out.partition("== own")[2].partition("==")[0]
    (events,) = (here / "tb").glob("events.*")
    assert b"eval/own/accuracy" in events.read_bytes()
    assert b"eval/sqa_test" not in events.read_bytes(), "a part of a data set is no figure"
    assert main(["eval", "tiny", "own.yaml", *SHORT]) == 0
    assert "sqa_test" in (here / "results/tiny/table.md").read_text(), "the table has all tasks of the model"


def test_settings_of_the_model_are_part_of_the_folder(here: Path) -> None:
    line = [
        "eval",
        "tiny",
        "scienceqa",
        *SHORT,
        "--conv_style",
        "Hermes-2",
        "--system",
        "Be brief.",
        "--num_beams",
        "1",
    ]
    assert main(line) == 0
    (folder,) = (here / "results/tiny").glob("sqa_test+*")
    assert folder.name.startswith("sqa_test+max_new_tokens=4+conv_style=Hermes-2+system=")
    settings = json.loads((folder / "run.json").read_text())["settings"]
    assert (settings["system"], settings["template"], settings["dtype"]) == ("Be brief.", "Hermes-2", "float32")


def test_a_run_that_fails_twice_goes_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also when all that is left cannot be asked."""
    (here / "data/scienceqa/images/b.png").write_bytes(b"")
    assert main(["eval", "tiny", "scienceqa", *SHORT]) == 1
    assert main(["eval", "tiny", "scienceqa", *SHORT]) == 1
    picture(here / "data/scienceqa/images/b.png", 1)
    assert main(["eval", "tiny", "scienceqa", *SHORT]) == 0


def test_a_scored_file_of_somebody_else(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = [{"id": str(number), "answer": letter} for number, letter in enumerate("BAA")]
    path = jsonl(here / "theirs.jsonl", answers)
    assert main(["eval", "--predictions", str(path), "scienceqa"]) == 0
    out = capsys.readouterr().out
    assert "Acc@1: 0.6666666666666666" in out and "PARTIAL: 3 of 2017" in out
    metrics = json.loads((here / "results/theirs/sqa_test/metrics.json").read_text())
    assert metrics["figures"] == {"accuracy": 2 / 3}
    assert main(["eval", "--predictions", str(path), "scienceqa"]) == 2
    assert "has answers already" in capsys.readouterr().err
    jsonl(path, answers[:2])
    assert main(["eval", "--predictions", str(path), "scienceqa", "--overwrite"]) == 1
    assert "PARTIAL: 2 of 2017 (1 without an answer" in capsys.readouterr().out
    for bad, message in (
        (answers + answers[:1], "theirs.jsonl:4: a second answer to '0'"),
        ([{"id": "17", "answer": "A"}], "theirs.jsonl:1: sqa_test has no item '17' (its first is '0')"),
        ([{"id": "0", "question": "How many?", "answer": "A"}], "theirs.jsonl:1: item '0' was asked 'How many?'"),
        ([{"id": "0", "text": "A"}], "theirs.jsonl:1: "),
    ):
        jsonl(path, bad)
        assert main(["eval", "--predictions", str(path), "scienceqa"]) == 2
        assert message in capsys.readouterr().err
    path.write_text(json.dumps(answers[0])[:-4])
    assert main(["eval", "--predictions", str(path), "scienceqa"]) == 2
    assert "theirs.jsonl:1: no JSON" in capsys.readouterr().err


def test_a_file_of_answers_for_a_server(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is no score, and all is done."""
    write_task("vizwiz_test", here / "data")
    (job,) = plan_jobs(resolve(["vqa-vizwiz-test"]), Wishes(here / "data"), dynamic=True)
    path = jsonl(here / "theirs.jsonl", [{"id": item.id, "answer": "Yes \ud83d"} for item in job.items])
    assert main(["eval", "--predictions", str(path), "vqa-vizwiz-test"]) == 0
    assert "no score here" in capsys.readouterr().out
    assert (here / "results/theirs/vizwiz_test/vizwiz_test.json").is_file()


def test_files_that_cannot_be_made_are_an_exit_status(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task has its score, the next one is asked all the same."""

    def files(answered: object) -> list[OutputFile]:
        raise DataError("no such sheet")

    (task,) = resolve(["scienceqa"])
    monkeypatch.setattr(command, "_tasks", lambda *given: [replace(task, files=files), replace(task, name="second")])
    assert main(["eval", "tiny", "scienceqa", *SHORT]) == 1
    out = capsys.readouterr().out
    assert "its files are not written: DataError: no such sheet" in out
    table = (here / "results/tiny/table.md").read_text()
    assert "| sqa_test" in table and "| second" in table
    assert main(["eval", "tiny", "scienceqa", *SHORT]) == 1


def test_what_lies_damaged_beside_it_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The other tasks of a model do not end an evaluation of it."""
    other = here / "results/tiny/other"
    other.mkdir(parents=True)
    whole = {"task": "x", "model": "tiny", "complete": True}
    for manifest, metrics, why in (
        ('{"task": "x"}', "{}", "KeyError: 'model'"),
        ('{"task"', "{}", "JSONDecodeError"),
        ("[]", "{}", "TypeError"),
        (json.dumps(whole), "[]", "AttributeError"),
    ):
        (other / "run.json").write_text(manifest)
        (other / "metrics.json").write_text(metrics)
        assert main(["eval", "tiny", "scienceqa", *SHORT]) == 0
        (told,) = [line for line in capsys.readouterr().err.splitlines() if "left out of the table" in line]
        assert f" {Path('results/tiny/other')}: " in told and why in told
        assert "| sqa_test" in (here / "results/tiny/table.md").read_text()


def test_an_answer_that_was_changed_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "tiny", "scienceqa", *SHORT]) == 0
    path = here / "results/tiny/sqa_test+max_new_tokens=4/predictions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["answer"] = lines[1]["gold"]
    jsonl(path, lines)
    assert main(["eval", "tiny", "scienceqa", *SHORT]) == 2
    error = capsys.readouterr().err
    assert "predictions.jsonl:2: not as it was written here" in error and "--overwrite begins anew" in error
    jsonl(path, [lines[0], lines[2]])
    assert main(["eval", "tiny", "scienceqa", *SHORT]) == 0
    assert len(path.read_text().splitlines()) == 3


def test_the_original_spellings() -> None:
    line = (
        "CKPT --dynamic --max-num 12 scienceqa --load-in-8bit --load-in-4bit --num-beams 2 --out-dir o --batch-size 1"
    )
    args = parse(
        f"{line} --num-workers 1 --cot --num_segments 8 --auto --datasets a,b --seed 3 --temperature 0.5".split()
    )
    wishes = wishes_of(args)
    assert args.names == ["CKPT", "scienceqa"]
    assert (wishes.max_tiles, wishes.dynamic) == (12, True)
    assert wishes.options == {"cot": "on", "num_segments": "8"}
    assert wishes.generation == {"num_beams": 2, "temperature": 0.5}
    assert (args.load_in_8bit, args.load_in_4bit, args.auto, args.out_dir) == (True, True, True, "o")
    assert (args.batch_size, args.num_workers, args.datasets, args.seed) == (1, 1, "a,b", 3)


def test_list(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--list"]) == 0
    rows = {line.split()[1]: line for line in capsys.readouterr().out.splitlines() if "_test " in line}
    assert " guide " in rows["sqa_test"]
    assert " -  " in rows["m3cot_test"]


# -- real processes ---------------------------------------------------------------------------------------------------


def many(root: Path) -> None:
    """Sixty items, so that a kill lands among them."""
    for number in range(4):
        picture(root / f"scienceqa/{number}.png", number, (60 + 40 * number, 100))
    jsonl(
        root / "scienceqa/scienceqa_test_img.jsonl",
        (
            {"image": f"data/scienceqa/{n % 4}.png", "question": f"Is it {n}?", "choices": ["a", "b"], "answer": n % 2}
            for n in range(60)
        ),
    )


def start(here: Path, out: str, rank: int, size: int) -> subprocess.Popen[bytes]:
    ranks: dict[str, object] = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
    ranks |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29501}
    env = {**os.environ, **{name: str(value) for name, value in ranks.items()}}
    command = [sys.executable, "-m", "internvl_chat.eval", "tiny", "scienceqa", "--out_dir", out, "--batch_size", "2"]
    return subprocess.Popen([*command, "--max_new_tokens", "24"], cwd=here, env={**env, "OMP_NUM_THREADS": "1"})


def waited(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.mark.slow
def test_two_processes_killed_and_started_again(here: Path) -> None:
    many(here / "data")
    names = ("predictions.jsonl", "scored.jsonl", "metrics.json", "sqa_test.jsonl")
    two = [start(here, "two", rank, 2) for rank in (0, 1)]
    assert main(["eval", "tiny", "scienceqa", "--out_dir", "one", "--batch_size", "2", "--max_new_tokens", "24"]) == 0
    folder = "tiny/sqa_test+max_new_tokens=24"
    part = here / "two" / folder / "predictions.jsonl.parts/1.jsonl"
    waited(lambda: part.is_file() and part.stat().st_size > 0)
    for process in two:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (here / "two" / folder / "metrics.json").exists()
    again = [start(here, "two", rank, 2) for rank in (0, 1)]
    assert [process.wait(timeout=120) for process in again] == [0, 0]
    for name in names:
        assert (here / "two" / folder / name).read_bytes() == (here / "one" / folder / name).read_bytes(), name
