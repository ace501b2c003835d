"""``internvl chat``: its flags, one question, a conversation, a file of questions."""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

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
def main(tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``main(*arguments, lines=..)``: the whole command in this process, with these lines as stdin."""
    monkeypatch.setattr(command, "setup_logging", lambda: None)
    monkeypatch.setattr(cli, "TOOLS", {"chat": cli.TOOLS["chat"]})

    def run(*arguments: Any, lines: str = "") -> int:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        words = ["chat", tiny_folder("qwen2"), "--device", "cpu", "--max_new_tokens", 8, *arguments]
        return cli.main([str(word) for word in words])

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


def test_one_question(
    main: Callable[..., int], qwen: Loaded, pictures: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """stdout holds the answer and nothing else."""
    assert main("Hm?", "--image", pictures[0], "--system", "Be kind.") == 0
    captured = capsys.readouterr()
    assert captured.out == Chat(qwen, "Be kind.").ask("Hm?", pictures[:1], max_new_tokens=8) + "\n"
    assert captured.err == ""


def test_every_flag_of_the_question_and_its_decoding_counts(
    main: Callable[..., int], qwen: Loaded, pictures: list[Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number, picture in enumerate(pictures):
        (frames / f"{number}{picture.suffix}").write_bytes(picture.read_bytes())
    words = ("Hm?", "--image", pictures[0], "--video", frames, "--num_segments", 2, "--max_tiles", 1)
    assert main(*words, "--repetition_penalty", 0.1, "--generate", "num_beams=3", "--stats") == 0
    captured = capsys.readouterr()
    few = replace(qwen, tiles=replace(qwen.tiles, max_tiles=1))
    decoding = {"max_new_tokens": 8, "repetition_penalty": 0.1, "num_beams": 3}
    told = Chat(few).ask("Hm?", pictures[:1], frames, num_segments=2, **decoding)
    assert captured.out == told + "\n"
    assert captured.err.startswith("[8 tokens, ")
    for loaded, segments, left_out in (
        (qwen, 2, ""),
        (few, 3, ""),
        (few, 2, "repetition_penalty"),
        (few, 2, "num_beams"),
    ):
        other = {name: value for name, value in decoding.items() if name != left_out}
        assert Chat(loaded).ask("Hm?", pictures[:1], frames, num_segments=segments, **other) != told


def test_sampling_with_a_seed(main: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    def sample(seed: int) -> str:
        assert main("Hm?", "--temperature", 1.5, "--top_p", 0.9, "--seed", seed) == 0
        return capsys.readouterr().out

    assert sample(1) == sample(1) != sample(2)


def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "TOOLS", {"chat": cli.TOOLS["chat"]})
    monkeypatch.setattr(command, "setup_logging", lambda: None)
    assert cli.main(["chat", str(tmp_path), "q"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_wrong_values_are_told_before_anything_is_loaded(pictures: list[Path]) -> None:
    files = ("--input", "in.jsonl", "--output", "out.jsonl")
    for words, error, message in (
        (("q", "--temperature", "-1"), ConfigError, "temperature"),
        (("q", "--max_new_tokens", "0"), ConfigError, "max_new_tokens"),
        (("q", "--generate", "top_q=1"), ConfigError, "did you mean 'top_k'|did you mean 'top_p'"),
        (("q", "--num_segments", "0"), ConfigError, "--num_segments 0: at least 1"),
        (("q", "--max_tiles", "0"), ConfigError, "--max_tiles 0: at least 1"),
        (("q", "--num_segments", "4"), ConfigError, "--num_segments 4 belongs to a video"),
        (("q", "--seed", "1"), ConfigError, "--seed 1: only what is sampled has one; add --temperature 0.7"),
        (("q", "--top_p", "0.9"), ConfigError, "--top_p 0.9: only what is sampled"),
        (("q", "--temperature", "1", "--seed", "9" * 23), ConfigError, "--seed 9+: from 0 to"),
        (("--seed", "-1"), ConfigError, "--seed -1: from 0 to"),
        (("q", "--generate", "do_sample=true"), ConfigError, "add --temperature 0.7"),
        ((*files, "--stats"), ConfigError, "--stats belongs to a conversation"),
        ((*files, "--seed", "1"), ConfigError, "--seed 1: only what is sampled"),
        (("q", "--image", "nowhere.png"), DataError, "does not exist"),
        (("q", "--video", "nowhere.mp4"), DataError, "does not exist"),
        (("<image> <image>", "--image", str(pictures[0])), DataError, "2 <image>"),
        (("q", "--output", "out.jsonl"), ConfigError, "--output belongs to a file of questions"),
        (("q", "--batch_size", "2"), ConfigError, "--batch_size belongs to a file of questions"),
        (files[:2], ConfigError, "needs --output"),
        ((*files[:3], "./in.jsonl"), ConfigError, "is the file of the questions"),
        ((*files, "q"), ConfigError, "leave a question out"),
        ((*files, "--image", "a.png"), ConfigError, "leave --image out"),
        ((*files, "--batch_size", "0"), ConfigError, "--batch_size 0: at least 1"),
    ):
        with pytest.raises(error, match=message):
            command.run(parse("no/such/folder", *words))


def test_a_file_of_questions(main: Callable[..., int], qwen: Loaded, pictures: list[Path], tmp_path: Path) -> None:
    """Answers, status 0; with other settings a refusal; with --overwrite a new start; an error, status 1."""
    questions, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    questions.write_text(json.dumps({"question": "Hm?", "image": pictures[0].name}) + "\n")
    words = ("--input", questions, "--output", output, "--image_root", pictures[0].parent)
    assert main(*words) == 0
    (record,) = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert record["answer"] == Chat(qwen).ask("Hm?", pictures[:1], max_new_tokens=8)
    few = ("--max_tiles", 1, "--batch_size", 1)
    assert main(*words, *few) == 2
    assert main(*words, *few, "--overwrite") == 0
    (other,) = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    loaded = replace(qwen, tiles=replace(qwen.tiles, max_tiles=1))
    assert other["answer"] == Chat(loaded).ask("Hm?", pictures[:1], max_new_tokens=8) != record["answer"]
    with questions.open("a") as file:
        file.write('{"question": ""}\n')
    assert main(*words, *few) == 1


def test_processes_do_not_share_a_model_that_is_spread(
    main: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    torchrun = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name, value in zip(torchrun, ("1", "1", "2", "2", "127.0.0.1", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert main("--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl", "--device_map", "auto") == 2
    assert "each process has one" in capsys.readouterr().err


@pytest.mark.slow
def test_a_conversation_in_a_process(tiny_folder: Callable[[str], Path], qwen: Loaded) -> None:
    """stdout holds the answers alone, as they come; SIGINT at the prompt: no traceback, status 0."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLI, "chat", tiny_folder("qwen2"), "--device", "cpu", "--max_new_tokens", "8"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"Hm?\n/help\n")
    process.stdin.flush()
    shown = b""
    while b"/image" not in shown:
        shown += os.read(process.stdout.fileno(), 4096)
    assert shown.decode().split("/image")[0] == Chat(qwen).ask("Hm?", max_new_tokens=8) + "\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert err == b""


def test_the_module_is_light() -> None:
    """``internvl --help`` imports it: nothing heavy may come along."""
    check = (
        "import sys, internvl_chat.infer.command; print({'torch', 'transformers', 'PIL', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "set()"


def test_bytes_that_are_no_text_and_letters_that_stdout_has_not(tiny_folder: Callable[[str], Path]) -> None:
    """In a process of its own: each is told of, or written as ?, and the conversation goes on."""
    done = subprocess.run(
        [sys.executable, "-c", CLI, "chat", tiny_folder("qwen2"), "--device", "cpu", "--max_new_tokens", "30"],
        input=b"h\xffm\nHm?\n/quit\n", capture_output=True, timeout=120,
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(b"error: the question holds")
    assert done.stderr.count(b"\n") == 1
    assert done.stdout.strip()


def test_no_memory_left_is_a_line(
    main: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("internvl_chat.model.chat.InternVLChatModel.generate", fail)
    assert main("Hm?") == 2
    assert capsys.readouterr().err.startswith("error: the GPU has no more memory for this question; take fewer tiles")
    (tmp_path / "in.jsonl").write_text('{"question": "Hm?"}\n')
    assert main("--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl", "--batch_size", 4) == 2
    assert "no more memory with --batch_size 4 and --batch_tokens" in capsys.readouterr().err


def test_an_empty_question_is_refused(main: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(" ") == 2
    assert capsys.readouterr().err == "error: the question is empty; write one\n"
