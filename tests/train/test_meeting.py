"""The roll call: all are there, or who is not is named; and whatever keeps a rank from calling."""

from __future__ import annotations

import socket
import threading
from datetime import timedelta
from typing import Any

import pytest
from torch.distributed import HashStore, TCPStore

from internvl_chat.errors import LaunchError
from internvl_chat.launch import Launch
from internvl_chat.train import meeting
from tests.train.warm import free_port

HOSTS = ("node1", "node1", "node2", "node2")


def launch(rank: int, port: int = 1) -> Launch:
    return Launch("srun", rank, 4, rank % 2, 2, "127.0.0.1", port, HOSTS)


def call(ranks: list[int], timeout_s: float) -> dict[int, str]:
    """What each of these ranks, in a thread of its own, hears; an empty string if all is well."""
    store, heard = HashStore(), dict.fromkeys(ranks, "")

    def be(rank: int) -> None:
        try:
            meeting.call_roll(store, launch(rank), timeout_s)
        except LaunchError as error:
            heard[rank] = str(error)

    threads = [threading.Thread(target=be, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return heard


def test_all_are_there() -> None:
    assert call([0, 1, 2, 3], 20) == dict.fromkeys(range(4), "")


def test_who_did_not_come_is_named_on_every_rank() -> None:
    heard = call([0, 1, 3], 0.3)
    assert set(heard) == {0, 1, 3}
    for text in heard.values():
        assert "1 of 4 ranks: 2 (node2) did not come" in text
        assert "--start_timeout" in text


def test_a_port_that_is_taken() -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        with pytest.raises(LaunchError, match=r"cannot listen on port \d+ .* Set MASTER_PORT"):
            meeting._open_store(launch(0, other.getsockname()[1]), 2)


def test_rank_0_is_not_there() -> None:
    with pytest.raises(LaunchError, match=r"rank 2 on .* cannot reach rank 0 at node1 \(127.0.0.1:\d+\) within 1 s"):
        meeting._open_store(launch(2, free_port()), 1)


def test_a_second_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=5))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    first, second = meeting.connect(5), meeting.connect(5)
    first.set("a", "b")
    assert second.get("a") == b"b"


def test_the_interface_that_leads_to_a_host() -> None:
    assert meeting.interface_to("127.0.0.1") == "lo"
    assert meeting.interface_to("no-such-host.invalid") == ""


def test_more_ranks_than_visible_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda: Any = meeting.torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "device_count", lambda: 1)
    meeting._check_cards(launch(0))
    with pytest.raises(LaunchError, match=r"number 2 of 2 .* sees 1 GPU .*--gpu-bind=none"):
        meeting._check_cards(launch(1))
