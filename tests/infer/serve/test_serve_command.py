"""``internvl serve`` as a process: asked by the official client, started again, ended by signals."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving_tools import picture, user

from internvl_chat.cli import main, make_parser
from internvl_chat.errors import ConfigError
from internvl_chat.infer.address import is_loopback, listen_at
from internvl_chat.infer.chat import Chat
from internvl_chat.infer.load import Loaded
from internvl_chat.infer.serve import command


class Process:
    """A server; ``url`` once it is ready."""

    def __init__(self, log: Path, *arguments: str, **environment: str) -> None:
        self.log = log
        line = [sys.executable, "-m", "internvl_chat", "serve", *arguments, "--device", "cpu", "--port", "0"]
        with log.open("w") as file:
            self.process = subprocess.Popen(
                line, stderr=file, stdout=file, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}
            )

    def url(self) -> str:
        end = time.monotonic() + 120
        while "ready: " not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)
        return self.log.read_text().split("ready: ")[1].split(",")[0]

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


@pytest.mark.slow
def test_a_server_and_the_official_client(
    tiny_folder: Callable[[str], Path], qwen: Loaded, pictures: list[Path], tmp_path: Path
) -> None:
    from openai import APIError, AuthenticationError, BadRequestError, NotFoundError, OpenAI

    folder = str(tiny_folder("qwen2"))
    cache = {"INTERNVL_CACHE": str(tmp_path / "cache"), "INTERNVL_API_KEY": "key"}
    chat = Chat(qwen)
    expected = chat.ask("What is it?", pictures[:1], max_new_tokens=16)
    again = chat.ask("Sure?", max_new_tokens=16)
    asking: dict[str, Any] = {"model": "mine", "max_tokens": 16}
    messages: list[Any] = [user(picture(pictures[0]), "What is it?")]
    with Process(tmp_path / "first", folder, "--name", "mine", **cache) as server:
        client = OpenAI(base_url=server.url(), api_key="key", max_retries=0)
        answer = client.chat.completions.create(messages=messages, **asking)
        assert answer.choices[0].message.content == expected
        messages += [answer.choices[0].message, user("Sure?")]
        stream = client.chat.completions.create(messages=messages, stream=True, **asking)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == again
        assert [model.id for model in client.models.list()] == ["mine"]
        with pytest.raises(NotFoundError, match="gpt"):
            client.chat.completions.create(messages=messages, model="gpt")
        with pytest.raises(BadRequestError, match="8192"):
            client.chat.completions.create(messages=messages, model="mine", max_tokens=9000)
        with pytest.raises(AuthenticationError):
            client.with_options(api_key="other").models.list()
        endless = {str(number): -100 for number in qwen.stop_ids}
        running = client.chat.completions.create(
            messages=messages, stream=True, model=folder, max_tokens=7000, logit_bias=endless
        )
        next(iter(running))
        start = time.monotonic()
        assert server.end(signal.SIGTERM) == 0, server.log.read_text()
        assert time.monotonic() - start < command.GRACE_S + 10
        with pytest.raises(APIError, match="the server is ending"):
            list(running)
    assert "exported" in server.log.read_text()
    assert "Traceback" not in server.log.read_text()
    with Process(tmp_path / "second", folder, **cache) as server:
        client = OpenAI(base_url=server.url(), api_key="key", max_retries=0)
        first = client.chat.completions.create(messages=messages[:1], model=Path(folder).name, max_tokens=16)
        assert first.choices[0].message.content == expected
        assert server.end(signal.SIGINT) == 130
    log = server.log.read_text()
    assert "export of before" in log
    assert "exporting" not in log


def served(*arguments: str) -> int:
    return main(["serve", *arguments])


def test_wrong_flags_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (["--port", "70000"], "--port"),
        (["--api_key", " "], "--api_key"),
        (["--max_body_mb", "0"], "--max_body_mb"),
        (["--max_new_tokens", "0"], "--max_new_tokens"),
        (["--device", "toaster", "--port", "0"], "--device"),
        (["--dtype", "float7", "--port", "0"], "float7"),
        (["--host", "256.1.1.1"], "--host"),
        (["--port", "0"], "no such folder"),
    ):
        assert served(str(tmp_path / "nothing"), *arguments) == 2
        assert said in capsys.readouterr().err


def test_a_key_is_one_that_clients_can_send(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line end of a file is no part of it; one that nobody could send is told, not taken for "no key"."""
    monkeypatch.delenv(command.KEY, raising=False)
    assert command._key(None) is None
    assert command._key(" abc\n") == "abc"
    monkeypatch.setenv(command.KEY, "abc\n")
    assert (command._key(None), command._key("other")) == ("abc", "other")
    for key in ("", " \n", "abc\ndef"):
        monkeypatch.setenv(command.KEY, key)
        assert served(str(tmp_path / "nothing"), "--port", "0") == 2
        assert f"${command.KEY}" in capsys.readouterr().err


def test_a_port_in_use_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert served(str(tmp_path), "--port", str(other.getsockname()[1])) == 2
    said = capsys.readouterr().err
    assert "choose another --port" in said
    assert said.count("\n") == 1


def test_it_listens_to_this_machine_only() -> None:
    args = make_parser().parse_args(["serve", "model"])
    with listen_at(args.host, 0) as place:
        assert place.getsockname()[0] == "127.0.0.1"
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "::", "box")] == [
        True, True, True, False, False, False
    ]  # fmt: skip


def test_nothing_is_read_without_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.utils.import_utils.is_serve_available", lambda: False)
    with pytest.raises(ConfigError, match="pip install fastapi"):
        command.run(make_parser().parse_args(["serve", str(tmp_path)]))
