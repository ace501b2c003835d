"""Rank, world and process group; what CPU runs need of DeepSpeed before it is touched."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from internvl_chat.errors import InternVLError

T = TypeVar("T")

_DEFAULTS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


def prepare_environment(argv: Sequence[str]) -> None:
    """Environment of a run with these flags, set before DeepSpeed is imported; what the user has set stays.

    A plain ``python`` run with DeepSpeed is made to look like one process of torchrun, since it knows nothing less.
    """
    on_cpu = not torch.accelerator.is_available()
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if not any(word.startswith("--deepspeed") for word in argv):
        return
    if "RANK" not in os.environ:
        os.environ.update(_DEFAULTS)
        os.environ["MASTER_PORT"] = str(_free_port())
    if on_cpu:
        # DeepSpeed would compile a shared-memory collective with g++ at start-up; gloo does the work as well.
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def start_deepspeed_group() -> None:
    """On a CPU transformers starts torch's process group but not DeepSpeed's, which ZeRO-3 loading needs."""
    if not torch.accelerator.is_available():
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo", verbose=False)


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    """Wait for all ranks; nothing on a single process."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


@contextmanager
def local_main_first() -> Iterator[None]:
    """The first process of each node runs the block, then the others do (and find its files)."""
    first = int(os.environ.get("LOCAL_RANK", "0")) == 0
    if not first:
        barrier()
    try:
        yield
    finally:
        if first:
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
        except InternVLError as error:
            answer[1] = error
    dist.broadcast_object_list(answer, src=0)
    if isinstance(answer[1], InternVLError):
        raise answer[1]
    return cast("T", answer[0])


def sum_over_ranks(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Element-wise sum of a small float64 vector over all ranks, on the host."""
    if world_size() == 1:
        return values
    # float64 is exact for the counts in it, and every rank gets the same bits.
    moved = values.to(device, torch.float64)
    dist.all_reduce(moved)
    return moved.cpu()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
