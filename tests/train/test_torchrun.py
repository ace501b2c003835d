"""torchrun of ours ends as its ranks did."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.train.runs import environment

# Does what it is told by its first word, in every rank; `wait` leaves word and ends in good order on SIGTERM.
RANK = """
import json, os, pathlib, signal, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--output_dir") + 1])
def stop(*_):
    (out / "start_again.json").write_text(json.dumps({"reason": "told to", "step": 1}))
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
first = os.environ["RANK"] == "0"
(out / ("up" + os.environ["RANK"])).touch()
if sys.argv[1] == "end":
    sys.exit(0)
if sys.argv[1] == "fail":
    sys.exit(2)
if sys.argv[1] == "die" and first:
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "lose" and first:
    (out / "start_again.json").write_text("{}")
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "die":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
time.sleep(60)
"""


def start(what: str, folder: Path) -> subprocess.Popen[str]:
    (folder / "rank.py").write_text(RANK)
    words = [sys.executable, "-m", "internvl_chat.train.torchrun", "--standalone", "--local_addr", "127.0.0.1"]
    words += ["--nproc_per_node", "2", str(folder / "rank.py"), what, "--output_dir", str(folder)]
    return subprocess.Popen(words, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow
@pytest.mark.parametrize(("what", "status"), [("end", 0), ("fail", 2), ("die", 137), ("lose", 75)])
def test_the_status_of_the_ranks(what: str, status: int, tmp_path: Path) -> None:
    run = start(what, tmp_path)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == status, output
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_to_torchrun(number: signal.Signals, status: int, tmp_path: Path) -> None:
    run = start("wait", tmp_path)
    deadline = time.monotonic() + 60
    while not all((tmp_path / f"up{rank}").exists() for rank in range(2)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(run.pid, number)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == status, output
    assert "Traceback" not in output
