"""Ranks from the environment of each launcher; SLURM's lists of nodes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.errors import ConfigError
from internvl_chat.launch import Launch, address_of, expand_counts, expand_nodes, find_launch, name_of_run

# As seen by task 3 of `srun --nodes=2 --ntasks=4 --ntasks-per-node=2`, SLURM 22.05.
SRUN = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


def resolve(node: str) -> str:
    return f"{node}.cluster"


def test_alone() -> None:
    assert find_launch({}) == Launch("python", 0, 1, 0, 1)
    assert find_launch({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}).world_size == 1


def test_a_batch_script_starts_one_process_whatever_the_job_has() -> None:
    """The batch step has SLURM_PROCID and SLURM_NTASKS, but is no step of several tasks."""
    batch = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "node[1-2]"}
    assert find_launch(batch) == Launch("python", 0, 1, 0, 1)


def test_torchrun() -> None:
    env = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    env |= {"MASTER_ADDR": "first", "MASTER_PORT": "4711"}
    assert find_launch(env) == Launch("torchrun", 5, 8, 1, 4, "first", 4711)
    # One task per node that runs torchrun: the step's own ranks are not those of the run.
    assert find_launch({**SRUN, **env}).rank == 5


def test_srun() -> None:
    found = find_launch(SRUN, resolve)
    assert (found.launcher, found.rank, found.world_size) == ("srun", 3, 4)
    assert (found.local_rank, found.local_world_size) == (1, 2)
    assert found.master_addr == "node1.cluster"
    assert found.hosts == ("node1", "node1", "node2", "node2")


def test_srun_on_uneven_nodes() -> None:
    env = {**SRUN, "SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_TASKS_PER_NODE": "3,2", "SLURM_PROCID": "4"}
    found = find_launch(env, resolve)
    assert (found.local_world_size, found.hosts) == (2, ("node1",) * 3 + ("node2",) * 2)
    # Tasks that are not dealt out in blocks: the node of a rank is not known, rather than wrong.
    assert find_launch({**env, "SLURM_DISTRIBUTION": "cyclic"}, resolve).hosts == ()


def test_all_ranks_of_a_step_agree_on_a_port_and_jobs_differ() -> None:
    ports = {
        (job, step): {
            find_launch(
                {**SRUN, "SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step), "SLURM_PROCID": str(rank)}, resolve
            ).master_port
            for rank in range(4)
        }
        for job in range(1000, 1100)
        for step in range(3)
    }
    assert all(len(found) == 1 for found in ports.values())
    assert len(set.union(*ports.values())) == len(ports)
    assert all(1024 < port < 32768 for port in set.union(*ports.values()))
    assert find_launch({**SRUN, "MASTER_PORT": "1234"}, resolve).master_port == 1234


def test_one_node_needs_no_name() -> None:
    env = {**SRUN, "SLURM_STEP_NODELIST": "nowhere", "SLURM_STEP_TASKS_PER_NODE": "4"}
    assert find_launch(env).master_addr == "127.0.0.1"


def test_open_mpi() -> None:
    with pytest.raises(ConfigError, match="MASTER_ADDR"):
        find_launch(OPEN_MPI)
    found = find_launch({**OPEN_MPI, "MASTER_ADDR": "first"})
    assert (found.launcher, found.rank, found.world_size, found.local_rank) == ("Open MPI", 2, 4, 0)
    assert find_launch({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}).master_addr == "127.0.0.1"
    # mpirun inside an allocation starts its daemons through srun: one task per node, which is not a rank.
    inside = {**SRUN, **OPEN_MPI, "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_NODELIST": "node[1-2]"}
    found = find_launch(inside, resolve)
    assert (found.rank, found.world_size, found.master_addr) == (2, 4, "node1.cluster")


def test_srun_with_pmi_is_srun() -> None:
    env = {**SRUN, "PMI_RANK": "3", "PMI_SIZE": "4"}
    assert find_launch(env, resolve).launcher == "srun"


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"RANK": "1"}, "WORLD_SIZE not"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "MASTER_ADDR and MASTER_PORT not"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK 2 of WORLD_SIZE 2"),
        ({"RANK": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK=x"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, "SLURM_PROCID, SLURM_LOCALID, SLURM_STEP_NODELIST"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_RANK"),
        ({**SRUN, "SLURM_STEP_NODELIST": "node[1-2"}, "brackets do not match"),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "2(y2)"}, "tasks per node"),
    ],
)
def test_half_an_environment_is_refused(env: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError) as error:
        find_launch(env, resolve)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("short", "names"),
    [
        ("gpu7", ["gpu7"]),
        ("a,b", ["a", "b"]),
        ("node[1-3]", ["node1", "node2", "node3"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("n[001,3-4]x", ["n001x", "n3x", "n4x"]),
        ("rack[1-2]n[5-6],login", ["rack1n5", "rack1n6", "rack2n5", "rack2n6", "login"]),
        ("gpu[1-2,7]-ib[0-1]", ["gpu1-ib0", "gpu1-ib1", "gpu2-ib0", "gpu2-ib1", "gpu7-ib0", "gpu7-ib1"]),
        ("tux[9-11]", ["tux9", "tux10", "tux11"]),
    ],
)
def test_lists_of_nodes(short: str, names: list[str]) -> None:
    assert list(expand_nodes(short)) == names


@pytest.mark.parametrize("short", ["", "n[1-2", "n1]", "n[a-b]", "n[]", "n[1-2]]", "n[[1]]"])
def test_what_is_no_list_of_nodes(short: str) -> None:
    with pytest.raises(ConfigError, match="list of nodes"):
        expand_nodes(short)


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 20)), min_size=1, max_size=4), st.integers(1, 4))
def test_ranges_as_slurm_writes_them(ranges: list[tuple[int, int]], width: int) -> None:
    words = [f"{low:0{width}}-{low + more:0{width}}" for low, more in ranges]
    expected = [f"n{number:0{width}}" for low, more in ranges for number in range(low, low + more + 1)]
    assert list(expand_nodes(f"n[{','.join(words)}]")) == expected


def test_counts() -> None:
    assert expand_counts("2(x3),1") == (2, 2, 2, 1)
    assert expand_counts("8") == (8,)


def test_a_name_that_only_slurm_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "scontrol"
    fake.write_text("#!/bin/sh\necho NodeName=$3 Arch=x86_64 NodeAddr=10.0.0.7 NodeHostName=vm\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert address_of("localhost") == "localhost"
    assert address_of("no-such-node.invalid") == "10.0.0.7"
    fake.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(ConfigError, match="MASTER_ADDR"):
        address_of("no-such-node.invalid")


def test_reading_the_environment_needs_no_slurm() -> None:
    """``scontrol`` is asked only for names that do not resolve."""
    assert find_launch({**SRUN, "SLURM_STEP_NODELIST": "localhost,other"}).master_addr == "localhost"


def test_a_run_has_a_name_that_its_processes_share() -> None:
    """Those of torchrun on one node have one parent; alone, each process is a run of its own."""
    torchrun = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none"}  # fmt: skip
    code = "import os; from internvl_chat.launch import *; e = os.environ; print(name_of_run(e, find_launch(e)))"
    agent = (
        "import os, subprocess, sys\n"
        "for rank in '01': subprocess.run([sys.executable, '-c', sys.argv[1]], env={**os.environ, 'RANK': rank})"
    )
    root = str(Path(__file__).parents[1])
    runs = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", agent, code], env={**os.environ, **torchrun, "PYTHONPATH": root},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        runs.append(set(done.stdout.split("\n")) - {""})
    assert [len(names) for names in runs] == [1, 1]
    assert runs[0] != runs[1]
    several_nodes = {**torchrun, "LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "7"}
    launch = find_launch(several_nodes)
    assert name_of_run(several_nodes, launch) == name_of_run({**several_nodes, "RANK": "1"}, launch)
    assert name_of_run(several_nodes, launch) != name_of_run({**several_nodes, "TORCHELASTIC_RUN_ID": "8"}, launch)
    assert name_of_run(SRUN, find_launch(SRUN, resolve)) != name_of_run(
        {**SRUN, "SLURM_STEP_ID": "1"}, find_launch(SRUN, resolve)
    )
    assert name_of_run({}, Launch()) != name_of_run({}, Launch())
