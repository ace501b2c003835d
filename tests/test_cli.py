"""``internvl COMMAND``: what is said about words that a command does not know."""

from __future__ import annotations

import pytest

from internvl_chat.cli import TOOLS, main


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["eval", "model", "quick", "--bach_size", "4"], "--bach_size 4; did you mean '--batch_size'?"),
        (["chat", "model", "--imgae=a.png"], "--imgae=a.png; did you mean '--image'?"),
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
        main(["evaluate"])
    said = capsys.readouterr().err
    assert all(name in said for name in TOOLS)
