"""One process at a time, where files can be locked."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path

import pytest

from internvl_chat.data.locks import alone


def test_the_second_waits_for_the_first(tmp_path: Path) -> None:
    seen: list[str] = []

    def second() -> None:
        with alone(tmp_path / "lock") as held:
            seen.append(f"second {held}")

    with alone(tmp_path / "lock") as held:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        seen.append(f"first {held}")
    thread.join(10)
    assert seen == ["first True", "second True"]


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object, kind: int) -> None:
        raise OSError("no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with alone(tmp_path / "lock") as held:
        assert not held
    with pytest.raises(OSError, match="no room"), alone(tmp_path / "lock"):
        raise OSError("no room")


def test_a_lock_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), alone(tmp_path / "gone/lock"):
        pass
