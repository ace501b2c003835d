"""The ranks of a run meet: who is there, who is missing, and on which node; then the process group.

Rank 0 (or the agent of torchrun) serves a small store. Every rank writes its host name into it, rank 0 counts. What is
said there stays for the whole run: ``heartbeat`` and ``ending`` use the same store.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as torch_dist
from torch.distributed import DistError, Store, TCPStore

from internvl_chat.errors import LaunchError, first_line
from internvl_chat.launch import NAMED, Launch, host_name
from internvl_chat.log import get_logger

log = get_logger(__name__)

_ALL_HERE = "yes"
_SIOCGIFADDR = 0x8915  # Linux: address of a network interface


class RankMissing(LaunchError):
    """A process that was started with the others is not there: its node may be at fault, so another start may help."""


def join(launch: Launch, start_timeout_s: float, timeout_s: float) -> None:
    """Wait until all ranks are here, then start the process group (NCCL or gloo, by the device).

    ``timeout_s``: how long a collective may take. Nothing to do for a single process, or where a group is there
    already. Raises LaunchError that names who did not come.
    """
    if launch.world_size == 1 or torch_dist.is_initialized():
        return
    _check_cards(launch)
    _choose_interface(launch)
    store = _open_store(launch, start_timeout_s)
    call_roll(store, launch, start_timeout_s)
    log.info(
        "all %d ranks are here, started by %s; rank 0 is at %s", launch.world_size, launch.launcher, _master(launch)
    )
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = found or torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(launch.local_rank)
    torch_dist.init_process_group(
        torch_dist.get_default_backend_for_device(device),
        store=torch_dist.PrefixStore("group", store),
        rank=launch.rank,
        world_size=launch.world_size,
        timeout=timedelta(seconds=timeout_s),
    )


def connect(timeout_s: float) -> Store:
    """A connection of its own to the store of this run, by the environment: for use in another thread.

    Raises OSError at once where nobody listens (torch would try again, and write about it at length).
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    socket.create_connection((address, port), timeout=timeout_s).close()
    store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=timeout_s), wait_for_workers=False)
    return torch_dist.PrefixStore(_identity(), store)


def _identity() -> str:
    """Of this start of this run: another run on the same port, or an earlier attempt of torchrun, is not heard."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "PMIX_NAMESPACE", "TORCHELASTIC_RUN_ID")
    return "/".join(os.environ.get(name, "") for name in (*names, "TORCHELASTIC_RESTART_COUNT"))


def call_roll(store: Store, launch: Launch, timeout_s: float) -> None:
    """Return when every rank has called. Raises LaunchError, on every rank that came, naming those that did not."""
    store.set(f"host/{launch.rank}", host_name())
    store.add("here", 1)
    if launch.rank == 0:
        store.set("roll", _wait_for_all(store, launch, timeout_s))
    # Rank 0 gives up first, and says why. Not store.wait: a signal must not have to wait with it.
    deadline, pause = time.monotonic() + timeout_s + 60, 0.05
    try:
        while not store.check(["roll"]):
            if time.monotonic() > deadline:
                raise RankMissing(f"rank 0 at {_master(launch)} did not answer within {timeout_s + 60:.0f} s")
            time.sleep(pause)
            pause = min(1.0, 1.5 * pause)  # hundreds of ranks ask
        answer = store.get("roll").decode()
    except (DistError, RuntimeError) as error:
        raise RankMissing(f"rank 0 at {_master(launch)} came, but is gone ({first_line(error)})") from error
    if answer != _ALL_HERE:
        raise RankMissing(answer)


def _wait_for_all(store: Store, launch: Launch, timeout_s: float) -> str:
    started = told = time.monotonic()
    while store.add("here", 0) < launch.world_size:
        now = time.monotonic()
        if now - started > timeout_s:
            return (
                f"{_missing(store, launch)} did not come within {timeout_s:.0f} s (--start_timeout): see what these "
                "nodes or their log say; can they reach "
                f"{_master(launch)}, is a firewall in between?"
            )
        if now - told > 30:
            told = now
            log.info("waiting for %s", _missing(store, launch))
        time.sleep(0.05)
    return _ALL_HERE


def _missing(store: Store, launch: Launch) -> str:
    """``3 of 16 ranks: 4 (node2), 5 (node2), ...``."""
    missing = [rank for rank in range(launch.world_size) if not store.check([f"host/{rank}"])]
    named = [f"{rank} ({launch.host_of(rank)})" if launch.host_of(rank) else str(rank) for rank in missing[:NAMED]]
    more = ", ..." if len(missing) > NAMED else ""
    return f"{len(missing)} of {launch.world_size} ranks: {', '.join(named)}{more}"


def serves_store(launch: Launch) -> bool:
    """Whether this process serves the store; under torchrun its agent does."""
    return launch.rank == 0 and launch.world_size > 1 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


@cache
def _open_store(launch: Launch, timeout_s: float) -> Store:
    """The store that rank 0 serves; under torchrun its agent may serve it already. Lives as long as the process."""
    serves = serves_store(launch)
    try:
        if not serves:
            _wait_for_listener(launch, timeout_s)
        store = TCPStore(
            launch.master_addr,
            launch.master_port,
            is_master=serves,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
        )
    except (DistError, RuntimeError, OSError) as error:
        if serves:
            raise LaunchError(
                f"rank 0 cannot listen on port {launch.master_port} of {host_name()}: "
                f"{first_line(error)}; another program has it? Set MASTER_PORT to a free one"
            ) from error
        raise RankMissing(
            f"rank {launch.rank} on {host_name()} cannot reach rank 0 at {_master(launch)} "
            f"within {timeout_s:.0f} s (--start_timeout): it did not start, or the network is closed between the "
            f"nodes ({first_line(error)})"
        ) from error
    return torch_dist.PrefixStore(_identity(), store)


def _wait_for_listener(launch: Launch, timeout_s: float) -> None:
    """Until rank 0 listens. Raises OSError (torch's own waiting could not be interrupted by a signal)."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((launch.master_addr, launch.master_port), timeout=10).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _master(launch: Launch) -> str:
    host = launch.host_of(0)
    where = f"{launch.master_addr}:{launch.master_port}"
    return f"{host} ({where})" if host and host != launch.master_addr else where


def _check_cards(launch: Launch) -> None:
    """Raise LaunchError where a launcher shows each of several local ranks a single card: ranks count cards."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if cards and launch.local_rank >= cards:
        raise LaunchError(
            f"rank {launch.rank} is number {launch.local_rank + 1} of {launch.local_world_size} on "
            f"{host_name()}, but sees {cards} GPU (CUDA_VISIBLE_DEVICES="
            f"{os.environ.get('CUDA_VISIBLE_DEVICES', '')}): start one process per GPU, and let each see all GPUs of "
            "its node (srun: --gres=gpu:N without --gpus-per-task, or --gpu-bind=none)"
        )


def _choose_interface(launch: Launch) -> None:
    """Tell gloo which network leads to the other nodes; by itself it takes what the host name means, maybe loopback."""
    if "GLOO_SOCKET_IFNAME" in os.environ or launch.local_world_size == launch.world_size:
        return
    here = launch.host_of(launch.rank)
    others = [host for host in launch.hosts if host != here]
    peer = launch.master_addr if launch.rank >= launch.local_world_size or not others else others[0]
    name = interface_to(peer)
    if name:
        os.environ["GLOO_SOCKET_IFNAME"] = name


def interface_to(host: str) -> str:
    """Name of the network interface that leads to a host (IPv4), or an empty string where that cannot be told."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing
            own = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                request = struct.pack("256s", name.encode()[:15])
                try:
                    answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
                except OSError:
                    continue  # an interface without an address
                if socket.inet_ntoa(answer[20:24]) == own:
                    return name
    except OSError:
        return ""
    return ""
