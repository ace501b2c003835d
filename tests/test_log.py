"""Where log lines go, and whose."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator

import pytest

from internvl_chat.log import get_logger, setup_logging


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    logger = logging.getLogger("internvl_chat")
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


def test_lines_go_to_what_is_stderr_by_then() -> None:
    with contextlib.redirect_stderr(io.StringIO()) as first:
        setup_logging()
        get_logger("tests").info("one")
    assert first.getvalue().endswith(" one\n")
    first.close()
    with contextlib.redirect_stderr(io.StringIO()) as second:
        get_logger("tests").info("two")
    assert second.getvalue().endswith(" two\n")


@pytest.mark.parametrize(("rank", "told"), [("0", "[rank 0] said\n[rank 0] warned\n"), ("1", "[rank 1] warned\n")])
def test_rank_0_speaks_and_every_rank_may_warn(
    rank: str, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    setup_logging()
    get_logger("tests").info("said")
    get_logger("tests").warning("warned")
    lines = capsys.readouterr().err.splitlines(keepends=True)
    assert "".join(line.partition(" ")[2] for line in lines) == told
