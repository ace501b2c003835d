"""The commands of README's "On GPUs" and of docs/launch.md, run as written with recording programs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.shell.helpers import SHELL, Bench, make_bench

pytestmark = pytest.mark.slow
ON_GPUS = (ROOT / "README.md").read_text().split("\n## On GPUs")[1].split("\n## ")[0]
LAUNCH = (ROOT / "docs/launch.md").read_text()
# What SCRIPT may be: made for torchrun, and for srun.
IN_PLACE = [
    "shell/internvl2.5/2nd_finetune/internvl2_5_8b_dynamic_res_2nd_finetune_full.sh",
    "shell/internvl2.5/stage2/internvl2_5_1b_qwen2_5_0_5b_dynamic_res_stage2.sh",
]


def blocks(document: str) -> list[str]:
    return [block.replace("\\\n", " ") for block in re.findall(r"^```sh\n(.*?)^```", document, re.M | re.S)]


def commands(document: str) -> list[str]:
    """The lines that run a script of shell/, each behind what its block sets ``s`` to."""
    found = []
    for block in blocks(document):
        setting = next((line for line in block.splitlines() if line.startswith("s=")), "")
        lines = [line for line in block.splitlines() if re.match(r"[^#]*\bsh (\$s|SCRIPT|shell/)", line)]
        found += [f"{setting}\n{line}" for line in lines if not line.startswith("docker ")]
    return found


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """One stands in the project, on a machine with SLURM."""
    bench = make_bench(tmp_path)
    shutil.copytree(SHELL, bench.folder / "shell")
    bench.put("python3")
    return bench


@pytest.mark.parametrize("document", [ON_GPUS, LAUNCH], ids=["README", "launch"])
def test_every_command_runs(document: str, bench: Bench) -> None:
    lines = commands(document)
    assert len(lines) >= 5
    for line in lines:
        for script in IN_PLACE if "SCRIPT" in line else IN_PLACE[:1]:
            file = bench.folder / "typed.sh"
            file.write_text(line.replace("SCRIPT", script))
            done = bench.run(["sh"], file)
            assert done.returncode == 0, f"{line}\n{done.stderr}"
            through = [call for name in ("srun", "sbatch") for call in bench.calls(name)]
            assert len(through) == ("PARTITION" in line), line
            for record in bench.records.iterdir():
                record.unlink()


def test_a_batch_file_of_ones_own(bench: Bench) -> None:
    (text,) = [block for block in blocks(LAUNCH) if block.startswith("#!/bin/sh\n#SBATCH")]
    (bench.folder / "internvl_chat").symlink_to(bench.folder)
    file = bench.folder / "mine.sh"
    file.write_text(text)
    given = {"SLURM_JOB_ID": 5, "SLURM_NTASKS_PER_NODE": 8, "SLURM_CPUS_PER_TASK": 10}
    done = bench.run(["sh"], file, env=given)
    assert done.returncode == 0, done.stderr
    assert {"--nodes=2", "--ntasks=16"} <= set(bench.call("srun").argv)
