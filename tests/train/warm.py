"""Ranks of training runs as forks of one process that has imported everything: a start takes a second, not ten.

``start`` gives real processes, each with the environment that torchrun would give it; they can be killed one by one.
The server has no threads and has touched no process group, so that forking it is safe. One server per test process,
started at its first use.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Below the ports that the kernel hands out by itself (/proc/sys/net/ipv4/ip_local_port_range).
_PORTS = range(20000, 32000)
_SET_PARENT_DEATH_SIGNAL = 1  # of prctl(2)
# These are tests of the CPU, and a process that has looked for a GPU must not be forked.
_NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}


@dataclass(frozen=True)
class Ranks:
    """The processes of one run, by rank; what each of them prints goes to ``logs[rank]``."""

    pids: tuple[int, ...]
    logs: tuple[Path, ...]

    def codes(self) -> list[int | None]:
        """Exit status by rank as subprocess has it (-9: killed), None while it runs."""
        return list(_ask({"poll": self.pids})["codes"])

    def kill(self, *ranks: int) -> None:
        """SIGKILL to these ranks, or to all; those that have ended are left alone."""
        running = [rank for rank, code in enumerate(self.codes()) if code is None]
        for rank in ranks or running:
            if rank in running:
                # Nobody reaps it before its code is asked for again, so the id is still its own.
                os.kill(self.pids[rank], signal.SIGKILL)

    def wait(self, timeout: float) -> list[int | None]:
        """The codes of all ranks, once one has failed or all have ended; None for those that still run."""
        deadline = time.monotonic() + timeout
        while True:
            codes = self.codes()
            if None not in codes or any(codes) or time.monotonic() > deadline:
                return codes
            time.sleep(0.01)

    def ended(self, timeout: float) -> list[int | None]:
        """The codes, once every rank has ended by itself; None for those that still run."""
        deadline = time.monotonic() + timeout
        while None in (codes := self.codes()) and time.monotonic() < deadline:
            time.sleep(0.01)
        return codes

    def end(self) -> None:
        """Kill what still runs, and wait until it is gone."""
        self.kill()
        while None in self.codes():
            time.sleep(0.005)

    def output(self) -> str:
        """What all ranks printed."""
        return "".join(path.read_text(errors="replace") for path in self.logs)


def start(jobs: Sequence[Sequence[str]], processes: int, folder: Path, env: dict[str, str], cwd: Path = ROOT) -> Ranks:
    """Start ``processes`` ranks that work through the command lines (see ``runs.work``) and log into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    logs = tuple(folder / f"rank{rank}.log" for rank in range(processes))
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    world["LOCAL_WORLD_SIZE"] = str(processes)
    environments = [
        {**env, **_NO_GPU, **({**world, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {})}
        for rank in range(processes)
    ]
    words = [[str(word) for word in job] for job in jobs]
    what = {"start": words, "environments": environments, "logs": [str(path) for path in logs], "cwd": str(cwd)}
    answer = _ask(what)
    return Ranks(tuple(answer["pids"]), logs)


class Launched:
    """Stands for the Popen of a command that starts training, with torchrun or without: its ranks are forks.

    What they print comes when the run has ended. Raises ValueError for any other command.
    """

    def __init__(self, command: Sequence[object], env: Mapping[str, str]) -> None:
        words = [str(word) for word in command]
        launcher, processes = [sys.executable], 1
        if "torch.distributed.run" in words:
            processes = int(words[4].removeprefix("--nproc_per_node="))
            launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        launcher += ["-m", "internvl_chat.train"]
        if words[: len(launcher)] != launcher:
            raise ValueError(f"no training is started by {words}")
        self._folder = tempfile.TemporaryDirectory()
        self._ranks = start(
            [["run", *words[len(launcher) :]]], processes, Path(self._folder.name), dict(env), Path.cwd()
        )

    def poll(self) -> int | None:
        """0 or 1 once it has ended."""
        codes = self._ranks.codes()
        return None if None in codes else int(any(codes))

    def wait(self, timeout: float = 300) -> int:
        """Wait until a rank has failed or all have ended; 0 or 1."""
        codes = self._ranks.wait(timeout)
        self._ranks.end()
        print(self._ranks.output(), file=sys.stderr)
        self._folder.cleanup()
        return int(codes != [0] * len(codes))

    def terminate(self) -> None:
        """Kill what still runs."""
        self._ranks.end()


def free_port() -> int:
    """A port that nothing listens on, and that the kernel gives to nobody in the meantime."""
    draw = random.SystemRandom()  # several test processes look for one at the same time, with the same seeds
    for _ in range(100):
        port = draw.choice(_PORTS)
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port")


# -- this side --------------------------------------------------------------------------------------------------------


@cache
def _server() -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **_NO_GPU}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.train.warm"],
        cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    atexit.register(_stop, process)
    return process


def _stop(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait(timeout=20)


def _ask(question: dict[str, Any]) -> dict[str, Any]:
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(question) + "\n")
    server.stdin.flush()
    line = server.stdout.readline()
    assert line, f"the fork server has died (exit status {server.wait(timeout=20)})"
    answer: dict[str, Any] = json.loads(line)
    return answer


# -- the other side ---------------------------------------------------------------------------------------------------


def serve() -> None:
    """Answer questions from stdin until it is closed; then kill what is left."""
    from multiprocessing import get_context

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    _import_all()
    threads = len(list(Path("/proc/self/task").iterdir()))
    assert threads == 1, f"{threads} threads: a fork of this process could hang"
    gc.collect()
    gc.freeze()  # a run collects garbage twice, and would look at every object of every module each time
    context = get_context("fork")
    ranks: dict[int, Any] = {}
    for line in sys.stdin:
        question = json.loads(line)
        if "start" in question:
            started = []
            for env, path in zip(question["environments"], question["logs"], strict=True):
                process = context.Process(target=_be_rank, args=(question["start"], env, path, question["cwd"]))
                process.start()
                ranks[process.pid] = process
                started.append(process.pid)
            answer: dict[str, Any] = {"pids": started}
        else:
            answer = {"codes": [ranks[pid].exitcode for pid in question["poll"]]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    for process in ranks.values():
        if process.is_alive():
            process.kill()


def _import_all() -> None:
    """Also what a run imports or compiles only once it comes to it."""
    import deepspeed
    import peft  # noqa: F401
    import setuptools  # noqa: F401 - DeepSpeed's engine
    import torch.distributed.algorithms.ddp_comm_hooks.default_hooks  # noqa: F401
    import transformers.models.qwen2.modeling_qwen2  # noqa: F401
    from PIL import Image

    import internvl_chat.train.ending
    import internvl_chat.train.main  # noqa: F401
    from internvl_chat.model.llm import register_language_models

    Image.init()
    register_language_models()
    assert deepspeed.accelerator.get_accelerator().device_name() == "cpu"


def _be_rank(jobs: list[list[str]], env: dict[str, str], log: str, cwd: str) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    from tests.train.runs import work

    try:
        work(jobs)
    except SystemExit as end:
        sys.stderr.flush()
        os._exit(int(end.code or 0))
    except BaseException:  # noqa: BLE001 - also what argparse raises; a fork must never return to the server's loop
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # a rank that failed must not wait for the others, as torchrun would not let it


if __name__ == "__main__":
    serve()
