"""Rank, world and process group; what CPU runs need of DeepSpeed before it is touched."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from internvl_chat.data.index_build import Crew
from internvl_chat.errors import ConfigError, DataError

T = TypeVar("T")

_DEFAULTS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
_TASK_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


def prepare_environment(argv: Sequence[str]) -> None:
    """Environment of a run with these flags, set before DeepSpeed is imported; what the user has set stays.

    A plain ``python`` run with DeepSpeed is made to look like one process of torchrun, since it knows nothing less.
    Raises ConfigError when several tasks were started without saying which rank each one is.
    """
    if "RANK" not in os.environ:
        tasks = next((int(os.environ[name]) for name in _TASK_COUNTS if os.environ.get(name, "").isdigit()), 1)
        if tasks > 1:
            raise ConfigError(
                f"{tasks} tasks were started by srun or mpirun, but RANK is not set, so each would train by itself; "
                "start one task per node that runs: torchrun --nproc_per_node=GPUS -m internvl_chat.train ..."
            )
    on_cpu = not torch.accelerator.is_available()
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if not _wants_deepspeed(argv):
        return
    if "RANK" not in os.environ:
        os.environ.update(_DEFAULTS)
        os.environ["MASTER_PORT"] = str(_free_port())
    if on_cpu:
        # DeepSpeed would compile a shared-memory collective with g++ at start-up; gloo does the work as well.
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _wants_deepspeed(argv: Sequence[str]) -> bool:
    """Whether the flags, or the JSON file of flags, name a DeepSpeed configuration."""
    if len(argv) == 1 and argv[0].endswith(".json"):
        try:
            return bool(json.loads(Path(argv[0]).read_text(encoding="utf-8")).get("deepspeed"))
        except (OSError, ValueError, AttributeError):
            return False  # the parser will say what is wrong with it
    return any(word.split("=")[0] == "--deepspeed" for word in argv)


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
    """Group of all ranks for what the hosts tell each other: patient, and without touching the accelerator.

    Building an index may take hours on the first process of a node; NCCL's watchdog would end the run meanwhile.
    """
    return dist.new_group(backend="gloo", timeout=timedelta(hours=24))


def barrier() -> None:
    """Wait for all ranks; nothing on a single process."""
    if world_size() > 1:
        dist.barrier(group=_host_group())


def leave() -> None:
    """Leave the process group together, at the end of a run that went well.

    A rank that simply ends pulls the connections from under the others, and gloo aborts them for it.
    """
    if dist.is_initialized():
        barrier()
        _host_group.cache_clear()
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
    dist.broadcast_object_list(answer, src=0, group=_host_group())
    if isinstance(answer[1], Exception):
        raise answer[1]
    return cast("T", answer[0])


def check_agreement(what: str, value: object, mend: str) -> None:
    """Raise DataError on every rank unless all ranks hold the same value."""
    if world_size() == 1:
        return
    answers: list[tuple[str, object]] = [("", None)] * world_size()
    dist.all_gather_object(answers, (socket.gethostname(), value), group=_host_group())
    if any(answer != answers[0][1] for _, answer in answers):
        told = "; ".join(f"rank {number} on {host}: {answer}" for number, (host, answer) in enumerate(answers[:8]))
        raise DataError(f"the ranks do not see the same {what} ({told}); {mend}")


def any_rank(flag: bool) -> bool:
    """Whether the flag is up on at least one rank."""
    return bool(sum_over_ranks(torch.tensor([float(flag)], dtype=torch.float64))[0])


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Element-wise sum of a small float64 vector on the host over all ranks; every rank gets the same bits."""
    if world_size() > 1:
        dist.all_reduce(values, group=_host_group())
    return values


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
