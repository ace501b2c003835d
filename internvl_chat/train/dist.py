"""Rank, world and process group; what CPU runs need of DeepSpeed before it is touched."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import cache
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from internvl_chat.config.early import flag_of, seconds_of
from internvl_chat.constants import DDP_TIMEOUT_S, START_TIMEOUT_S
from internvl_chat.data.index_build import Crew
from internvl_chat.errors import DataError
from internvl_chat.launch import NAMED, Launch, find_launch
from internvl_chat.train import meeting

T = TypeVar("T")

# Variable in which a run notes how long a collective may take, in seconds.
_TIMEOUT = "INTERNVL_DDP_TIMEOUT"


def prepare_environment(argv: Sequence[str]) -> Launch:
    """Which process of the run this is; the environment is set for torch and DeepSpeed before they are asked.

    What the user has set stays. A plain ``python`` run with DeepSpeed is made to look like one process of torchrun,
    since it knows nothing less. Raises ConfigError for an environment that cannot be read.
    """
    launch = find_launch(os.environ)
    if launch.world_size > 1:
        os.environ.update(launch.variables())
    timeout_s = seconds_of(argv, "ddp_timeout", DDP_TIMEOUT_S)
    os.environ[_TIMEOUT] = str(timeout_s)
    os.environ.setdefault("DEEPSPEED_TIMEOUT", str(math.ceil(timeout_s / 60)))  # of the groups that it makes itself
    on_cpu = not torch.accelerator.is_available()
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if flag_of(argv, "deepspeed") is None:
        return launch
    if "RANK" not in os.environ:
        os.environ.update(replace(launch, master_port=_free_port()).variables())
    if on_cpu:
        # DeepSpeed would compile a shared-memory collective with g++ at start-up; gloo does the work as well.
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return launch


def join(launch: Launch, argv: Sequence[str]) -> None:
    """Meet the other ranks and start the process group, with the timeouts of the flags. Raises LaunchError."""
    start_timeout_s = seconds_of(argv, "start_timeout", START_TIMEOUT_S)
    meeting.join(launch, start_timeout_s, float(os.environ[_TIMEOUT]))
    if launch.world_size > 1:
        # Now, while all are here: to make a group is a collective, too, and one that no signal can interrupt.
        _host_group()
        _patient_group()


def start_deepspeed_group() -> None:
    """On a CPU transformers starts torch's process group but not DeepSpeed's, which ZeRO-3 loading needs."""
    if not torch.accelerator.is_available():
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo", verbose=False)


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


@cache
def _host_group() -> dist.ProcessGroup:
    """Group of all ranks for what the hosts tell each other in each step, without touching the accelerator.

    It waits as long as any collective of the run does (``--ddp_timeout``).
    """
    return dist.new_group(backend="gloo", timeout=timedelta(seconds=float(os.environ.get(_TIMEOUT, DDP_TIMEOUT_S))))


@cache
def _patient_group() -> dist.ProcessGroup:
    """The same for the time before training, which waits for a day.

    Building an index may take hours on the first process of a node; NCCL's watchdog would end the run meanwhile.
    """
    return dist.new_group(backend="gloo", timeout=timedelta(hours=24))


def barrier() -> None:
    """Wait for all ranks, as long as it takes; nothing on a single process."""
    if world_size() > 1:
        dist.barrier(group=_patient_group())


def leave() -> None:
    """Leave the process group together, at the end of a run that went well.

    A rank that simply ends pulls the connections from under the others, and gloo aborts them for it.
    """
    if dist.is_initialized():
        barrier()
        _host_group.cache_clear()
        _patient_group.cache_clear()
        dist.destroy_process_group()


def is_local_main() -> bool:
    """Whether this is the first process of its node."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def local_crew() -> Crew:
    """The processes of this node, as those that index the data together."""
    size = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world_size() > 1 else 1
    job = os.environ.get("SLURM_JOB_ID") or os.environ.get("TORCHELASTIC_RUN_ID", "")
    name = f"{socket.gethostname()}-{job}-{os.environ.get('MASTER_PORT', '')}".replace("/", "_")
    return Crew(int(os.environ.get("LOCAL_RANK", "0")), size, name if size > 1 else "", barrier)


@contextmanager
def local_main_first() -> Iterator[None]:
    """The first process of each node runs the block, then the others do (and find its files)."""
    if not is_local_main():
        barrier()
    try:
        yield
    finally:
        if is_local_main():
            barrier()


def decide_on_main(question: Callable[[], T]) -> T:
    """Ask rank 0 and give its answer, or the error it raised, to every rank.

    For what is read from a shared disk: each rank may see another state of it, and must not draw its own conclusion.
    """
    if world_size() == 1:
        return question()
    answer: list[object] = [None, None]
    if rank() == 0:
        try:
            answer[0] = question()
        except Exception as error:  # noqa: BLE001 - whatever it is, every rank must hear of it
            answer[1] = error
    dist.broadcast_object_list(answer, src=0, group=_patient_group())
    if isinstance(answer[1], Exception):
        raise answer[1]
    return cast("T", answer[0])


def check_agreement(what: str, value: object, mend: str) -> None:
    """Raise DataError on every rank unless all ranks hold the same value."""
    if world_size() == 1:
        return
    answers: list[tuple[str, object]] = [("", None)] * world_size()
    dist.all_gather_object(answers, (socket.gethostname(), value), group=_patient_group())
    if any(answer != answers[0][1] for _, answer in answers):
        told = "; ".join(f"rank {number} on {host}: {answer}" for number, (host, answer) in enumerate(answers[:NAMED]))
        raise DataError(f"the ranks do not see the same {what} ({told}); {mend}")


def any_rank(*flags: bool) -> tuple[bool, ...]:
    """Of each flag, whether it is up on at least one rank."""
    return tuple(map(bool, sum_over_ranks(torch.tensor(flags, dtype=torch.float64)).tolist()))


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Element-wise sum of a small float64 vector on the host over all ranks; every rank gets the same bits."""
    if world_size() > 1:
        dist.all_reduce(values, group=_host_group())
    return values


def gather(value: T) -> list[T]:
    """The values of all ranks, by rank, on every rank."""
    if world_size() == 1:
        return [value]
    found: list[T | None] = [None] * world_size()
    dist.all_gather_object(found, value, group=_host_group())
    return cast("list[T]", found)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
