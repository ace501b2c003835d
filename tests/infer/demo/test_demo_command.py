"""``internvl demo``: what is refused before weights are read, and a process from its ready line to its end."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from internvl_chat.cli import main, make_parser
from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.infer.demo import command
from internvl_chat.infer.demo.command import (
    AUTH_VARIABLE,
    check_arguments,
    free_port,
    names_of,
    read_auth,
    upload_folder,
)


def arguments(*given: str) -> argparse.Namespace:
    return make_parser().parse_args(["demo", *given])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a", "b", "c"], "3 checkpoints"),
        (["a", "--temperature", "-1"], "temperature -1.0 is negative"),
        (["a", "--top_p", "0"], "top_p 0.0 is not in"),
        (["a", "--max_new_tokens", "0"], "max_new_tokens 0"),
        (["a", "--max_upload_mb", "0"], "--max_upload_mb 0: at least 1"),
        (["a", "--num_segments", "0"], "--num_segments 0: at least 1"),
        (["a", "--max_tiles", "0"], "--max_tiles 0: at least 1"),
    ],
)
def test_what_cannot_be_used_is_refused(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_arguments(arguments(*given))
    check_arguments(arguments("a", "b"))


def test_user_and_password() -> None:
    assert read_auth(None) is None
    assert read_auth("eva:a:b") == ("eva", "a:b")
    for wrong in ("eva", "eva:", ":secret", ""):
        with pytest.raises(ConfigError, match="USER:PASSWORD") as error:
            read_auth(wrong)
        assert "secret" not in str(error.value)


def test_models_are_named_by_as_little_of_their_paths_as_tells_them_apart() -> None:
    assert names_of(["/runs/a/final"]) == ["final"]
    assert names_of(["/runs/base", "/runs/tuned/"]) == ["base", "tuned"]
    assert names_of(["/runs/a/final", "/runs/b/final"]) == ["a/final", "b/final"]
    assert names_of(["/runs/base", "/runs/tuned/adapter"]) == ["base", "tuned"]
    assert names_of(["/runs/a/adapter", "/runs/b/adapter"]) == ["a", "b"]
    assert names_of(["/runs/a/checkpoint-100"]) == ["a-checkpoint-100"], "as serve and eval call it"
    assert names_of(["/runs/a/checkpoint-100", "/runs/b/checkpoint-100"]) == ["a-checkpoint-100", "b-checkpoint-100"]
    assert names_of(["/x/y", "/x/y"]) == ["y (1)", "y (2)"]


def test_a_port_that_is_taken_is_told_with_the_flag() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port} cannot be listened at .*--port, 0 takes any free one"):
            free_port("127.0.0.1", port)
    assert free_port("127.0.0.1", 0) > 0
    with pytest.raises(ConfigError, match="--host nowhere"):
        free_port("nowhere.invalid", 7860)


def test_uploads_lie_in_a_folder_of_ones_own_that_ends_with_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/as/before")
    with upload_folder() as folder:
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
        assert folder.stat().st_mode & 0o077 == 0
        (folder / "upload").write_text("x")
    assert not folder.exists()
    assert os.environ["GRADIO_TEMP_DIR"] == "/as/before"


def test_a_missing_gradio_is_told_with_the_way_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", "no_such_folder"]) == 2
    assert "pip install gradio" in capsys.readouterr().err


def test_the_second_checkpoint_s_fault_is_told_before_the_first_is_read(
    tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("internvl_chat.infer.load.load", lambda *_, **__: pytest.fail("read"))
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"not a model folder.*did you mean .*checkpoint-5"):
        command._load(arguments(str(tiny_folder("qwen2")), str(tmp_path)))


@pytest.mark.slow
def test_the_command_serves_behind_a_password_until_it_is_ended(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip("gradio")
    environment = {**os.environ, AUTH_VARIABLE: "eva:secret", "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    folder = str(tiny_folder("qwen2"))
    command = [sys.executable, "-m", "internvl_chat", "demo", folder, "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            lines: list[str] = []
            while not lines or "open http" not in lines[-1]:
                line = process.stderr.readline()
                assert line, "".join(lines)
                lines.append(line)
            address = re.search(r"open (http://127\.0\.0\.1:\d+)$", lines[-1].strip())[1]  # type: ignore[index]
            for path in ("/config", "/gradio_api/file=/etc/passwd"):
                with pytest.raises(urllib.error.HTTPError) as error:
                    urllib.request.urlopen(address + path)
                assert error.value.code == 401
            with urllib.request.urlopen(address) as reply:
                assert "default-src 'self'" in reply.headers["content-security-policy"]
            login = urllib.request.Request(f"{address}/login", data=b"username=eva&password=secret", method="POST")
            with urllib.request.urlopen(login) as reply:
                assert json.load(reply)["success"] is True
            assert list(tmp_path.glob("internvl_demo_*"))
        finally:
            process.send_signal(signal.SIGTERM)
            process.stderr.read()
            assert process.wait(60) == 0
    assert not list(tmp_path.glob("internvl_demo_*"))
    assert not any("secret" in line for line in lines)
