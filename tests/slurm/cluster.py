"""A SLURM cluster of one's own on this machine: a controller and two nodes with four made-up GPUs each.

Everything it writes is in one folder, its ports are free ones, and it has its own munge daemon: several may run at the
same time, beside a SLURM that the machine may be part of. Nothing is set in this process's environment; the commands
get ``SLURM_CONF`` from ``Cluster.env``. The nodes' names do not resolve, as on clusters whose names are aliases.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import psutil

from tests.train.warm import free_port

NODES = ("node1", "node2")
# Each made-up GPU has to be a device file of its own; nothing ever opens it.
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")
_PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "sinfo")
_ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
# Debian has the daemons there, and does not put it on every PATH.
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"

_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPort={port}
FirstJobId={job}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=5
InactiveLimit=0
KillWait=15
MinJobAge=3600
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0,bf_interval=1
PartitionName=test Nodes={nodes} Default=YES MaxTime=INFINITE State=UP
"""
_NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=64 RealMemory=8000 Gres=gpu:{gpus}\n"


@dataclass(frozen=True)
class Ended:
    """A command that has ended, with what it printed on both streams."""

    code: int
    output: str


@dataclass(frozen=True)
class Cluster:
    """The running cluster; ``env`` is what its commands need."""

    folder: Path
    env: Mapping[str, str]

    def run(
        self,
        words: Sequence[object],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 60,
    ) -> Ended:
        """Run a command to its end; raises TimeoutExpired."""
        done = subprocess.run(
            [str(word) for word in words], env={**self.env, **(env or {})}, cwd=cwd or self.folder, timeout=timeout,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            check=False,
        )  # fmt: skip
        return Ended(done.returncode, done.stdout)

    def scontrol(self, *words: object) -> str:
        """What scontrol prints; raises AssertionError if it fails."""
        done = self.run(["scontrol", *words])
        assert done.code == 0, f"scontrol {words}: {done.output}"
        return done.output

    def job(self, number: int) -> dict[str, str]:
        """What SLURM says about a job, such as JobState, Restarts, ExitCode, StdOut."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.scontrol("show", "job", number, "--oneliner")))

    def follow(self, number: int, done: Callable[[dict[str, str]], bool], what: str, timeout: float = 120) -> None:
        """Wait until something is so of a job (``done`` gets ``job(number)``), and fail at once if it has ended first.

        SLURM keeps a requeued job back for two minutes. Three seconds are enough: in the same second its nodes would
        take the new start for the old one.
        """

        def look() -> bool:
            job = self.job(number)
            if job["JobState"] == "PENDING" and job["Reason"] == "BeginTime" and job["StartTime"] != "Unknown":
                left = datetime.fromisoformat(job["StartTime"]) - datetime.now()
                if left > timedelta(seconds=10):
                    self.scontrol("update", f"JobId={number}", "StartTime=now+3seconds")
            if done(job):
                return True
            assert job["JobState"] not in _ENDS, f"waited for {what}, but the job has ended: {job}"
            return False

        wait_for(look, timeout, lambda: f"{what}: {self.job(number)}")

    def ranks(self, number: int, node: str | None = None) -> list[psutil.Process]:
        """The training processes of a job, on one node or on all."""
        tasks = [task for stepd in self._stepds(node, number) for task in stepd.children(recursive=True)]
        found = [task for task in tasks if "python" in _words(task)[0] and "internvl_chat.train" in _words(task)]
        # A process that a rank has just forked, to run something else, still looks like the rank.
        numbers = {task.pid for task in found}
        return [task for task in found if _parent(task) not in numbers]

    def kill_node(self, node: str) -> None:
        """What a power cut does: slurmd, slurmstepd and all tasks of the node are gone at once."""
        slurmd = psutil.Process(int((self.folder / f"slurmd-{node}.pid").read_text()))
        _kill([slurmd, *self._stepds(node), *self._tasks(node)])

    def start_node(self, node: str) -> None:
        """Start slurmd of a node, also after ``kill_node``, and wait until jobs can run there."""
        done = self.run(["slurmd", "-N", node])
        assert done.code == 0, done.output
        wait_for(
            lambda: self.run(["sinfo", "-h", "-n", node, "-o", "%t"]).output.strip() in ("idle", "mix", "alloc"),
            30,
            lambda: f"{node} to come up\n{self.logs()}",
        )

    def logs(self) -> str:
        """The last lines of all daemons."""
        return "".join(f"--- {path.name}\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log")))

    def stop(self) -> None:
        """Kill the daemons and everything that they have started."""
        daemons = [psutil.Process(int(path.read_text())) for path in self.folder.glob("**/*.pid") if _alive(path)]
        _kill([*daemons, *self._stepds(), *self._tasks()])

    def _tasks(self, node: str | None = None) -> list[psutil.Process]:
        """What was started by this SLURM, on one node or on any, or from here with its commands."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                env = process.environ()
                ours = env.get("SLURM_CONF") == self.env["SLURM_CONF"]
                if ours and node in (None, env.get("SLURMD_NODENAME")):
                    found.append(process)
        return found

    def _stepds(self, node: str | None = None, job: int | None = None) -> list[psutil.Process]:
        """The step daemons of one node or of all, of one job or of all: those that write to its slurmd's log."""
        logs = {str(self.folder / f"slurmd-{name}.log") for name in ([node] if node else NODES)}
        found = []
        for process in psutil.process_iter():
            words = " ".join(_words(process))
            if words.startswith(f"slurmstepd: [{job or ''}") and not logs.isdisjoint(_open_files(process)):
                found.append(process)
        return found


def missing() -> str:
    """Why no cluster can run here; empty if one can."""
    absent = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    if absent:
        return f"no SLURM here ({', '.join(absent)} not found): apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "a SLURM of one's own needs root"


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """A cluster in this folder, for as long as the block runs."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}
    cluster = Cluster(folder, {**env, "PATH": _PATH, "SLURM_CONF": str(folder / "slurm.conf")})
    try:
        _start(cluster)
        yield cluster
    finally:
        cluster.stop()


def wait_for(done: Callable[[], bool], timeout: float, what: Callable[[], str], every: float = 0.2) -> None:
    """Wait until something is so; raises AssertionError that says for what."""
    deadline = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < deadline, f"waited {timeout:.0f} s for {what()}"
        time.sleep(every)


def _start(cluster: Cluster) -> None:
    folder = cluster.folder
    for name in ("state", "munge", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(parents=True)
    host = socket.gethostname().split(".")[0]
    nodes = "".join(_NODE.format(name=name, host=host, port=free_port(), gpus=len(_DEVICES)) for name in NODES)
    conf = _CONF.format(host=host, folder=folder, port=free_port(), nodes=",".join(NODES), job=_first_job())
    (folder / "slurm.conf").write_text(nodes + conf)
    gpus = "".join(f"NodeName={','.join(NODES)} Name=gpu File={device}\n" for device in _DEVICES)
    (folder / "gres.conf").write_text(gpus)
    _start_munge(cluster)
    done = cluster.run(["slurmctld", "-c"])
    assert done.code == 0, done.output
    for node in NODES:
        cluster.start_node(node)


def _first_job() -> int:
    """Ports of runs follow from the numbers of their jobs, and another cluster may run on this machine."""
    return random.SystemRandom().randrange(1000, 60000)


def _start_munge(cluster: Cluster) -> None:
    """A munge daemon with a key of its own; ``--force`` because it runs as root, below a temporary folder."""
    folder = cluster.folder / "munge"
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o600)
    places = {"socket": "socket", "key-file": "key", "pid-file": "munged.pid", "log-file": "log", "seed-file": "seed"}
    done = cluster.run(["munged", "--force", *(f"--{flag}={folder / name}" for flag, name in places.items())])
    assert done.code == 0, done.output


def _alive(pid_file: Path) -> bool:
    return psutil.pid_exists(int(pid_file.read_text()))


def _parent(task: psutil.Process) -> int | None:
    with contextlib.suppress(psutil.NoSuchProcess):
        return int(task.ppid())
    return None


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() or [""]
    except psutil.Error:
        return [""]


def _open_files(process: psutil.Process) -> set[str]:
    try:
        return {str(entry.readlink()) for entry in Path(f"/proc/{process.pid}/fd").iterdir()}
    except OSError:
        return set()


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)
