"""The answers' file: whole or not there, whoever is killed when, however many processes write it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.errors import ConfigError
from internvl_chat.infer import answers_file
from internvl_chat.infer.answers_file import AnswersFile

ITEMS = {f"q{number}": f"digest {number}" for number in range(7)}


def record_of(key: str) -> dict[str, Any]:
    return {"answer": f'über «{key}»\n\u2028"quoted"', "tokens": len(key)}


def expected(items: dict[str, str] = ITEMS) -> bytes:
    """OUTPUT, written down by other means."""
    return "".join(summed({"id": key, **record_of(key), "digest": value}) for key, value in items.items()).encode()


def summed(record: dict[str, Any]) -> str:
    """The line of a record."""
    code = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
    return json.dumps({**record, "sum": code}, ensure_ascii=False) + "\n"


def opened(path: Path, **options: Any) -> AnswersFile[str]:
    return AnswersFile(path, **{"items": ITEMS, "settings": {"t": 0.5, "weights": "a"}, **options})


def answer_all(path: Path, most: int = 10**9, **options: Any) -> answers_file.Outcome | None:
    """A process that answers what it is to; None if it is killed after ``most`` answers."""
    with opened(path, **options) as file:
        for number, key in enumerate(file.todo):
            if number == most:
                return None
            file.add(key, record_of(key))
        return file.finish()


def names(path: Path) -> set[str]:
    return {file.name for file in path.parent.iterdir()}


def test_one_process(tmp_path: Path) -> None:
    """Lines are there as they come; OUTPUT, in the items' order, only at the end; then nothing is left to do."""
    path = tmp_path / "new" / "out.jsonl"
    with opened(path) as file:
        assert file.todo == list(ITEMS)
        for number, key in enumerate(reversed(file.todo), 1):
            file.add(key, record_of(key))
            assert (path.parent / "out.jsonl.parts" / "0.jsonl").read_bytes().count(b"\n") == number
            assert not path.exists()
        outcome = file.finish()
    assert (outcome.whole, outcome.there, outcome.errors) == (True, 7, ())
    assert path.read_bytes() == expected()
    assert names(path) == {"out.jsonl", "out.jsonl.settings.json"}
    with opened(path) as file:
        assert file.todo == []
        assert file.finish().whole
    assert path.read_bytes() == expected()
    assert names(path) == {"out.jsonl", "out.jsonl.settings.json"}


def test_killed_at_every_byte_of_the_last_two_lines(tmp_path: Path) -> None:
    """What was written whole is kept, half a line is asked again, and the end is the same."""
    path = tmp_path / "out.jsonl"
    assert answer_all(path, most=4) is None
    part = tmp_path / "out.jsonl.parts" / "0.jsonl"
    content = part.read_bytes()
    start = content.rindex(b"\n", 0, content.rindex(b"\n", 0, len(content) - 1)) + 1
    for length in range(start, len(content) + 1):
        path.unlink(missing_ok=True)
        part.parent.mkdir(exist_ok=True)
        part.write_bytes(content[:length])
        with opened(path) as file:
            assert file.todo == list(ITEMS)[content[:length].count(b"\n") :]
        assert not path.exists()
        assert answer_all(path) is not None
        assert path.read_bytes() == expected(), length
    assert len(content) - start > 100


def test_any_number_of_processes_killed_at_any_time(tmp_path: Path) -> None:
    """Runs of 1 to 4 processes, each stopped after some answers, maybe in the middle of a line: the same bytes."""
    draw = random.Random(3)
    for trial in range(60):
        path, runs = tmp_path / f"{trial}.jsonl", 0
        while not path.exists():
            runs += 1
            world = draw.randint(1, 4)
            for rank in draw.sample(range(world), world):
                answer_all(path, draw.choice([0, 1, 2, 100]), rank=rank, world_size=world, run=f"run {runs}")
                part = tmp_path / f"{trial}.jsonl.parts" / f"{rank}.jsonl"
                if part.exists() and draw.random() < 0.5:
                    part.write_bytes(part.read_bytes()[: -draw.randint(0, 30) or None])
        assert path.read_bytes() == expected()
        assert f"{trial}.jsonl.parts" not in names(path)


def test_the_last_of_several_puts_it_together(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    shares = [opened(path, rank=rank, world_size=3, run="r") for rank in range(3)]
    assert [file.todo for file in shares] == [list(ITEMS)[rank::3] for rank in range(3)]
    outcomes = []
    for rank in (2, 0, 1):
        for key in shares[rank].todo:
            shares[rank].add(key, record_of(key))
        outcomes.append(shares[rank].finish())
    assert [outcome.whole for outcome in outcomes] == [False, False, True]
    assert [outcome.there for outcome in outcomes] == [2, 5, 7]
    assert path.read_bytes() == expected()


def test_a_process_with_nothing_to_do(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    few = {"a": "1"}
    late = answer_all(path, items=few, rank=1, world_size=2, run="r")
    assert late is not None and not late.whole
    assert answer_all(path, items=few, rank=0, world_size=2, run="r").whole  # type: ignore[union-attr]
    assert path.read_bytes() == expected(few)


def test_a_kill_while_it_is_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before OUTPUT has its name, before the parts are gone, and before it is noted who has done it."""
    path = tmp_path / "out.jsonl"
    replace = Path.replace

    def die(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    def die_later(part: Path, target: Path) -> None:
        if part.name != "merged":
            raise KeyboardInterrupt
        replace(part, target)

    for where, name, instead in ((Path, "replace", die), (Path, "replace", die_later), (shutil, "rmtree", die)):
        with opened(path) as file, monkeypatch.context() as patch:
            for key in file.todo:
                file.add(key, record_of(key))
            patch.setattr(where, name, instead)
            with pytest.raises(KeyboardInterrupt):
                file.finish()
        assert path.exists() == (instead is not die or name == "rmtree")
        if path.exists():
            assert path.read_bytes() == expected()
        outcome = answer_all(path, most=0)  # nothing is asked again
        assert outcome is not None and outcome.whole
        assert path.read_bytes() == expected()
        assert names(path) - {"out.jsonl.settings.json.part"} == {"out.jsonl", "out.jsonl.settings.json"}
        path.unlink()


def test_errors_are_in_the_output_and_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"

    def attempt(bad: str, expected_todo: list[str]) -> answers_file.Outcome:
        with opened(path) as file:
            assert file.todo == expected_todo
            for key in file.todo:
                file.add(key, {"error": "no picture"} if key in bad else record_of(key))
            return file.finish()

    outcome = attempt("q2 q5", list(ITEMS))
    wrong = [{"id": key, "error": "no picture", "digest": ITEMS[key]} for key in ("q2", "q5")]
    assert outcome == answers_file.Outcome(True, 7, tuple(wrong))
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [line for line in lines if "error" in line] == [json.loads(summed(line)) for line in wrong]
    assert [line["id"] for line in lines] == list(ITEMS)
    assert [error["id"] for error in attempt("q5", ["q2", "q5"]).errors] == ["q5"]
    assert attempt("", ["q5"]).errors == ()
    assert path.read_bytes() == expected()


def test_errors_of_an_earlier_run_wait_for_their_process(tmp_path: Path) -> None:
    """The first to end must not take what another is about to try again for settled, nor say how it ended."""
    path = tmp_path / "out.jsonl"
    bad = {"q0", "q1"}
    for run in ("1", "2"):
        outcomes = []
        for rank in (0, 1):
            with opened(path, rank=rank, world_size=2, run=run) as file:
                for key in file.todo:
                    file.add(key, {"error": run} if key in bad else record_of(key))
                outcomes.append(file.finish())
        assert [error["error"] for error in outcomes[1].errors] == [run, run]
        assert outcomes[0].errors == ()
        assert [outcome.last for outcome in outcomes] == [False, True]
    with opened(path, rank=2, world_size=3, run="3") as file:
        assert not file.finish().last, "ranks 0 and 1 are yet to try theirs again"


def test_what_has_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    answer_all(path, most=3)
    changed = {**ITEMS, "q1": "another"}
    gone = {key: value for key, value in ITEMS.items() if key != "q0"}
    for finished in (False, True):
        for options, message in (
            (
                {"items": changed},
                r"to id 'q1', but id 'q1', or a file that it names, has changed since; --overwrite",
            ),
            ({"items": gone}, r"answer to id 'q0', which is no longer asked; --overwrite"),
            ({"settings": {"t": 1.0, "weights": "a"}}, r"begun with t = 0.5, now it is 1.0; --overwrite"),
            ({"settings": {"t": 0.5}}, r'begun with weights = "a", now it is null; --overwrite'),
        ):
            with pytest.raises(ConfigError, match=message):
                opened(path, **options)
        assert path.exists() == finished
        answer_all(path)
        assert path.read_bytes() == expected()
    assert answer_all(path, items=changed, overwrite=True).whole  # type: ignore[union-attr]
    assert path.read_bytes() == expected(changed)


def test_an_error_whose_item_was_mended_is_tried_again(tmp_path: Path) -> None:
    """The others keep their answers; while they come, and when all was there."""
    path = tmp_path / "out.jsonl"
    for finished in (False, True):
        with opened(path, overwrite=True) as file:
            for key in file.todo:
                file.add(key, {"error": "no picture"} if key == "q2" else record_of(key))
            if finished:
                file.finish()
        mended = {**ITEMS, "q2": "another"}
        with opened(path, items=mended) as file:
            assert file.todo == ["q2"]
            file.add("q2", record_of("q2"))
            assert file.finish() == answers_file.Outcome(True, 7)
        assert path.read_bytes() == expected(mended)


def test_settings_that_are_damaged_are_called_so(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    answer_all(path)
    head = tmp_path / "out.jsonl.settings.json"
    for damaged in (b'{"run": "1", "sett', b"\xff\xfe\x00", b'{"settings": 3}', b"[]"):
        head.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"out.jsonl.settings.json is damaged, .* --overwrite begins anew"):
            opened(path)
        assert head.read_bytes() == damaged
    assert path.read_bytes() == expected()
    head.unlink()
    with pytest.raises(ConfigError, match=r"out.jsonl is there, but not out.jsonl.settings.json"):
        opened(path)


def test_what_the_disk_refuses_is_the_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"a picture")
    (tmp_path / "taken.jsonl.parts").write_bytes(b"a file")
    for path in (
        Path("/proc/o.jsonl"), Path("/proc/x/o.jsonl"), tmp_path / "a.png" / "o.jsonl", tmp_path / "taken.jsonl",
        tmp_path / ("long" * 100),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"--output {path} cannot be written \(.*another --output"):
            opened(path)
    path = tmp_path / "out.jsonl"

    def full(fd: int, line: bytes) -> int:
        raise OSError(28, "No space left on device")

    with opened(path) as file:
        file.add("q0", record_of("q0"))
        with monkeypatch.context() as patched:
            patched.setattr(answers_file.os, "write", full)
            with pytest.raises(ConfigError, match=r"No space left on device.*make room"):
                file.add("q1", record_of("q1"))
    (tmp_path / "out.jsonl.parts" / "merged").mkdir()
    with opened(path) as file:
        assert file.todo == list(ITEMS)[1:]
        for key in file.todo:
            file.add(key, record_of(key))
        with pytest.raises(ConfigError, match=r"--output .*merged"):
            file.finish()
    (tmp_path / "out.jsonl.parts" / "merged").rmdir()
    with opened(path) as file:
        assert file.finish().whole, "nothing is lost"
    assert path.read_bytes() == expected()


def test_new_items_are_asked_the_old_ones_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    few = dict(list(ITEMS.items())[:5])
    answer_all(path, items=few)
    with opened(path) as file:
        assert file.todo == ["q5", "q6"]
        assert path.read_bytes() == expected(few), "the old answers stay until the new ones are there"
    answer_all(path)
    assert path.read_bytes() == expected()


def test_overwrite_in_several_processes_is_done_once(tmp_path: Path) -> None:
    """A process that starts late does not throw away what the others of its run have answered."""
    path = tmp_path / "out.jsonl"
    answer_all(path)
    with opened(path, rank=0, world_size=2, run="new", overwrite=True) as file:
        assert file.todo == list(ITEMS)[::2]
        assert not path.exists()
    answer_all(path, rank=0, world_size=2, run="new", overwrite=True)
    outcome = answer_all(path, rank=1, world_size=2, run="new", overwrite=True)
    assert outcome is not None and outcome.whole
    assert path.read_bytes() == expected()


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("precious\n")
    with pytest.raises(ConfigError, match="which says how it was made; --overwrite"):
        opened(path)
    assert path.read_text() == "precious\n"
    assert names(path) == {"out.jsonl"}
    with pytest.raises(ConfigError, match="is a folder"):
        opened(tmp_path)


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with opened(path):
        for overwrite in (False, True):
            with pytest.raises(ConfigError, match="written by another process"):
                opened(path, overwrite=overwrite)
    assert answer_all(path) is not None


def test_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged line of a part is asked again, and it is said; a damaged OUTPUT is not touched."""
    path = tmp_path / "out.jsonl"
    answer_all(path, most=4)
    part = tmp_path / "out.jsonl.parts" / "0.jsonl"
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(lines[0] + b"\0\0\0\n" + b"".join(lines[2:]))
    with caplog.at_level("WARNING", "internvl_chat"), opened(path) as file:
        assert file.todo == ["q1", "q4", "q5", "q6"]
    assert "0.jsonl:2 is damaged" in caplog.text
    answer_all(path)
    assert path.read_bytes() == expected()
    path.write_bytes(expected() + b"and more\n")
    with pytest.raises(ConfigError, match=r"out.jsonl:8: not as it was written here .* take the line out"):
        opened(path)


@pytest.mark.parametrize(
    "change", [(b'"tokens": 2', b'"tokens": 3'), (b"\xc3\xbcber", b"Ueber"), (b'"sum": "', b'"sum": "0')]
)
def test_an_answer_that_was_changed(
    tmp_path: Path, change: tuple[bytes, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """In OUTPUT it is refused, and asked again once its line is out; in a part it is asked again."""
    path = tmp_path / "out.jsonl"
    answer_all(path, most=4)
    part = tmp_path / "out.jsonl.parts" / "0.jsonl"
    lines = part.read_bytes().splitlines(keepends=True)
    part.write_bytes(lines[0] + lines[1].replace(*change) + b"".join(lines[2:]))
    with caplog.at_level("WARNING", "internvl_chat"), opened(path) as file:
        assert file.todo == ["q1", "q4", "q5", "q6"]
    assert "0.jsonl:2 is damaged; its item is asked again" in caplog.text
    answer_all(path)
    assert path.read_bytes() == expected()
    lines = expected().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:5], lines[5].replace(*change), lines[6]]))
    with pytest.raises(ConfigError, match=r"out.jsonl:6: .* changed by hand.* item is asked again; --overwrite begins"):
        opened(path)
    path.write_bytes(b"".join([*lines[:5], lines[6]]))
    with opened(path) as file:
        assert file.todo == ["q5"]
    answer_all(path)
    assert path.read_bytes() == expected()


def test_lines_that_are_laid_out_otherwise_or_have_no_sum_are_read(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    answer_all(path)
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    del records[3]["sum"]
    path.write_text("".join(json.dumps(record, sort_keys=True, separators=(",", ":")) + "\n" for record in records))
    with opened(path) as file:
        assert file.todo == []


def test_one_process_of_a_run_is_the_last(tmp_path: Path) -> None:
    """Also where the others come late, where all was there before, and where it is started again by the same name."""
    path = tmp_path / "out.jsonl"

    def outcome(rank: int, run: str) -> tuple[bool, bool]:
        found = answer_all(path, rank=rank, world_size=2, run=run)
        assert found is not None
        return found.whole, found.last

    assert outcome(0, "a") == (False, False)
    assert outcome(1, "b") == (True, True)
    assert outcome(0, "b") == (True, False), "it comes when all is put together"
    assert outcome(1, "b") == (True, True), "it was killed before it could say so, and the launcher started it again"
    assert [outcome(rank, "c") for rank in (1, 0)] == [(True, False), (True, True)]
    assert [answer_all(path, run=None).last for _ in range(2)] == [True, True]  # type: ignore[union-attr]


def test_only_one_of_two_that_end_together_is_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a file system takes its time to delete: nobody comes in before all is put together."""
    remove = shutil.rmtree

    def slowly(*given: Any, **options: Any) -> None:
        time.sleep(0.3)
        remove(*given, **options)

    files = [opened(tmp_path / "out.jsonl", rank=rank, world_size=2, run="a") for rank in (0, 1)]
    for file in files:
        for key in file.todo:
            file.add(key, record_of(key))
        file.close()
    monkeypatch.setattr(shutil, "rmtree", slowly)
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(lambda file: file.finish(), files))
    assert [end.whole for end in ends] == [True, True]
    assert sorted(end.last for end in ends) == [False, True]


def test_half_an_emoji(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with opened(path, items={"a": "1"}) as file:
        file.add("a", {"answer": "\ud83d ü", "gold": {1: "a", 10: "b", 2: ("c", 0.1)}})
        file.finish()
    assert json.loads(path.read_text(encoding="utf-8"))["answer"] == "\ud83d ü"
    with opened(path, items={"a": "1"}) as file:
        assert file.todo == []


WORKER = """
import json, sys, time
from pathlib import Path
from internvl_chat.infer.answers_file import AnswersFile
path, rank, world, run, count = Path(sys.argv[1]), *map(int, sys.argv[2:])
items = {number: str(number * 7) for number in range(count)}
with AnswersFile(path, items, {}, key_name="line", rank=rank, world_size=world, run=str(run)) as file:
    for number in file.todo:
        time.sleep(0.0005)
        file.add(number, {"answer": "x" * (number % 50)})
    print(int(file.finish().whole))
"""


@pytest.mark.slow
def test_processes_killed_at_random(tmp_path: Path) -> None:
    """Real processes: runs of three are killed, some of them or all, until one run gets through."""
    path, count, draw = tmp_path / "out.jsonl", 600, random.Random(1)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def start(rank: int, world: int, run: int) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", WORKER, path, rank, world, run, count]
        return subprocess.Popen(
            [str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    def answered() -> int:
        return sum(file.read_bytes().count(b"\n") for file in path.parent.glob("out.jsonl.parts/*.jsonl"))

    for run in range(4):
        before = answered()
        processes = [start(rank, 3, run) for rank in range(3)]
        _wait(lambda before=before: answered() >= before + 20)  # type: ignore[misc]
        for process in draw.sample(processes, draw.choice([2, 3])):
            process.send_signal(signal.SIGKILL)
        for process in processes:
            process.communicate(timeout=60)
        assert not path.exists()
    assert 80 <= answered() < count
    processes = [start(rank, 2, 9) for rank in range(2)]
    out = [process.communicate(timeout=60) for process in processes]
    assert sorted(stdout for stdout, _ in out) in (["0\n", "1\n"], ["1\n", "1\n"]), out
    lines = [{"line": n, "answer": "x" * (n % 50), "digest": str(n * 7)} for n in range(count)]
    assert path.read_text() == "".join(map(summed, lines))


def _wait(ready: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.002)
