"""``internvl chat``: one question, and the conversation line by line."""

from __future__ import annotations

import argparse
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from internvl_chat import cli
from internvl_chat.errors import ConfigError, DataError
from internvl_chat.infer import command
from internvl_chat.infer.chat import Chat
from internvl_chat.infer.load import Loaded

# The chat command through the real command line, without the other commands.
CLI = "import sys; from internvl_chat import cli; cli.TOOLS = {'chat': cli.TOOLS['chat']}; sys.exit(cli.main())"


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser.add_subparsers().add_parser("chat"))
    return parser.parse_args(["chat", *words])


@pytest.fixture()
def session(qwen: Loaded, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``session(lines, *arguments)``: the command with these lines as stdin, and the model that is in memory."""
    monkeypatch.setattr(command, "_open", lambda args: Chat(qwen))
    monkeypatch.setattr(command, "setup_logging", lambda: None)

    def run(lines: str, *arguments: str) -> int:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        return command.run(parse("CKPT", "--max_new_tokens", "8", *arguments))

    return run


@pytest.mark.parametrize("words", [("q", "--image", "a", "--image", "b"), ("--image", "a", "--image", "b", "q")])
def test_the_question_may_stand_anywhere(words: tuple[str, ...]) -> None:
    for order in (("CKPT", *words), ("--device", "cpu", "CKPT", *words)):
        args = parse(*order)
        assert (args.checkpoint, args.question, args.image) == ("CKPT", "q", ["a", "b"])


def test_unknown_flags_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("CKPT", "--bogus"), ("CKPT", "--image", "a", "q", "again"), ("CKPT", "q", "--bogus")):
        with pytest.raises(SystemExit):
            parse(*words)
        assert "unrecognized arguments" in capsys.readouterr().err


def test_one_question_in_a_process(tiny_folder: Callable[[str], Path], qwen: Loaded, pictures: list[Path]) -> None:
    """stdout holds the answer and nothing else; the exit status is 0."""
    arguments = [
        "chat",
        tiny_folder("qwen2"),
        "--image",
        pictures[0],
        "--device",
        "cpu",
        "--max_new_tokens",
        "8",
        "Hm?",
    ]
    done = subprocess.run([sys.executable, "-c", CLI, *arguments], capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == Chat(qwen).ask("Hm?", pictures[:1], max_new_tokens=8) + "\n"
    assert done.stderr == b""


def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "TOOLS", {"chat": cli.TOOLS["chat"]})
    assert cli.main(["chat", str(tmp_path), "q"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_a_conversation(
    session: Callable[..., int], qwen: Loaded, pictures: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = f"First?\n\n/image '{pictures[1]}'\nSecond?\nThird?\n/clear\nFirst?\n/quit\nnever read\n"
    assert session(lines, "--image", str(pictures[0])) == 0
    chat = Chat(qwen)
    rounds = [("First?", pictures[:1]), ("Second?", pictures[1:2]), ("Third?", [])]
    expected = [chat.ask(question, images, max_new_tokens=8) for question, images in rounds]
    expected.append(Chat(qwen).ask("First?", max_new_tokens=8))
    expected.insert(1, "[picture 1: 60 x 190]")
    captured = capsys.readouterr()
    assert captured.out.split("\n") == [*expected, ""]
    assert captured.err == ""


def test_errors_end_nothing_and_keep_what_is_attached(
    session: Callable[..., int], qwen: Loaded, pictures: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = f"/image {pictures[0]}\n/image nowhere.png\n<image> <image>?\n/imag x\n/image\nHm?\n"
    assert session(lines) == 0
    captured = capsys.readouterr()
    errors = captured.err.splitlines()
    assert len(errors) == 4
    assert "'nowhere.png' does not exist" in errors[0]
    assert "2 <image> in the question" in errors[1]
    assert "did you mean '/image'" in errors[2]
    assert "needs a path" in errors[3]
    assert captured.out.endswith(Chat(qwen).ask("Hm?", pictures[:1], max_new_tokens=8) + "\n")


def test_help(session: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert session("/help\n") == 0
    assert capsys.readouterr().out.splitlines() == list(command.HELP.values())


def test_ctrl_c_leaves_at_the_prompt_and_stops_an_answer(
    session: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(Chat):
        def ask(self, *args: object, **kwargs: object) -> Iterator[str]:  # type: ignore[override]
            yield "I was"
            raise KeyboardInterrupt

    monkeypatch.setattr(command, "_open", lambda args: Interrupted(None))  # type: ignore[arg-type]
    assert session("Hm?\n/help\n") == 0
    out = capsys.readouterr().out
    assert out.startswith("I was\n[stopped")
    assert "/image PATH" in out

    def interrupt(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupt)
    assert session("") == 0


def test_ctrl_c_in_a_process(tiny_folder: Callable[[str], Path]) -> None:
    """SIGINT at the prompt: no traceback, status 0."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", CLI, "chat", tiny_folder("qwen2"), "--device", "cpu"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("/help\n")
    process.stdin.flush()
    assert process.stdout.readline().startswith("/image")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "Traceback" not in err


def test_wrong_values_are_told_before_anything_is_loaded(pictures: list[Path]) -> None:
    for words, error, message in (
        (("q", "--temperature", "-1"), ConfigError, "temperature"),
        (("q", "--max_new_tokens", "0"), ConfigError, "max_new_tokens"),
        (("q", "--image", "nowhere.png"), DataError, "does not exist"),
        (("<image> <image>", "--image", str(pictures[0])), DataError, "2 <image>"),
    ):
        with pytest.raises(error, match=message):
            command.run(parse("no/such/folder", *words))


def test_the_module_is_light() -> None:
    """``internvl --help`` imports it: nothing heavy may come along."""
    check = (
        "import sys, internvl_chat.infer.command; print({'torch', 'transformers', 'PIL', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()"
