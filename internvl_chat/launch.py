"""Which of how many processes this one is: read from the environment of torchrun, srun or mpirun.

Takes the environment, changes nothing, asks nobody but ``resolve`` for addresses.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from internvl_chat.errors import ConfigError

# Below the ports that kernels hand out by themselves (Linux: 32768 and up), above those of well-known services.
_PORTS = range(12000, 32000)
# Ranks that a message names; there may be hundreds.
NAMED = 8
_DEFAULT_PORT = 29500  # torch's own
# (rank, processes, rank on its node, processes on its node) as the MPI libraries name them.
_MPI = {
    "Open MPI": (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    "MVAPICH": (
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    "MPICH": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
}
# What is another one in the next run, where it is set.
_RUN = (
    "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "PMIX_NAMESPACE", "TORCHELASTIC_RUN_ID", "MASTER_ADDR",
    "MASTER_PORT",
)  # fmt: skip
_RANGE = re.compile(r"(\d+)-(\d+)")
_COUNT = re.compile(r"(\d+)(?:\(x(\d+)\))?")


@dataclass(frozen=True)
class Launch:
    """A process among those of a run. ``hosts``: the node of each rank by number, as far as the launcher tells.

    ``launcher``: "python" (this process is alone), "torchrun" (or whoever sets RANK), "srun", or the MPI library.
    """

    launcher: str = "python"
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int = _DEFAULT_PORT
    hosts: tuple[str, ...] = ()

    def variables(self) -> dict[str, str]:
        """What torch, accelerate and DeepSpeed read."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
        }

    def host_of(self, rank: int) -> str:
        """Name of a rank's node, or an empty string."""
        return self.hosts[rank] if rank < len(self.hosts) else ""


def find_launch(env: Mapping[str, str], resolve: Callable[[str], str] | None = None) -> Launch:
    """This process by its environment. ``resolve``: node name -> address that a rank can connect to.

    RANK, where it is set, counts most; then MPI's own variables, then those of a SLURM step (``srun``). A batch script
    or an allocation alone starts one process, whatever the number of tasks it was given. Raises ConfigError.
    """
    resolve = resolve or address_of
    if env.get("RANK"):
        return _by_rank(env)
    tasks = _number(env, "SLURM_STEP_NUM_TASKS", 1)
    for library, names in _MPI.items():
        if _number(env, names[1], 1) > 1 and not (library == "MPICH" and _number(env, names[1], 1) == tasks):
            return _by_mpi(env, library, names, resolve)
    if tasks > 1:
        return _by_slurm(env, tasks, resolve)
    return Launch()


def name_of_run(env: Mapping[str, str], launch: Launch) -> str:
    """A text that all processes of a run share and those of the next run do not, as far as the launcher tells."""
    if launch.world_size == 1:
        return uuid.uuid4().hex
    names = [env[name] for name in _RUN if env.get(name)]
    step = launch.launcher == "srun" or bool(env.get("PMIX_NAMESPACE"))  # has a name that no other has
    if launch.local_world_size == launch.world_size and not step:  # one node: all of them have the same parent
        parent = os.getppid()
        stat = Path(f"/proc/{parent}/stat")
        started = stat.read_text(encoding="utf-8").rsplit(")", 1)[-1].split()[19] if stat.is_file() else ""
        names += [host_name(), str(parent), started]
    return "/".join(names)


def host_name() -> str:
    """Name of this node, as SLURM or else the node itself has it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _by_rank(env: Mapping[str, str]) -> Launch:
    missing = [name for name in ("WORLD_SIZE",) if not env.get(name)]
    size = _number(env, "WORLD_SIZE", 1)
    if size > 1:
        missing += [name for name in ("MASTER_ADDR", "MASTER_PORT") if not env.get(name)]
    if missing:
        raise ConfigError(
            f"RANK is set, but {' and '.join(missing)} not: start with torchrun, which sets all of them, or unset RANK"
        )
    rank, local_rank = _number(env, "RANK", 0), _number(env, "LOCAL_RANK", 0)
    if rank >= size:
        raise ConfigError(f"RANK {rank} of WORLD_SIZE {size}: ranks count from 0; unset RANK to run one process alone")
    local_size = _number(env, "LOCAL_WORLD_SIZE", 1)
    hosts = (env["MASTER_ADDR"],) * size if size > 1 and local_size == size else ()
    address, port = env.get("MASTER_ADDR") or "127.0.0.1", _number(env, "MASTER_PORT", _DEFAULT_PORT)
    return Launch("torchrun", rank, size, local_rank, local_size, address, port, hosts)


def _by_mpi(
    env: Mapping[str, str], library: str, names: tuple[str, str, str, str], resolve: Callable[[str], str]
) -> Launch:
    missing = [name for name in names if not env.get(name, "").isdigit()]
    if missing:
        raise ConfigError(f"{library} started this process, but {', '.join(missing)} is not set; start with torchrun")
    rank, size, local_rank, local_size = (_number(env, name, 0) for name in names)
    address = env.get("MASTER_ADDR") or ("127.0.0.1" if local_size == size else "")
    nodes = env.get("SLURM_JOB_NODELIST", "")
    if not address and nodes:
        address = resolve(expand_nodes(nodes)[0])
    if not address:
        raise ConfigError(
            f"{size} processes of {library} on several nodes: set MASTER_ADDR to the name of the first node "
            "(mpirun -x MASTER_ADDR=... hands it to all)"
        )
    port = _number(env, "MASTER_PORT", 0) or _port_of_job(env)
    return Launch(library, rank, size, local_rank, local_size, address, port)


def _by_slurm(env: Mapping[str, str], tasks: int, resolve: Callable[[str], str]) -> Launch:
    needed = ("SLURM_PROCID", "SLURM_LOCALID")
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_NODELIST") or env.get("SLURM_JOB_NODELIST") or ""
    missing = [name for name in needed if not env.get(name, "").isdigit()] + ["SLURM_STEP_NODELIST"] * (not nodes)
    if missing:
        raise ConfigError(f"srun started {tasks} tasks, but {', '.join(missing)} is not set; start with srun itself")
    names = expand_nodes(nodes)
    per_node = expand_counts(env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE") or str(tasks))
    rank, local_rank = _number(env, "SLURM_PROCID", 0), _number(env, "SLURM_LOCALID", 0)
    node = _number(env, "SLURM_NODEID", 0)
    local_size = per_node[node] if node < len(per_node) else local_rank + 1
    # srun deals tasks to nodes in blocks unless told otherwise.
    blocks = env.get("SLURM_DISTRIBUTION", "block").startswith("block") and len(per_node) == len(names)
    hosts = tuple(name for name, count in zip(names, per_node, strict=False) for _ in range(count)) if blocks else ()
    address = env.get("MASTER_ADDR") or ("127.0.0.1" if len(names) == 1 else resolve(names[0]))
    port = _number(env, "MASTER_PORT", 0) or _port_of_job(env)
    return Launch("srun", rank, tasks, local_rank, local_size, address, port, hosts if len(hosts) == tasks else ())


def _port_of_job(env: Mapping[str, str]) -> int:
    """The same port for all ranks of a step, another one for the next job on the same node."""
    job = _number(env, "SLURM_JOB_ID", 0)
    if not job:
        return _DEFAULT_PORT
    return _PORTS[(job * 7 + _number(env, "SLURM_STEP_ID", 0)) % len(_PORTS)]


def _number(env: Mapping[str, str], name: str, default: int) -> int:
    """A variable as a number; ``default`` if it is missing or empty. Raises ConfigError for anything else."""
    value = env.get(name, "")
    if not value:
        return default
    if not value.isdecimal():
        raise ConfigError(f"{name}={value}: must be a whole number; it is set by the launcher")
    return int(value)


# -- SLURM's short forms ----------------------------------------------------------------------------------------------


def expand_nodes(names: str) -> tuple[str, ...]:
    """``gpu[1-2,07]-ib[0-1],login`` -> gpu1-ib0, gpu1-ib1, gpu2-ib0 ...; zeros in front are kept.

    Raises ConfigError for what is no list of nodes.
    """
    found = tuple(name for part in _split(names) for name in _expand_name(part, names))
    if not found:
        raise ConfigError(f"list of nodes {names!r} is empty")
    return found


def expand_counts(counts: str) -> tuple[int, ...]:
    """``2(x3),1`` -> 2, 2, 2, 1. Raises ConfigError."""
    found: list[int] = []
    for part in counts.split(","):
        match = _COUNT.fullmatch(part.strip())
        if match is None:
            raise ConfigError(f"tasks per node {counts!r}: {part!r} is not COUNT or COUNT(xNODES)")
        found += [int(match[1])] * int(match[2] or 1)
    return tuple(found)


def _split(names: str) -> Iterator[str]:
    """At commas outside brackets."""
    depth, part = 0, ""
    for letter in names:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            yield part
            part = ""
        else:
            part += letter
    if depth:
        raise ConfigError(f"list of nodes {names!r}: brackets do not match")
    if part:
        yield part


def _expand_name(name: str, whole: str) -> Iterator[str]:
    pieces = re.split(r"\[([^\[\]]*)\]", name)
    if any(bracket in piece for piece in pieces for bracket in "[]"):
        raise ConfigError(f"list of nodes {whole!r}: brackets do not match")
    choices = [[piece] if number % 2 == 0 else list(_numbers(piece, whole)) for number, piece in enumerate(pieces)]
    return ("".join(words) for words in product(*choices))


def _numbers(ranges: str, whole: str) -> Iterator[str]:
    for part in ranges.split(","):
        match = _RANGE.fullmatch(part)
        if match is None and not part.isdigit():
            raise ConfigError(f"list of nodes {whole!r}: {part!r} is not a number or a range")
        if match is None:
            yield part
            continue
        width = len(match[1])
        yield from (str(number).zfill(width) for number in range(int(match[1]), int(match[2]) + 1))


def address_of(node: str) -> str:
    """Name or address under which a node can be reached: SLURM's names may be known to nobody but SLURM.

    Raises ConfigError.
    """
    try:
        socket.getaddrinfo(node, None)
        return node
    except OSError:
        pass
    try:
        words = ["scontrol", "show", "node", node, "--oneliner"]
        shown = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(
            f"the name of node {node} does not resolve, and scontrol does not know its address ({error}); set "
            "MASTER_ADDR to an address of the first node"
        ) from error
    match = re.search(r"\bNodeAddr=(\S+)", shown)
    if match is None:
        raise ConfigError(f"scontrol knows no address of node {node}; set MASTER_ADDR to one of the first node")
    return match[1]
