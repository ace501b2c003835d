"""``internvl COMMAND``: what is said about words that a command does not know; help, at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from internvl_chat.cli import TOOLS, main


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["eval", "model", "quick", "--bach_size", "4"], "unknown flag --bach_size; did you mean '--batch_size'?"),
        (["chat", "model", "--imgae=a.png"], "unknown flag --imgae; did you mean '--image'?"),
        (["models", "--zzzzzzzzz"], "unrecognized arguments: --zzzzzzzzz\n"),
        (["models", "InternVL2-2B", "and", "more"], "unrecognized arguments: and more\n"),
    ],
)
def test_an_unknown_flag(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(argv)
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert message in said
    assert f"usage: internvl {argv[0]}" in said


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["tran"])
    assert "'tran' is no command; did you mean 'train'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([])
    said = capsys.readouterr().err
    assert all(name in said for name in TOOLS) and "internvl --help" in said


@pytest.mark.parametrize("command", ["check", "preview", "plan", "estimate", "repair"])
def test_help_of_a_tool_imports_nothing_heavy(command: str) -> None:
    code = (
        "import sys; from internvl_chat.cli import main\n"
        f"try: main(['{command}', '--help'])\n"
        "except SystemExit: print(sorted({'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip().endswith("[]"), done.stdout
    assert "usage: internvl " + command in done.stdout


def test_help_of_tiny_says_its_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["tiny", "--help"])
    assert capsys.readouterr().out.count("(default:") == 12


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_ends_a_command_quietly(unbuffered: str) -> None:
    """As in ``internvl models | head -1``, whether what is written goes out at once or at the end."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "internvl_chat", "models"], stdout=writing, stderr=subprocess.PIPE, timeout=60,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_pipe_of_its_own_that_breaks_is_no_reader_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> int:
        raise BrokenPipeError

    monkeypatch.setattr("internvl_chat.tools.models.run", fail)
    with pytest.raises(BrokenPipeError):
        main(["models"])
    monkeypatch.setattr(sys, "argv", ["internvl", "models"])
    with Path(os.devnull).open("w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(BrokenPipeError):
            main()
