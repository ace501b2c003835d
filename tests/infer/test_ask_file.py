"""Files of questions: every kind of line is answered as ``Chat.ask`` answers it; one process, two, or killed ones."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from internvl_chat.data.record import Turn
from internvl_chat.data.storage import Medium
from internvl_chat.errors import CheckpointError, ConfigError, DataError
from internvl_chat.infer import ask_file
from internvl_chat.infer.ask_file import (
    Asking,
    answer_file,
    digest_of,
    read_lines,
    tell,
)
from internvl_chat.infer.ask_line import Reading, ask_line
from internvl_chat.infer.batch import answers
from internvl_chat.infer.chat import Chat
from internvl_chat.infer.checkpoint import name_checkpoint
from internvl_chat.infer.load import Loaded
from internvl_chat.infer.pictures import Shown
from internvl_chat.infer.questions import Question
from internvl_chat.infer.sharing import share_machine
from internvl_chat.launch import Launch

SIX = {"max_new_tokens": 6}
RED, BLUE = "<image> red or <image> blue?", "And this <image>?"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GIF of 12 frames, 10 a second."""
    path = tmp_path_factory.mktemp("clip") / "clip.gif"
    frames = [Image.new("RGB", (40, 30), (20 * number, 255 - 20 * number, 90)) for number in range(12)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    return path


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


def write(path: Path, lines: Sequence[Any]) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def run(loaded: Loaded, tmp_path: Path, lines: Sequence[Any], launch: Launch | None = None, **said: Any) -> Any:
    """Exit status and records of the output, through the very functions of the command."""
    output = said.pop("output", tmp_path / "out.jsonl")
    asking = Asking(write(tmp_path / "in.jsonl", lines), output, SIX, **{"batch_size": 3, **said})
    outcome, total = answer_file(asking, lambda: loaded, {}, launch or Launch(), "run")
    status = tell(outcome, output, total)
    return status, [
        json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()
    ] if outcome.whole else []


def told_before(loaded: Loaded, rounds: Sequence[tuple[str, str]], question: str, shown: Sequence[Shown]) -> str:
    """The answer behind a history, from turns written out by hand."""
    turns = [turn for q, a in rounds for turn in (Turn("human", q), Turn("gpt", a))]
    found = dict(answers(loaded, [Question((*turns, Turn("human", question)), tuple(shown))], **SIX))[0]
    assert not isinstance(found, DataError)
    return found.text


def test_every_kind_of_question(qwen: Loaded, tmp_path: Path, pictures: list[Path], clip: Path) -> None:
    """The same answers as ``Chat.ask``, in the order of the lines, whatever batches they went in."""
    names = [picture.name for picture in pictures]
    lines: list[Any] = [
        {"id": 17, "question": "Hello?"},
        {"question": "What is it?", "image": names[0], "answer": "a dog"},
        "",
        {"question": RED, "image": names[:2]},
        {"question": "Both?", "image": names[1:3]},
        {"question": "Who?", "system": "You are a cat."},
        {"question": "What happens?", "video": str(clip), "num_segments": 3},
        {"question": "Here? <image> then <video>", "image": names[3], "video": str(clip), "clip": [0.2, 0.9]},
        {
            "question": "And now?",
            "image": [names[0], names[2]],
            "history": [["<image>\nFirst?", "Yes."], ["So?", "So."]],
        },
        {"question": "Again", "history": [["<video>\nMoves?", "A bit."]], "video": [str(clip)], "num_segments": 2},
    ]
    status, records = run(qwen, tmp_path, lines, root=str(pictures[0].parent), num_segments=4)
    assert status == 0
    assert [record["line"] for record in records] == [1, 2, 4, 5, 6, 7, 8, 9, 10]

    def ask(question: str, *images: Path, system: str | None = None, **said: Any) -> str:
        return Chat(qwen, system).ask(question, images, **SIX, **said)

    most = qwen.tiles.max_tiles
    film = ask_video(clip, 2)
    expected = [
        ask("Hello?"),
        ask("What is it?", pictures[0]),
        ask(RED, *pictures[:2]),
        ask("Both?", *pictures[1:3]),
        ask("Who?", system="You are a cat."),
        ask("What happens?", video=clip, num_segments=3),
        ask("Here? <image> then <video>", pictures[3], video=clip, num_segments=4, bound=(0.2, 0.9)),
        told_before(
            qwen, [("<image>\nFirst?", "Yes."), ("So?", "So.")], "<image>\nAnd now?",
            [Shown(pictures[0], most), Shown(pictures[2], most)],
        ),
        told_before(qwen, [("Frame-1: <image>\nFrame-2: <image>\nMoves?", "A bit.")], "Again", [film]),
    ]  # fmt: skip
    assert [record["answer"] for record in records] == expected
    assert len(set(expected)) == len(expected), "random weights let every difference show"
    assert records[0].keys() == {"line", "id", "question", "answer", "tokens", "finish", "digest", "sum"}
    assert records[1]["reference"] == "a dog"
    assert [record["question"] for record in records[:3]] == ["Hello?", "What is it?", RED]
    assert {record["finish"] for record in records} <= {"stop", "length"}
    assert all(1 <= record["tokens"] <= 6 for record in records)


def ask_video(clip: Path, frames: int) -> Shown:
    from internvl_chat.infer.pictures import Video

    return Shown(Video(clip, frames), 1)


def test_the_formats_of_training(qwen: Loaded, tmp_path: Path, pictures: list[Path]) -> None:
    """The last human turn is asked, what was said before is history, a last answer is the reference."""
    names = [str(picture) for picture in pictures]
    lines = [
        {"id": "a", "image": names[0], "conversations": [human("What?"), gpt("A dog.")]},
        {"image": names[:2], "conversations": [human("One <image>?"), gpt("Yes."), human(BLUE)]},
        {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]},
        {"query": "<image>Look", "response": "I see", "images": [names[2]], "history": [["So?", "So."]]},
        {"instruction": "Add", "input": "1 and 2", "output": "3"},
        {"conversations": [human("Hi"), {**gpt("Ho"), "loss": False}]},
        {
            "image": [names[0]],
            "objects": {"ref": [], "bbox": [[23, 11, 115, 55]]},
            "messages": [{"role": "user", "content": "<image>Where?"}, {"role": "assistant", "content": "<bbox>"}],
        },
    ]
    status, records = run(qwen, tmp_path, lines, system="Be brief.")
    assert status == 0
    most = qwen.tiles.max_tiles

    def ask(question: str, *images: str, system: str = "Be brief.") -> str:
        return Chat(qwen, system).ask(question, images, **SIX)

    turns = [Turn("system", "Be brief."), Turn("human", "One <image>?"), Turn("gpt", "Yes."), Turn("human", BLUE)]
    shared = Question(tuple(turns), (Shown(names[0], most // 2), Shown(names[1], most // 2)))
    later = Question(
        (Turn("system", "Be brief."), Turn("human", "So?"), Turn("gpt", "So."), Turn("human", "<image>\nLook")),
        (Shown(names[2], most),),
    )
    found = [answer.text for _, answer in sorted(answers(qwen, [shared, later], **SIX), key=lambda pair: pair[0])]  # type: ignore[union-attr]
    assert [record["answer"] for record in records] == [
        ask("<image>\nWhat?", names[0]),
        found[0],
        ask("Hi", system="Be kind."),
        found[1],
        ask("Add\n1 and 2"),
        ask("Hi"),
        ask("<image>Where?", names[0]),
    ]
    references = [record.get("reference") for record in records]
    assert references[:6] == ["A dog.", None, None, "I see", "3", "Ho"]
    assert references[6] == "<box>[[100, 100, 500, 500]]</box>"


def test_pictures_from_an_archive(qwen: Loaded, tmp_path: Path, pictures: list[Path]) -> None:
    with zipfile.ZipFile(tmp_path / "pics.zip", "w") as packed:
        packed.write(pictures[0], "sub/a.png")
    url = f"data:image/png;base64,{base64.b64encode(pictures[1].read_bytes()).decode()}"
    lines = [
        {"question": "What?", "image": "sub/a.png"},
        {"question": "What?", "image": url},
        {"question": "What?", "video": "sub/a.png"},
        {"question": "What?", "image": "sub/b.png"},
        {"messages": [{"role": "user", "content": "<image>What?"}], "images": ["sub/a.png"]},
    ]
    root = str(tmp_path / "pics.zip")
    status, records = run(qwen, tmp_path, lines, root=root)
    assert status == 1
    assert records[0]["answer"] == Chat(qwen).ask("What?", pictures[0], **SIX)
    assert records[1]["answer"] == Chat(qwen).ask("What?", pictures[1], **SIX)
    assert "lies in an archive" in records[2]["error"]
    assert "sub/b.png" in records[3]["error"]
    # None is opened before its batch is due, or a window of them would fill the memory.
    for line in (lines[0], lines[1], lines[4]):
        (shown,) = ask_line(line, Reading(qwen.tiles, root)).question.shown
        assert isinstance(shown.source, Medium)


def test_a_picture_replaced_is_told(qwen: Loaded, tmp_path: Path, pictures: list[Path]) -> None:
    """By its size: copies with new times go on. A picture that was missing may come."""
    (tmp_path / "pics").mkdir()
    for name, source in (("a.png", pictures[0]), ("b.png", pictures[1])):
        (tmp_path / "pics" / name).write_bytes(source.read_bytes())
    lines: list[Any] = [
        {"question": "What?", "image": "a.png"},
        {"query": "<image>Look", "response": "I see", "images": ["b.png"]},
        {"question": "What?", "image": "c.png"},
    ]
    root = str(tmp_path / "pics")
    assert run(qwen, tmp_path, lines, root=root)[0] == 1
    os.utime(tmp_path / "pics" / "a.png", (1, 1))
    (tmp_path / "pics" / "c.png").write_bytes(pictures[3].read_bytes())
    status, records = run(qwen, tmp_path, lines, root=root)
    assert (status, records[2]["answer"]) == (0, Chat(qwen).ask("What?", pictures[3], **SIX))
    for name, number in (("a.png", 1), ("b.png", 2)):
        before = (tmp_path / "pics" / name).read_bytes()
        (tmp_path / "pics" / name).write_bytes(pictures[2].read_bytes())
        with pytest.raises(ConfigError, match=f"line {number}, or a file that it names, has changed since"):
            run(qwen, tmp_path, lines, root=root)
        (tmp_path / "pics" / name).write_bytes(before)
    assert run(qwen, tmp_path, lines, root=root)[0] == 0
    assert digest_of(b"{not json") == digest_of(b"{not json", root)
    assert digest_of(b'{"question": "a", "image": ["nul\\u0000", 3, {}]}') != digest_of(b'{"question": "a"}')


def test_lines_that_cannot_be_asked(
    qwen: Loaded, tmp_path: Path, pictures: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Each says why; the others are answered; status 1; the same command tries them again."""
    picture = str(pictures[0])
    bad: list[tuple[Any, str]] = [
        ("{not json", "not JSON"),
        ("[1]", "not an object"),
        ({"id": "x", "question": "What?", "image": "nowhere.png"}, "picture 'nowhere.png' does not exist"),
        ({"question": "<image> <image>?", "image": picture}, "2 <image> in the question, pictures given: 1"),
        ({"question": "<image>?"}, "no picture is given"),
        ({"question": "What?", "images": [picture]}, "rename it to 'image'"),
        ({"question": ""}, "key 'question' holds"),
        ({"question": "What?", "image": 3}, "key 'image' holds 3"),
        ({"question": "What?", "history": [["a"]]}, "list of [question, answer]"),
        ({"question": "What?", "history": [["<image>?", "Yes"]]}, "no picture is given"),
        ({"question": "What?", "video": [picture, picture]}, "2 videos with one question"),
        ({"question": "What?", "video": picture, "num_segments": 0}, "'num_segments' holds 0"),
        ({"question": "What?", "video": picture, "clip": [5]}, "'clip' holds"),
        ({"question": "What?", "chosen": "a", "rejected": "b"}, "preference"),
        ({"conversations": []}, "no turns"),
        ({"conversations": [human("a"), human("b")]}, "where gpt is due"),
        ({"conversations": ["a"]}, "not an object"),
        ({"image": picture, "conversations": [human("<image><image>")]}, "2 <image> in the human turns but 1"),
        ({"nothing": 1}, "of no known format"),
    ]
    lines = [line for line, _ in bad] + [{"question": "Hello?"}]
    with caplog.at_level("INFO", "internvl_chat"):
        status, records = run(qwen, tmp_path, lines)
    assert status == 1
    for record, (line, message) in zip(records, bad, strict=False):
        assert message in record["error"], line
        assert "answer" not in record
    assert records[2]["id"] == "x"
    assert records[-1]["answer"] == Chat(qwen).ask("Hello?", **SIX)
    assert "1 with an answer, 19 without" in caplog.text
    assert caplog.text.count("WARNING") == 11, "ten errors, and what to do"
    assert "and 9 more; the same command tries them again" in caplog.text
    Image.open(pictures[0]).save(tmp_path / "nowhere.png")
    assert "answer" in run(qwen, tmp_path, lines, root=str(tmp_path))[1][2]


def test_one_process_or_two_and_nothing_is_asked_twice(
    qwen: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [{"id": n, "question": f"What is {'very ' * (n % 4)}number {n}?"} for n in range(11)]
    run(qwen, tmp_path, lines)
    outputs = [tmp_path / f"{n}.jsonl" for n in range(2)]
    for rank in (1, 0):
        launch = Launch("torchrun", rank, 2, rank, 2)
        status, records = run(qwen, tmp_path, lines, launch, output=outputs[0])
        assert (status, len(records)) == (0, 0 if rank else 11)
    assert outputs[0].read_bytes() == (tmp_path / "out.jsonl").read_bytes()
    asked = []
    monkeypatch.setattr(ask_file, "answers", lambda *args, **kwargs: asked.append(args) or answers(*args, **kwargs))
    run(qwen, tmp_path, lines)
    assert asked == []


def test_the_file_of_questions(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n  {"b": 2}')
    assert read_lines(path) == {1: b'{"a": 1}', 3: b'{"b": 2}'}
    with pytest.raises(DataError, match="cannot be read"):
        read_lines(tmp_path / "nowhere.jsonl")
    path.write_text("\n \n")
    with pytest.raises(DataError, match="has no line"):
        read_lines(path)


def test_devices_of_the_processes_of_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    second = Launch("torchrun", 5, 8, 1, 4)
    threads: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    chosen: list[int] = []
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    for cards, given, expected in ((0, None, None), (1, None, "cuda:0"), (4, None, "cuda:1"), (4, "cuda:3", "cuda:3")):
        monkeypatch.setattr("torch.cuda.device_count", lambda cards=cards: cards)
        assert share_machine(second, given) == expected
    assert chosen == [1]
    assert threads == [max(1, len(os.sched_getaffinity(0)) // 4)]
    assert share_machine(second, "cpu") == "cpu"
    assert share_machine(Launch(), None) is None
    assert len(threads) == 2, "a process alone has all cores"
    with pytest.raises(ConfigError, match="4 processes on this node, but 2 GPUs"):
        monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
        share_machine(Launch("torchrun", 3, 4, 3, 4), None)


def test_a_checkpoint_trained_further_is_another_one(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for file in tiny_folder("qwen2").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    before = name_checkpoint(str(folder))
    assert before.startswith("mine ")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[len(weights) // 2 :] = bytes(byte ^ 1 for byte in weights[len(weights) // 2 :])
    (folder / "model.safetensors").write_bytes(weights)
    trained = name_checkpoint(str(folder))
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config + "\n")
    names = [before, trained, name_checkpoint(str(folder))]
    for name in ("tokenizer.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja"):
        small = folder / name
        small.write_text((small.read_text(encoding="utf-8") if small.exists() else "") + "\n", encoding="utf-8")
        names.append(name_checkpoint(str(folder)))
    assert len(set(names)) == len(names) == 7
    (folder / "README.md").write_text("Mine.")
    assert name_checkpoint(str(folder)) == names[-1]
    with pytest.raises(CheckpointError, match="not a model folder"):
        name_checkpoint(str(tmp_path))


@pytest.mark.slow
def test_killed_and_gone_on_with_by_two_processes(
    tiny_folder: Callable[[str], Path], qwen: Loaded, tmp_path: Path, pictures: list[Path]
) -> None:
    """Real processes: SIGKILL in the middle, then two as torchrun starts them; the answers of ``Chat.ask``."""
    lines = [
        {"id": n, "question": f"What is number {n}?", **({"image": pictures[n % 4].name} if n % 3 == 0 else {})}
        for n in range(40)
    ]
    output = tmp_path / "out.jsonl"
    code = "import sys; from internvl_chat import cli; cli.TOOLS = {'chat': cli.TOOLS['chat']}; sys.exit(cli.main())"
    words = [
        sys.executable, "-c", code, "chat", tiny_folder("qwen2"), "--input", write(tmp_path / "in.jsonl", lines),
        "--output", output, "--image_root", pictures[0].parent, "--batch_size", 1, "--max_new_tokens", 16, "--device",
        "cpu",
    ]  # fmt: skip

    def start(**variables: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2]), **variables}
        return subprocess.Popen([str(word) for word in words], stderr=subprocess.PIPE, text=True, env=environment)

    process = start()
    part = tmp_path / "out.jsonl.parts" / "0.jsonl"
    end = time.monotonic() + 120
    while (part.read_bytes().count(b"\n") if part.exists() else 0) < 3:
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    kept = part.read_bytes().count(b"\n")
    assert 3 <= kept < 40
    assert not output.exists()
    torchrun = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    processes = [start(RANK=str(rank), LOCAL_RANK=str(rank), **torchrun) for rank in range(2)]
    told = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    records = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [record["id"] for record in records] == list(range(40))
    for number in range(0, 40, 5):
        images = [pictures[number % 4]] if number % 3 == 0 else []
        assert records[number]["answer"] == Chat(qwen).ask(f"What is number {number}?", images, max_new_tokens=16)
    assert "goes on with" in told[0]
    assert not part.parent.exists()
