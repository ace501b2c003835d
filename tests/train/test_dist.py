"""Ranks agree, or every one of them says why not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from internvl_chat.config.early import flag_of, seconds_of
from internvl_chat.train import dist
from tests.train.runs import environment

WORKER = """
import sys, torch
from internvl_chat.errors import DataError, ConfigError
from internvl_chat.config.early import flag_of, seconds_of
from internvl_chat.train import dist
torch.distributed.init_process_group("gloo")
me = dist.rank()

def question():
    if me:
        raise AssertionError("only rank 0 is asked")
    return "answer"

def refuse():
    raise ConfigError("no")

out = [dist.decide_on_main(question)]
try:
    dist.decide_on_main(refuse)
except ConfigError as error:
    out.append(str(error))
out.append(dist.any_rank(me == 1, False))
out.append(dist.sum_over_ranks(torch.tensor([1.0, me], dtype=torch.float64)).tolist())
dist.check_agreement("plan", "same", "mend")
try:
    dist.check_agreement("data", f"of {me}", "mend it")
except DataError as error:
    out.append(str(error).count("rank"))
print("RESULT", out)
dist.leave()
"""


@pytest.mark.slow
def test_two_ranks_answer_alike(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, str(tmp_path / "worker.py")], capture_output=True, text=True, env=environment(), timeout=120
    )
    # The two write to one pipe; their lines may run together.
    assert done.stdout.count("['answer', 'no', (True, False), [2.0, 1.0], 3]") == 2, done.stdout + done.stderr[-3000:]


def test_flags_are_found_before_they_are_parsed(tmp_path: Path) -> None:
    file = tmp_path / "args.json"
    file.write_text(json.dumps({"ddp_timeout": 60, "deepspeed": ""}), encoding="utf-8-sig")  # as some editors do
    assert flag_of([str(file)], "ddp_timeout") == "60"
    assert flag_of([str(file)], "deepspeed") is None
    assert flag_of([str(file), "--ddp_timeout=9"], "ddp_timeout") == "9"
    assert flag_of(["--a", "1", "--a", "2"], "a") == "2"
    assert flag_of(["--output-dir", "x"], "output_dir") == "x"
    assert seconds_of(["--ddp_timeout", "ten"], "ddp_timeout", 5.0) == 5.0


def test_deepspeed_in_a_json_file_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "-")
        monkeypatch.delenv(name)
    (tmp_path / "args.json").write_text(json.dumps({"deepspeed": "zero1"}))
    dist.prepare_environment([str(tmp_path / "args.json")])
    assert os.environ["WORLD_SIZE"] == "1"
