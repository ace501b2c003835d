"""The processes of a machine share its cards, or its cores."""

from __future__ import annotations

import os

import torch

from internvl_chat.errors import ConfigError
from internvl_chat.launch import Launch


def share_machine(launch: Launch, device: str | None) -> str | None:
    """The device of this process among those of its node; on the CPU they share the cores. Raises ConfigError."""
    if launch.local_world_size == 1 or device not in (None, "cpu"):
        return device
    cards = torch.cuda.device_count() if device is None else 0
    if cards == 1:  # each process was given a card of its own
        return "cuda:0"
    if cards > 1:
        if launch.local_rank >= cards:
            raise ConfigError(f"{launch.local_world_size} processes on this node, but {cards} GPUs; start {cards}")
        torch.cuda.set_device(launch.local_rank)  # kernels of Triton run on the current one
        return f"cuda:{launch.local_rank}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // launch.local_world_size))
    return device
