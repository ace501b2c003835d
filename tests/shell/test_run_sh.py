"""What shell/lib does with its variables, in each shell, with recording programs instead of SLURM and python."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.shell.helpers import SCRIPTS, SHELL, SHELLS, Bench, flags_of, make_bench, training_words

pytestmark = pytest.mark.slow
LORA = "internvl2.0/2nd_finetune/internvl2_2b_internlm2_1_8b_dynamic_res_2nd_finetune_lora.sh"  # torchrun, 2 x 4 x 2
FULL = "internvl1.2/2nd_finetune/internvl_chat_v1_2_hermes2_yi34b_448_res_2nd_finetune_full.sh"  # srun, 16 x 4 x 2
PACKED = "internvl2.5/stage1.5/internvl2_5_8b_internlm2_5_7b_dynamic_res_stage1_5.sh"  # srun, 512 x 1 x 2 packs
HUB = "internvl2.5/2nd_finetune/internvl2_5_1b_dynamic_res_2nd_finetune_full.sh"
each_shell = pytest.mark.parametrize("shell", SHELLS)
ANY = ["sh"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the scripts in a folder with blanks and a quote in its name."""
    root = tmp_path_factory.mktemp("copy") / "my project's"
    shutil.copytree(SHELL, root / "shell")
    return root


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path)


def script(project: Path, name: str) -> Path:
    return project / "shell" / name


def wait_for(ready: object, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not ready():  # type: ignore[operator]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


# ---- Scripts as files


def test_scripts_can_be_run_by_name() -> None:
    assert all(os.access(path, os.X_OK) and path.read_text().startswith("#!/bin/sh\n# ") for path in SCRIPTS)
    assert all(len(path.read_text().splitlines()) <= 17 for path in SCRIPTS)


@pytest.mark.skipif(shutil.which("dash") is None, reason="dash is not installed")
def test_dash_reads_them_all() -> None:
    for path in (*SCRIPTS, *(SHELL / "lib").iterdir()):
        assert subprocess.run(["dash", "-n", path], check=False).returncode == 0, path


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say() -> None:
    """To the library, and to three scripts: they all have the form of the next test."""
    files = [*(SHELL / "lib").iterdir(), *(SHELL / name for name in (FULL, LORA, HUB))]
    done = subprocess.run(["shellcheck", *files], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout


def test_headers_say_nothing_of_memory() -> None:
    """`internvl estimate` does, from the flags themselves."""
    assert [path for path in SCRIPTS if "GB a GPU" in path.read_text()] == []


FORM = re.compile(
    r"""#!/bin/sh
(# [^\n]+\n){2,3}ROOT=\$\(readlink -f -- "\$0"\) && ROOT=\$\{ROOT%/shell/\*\} && \. "\$ROOT/shell/lib/run\.sh"

defaults GPUS=\d+ BATCH_SIZE=\d+ PER_DEVICE_BATCH_SIZE=\d+ \\
  OUTPUT_DIR="\$ROOT/work_dirs/[\w./]+"
launch (srun|torchrun) [\w.]+ \\
(  --[a-z_]+ ([\w.-]+|"\$ROOT/[\w./-]+"|"\$\(model [\w-]+\)") \\
)+  "\$@"
"""
)


def test_scripts_have_one_form() -> None:
    assert [path for path in SCRIPTS if not FORM.fullmatch(path.read_text())] == []


# ---- What is run


@each_shell
def test_srun_gets_the_resources_and_the_flags(shell: list[str], project: Path, bench: Bench) -> None:
    done = bench.run(shell, script(project, FULL), "--learning_rate", "1e-6", "--system_message", "two  words *")
    assert done.returncode == 0, done.stderr
    call = bench.call("srun")
    assert call.argv[:11] == [
        "--job-name", Path(FULL).stem, "--gres=gpu:8", "--nodes=2", "--ntasks=16", "--ntasks-per-node=8",
        "--cpus-per-task=10", "--kill-on-bad-exit=1", str(bench.programs / "python"), "-u", "-m",
    ]  # fmt: skip
    words = training_words(call.argv)
    assert words[-4:] == ["--learning_rate", "1e-6", "--system_message", "two  words *"]
    flags = flags_of(words)
    assert flags["meta_path"] == f"{project}/shell/data/internvl_1_2_finetune_custom.json"
    assert flags["model_name_or_path"] == f"{project}/pretrained/InternVL-Chat-V1-2-Plus"
    assert call.env["PYTHONPATH"] == str(project)
    assert call.env["TF_CPP_MIN_LOG_LEVEL"] == "3"
    assert call.cwd == str(bench.folder)
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} & set(call.env)


@each_shell
def test_srun_options_of_the_user(shell: list[str], project: Path, bench: Bench) -> None:
    (bench.folder / "a.txt").touch()  # that a star must not become
    env = {
        "PARTITION": "gpu", "QUOTA_TYPE": "spot", "CPUS_PER_TASK": 3, "GPUS": 8, "GPUS_PER_NODE": 4,
        "GRES": "gpu:a100:4", "SRUN_ARGS": " --account=me   -x *  ", "PYTHONPATH": "mine",
    }  # fmt: skip
    done = bench.run(shell, script(project, FULL), env=env)
    assert done.returncode == 0, done.stderr
    call = bench.call("srun")
    assert call.argv[: call.argv.index("-u") - 1] == [
        "--job-name", Path(FULL).stem, "-p", "gpu", "--quotatype=spot", "--gres=gpu:a100:4", "--nodes=2", "--ntasks=8",
        "--ntasks-per-node=4", "--cpus-per-task=3", "--kill-on-bad-exit=1", "--account=me", "-x", "*",
    ]  # fmt: skip
    assert call.env["PYTHONPATH"] == f"{project}:mine"
    bench.run(shell, script(project, FULL), env={"GRES": ""})
    assert not any("gres" in word for word in bench.calls("srun")[1].argv)


@each_shell
@pytest.mark.parametrize("given", [{"PARTITION": "gpu"}, {"QUOTA_TYPE": "spot"}, {"SRUN_ARGS": "--account=me"}])
def test_what_only_slurm_understands_means_srun(
    shell: list[str], project: Path, bench: Bench, given: dict[str, object]
) -> None:
    done = bench.run(shell, script(project, LORA), env=given)
    assert done.returncode == 0, done.stderr
    call = bench.call("srun")
    assert "srun, 1 node x 2 GPUs" in done.stderr and not bench.calls("python")
    assert {"PARTITION": "gpu", "QUOTA_TYPE": "--quotatype=spot"}.get(next(iter(given)), "--account=me") in call.argv
    shown = bench.run(shell, script(project, LORA), env={**given, "LAUNCHER": "print"}).stdout
    assert shlex.split(shown.replace(" \\\n", " "))[-len(call.argv) :] == call.argv


@each_shell
def test_slurm_s_variables_are_not_dropped_without_a_word(shell: list[str], project: Path, bench: Bench) -> None:
    for launcher, name in (("torchrun", "torchrun"), ("pytorch", "torchrun"), ("python", "python"), ("mpi", "mpi")):
        env = {"LAUNCHER": launcher, "PARTITION": "gpu", "SRUN_ARGS": "-x node7", "OUTPUT_DIR": "out"}
        done = bench.run(shell, script(project, LORA), env=env)
        assert done.returncode == 2
        assert (
            f"error: LAUNCHER={name} would ignore PARTITION, SRUN_ARGS: leave out LAUNCHER to use SLURM, or unset them"
        ) in done.stderr
    assert not bench.calls("python") and not (bench.folder / "out").exists()


@each_shell
def test_a_partition_that_the_script_sets_is_none_of_the_user(
    shell: list[str], project: Path, bench: Bench, tmp_path: Path
) -> None:
    own = project / "shell/own_partition.sh"
    own.write_text(script(project, LORA).read_text().replace("defaults GPUS", "defaults PARTITION=ours GPUS"))
    assert bench.run(shell, own).returncode == 0
    assert "internvl_chat.train.torchrun" in bench.call("python").argv
    assert bench.run(shell, own, env={"SUBMIT": 1, "LAUNCHER": "torchrun"}).returncode == 0
    assert bench.call("sbatch").argv[:4] == ["--job-name", "own_partition", "-p", "ours"]
    own.unlink()


def test_fewer_gpus_than_a_node_has_are_one_node(project: Path, bench: Bench) -> None:
    bench.run(ANY, script(project, FULL), env={"GPUS": 4, "LAUNCHER": "slurm"})
    argv = bench.call("srun").argv
    assert {"--gres=gpu:4", "--nodes=1", "--ntasks=4", "--ntasks-per-node=4"} <= set(argv)
    assert flags_of(training_words(argv))["gradient_accumulation_steps"] == "8"


@each_shell
def test_torchrun_on_one_machine(shell: list[str], project: Path, bench: Bench) -> None:
    done = bench.run(shell, script(project, LORA), env={"GRACE": 77})
    assert done.returncode == 0, done.stderr
    call = bench.calls("python")[-1]
    assert call.argv[: call.argv.index("-m", 2) + 2] == [
        "-m", "internvl_chat.train.torchrun", "--standalone", "--local_addr", "127.0.0.1", "--nproc_per_node", "2",
        "-m", "internvl_chat.train",
    ]  # fmt: skip
    assert call.env["OMP_NUM_THREADS"] == "1"
    assert call.env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "77"


def test_threads_and_port_of_the_user_are_kept(project: Path, bench: Bench) -> None:
    bench.run(ANY, script(project, LORA), env={"OMP_NUM_THREADS": 5, "MASTER_PORT": 1234})
    call = bench.calls("python")[-1]
    flags = flags_of(call.argv)
    assert call.env["OMP_NUM_THREADS"] == "5"
    assert (flags["master_addr"], flags["master_port"], flags["nnodes"]) == ("127.0.0.1", "1234", "1")
    assert "standalone" not in flags


@pytest.mark.parametrize("knows", [True, False])
def test_torchrun_is_told_which_signals_to_pass_on_if_it_can_be(project: Path, bench: Bench, knows: bool) -> None:
    package = bench.folder / "torch"
    (package / "distributed").mkdir(parents=True)
    (package / "distributed/run.py").write_text('add_argument("--signals-to-handle")' if knows else "")
    answer = {"FAKE_ANSWER_python": package}
    bench.run(ANY, script(project, LORA), env=answer)
    told = flags_of(bench.call("python").argv).get("signals-to-handle")
    assert told == ("SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1" if knows else None)
    bench.run(ANY, script(project, LORA), env={"SUBMIT": 1, **answer})
    assert f"--signal={'USR1' if knows else 'TERM'}@120" in bench.call("sbatch").argv


def test_torchrun_over_several_nodes(project: Path, bench: Bench) -> None:
    env = {"NNODES": 4, "GPUS": 32, "BATCH_SIZE": 128, "MASTER_ADDR": "first", "NODE_RANK": 3, "LAUNCHER": "pytorch"}
    done = bench.run(ANY, script(project, LORA), env=env)
    assert "4 nodes x 8 GPUs" in done.stderr
    flags = flags_of(bench.calls("python")[-1].argv)
    assert [flags[name] for name in ("nnodes", "node_rank", "master_addr", "master_port", "nproc_per_node")] == [
        "4", "3", "first", "29500", "8",
    ]  # fmt: skip


@each_shell
def test_one_process(shell: list[str], project: Path, bench: Bench) -> None:
    done = bench.run(shell, script(project, FULL), env={"LAUNCHER": "python"})
    assert done.returncode == 0, done.stderr
    call = bench.call("python")
    assert call.argv[:3] == ["-u", "-m", "internvl_chat.train"]
    assert flags_of(call.argv)["gradient_accumulation_steps"] == "32"
    assert "batch 128 samples = 1 GPU x 4 per device x 32 accumulated" in done.stderr
    assert not bench.calls("srun")


def test_mpi(project: Path, bench: Bench) -> None:
    bench.run(ANY, script(project, FULL), env={"LAUNCHER": "mpi"})
    python = str(bench.programs / "python")
    head = ["-np", "16", "env", f"PYTHONPATH={project}", python, "-u", "-m", "internvl_chat.train"]
    assert bench.call("mpirun").argv[:8] == head


@each_shell
@pytest.mark.parametrize("name", [LORA, FULL])
def test_what_is_printed_can_be_pasted_and_nothing_is_started(
    shell: list[str], project: Path, bench: Bench, name: str
) -> None:
    odd = ["--system_message", 'it\'s "a" $HOME `x` \\ *', "--conv_style", ""]
    bench.put("python")
    done = bench.run(shell, script(project, name), *odd, env={"LAUNCHER": "print"})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(line.startswith("  --") and line.count(" --") == 1 for line in lines[1:])
    assert not bench.calls("srun")
    assert not any("torch.distributed.run" in call.argv for call in bench.calls("python"))
    assert list(bench.folder.iterdir()) == []
    pasted = subprocess.run([*shell, "-c", done.stdout], env=bench.environment(), cwd=bench.folder, check=False)
    assert pasted.returncode == 0
    started = bench.calls("srun" if name == FULL else "python")[-1]
    bench.run(shell, script(project, name), *odd)
    assert bench.calls("srun" if name == FULL else "python")[-1].argv == started.argv
    assert started.argv[-4:] == odd


def test_printing_needs_no_program(project: Path, bench: Bench) -> None:
    for program in bench.programs.iterdir():
        program.unlink()
    for env in ({}, {"SUBMIT": 1}, {"CHECK": 1}):
        done = bench.run(ANY, script(project, FULL), env={"LAUNCHER": "print", **env})
        assert done.returncode == 0, done.stderr
        words = shlex.split(done.stdout.replace(" \\\n", " "))
        assert ("sbatch" in words, "check" in words, "srun" in words) == ("SUBMIT" in env, "CHECK" in env, not env)


@each_shell
def test_check_and_estimate_get_the_flags_of_the_run(shell: list[str], project: Path, bench: Bench) -> None:
    (bench.programs / "srun").unlink()
    bench.run(shell, script(project, FULL), "--seed", "1", env={"LAUNCHER": "python", "GPUS": 1})
    run = bench.call("python").argv[3:]
    env = {"GPUS": 1, "CHECK": 1, "ESTIMATE": 1, "ESTIMATE_ARGS": "--gpu_memory 80  --html *"}
    done = bench.run(shell, script(project, FULL), "--seed", "1", env=env)
    assert done.returncode == 0, done.stderr
    check, estimate = bench.calls("python")[1:]
    assert check.argv == ["-m", "internvl_chat", "check", "--world_size", "1", *run]
    options = ["--gpus", "1", "--gpu_memory", "80", "--html", "*"]
    assert estimate.argv == ["-m", "internvl_chat", "estimate", *options, *run]
    assert check.env["PYTHONPATH"] == str(project)
    failed = bench.run(shell, script(project, FULL), env={**env, "FAKE_STATUS_python": 2})
    assert failed.returncode == 2
    assert len(bench.calls("python")) == 4, "an estimate of what the check has refused"


def test_check_makes_no_folder(project: Path, bench: Bench) -> None:
    bench.run(ANY, script(project, FULL), env={"CHECK": 1, "OUTPUT_DIR": "out"})
    assert not (bench.folder / "out").exists()


@each_shell
@pytest.mark.parametrize("words", [["-h"], ["--help"], ["--meta_path", "a.json", "--help"]])
def test_help_starts_and_makes_nothing(shell: list[str], project: Path, bench: Bench, words: list[str]) -> None:
    done = bench.run(
        shell, script(project, LORA), *words, env={"PYTHON": "/no/python", "GPUS": "nonsense", "OUTPUT_DIR": "out"}
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "InternVL2-2B, second fine-tuning: LoRA of rank 16 in the language model, all else is frozen.\n"
        "2 GPUs x 4 samples x 2 accumulated = batch 16; one epoch.\n"
        "variables: docs/launch.md; flags: internvl train --help\n"
    )
    assert not list(bench.folder.iterdir())


# ---- Where it is found, where it writes


@each_shell
def test_links_to_a_script_and_to_its_folder(shell: list[str], project: Path, bench: Bench) -> None:
    (bench.folder / "mine.sh").symlink_to(script(project, FULL))
    (bench.folder / "recipes of mine").symlink_to(script(project, FULL).parent)
    for path in (Path("mine.sh"), Path("recipes of mine") / Path(FULL).name):
        done = bench.run(shell, path, env={"LAUNCHER": "print"})
        assert done.returncode == 0, done.stderr
        assert Path(FULL).stem in done.stdout


def test_a_script_of_one_s_own_one_folder_up(project: Path, bench: Bench) -> None:
    own = project / "shell/own.sh"
    own.write_text(script(project, FULL).read_text())
    done = bench.run(ANY, own, env={"LAUNCHER": "print"})
    assert "--job-name own" in done.stdout
    own.write_text(own.read_text().replace(" BATCH_SIZE=128", ""))
    done = bench.run(ANY, own, env={"LAUNCHER": "print"})
    own.unlink()
    assert done.returncode == 2 and "error: BATCH_SIZE is not set: it is the number of samples" in done.stderr


@each_shell
def test_output_is_shown_and_appended_and_the_status_is_the_run_s(
    shell: list[str], project: Path, bench: Bench
) -> None:
    for status in (0, 75):
        env = {"FAKE_STATUS_srun": status, "OUTPUT_DIR": "my runs/one"}
        done = bench.run(shell, script(project, FULL), env=env)
        assert done.returncode == status
        assert done.stdout == "srun says hello\nsrun complains\n"
    log = (bench.folder / "my runs/one/training_log.txt").read_text().splitlines()
    assert [line for line in log if "srun says hello" in line or "srun complains" in line] == 2 * [
        "srun says hello", "srun complains",
    ]  # fmt: skip
    assert (
        sum("2 nodes x 8 GPUs, batch 128 samples = 16 GPUs x 4 per device x 2 accumulated" in line for line in log) == 2
    )
    assert flags_of(bench.calls("srun")[0].argv)["output_dir"] == "my runs/one"


@pytest.mark.parametrize(
    "words", [["--output_dir", "else where"], ["--output_dir=else where"], ["--output-dir", "else where"]]
)
def test_the_log_follows_the_flag(project: Path, bench: Bench, words: Sequence[str]) -> None:
    bench.run(ANY, script(project, FULL), "--output_dir", "first", *words, env={"OUTPUT_DIR": "variable"})
    assert [path.name for path in bench.folder.iterdir()] == ["else where"]


def test_a_folder_that_cannot_be_made(project: Path, bench: Bench) -> None:
    (bench.folder / "file").touch()
    done = bench.run(ANY, script(project, FULL), env={"OUTPUT_DIR": "file/out"})
    assert done.returncode == 2
    assert "error: OUTPUT_DIR=file/out: cannot write there; set OUTPUT_DIR to a folder of yours" in done.stderr
    assert not bench.calls("srun")


@each_shell
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_to_the_script_reaches_the_program(
    shell: list[str], project: Path, bench: Bench, number: signal.Signals
) -> None:
    process = bench.start(
        shell, script(project, FULL), env={"FAKE_WAITS": "srun", "OUTPUT_DIR": "out", "TMPDIR": bench.folder}
    )
    wait_for(lambda: bench.calls("srun"))
    assert bench.call("srun").pid == process.pid, "the script does not turn into the program"
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 7
    assert f"srun got {number.name}" in output
    assert f"srun got {number.name}" in (bench.folder / "out/training_log.txt").read_text()
    assert [path.name for path in bench.folder.iterdir()] == ["out"], "a pipe is left"


def test_what_a_run_says_at_its_end_is_logged_though_all_are_signalled(project: Path, bench: Bench) -> None:
    process = bench.start(ANY, script(project, FULL), env={"FAKE_WAITS": "srun", "OUTPUT_DIR": "out"})
    wait_for(lambda: bench.calls("srun"))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    output, _ = process.communicate(timeout=20)
    assert "srun got SIGINT" in output


def test_srun_does_not_eat_what_a_loop_reads(project: Path, bench: Bench) -> None:
    bench.run(ANY, script(project, FULL), env={"FAKE_READ": "srun"}, stdin="next line")
    assert bench.call("srun").stdin == ""


# ---- The python


def test_which_python(project: Path, bench: Bench, tmp_path: Path) -> None:
    def chosen(**env: str) -> str:
        done = bench.run(ANY, script(project, FULL), env={"LAUNCHER": "print", "PYTHON": "", **env})
        words = shlex.split(done.stdout.replace(" \\\n", " "))
        return words[words.index("-u") - 1]

    def make(folder: Path) -> str:
        (folder / "bin").mkdir(parents=True)
        (folder / "bin/python").symlink_to("/bin/true")
        return str(folder)

    assert Path(chosen()).name == "python3" or chosen() == str(bench.programs / "python")
    make(project / ".venv")
    assert chosen() == f"{project}/.venv/bin/python"
    conda, venv = make(tmp_path / "conda"), make(tmp_path / "venv")
    assert chosen(CONDA_PREFIX=conda) == f"{conda}/bin/python"
    assert chosen(CONDA_PREFIX=conda, VIRTUAL_ENV=venv) == f"{venv}/bin/python"
    assert chosen(VIRTUAL_ENV=venv, PYTHON="mine") == "mine"
    shutil.rmtree(project / ".venv")


@each_shell
def test_a_python_without_the_packages_is_refused(shell: list[str], project: Path, bench: Bench) -> None:
    bare = bench.programs / "bare"
    bare.write_text("#!/bin/sh\nexit 1\n")  # what `-c` asks it is not so
    bare.chmod(0o755)
    for env in ({}, {"LAUNCHER": "torchrun"}, {"CHECK": 1}, {"SUBMIT": 1}):
        done = bench.run(shell, script(project, FULL), env={"PYTHON": bare, "OUTPUT_DIR": "out", **env})
        assert done.returncode == 2
        root = "'" + str(project).replace("'", r"'\''") + "'"
        assert (
            f"error: {bare} has no torch or no transformers: pip install -e {root} (README, Install), or activate the "
            "environment that has them, or set PYTHON to its python\n"
        ) in done.stderr
    assert not bench.calls("srun") and not bench.calls("sbatch") and not (bench.folder / "out").exists()


def test_what_is_in_a_container_is_not_known(project: Path, bench: Bench) -> None:
    for word in ("--container-image=x.sqsh", "--container=bundle"):
        for env in ({"SRUN_ARGS": word}, {"SRUN_ARGS": word, "SUBMIT": 1}, {"SBATCH_ARGS": word, "SUBMIT": 1}):
            given = {"PYTHON": "/in/the/container", **env}
            assert bench.run(ANY, script(project, FULL), env=given).returncode == 0
            done = bench.run(ANY, script(project, FULL), env={**given, "CHECK": 1})
            assert done.returncode == 2, "a check runs outside"
            assert "/in/the/container is not found" in done.stderr


@pytest.mark.parametrize("absent", [[], ["torch"], ["transformers"]])
def test_packages_are_looked_for_without_importing_them(
    project: Path, bench: Bench, tmp_path: Path, absent: list[str]
) -> None:
    for name in {"torch", "transformers"} - set(absent):
        (bench.folder / f"{name}.py").write_text("raise SystemExit('imported')")
    python = bench.programs / "python of mine"
    python.write_text(f'#!/bin/sh\n[ "$1" != -c ] || exec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    done = bench.run(ANY, script(project, FULL), env={"PYTHON": python, "LAUNCHER": "python"})
    assert done.returncode == (2 if absent else 0), done.stderr


def test_a_released_model_is_taken_from_the_project_if_it_is_there(project: Path, bench: Bench) -> None:
    def model() -> str:
        done = bench.run(ANY, script(project, HUB), env={"LAUNCHER": "print"})
        return flags_of(shlex.split(done.stdout.replace(" \\\n", " ")))["model_name_or_path"]

    assert model() == "OpenGVLab/InternVL2_5-1B"
    (project / "pretrained/InternVL2_5-1B").mkdir(parents=True)
    assert model() == f"{project}/pretrained/InternVL2_5-1B"
    shutil.rmtree(project / "pretrained")


# ---- What is refused


@each_shell
@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            {"LAUNCHER": "tochrun"},
            "LAUNCHER=tochrun: must be srun (or slurm), torchrun (or pytorch), python, mpi or print",
        ),
        ({"GPUS": "two"}, "GPUS=two: must be a whole number of at least 1"),
        ({"GPUS": 0}, "GPUS=0: must be a whole number of at least 1"),
        ({"BATCH_SIZE": "1.5", "CPUS_PER_TASK": "-1"}, "BATCH_SIZE=1.5: must be a whole number of at least 1"),
        ({"BATCH_SIZE": "1.5", "CPUS_PER_TASK": "-1"}, "CPUS_PER_TASK=-1: must be a whole number of at least 1"),
        ({"PER_DEVICE_BATCH_SIZE": "010"}, "PER_DEVICE_BATCH_SIZE=010: must be a whole number of at least 1"),
        ({"GRACE": "2m"}, "GRACE=2m: must be a whole number of at least 1"),
        (
            {"GPUS": 12},
            "GPUS=12 is not a multiple of GPUS_PER_NODE=8: set GPUS=8 or GPUS=16, or GPUS_PER_NODE=6",
        ),
        (
            {"GPUS": 3, "LAUNCHER": "torchrun"},
            "BATCH_SIZE=128 is not a multiple of GPUS x PER_DEVICE_BATCH_SIZE = 3 x 4 = 12: "
            "set BATCH_SIZE=120 or BATCH_SIZE=132, or GPUS=2\n",
        ),
        (
            {"BATCH_SIZE": 32},
            "BATCH_SIZE=32 is not a multiple of GPUS x PER_DEVICE_BATCH_SIZE = 16 x 4 = 64: set BATCH_SIZE=64, or "
            "PER_DEVICE_BATCH_SIZE=2, or GPUS=8\n",
        ),
        (
            {"GPUS": 16, "BATCH_SIZE": 480},
            "BATCH_SIZE=480 is not a multiple of GPUS x PER_DEVICE_BATCH_SIZE = 16 x 4 = "
            "64: set BATCH_SIZE=448 or BATCH_SIZE=512, or PER_DEVICE_BATCH_SIZE=3, or GPUS=8\n",
        ),
        (
            {"LAUNCHER": "torchrun", "GPUS": 16, "NNODES": 2, "BATCH_SIZE": 480},
            "BATCH_SIZE=480 is not a multiple of GPUS x PER_DEVICE_BATCH_SIZE = 16 x 4 = 64: set BATCH_SIZE=448 or "
            "BATCH_SIZE=512, or PER_DEVICE_BATCH_SIZE=3, or GPUS=12\n",
        ),
        ({"LAUNCHER": "python", "GPUS": 2}, "GPUS=2: LAUNCHER=python is one process on one GPU"),
        ({"LAUNCHER": "torchrun", "NNODES": 2}, "NNODES=2: set MASTER_ADDR to the address of the first node"),
        ({"LAUNCHER": "torchrun", "NNODES": 2, "MASTER_ADDR": "a"}, "NODE_RANK=: set it to the number of this node, 0"),
        (
            {"LAUNCHER": "torchrun", "NNODES": 2, "MASTER_ADDR": "a", "NODE_RANK": 2},
            "NODE_RANK=2: set it to the number",
        ),
        ({"LAUNCHER": "torchrun", "NNODES": 3}, "GPUS=16 is not a multiple of NNODES=3: set GPUS=15 or GPUS=18"),
        ({"LAUNCHER": "mpi", "SUBMIT": 1}, "SUBMIT=1: mpirun gets no warning before the time is up"),
        ({"PYTHON": "/no/python"}, "/no/python is not found: activate the environment (. .venv/bin/activate), or set"),
        ({"PYTHON": "/no/python", "SUBMIT": 1}, "/no/python is not found: activate the environment"),
        ({"SBATCH_ARGS": "--time=1"}, "SBATCH_ARGS is for SUBMIT=1; for srun: SRUN_ARGS\n"),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_refused_with_the_mend(
    shell: list[str], project: Path, bench: Bench, env: dict[str, object], message: str
) -> None:
    done = bench.run(shell, script(project, FULL), env={"OUTPUT_DIR": "out", **env})
    assert done.returncode == 2
    assert f"error: {message}" in done.stderr
    assert not bench.calls("srun") and not bench.calls("sbatch")
    assert not (bench.folder / "out").exists()


@pytest.mark.parametrize(
    ("program", "env", "mend"),
    [
        ("srun", {}, "on a machine without it set LAUNCHER=torchrun and GPUS"),
        ("sbatch", {"SUBMIT": 1}, "leave SUBMIT out"),
        ("mpirun", {"LAUNCHER": "mpi"}, "install Open MPI or MPICH"),
    ],
)
def test_missing_programs(project: Path, bench: Bench, program: str, env: dict[str, object], mend: str) -> None:
    for path in bench.programs.iterdir():
        if path.name != "python":
            path.unlink()
    # A PATH without SLURM, should this machine have one.
    for name in ("sh", "env", "dirname", "basename", "readlink", "tr", "awk", "mkdir", "date", "sed", "grep"):
        (bench.programs / name).symlink_to(str(shutil.which(name)))
    path = str(bench.programs)
    done = bench.run(["/bin/sh"], script(project, FULL), env={"PATH": path, **env})
    assert done.returncode == 2
    assert f"error: {program} is not found: " in done.stderr
    assert mend in done.stderr


# ---- The batch

GRID = [
    (gpus, batch, per_device)
    for gpus in (1, 3, 8, 64)
    for batch in (1, 7, 12, 16, 60, 96, 128, 1000, 1024)
    for per_device in (1, 2, 3, 4, 5, 8, 16)
]


def expected_answer(gpus: int, batch: int, per_device: int) -> str:
    step = gpus * per_device
    if batch % step == 0:
        return f"accumulate {batch // step}"
    near = [f"BATCH_SIZE={size}" for size in (batch - batch % step, batch + -batch % step) if size > 0]
    fits = [size for size in range(1, per_device + 1) if batch % (gpus * size) == 0]
    instead = f", or PER_DEVICE_BATCH_SIZE={max(fits)}" if fits else ""
    fewer = [number for number in range(1, gpus) if batch % (number * per_device) == 0]
    instead += f", or GPUS={max(fewer)}" if fewer else ""
    return (
        f"error: BATCH_SIZE={batch} is not a multiple of GPUS x PER_DEVICE_BATCH_SIZE = {gpus} x {per_device} = {step}"
        f": set {' or '.join(near)}{instead}"
    )


@each_shell
def test_arithmetic_of_the_batch(shell: list[str]) -> None:
    grid = GRID if shell == ["dash"] else GRID[::5]
    answers = [expected_answer(*case) for case in grid]
    assert 10 < sum(answer.startswith("accumulate") for answer in answers) < len(grid) - 10
    program = """
        set -eu
        LAUNCHER=torchrun NNODES=1
        . "$ROOT/shell/lib/words.sh"
        . "$ROOT/shell/lib/settings.sh"
        while read -r GPUS BATCH_SIZE PER_DEVICE_BATCH_SIZE; do
          (settle_batch; echo "accumulate $ACCUMULATION") 2>&1 || :
        done
    """
    done = subprocess.run(
        [*shell, "-c", program], env={**os.environ, "ROOT": str(SHELL.parent)}, text=True, timeout=120, check=True,
        input="".join(f"{gpus} {batch} {per}\n" for gpus, batch, per in grid), stdout=subprocess.PIPE,
    )  # fmt: skip
    assert done.stdout.splitlines() == answers


@pytest.mark.parametrize(
    ("name", "env", "words", "told"),
    [
        (PACKED, {}, [], "batch 1024 packs = 512 GPUs x 1 per device x 2 accumulated"),
        (PACKED, {"GPUS": 64}, [], "batch 1024 packs = 64 GPUs x 1 per device x 16 accumulated"),
        (PACKED, {"GPUS": 64, "BATCH_SIZE": 128}, [], "batch 128 packs = 64 GPUs x 1 per device x 2 accumulated"),
        (PACKED, {"PER_DEVICE_BATCH_SIZE": 2}, [], "batch 1024 packs = 512 GPUs x 2 per device x 1 accumulated"),
        (FULL, {}, ["--use_packed_ds", "True"], "batch 128 packs = 16 GPUs x 4 per device x 2 accumulated"),
        (
            FULL,
            {},
            ["--gradient_accumulation_steps", "3"],
            "batch 192 samples = 16 GPUs x 4 per device x 3 accumulated",
        ),
        (
            FULL,
            {"BATCH_SIZE": 192},
            ["--gradient_accumulation_steps=3"],
            "batch 192 samples = 16 GPUs x 4 per device x 3",
        ),
        (
            FULL,
            {},
            ["--per_device_train_batch_size", "1"],
            "batch 128 samples = 16 GPUs x 1 per device x 8 accumulated",
        ),
        (FULL, {}, ["--per-device-train-batch-size=8"], "batch 128 samples = 16 GPUs x 8 per device x 1 accumulated"),
        (
            FULL,
            {},
            ["--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "3"],
            "batch 384 samples = 16 GPUs x 8 per device x 3 accumulated",
        ),
        (FULL, {"GPUS": 8, "BATCH_SIZE": 32}, [], "1 node x 8 GPUs, batch 32 samples = 8 GPUs x 4 per device x 1"),
    ],
)
def test_the_batch_that_is_told_is_the_one_of_the_flags(
    project: Path, bench: Bench, name: str, env: dict[str, object], words: list[str], told: str
) -> None:
    done = bench.run(ANY, script(project, name), *words, env=env)
    assert told in done.stderr
    flags = flags_of(bench.call("srun").argv)
    per_device, accumulated = flags["per_device_train_batch_size"], flags["gradient_accumulation_steps"]
    assert f"x {per_device} per device x {accumulated}" in told


@pytest.mark.parametrize(
    ("env", "words", "message"),
    [
        (
            {"BATCH_SIZE": 7},
            ["--gradient_accumulation_steps=3"],
            "BATCH_SIZE=7, but --gradient_accumulation_steps 3 makes a batch of 192 = 16 GPUs x 4 x 3: leave out "
            "one of the two",
        ),
        (
            {"BATCH_SIZE": 128},
            ["--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "3"],
            "BATCH_SIZE=128, but --gradient_accumulation_steps 3 makes a batch of 384 = 16 GPUs x 8 x 3: leave out",
        ),
        (
            {},
            ["--per_device_train_batch_size", "16"],
            "BATCH_SIZE=128 is not a multiple of GPUS x PER_DEVICE_BATCH_SIZE = 16 x 16 = 256: set BATCH_SIZE=256, or "
            "--per_device_train_batch_size 8, or GPUS=8\n",
        ),
    ],
)
def test_appended_flags_of_the_batch_that_do_not_fit_it(
    project: Path, bench: Bench, env: dict[str, object], words: list[str], message: str
) -> None:
    done = bench.run(ANY, script(project, FULL), *words, env=env)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1 and not bench.calls("srun")


@each_shell
@pytest.mark.parametrize(
    "line", ["--output_dir mine", "--gradient_accumulation_steps 2", "--per-device-train-batch-size 2"]
)
def test_flags_of_the_script_in_a_recipe(shell: list[str], project: Path, bench: Bench, line: str) -> None:
    recipes = project / "shell/recipes"
    (recipes / "part.args").write_text(f"{line}\n")
    (recipes / "mine.args").write_text("include part.args\n")
    own = project / "shell/own_recipe.sh"
    own.write_text(re.sub(r"launch srun \S+", "launch srun mine", script(project, FULL).read_text()))
    done = bench.run(shell, own)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {recipes}/part.args: {line.split()[0]} belongs to the script: defaults BATCH_SIZE=... "
        "PER_DEVICE_BATCH_SIZE=... OUTPUT_DIR=...\n"
    )
    assert not bench.calls("srun")
    for file in (own, recipes / "part.args", recipes / "mine.args"):
        file.unlink()


def test_a_flag_of_the_batch_that_is_no_number(project: Path, bench: Bench) -> None:
    done = bench.run(ANY, script(project, FULL), "--per_device_train_batch_size", "auto")
    assert done.returncode == 2
    assert "error: --per_device_train_batch_size=auto: must be a whole number of at least 1" in done.stderr


# ---- Batch jobs


@each_shell
def test_submit(shell: list[str], project: Path, bench: Bench) -> None:
    env = {
        "SUBMIT": 1,
        "OUTPUT_DIR": "my 5% runs",
        "SBATCH_ARGS": "--time=1:00 --array=0-3%1 *",
        "GRACE": 60,
        "PARTITION": "p",
    }
    done = bench.run(shell, script(project, FULL), "--run_name", "a  b", env=env)
    assert done.returncode == 0, done.stderr
    assert (bench.folder / "my 5% runs").is_dir()
    argv = bench.call("sbatch").argv
    assert argv[: argv.index(f"{project}/shell/lib/batch.sh")] == [
        "--job-name", Path(FULL).stem, "-p", "p", "--gres=gpu:8", "--nodes=2", "--ntasks=16", "--ntasks-per-node=8",
        "--cpus-per-task=10", "--requeue", "--open-mode=append", "--export=ALL", "--signal=USR1@60", "--output",
        "my 5%% runs/slurm-%j.out", "--time=1:00", "--array=0-3%1", "*",
    ]  # fmt: skip
    rest = argv[argv.index(f"{project}/shell/lib/batch.sh") + 1 :]
    assert rest[:2] == ["my 5% runs", str(script(project, FULL))]
    assert rest[-2:] == ["--run_name", "a  b"]
    assert bench.call("sbatch").env["SUBMIT"] == "1"
    assert bench.run(shell, script(project, FULL), env={**env, "FAKE_STATUS_sbatch": 1}).returncode == 1


def job(
    bench: Bench, project: Path, shell: Sequence[str], name: str, env: dict[str, object] | None = None
) -> subprocess.CompletedProcess[str]:
    """What SLURM does with what sbatch got: a copy of the job script, in the allocation."""
    bench.run(shell, script(project, name), "--run_name", "a  b", env={"SUBMIT": 1, "OUTPUT_DIR": "out", **(env or {})})
    call = bench.calls("sbatch")[-1]
    place = call.argv.index(f"{project}/shell/lib/batch.sh")
    spooled = bench.records / "slurm_script"
    shutil.copy(call.argv[place], spooled)
    given = {"SLURM_JOB_ID": 10123, "SLURM_JOB_NODELIST": "node[1-2]", "SUBMIT": 1, "OUTPUT_DIR": "out", **(env or {})}
    return bench.run(shell, spooled, *call.argv[place + 1 :], env=given)


@each_shell
def test_a_job_runs_the_script_in_its_allocation(shell: list[str], project: Path, bench: Bench) -> None:
    done = job(bench, project, shell, FULL, {"PARTITION": "p", "QUOTA_TYPE": "spot", "SBATCH_ARGS": "--time=1"})
    assert done.returncode == 0, done.stderr
    call = bench.call("srun")
    assert len(bench.calls("sbatch")) == 1
    assert "-p" not in call.argv[:8]
    assert not any("quotatype" in word for word in call.argv)
    assert {"--nodes=2", "--ntasks=16", "--gres=gpu:8"} <= set(call.argv)
    assert training_words(call.argv)[-2:] == ["--run_name", "a  b"]
    assert (bench.folder / "out/training_log.txt").read_text().count("srun says hello") == 1


@each_shell
def test_a_torchrun_job_is_a_task_on_each_node(shell: list[str], project: Path, bench: Bench) -> None:
    hostnames, node = "echo no-such-host-1; echo no-such-host-2", "echo '  NodeAddr=10.0.0.7 X=1'"
    stub = f'#!/bin/sh\ncase "$2" in hostnames) {hostnames} ;; node) {node} ;; esac\n'
    (bench.programs / "scontrol").write_text(stub)
    (bench.programs / "getent").write_text("#!/bin/sh\nexit 2\n")
    (bench.programs / "getent").chmod(0o755)
    env = {"GPUS": 16, "BATCH_SIZE": 128, "LAUNCHER": "torchrun", "PARTITION": "p", "SRUN_ARGS": "-x node7"}
    done = job(bench, project, shell, LORA, env)
    assert done.returncode == 0, done.stderr
    call = bench.call("srun")
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=80", "--gres=gpu:8"} <= set(call.argv)
    task = call.argv[call.argv.index("env") :]
    assert task[:6] == ["env", "INTERNVL_NODE=1", "NNODES=2", "MASTER_ADDR=10.0.0.7", "MASTER_PORT=20123", "sh"]
    on_node = {**call.env, "SLURM_NODEID": "1"}
    done = subprocess.run(task, env=on_node, cwd=bench.folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    argv = bench.calls("python")[-1].argv
    flags = flags_of(argv)
    assert [flags[name] for name in ("nnodes", "node_rank", "master_addr", "master_port", "nproc_per_node")] == [
        "2", "1", "10.0.0.7", "20123", "8",
    ]  # fmt: skip
    assert (flags["gradient_accumulation_steps"], flags["run_name"]) == ("2", "a  b")
    assert (bench.folder / "out/training_log.txt").read_text().count("python says hello") == 0


def test_one_process_in_a_job_is_a_step(project: Path, bench: Bench) -> None:
    job(bench, project, ANY, FULL, {"LAUNCHER": "python"})
    assert {"--nodes=1", "--ntasks=1"} <= set(bench.call("srun").argv)


class Job:
    """A job that SLURM starts again and again, whose run ends as told."""

    def __init__(self, bench: Bench, project: Path, shell: Sequence[str]) -> None:
        self.bench, self.shell = bench, shell
        self.out = bench.folder / "out"
        self.out.mkdir()
        self.words = [str(self.out), str(bench.programs / "a run")]
        self.batch = project / "shell/lib/batch.sh"
        self.restarts = 0

    def run(self, status: int, *, asks: bool, checkpoint: int | None = None, **env: object) -> bool:
        """Whether the job was put back into the queue."""
        marker = self.out / f"checkpoint-{checkpoint}/internvl_state.json"
        lines = ["#!/bin/sh", f"[ ! -e '{self.out}/start_again.json' ] || exit 88", '[ -z "${SUBMIT:-}" ] || exit 89']
        if asks:
            reason = json.dumps({"reason": "the time is up", "step": checkpoint})
            lines.append(f"echo '{reason}' >'{self.out}/start_again.json'")
        if checkpoint is not None:
            lines.append(f"mkdir -p '{marker.parent}'; touch '{marker}'")
        Path(self.words[1]).write_text("\n".join([*lines, f"exit {status}"]))
        before = len(self.bench.calls("scontrol"))
        given = {"SLURM_JOB_ID": 5, "SLURM_RESTART_COUNT": self.restarts, "SUBMIT": 1, **env}
        done = self.bench.run(self.shell, self.batch, *self.words, env=given)
        assert done.returncode == status, done.stderr
        asked = self.bench.calls("scontrol")[before:]
        assert all(call.argv == ["requeue", "5"] for call in asked)
        self.restarts += 1
        self.said = done.stdout
        return bool(asked)


@pytest.fixture(params=SHELLS)
def a_job(request: pytest.FixtureRequest, bench: Bench, project: Path) -> Job:
    return Job(bench, project, request.param)


def test_a_job_starts_again_only_if_the_run_asks_for_it(a_job: Job) -> None:
    assert not a_job.run(0, asks=False)
    assert not a_job.run(2, asks=False)
    assert a_job.run(75, asks=True, checkpoint=10)
    assert "batch job 5: stopped (the time is up); back into the queue, to go on from step 10" in a_job.said
    assert a_job.run(1, asks=True, checkpoint=20), "torchrun ends with 1, whatever its ranks do"
    assert not a_job.run(0, asks=False)
    assert (a_job.out / "training_log.txt").read_text().count("back into the queue") == 2
    assert not (a_job.out / "restarts.txt").exists()


def test_restarts_without_a_new_checkpoint_are_limited(a_job: Job) -> None:
    assert a_job.run(75, asks=True, checkpoint=9)
    assert a_job.run(75, asks=True)
    assert a_job.run(75, asks=True)
    assert a_job.run(75, asks=True, checkpoint=10), "a new checkpoint does not reset the count; 10 is more than 9"
    assert [a_job.run(75, asks=True) for _ in range(4)] == [True, True, False, False]
    assert "not started again: 3 restarts made no checkpoint newer than step 10 (MAX_RESTARTS=3)" in a_job.said


def test_the_limit_is_the_user_s_and_a_new_job_counts_anew(a_job: Job) -> None:
    assert not a_job.run(75, asks=True, MAX_RESTARTS=0)
    assert [a_job.run(75, asks=True, MAX_RESTARTS=1) for _ in range(3)] == [True, False, False]
    a_job.restarts = 0
    assert a_job.run(75, asks=True, MAX_RESTARTS=1)


def test_a_checkpoint_without_its_marker_is_none(a_job: Job) -> None:
    a_job.run(75, asks=True)
    for step in (1, 2, 3):
        (a_job.out / f"checkpoint-{step}").mkdir()
    assert [a_job.run(75, asks=True) for _ in range(3)] == [True, True, False]


def test_a_requeue_that_slurm_has_made_already_is_no_failure(a_job: Job) -> None:
    assert a_job.run(75, asks=True, FAKE_STATUS_scontrol=1)
    assert "SLURM has done that by itself, or forbids it" in a_job.said


def test_the_job_script_outlives_the_signals_that_its_run_gets(project: Path, bench: Bench) -> None:
    out = bench.folder / "out"
    out.mkdir()
    run = bench.programs / "a run"
    run.write_text(
        f'trap \'echo {{}} >"{out}/start_again.json"; exit 75\' TERM\n: >"{out}/here"\nwhile :; do sleep 0.05; done\n'
    )
    process = bench.start(ANY, project / "shell/lib/batch.sh", str(out), str(run), env={"SLURM_JOB_ID": 5})
    wait_for((out / "here").exists)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 75
    assert bench.call("scontrol").argv == ["requeue", "5"]
