"""``evaluate.sh`` in each shell: what it starts, on how many cards, and how it ends."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from internvl_chat.eval import registry
from internvl_chat.eval.command import parse
from tests.conftest import ROOT
from tests.eval.mini.scienceqa import RECORDS, WRITERS
from tests.shell.helpers import SHELL, SHELLS, Bench, make_bench

pytestmark = pytest.mark.slow
each_shell = pytest.mark.parametrize("shell", SHELLS)
# Keys of the original's script, in the order of its documents; the long dash is its own.
KEYS = """
mme vqa vqa-okvqa-val vqa-textvqa-val vqa-textvqa-val-ocr vqa-vizwiz-val vqa-vizwiz-test vqa-vqav2-val vqa-vqav2-testdev
vqa-chartqa-test vqa-chartqa-test-human vqa-chartqa-test-augmented vqa-docvqa-val vqa-docvqa-test vqa-infovqa-val
vqa-infovqa-test vqa-ai2d-test vqa-gqa-testdev vqa-ocrvqa-val vqa-ocrvqa-test vqa-mpdocvqa-val vqa-mpdocvqa-test
scienceqa m3cot pope tiny_lvlm mmmu-dev mmmu-val mmmu-test mmvet mmvetv2 mmbench-dev-en mmbench-dev-cn mmbench-test-en
mmbench-test-cn ccbench-dev seed mmvp llava-bench refcoco refcoco-val refcoco-testA refcoco-testB refcoco+-val
refcoco+-testA refcoco+-testB refcocog-val refcocog-test mvbench caption caption-coco caption-flickr30k caption-nocaps
mathvista-testmini mathvista-test mantis mirb mmiu mmhal mmmu-pro mmmu-pro-std10 mmmu-pro-vision drivelm mme—realworld
dior-rsvg rsvqa-lr rsvqa-hr-test1 rsvqa-hr-test2
""".split()  # noqa: SIM905 - shorter
# Options as the original's documents write them.
OLD = [
    "--dynamic", "--max-num", "12", "--load-in-8bit", "--num-beams", "3", "--temperature", "0.5", "--out-dir", "my out",
    "--seed", "3", "--batch-size", "1", "--num-workers", "1", "--datasets", "a,b", "--cot", "--num_segments", "8",
]  # fmt: skip


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy in a folder with blanks and a quote in its name."""
    root = tmp_path_factory.mktemp("copy") / "my project's"
    shutil.copytree(SHELL, root / "shell")
    return Path(shutil.copy(ROOT / "evaluate.sh", root))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path)


def put_cards(bench: Bench, count: int) -> None:
    """A ``nvidia-smi`` that lists so many, one of them in parts."""
    lines = "".join(f"GPU {number}: NVIDIA H200 (UUID: GPU-{number})\\n" for number in range(count))
    file = bench.programs / "nvidia-smi"
    file.write_text(f"#!/bin/sh\n[ \"$*\" = -L ] && printf '{lines}  MIG 1g.18gb Device 0: (UUID: MIG-7)\\n'\n")
    file.chmod(0o755)


def asked(words: Sequence[str]) -> list[str]:
    """What follows ``-m internvl_chat.eval``."""
    place = list(words).index("internvl_chat.eval")
    assert words[place - 1] == "-m"
    return list(words[place + 1 :])


def pasted(shown: str) -> list[str]:
    """The words of a command as it is printed."""
    return shlex.split(shown.replace(" \\\n  ", " "))


# ---- As a file


def test_it_can_be_run_by_name_and_dash_reads_it() -> None:
    file = ROOT / "evaluate.sh"
    assert os.access(file, os.X_OK) and file.read_text().startswith("#!/bin/sh\n# ")
    if shutil.which("dash"):
        assert subprocess.run(["dash", "-n", file], check=False).returncode == 0


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say() -> None:
    files = [*(SHELL / "lib").iterdir(), ROOT / "evaluate.sh"]
    done = subprocess.run(["shellcheck", *files], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout


# ---- Keys and options


@each_shell
def test_every_key_becomes_a_command_that_is_understood(shell: list[str], script: Path, bench: Bench) -> None:
    """All keys of the original, and all of ours, each with its name alone as a task."""
    assert len(KEYS) == len(set(KEYS)) == 68
    for key in dict.fromkeys([*KEYS, *registry.keys(), *registry.GROUPS]) if shell == ["bash"] else KEYS:
        done = bench.run(shell, script, "pretrained/My Model", key, "--dynamic", env={"LAUNCHER": "print"})
        assert done.returncode == 0, done.stderr
        args = parse(asked(pasted(done.stdout)))
        assert (args.names, args.dynamic) == (["pretrained/My Model", key], True)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_the_original_names_tasks(key: str) -> None:
    assert registry.resolve([key])


@each_shell
def test_old_options_arrive(shell: list[str], script: Path, bench: Bench) -> None:
    done = bench.run(shell, script, "ckpt", "mvbench", *OLD, env={"LAUNCHER": "print"})
    args = parse(asked(pasted(done.stdout)))
    assert args.names == ["ckpt", "mvbench"]
    found = {name: getattr(args, name) for name in ("max_tiles", "num_beams", "temperature", "out_dir", "seed")}
    assert found == {"max_tiles": 12, "num_beams": 3, "temperature": 0.5, "out_dir": "my out", "seed": 3}
    assert (args.load_in_8bit, args.batch_size, args.datasets, args.cot, args.num_segments) == (True, 1, "a,b", True, 8)
    assert parse(["ckpt", "mme", "--load-in-4bit", "--auto"]).load_in_4bit


@each_shell
def test_odd_words_come_through_whole(shell: list[str], script: Path, bench: Bench) -> None:
    words = ['/abs/it\'s a "model" $HOME *', "own task.yaml", "--system", "two  words; `x` \\n", "--out-dir", ""]
    done = bench.run(shell, script, *words, env={"LAUNCHER": "python"})
    assert done.returncode == 0, done.stderr
    call = bench.calls("python")[-1]
    assert asked(call.argv) == words
    assert call.cwd == str(bench.folder), "paths are those of where one stands"
    assert call.env["PYTHONPATH"] == str(script.parent)
    shown = bench.run(shell, script, *words, env={"LAUNCHER": "print"}).stdout
    assert asked(pasted(shown)) == words


# ---- Cards


@each_shell
@pytest.mark.parametrize(
    ("cards", "env", "processes", "said"),
    [
        (8, {}, 8, "a process on each of 8 GPUs\n"),
        (8, {"GPUS": 4}, 4, "a process on each of 4 GPUs\n"),
        (2, {}, 2, "a process on each of 2 GPUs (GPUS=8, but no more are here)"),
        (2, {"GPUS": 1}, 1, "a process on each of 1 GPU\n"),
        (1, {"GPUS": 8}, 1, "a process on each of 1 GPU (GPUS=8, but no more are here)"),
        (0, {"GPUS": 8}, 1, "1 process on the CPU (no GPU is here)"),
        (8, {"CUDA_VISIBLE_DEVICES": "5,GPU-3,7"}, 3, "each of 3 GPUs (GPUS=8, but no more are here)"),
        (2, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 2, "each of 2 GPUs (GPUS=8, but no more are here)"),
        (8, {"CUDA_VISIBLE_DEVICES": ""}, 1, "1 process on the CPU (no GPU is here)"),
        (8, {"CUDA_VISIBLE_DEVICES": "-1"}, 1, "1 process on the CPU (no GPU is here)"),
        (8, {"LAUNCHER": "python"}, 1, ": 1 process\n"),
    ],
)
def test_a_process_for_each_card_that_is_there(
    shell: list[str], script: Path, bench: Bench, cards: int, env: dict[str, object], processes: int, said: str
) -> None:
    put_cards(bench, cards)
    done = bench.run(shell, script, "ckpt", "mme", env=env)
    assert done.returncode == 0, done.stderr
    assert said in done.stderr and done.stderr.startswith("evaluate: ckpt mme: ")
    call = bench.calls("python")[-1]
    assert asked(call.argv) == ["ckpt", "mme"]
    if processes == 1:
        assert call.argv[:3] == ["-u", "-m", "internvl_chat.eval"]
    else:
        place = call.argv.index("--nproc_per_node")
        assert call.argv[place + 1] == str(processes)
        assert call.argv[:2] == ["-m", "internvl_chat.train.torchrun"]
        assert "--standalone" in call.argv, "a port that is free"


@each_shell
def test_cards_of_other_makers_are_counted_by_torch(shell: list[str], script: Path, bench: Bench) -> None:
    done = bench.run(shell, script, "ckpt", "mme", env={"FAKE_ANSWER_python": "nonsense"})
    assert "1 process on the CPU" in done.stderr
    done = bench.run(shell, script, "ckpt", "mme", env={"FAKE_ANSWER_python": "3"})
    assert "a process on each of 3 GPUs (GPUS=8" in done.stderr


@each_shell
def test_a_port_of_ones_own(shell: list[str], script: Path, bench: Bench) -> None:
    put_cards(bench, 2)
    bench.run(shell, script, "ckpt", "mme", env={"MASTER_PORT": 63669})
    words = bench.calls("python")[-1].argv
    assert words[words.index("--master_port") + 1] == "63669" and "--standalone" not in words


@each_shell
def test_auto_is_one_process(shell: list[str], script: Path, bench: Bench) -> None:
    put_cards(bench, 8)
    done = bench.run(shell, script, "ckpt", "mme", "--auto", env={"GPUS": 8})
    assert "1 process, the model over all GPUs" in done.stderr
    words = bench.calls("python")[-1].argv
    assert words == ["-u", "-m", "internvl_chat.eval", "ckpt", "mme", "--auto"]


# ---- SLURM


@each_shell
def test_through_slurm(shell: list[str], script: Path, bench: Bench) -> None:
    env = {"LAUNCHER": "srun", "PARTITION": "gpu", "GPUS": 16, "CPUS_PER_TASK": 4, "SRUN_ARGS": "--account=vision"}
    done = bench.run(shell, script, "ckpt", "mme", env=env)
    assert done.returncode == 0, done.stderr
    words = bench.call("srun").argv
    assert words == [
        "--job-name", "evaluate", "-p", "gpu", "--gres=gpu:8", "--nodes=2", "--ntasks=16", "--ntasks-per-node=8",
        "--cpus-per-task=4", "--kill-on-bad-exit=1", "--account=vision",
        str(bench.programs / "python"), "-u", "-m", "internvl_chat.eval", "ckpt", "mme",
    ]  # fmt: skip
    shown = bench.run(shell, script, "ckpt", "mme", env={**env, "LAUNCHER": "print"}).stdout
    assert pasted(shown)[-len(words) :] == words
    bench.run(shell, script, "ckpt", "mme", env={name: value for name, value in env.items() if name != "LAUNCHER"})
    assert bench.calls("srun")[-1].argv == words, "PARTITION means srun"
    bench.run(shell, script, "ckpt", "mme", "--auto", env={**env, "GPUS": 4})
    last = bench.calls("srun")[-1].argv
    assert {"--gres=gpu:4", "--ntasks=1", "--nodes=1"} <= set(last)


# ---- Statuses


@each_shell
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the checkpoint comes first, then a key"),
        (["--dynamic", "ckpt", "mme"], "the checkpoint comes first, then a key"),
        (["ckpt"], "ckpt: a key comes second"),
        (["ckpt", "--dynamic"], "ckpt: a key comes second"),
    ],
)
def test_what_is_missing_is_said(shell: list[str], script: Path, bench: Bench, words: list[str], message: str) -> None:
    done = bench.run(shell, script, *words)
    assert done.returncode == 2 and message in done.stderr and "sh evaluate.sh CKPT KEY" in done.stderr
    assert not bench.calls("python")


@each_shell
def test_help_and_numbers_that_are_none(shell: list[str], script: Path, bench: Bench) -> None:
    done = bench.run(shell, script, "--help")
    assert done.returncode == 0 and done.stdout.startswith("GPUS=8 sh evaluate.sh CKPT KEY")
    assert "internvl eval --list" in done.stdout and "internvl eval --help" in done.stdout
    for words in (["ckpt", "--help"], ["ckpt", "mme", "--dynamic", "-h"]):
        again = bench.run(shell, script, *words, env={"PYTHON": "/no/python", "GPUS": "all"})
        assert (again.returncode, again.stdout, again.stderr) == (0, done.stdout, "")
    done = bench.run(shell, script, "--list")
    assert (done.returncode, done.stderr) == (2, "error: the keys are those of: internvl eval --list\n")
    for env, message in (
        ({"GPUS": "all"}, "GPUS=all: must be a whole number"),
        ({"GPUS": 2, "LAUNCHER": "python"}, "LAUNCHER=python is one process"),
        ({"LAUNCHER": "ssh"}, "LAUNCHER=ssh: must be"),
        ({"SUBMIT": 1}, "SUBMIT=1 is for training"),
        ({"PARTITION": "gpu", "LAUNCHER": "torchrun"}, "LAUNCHER=torchrun would ignore PARTITION"),
        ({"PYTHON": "/bin/false"}, "/bin/false has no torch or no transformers"),
        ({"SBATCH_ARGS": "--time=1"}, "SBATCH_ARGS is for SUBMIT=1; for srun: SRUN_ARGS"),
    ):
        done = bench.run(shell, script, "ckpt", "mme", env=env)
        assert done.returncode == 2 and message in done.stderr, done.stderr


@each_shell
@pytest.mark.parametrize(("cards", "program"), [(0, "python"), (3, "python")])
def test_it_ends_as_the_evaluation_does(shell: list[str], script: Path, bench: Bench, cards: int, program: str) -> None:
    put_cards(bench, cards)
    assert bench.run(shell, script, "ckpt", "mme", env={f"FAKE_STATUS_{program}": 3}).returncode == 3


# ---- For real


def run_for_real(shell: Sequence[str], folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "GPUS")}
    return subprocess.run(
        [*shell, str(ROOT / "evaluate.sh"), *words], cwd=folder, capture_output=True, text=True, timeout=300,
        check=False, env={**clean, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **env},
    )  # fmt: skip


def test_a_tiny_model_on_the_cpu(tiny: Path, tmp_path: Path) -> None:
    """With paths relative to where one stands, the model's too."""
    WRITERS["sqa_test"](tmp_path / "data")
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "pretrained/Tiny").symlink_to(tiny)
    shell = ["dash"] if shutil.which("dash") else ["sh"]
    done = run_for_real(shell, tmp_path, "pretrained/Tiny", "scienceqa", "--dynamic", GPUS="8")
    assert done.returncode == 0, done.stderr
    assert "1 process on the CPU" in done.stderr and "Acc@1: " in done.stdout
    folder = tmp_path / "results/Tiny/sqa_test"
    predictions = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    answered = [record for record in predictions if "answer" in record]
    assert [record["id"] for record in answered] == [f"{number}" for number in range(len(RECORDS))]
    assert json.loads((folder / "run.json").read_text())["answered"] == len(RECORDS)
    assert (folder / "sqa_test.jsonl").is_file()


def test_two_processes_end_with_the_status_of_the_evaluation(tiny: Path, tmp_path: Path) -> None:
    """What starts them is that of the script, but for the number of cards."""
    WRITERS["sqa_test"](tmp_path / "data")
    programs = tmp_path / "programs"
    programs.mkdir()
    card = programs / "nvidia-smi"
    card.write_text("#!/bin/sh\necho GPU 0: pretended; echo GPU 1: pretended\n")
    card.chmod(0o755)
    env = {"PATH": f"{programs}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": "0,1"}
    done = run_for_real(["sh"], tmp_path, str(tiny), "scienceqa", "--out-dir", "out", **env)
    assert done.returncode == 0, done.stderr
    assert "a process on each of 2 GPUs" in done.stderr
    manifest = json.loads((tmp_path / "out" / tiny.name / "sqa_test/run.json").read_text())
    assert manifest["answered"] == len(RECORDS) and manifest["settings"]["processes"] == 2
    done = run_for_real(["sh"], tmp_path, str(tiny), "no-such-key", **env)
    assert done.returncode == 2, done.stderr
    assert "no task 'no-such-key'" in done.stderr and "Traceback" not in done.stderr
