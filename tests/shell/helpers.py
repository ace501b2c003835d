"""Scripts of shell/ run by every shell, with programs that write down how they were called instead of the real ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

SHELL = ROOT / "shell"
SCRIPTS = sorted(path for path in SHELL.glob("*/*/*.sh"))
# As `sh script` means on Debian and elsewhere, and as people start scripts by hand.
SHELLS = [
    pytest.param(words, id=words[0] + "".join(words[1:]), marks=marks)
    for words, marks in (
        (["dash"], [pytest.mark.skipif(shutil.which("dash") is None, reason="dash is not installed")]),
        (["bash", "--posix"], []),
        (["bash"], []),
    )
]
# Python is slow to start; -S and -E leave out what a recorder does not need.
RECORDER = """\
#!{python} -SE
import json, os, signal, sys, time
name = os.path.basename(sys.argv[0])
if sys.argv[1:2] == ["-c"]:  # a question of the script, not what it runs
    print(os.environ.get("FAKE_ANSWER_" + name, ""), end="")
    sys.exit()
number = sum(entry.startswith(name + "-") for entry in os.listdir({records!r}))
call = {{"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(), "pid": os.getpid(), "stdin": ""}}
if name in os.environ.get("FAKE_READ", ""):
    call["stdin"] = sys.stdin.read()
def end(number, frame):
    os.write(1, f"{{name}} got {{signal.Signals(number).name}}\\n".encode())
    os._exit(7)
for number_ in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number_, end)
with open(os.path.join({records!r}, f"{{name}}-{{number}}.part"), "w") as file:
    json.dump(call, file)
os.rename(file.name, file.name.replace(".part", ".json"))
print(name, "says hello", flush=True)
print(name, "complains", file=sys.stderr, flush=True)
if name == os.environ.get("FAKE_WAITS"):
    time.sleep(30)
    sys.exit(99)
sys.exit(int(os.environ.get("FAKE_STATUS_" + name, "0")))
"""


@dataclass(frozen=True)
class Call:
    """How a program was called."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    pid: int
    stdin: str


@dataclass(frozen=True)
class Bench:
    """A folder to stand in, a PATH of recording programs, and what they have recorded."""

    folder: Path
    programs: Path
    records: Path

    def put(self, *names: str) -> None:
        for name in names:
            file = self.programs / name
            file.write_text(RECORDER.format(python=sys.executable, records=str(self.records)))
            file.chmod(0o755)

    def environment(self, env: Mapping[str, object] | None = None) -> dict[str, str]:
        """Nothing of the caller's that the scripts read."""
        kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TMPDIR") if name in os.environ}
        path = f"{self.programs}:/usr/bin:/bin"
        own = {"PATH": path, "HOME": str(self.folder), "PYTHON": str(self.programs / "python")}
        return {**kept, **own, **{name: str(value) for name, value in (env or {}).items()}}

    def start(
        self, shell: Sequence[str], script: Path, *words: str, env: Mapping[str, object] | None = None
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*shell, str(script), *words], env=self.environment(env), cwd=self.folder, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def run(
        self, shell: Sequence[str], script: Path, *words: str, env: Mapping[str, object] | None = None, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*shell, str(script), *words], env=self.environment(env), cwd=self.folder, text=True, input=stdin,
            capture_output=True, timeout=60, check=False,
        )  # fmt: skip

    def calls(self, name: str) -> list[Call]:
        found = sorted(self.records.glob(f"{name}-*.json"), key=lambda path: int(path.stem.rsplit("-", 1)[1]))
        return [Call(**json.loads(path.read_text())) for path in found]

    def call(self, name: str) -> Call:
        """The only call of a program."""
        (call,) = self.calls(name)
        return call


def make_bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path / "where I stand", tmp_path / "programs of mine", tmp_path / "records")
    for folder in (bench.folder, bench.programs, bench.records):
        folder.mkdir()
    bench.put("python", "srun", "sbatch", "scontrol", "mpirun")
    return bench


def flags_of(words: Sequence[str]) -> dict[str, str]:
    """``--name value`` and ``--name=value``; the last one counts."""
    flags: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            flags[name] = value if equals else ("" if following.startswith("--") else following)
    return flags


def training_words(words: Sequence[str]) -> list[str]:
    """What follows ``-m internvl_chat.train``."""
    words = list(words)
    place = words.index("internvl_chat.train")
    assert words[place - 1] == "-m"
    return words[place + 1 :]


def figures() -> dict[str, Any]:
    """Flags and sizes of the original's scripts: of all, of a family, of one."""
    data: dict[str, Any] = json.loads((Path(__file__).parent / "original_scripts.json").read_text())
    return data
