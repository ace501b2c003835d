"""The scripts of shell/ in a real SLURM: two nodes, steps and batch jobs, requeueing, time limits, a lost node.

One batch job is stopped by its time limit and then by hand while the other cases run beside it; in the end it must have
the bits of a run that nothing happened to.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import signal
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch

from tests.conftest import ROOT
from tests.slurm.cluster import Cluster, Ended, missing, running, wait_for
from tests.train.runs import losses, run_all, weights

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing() or "SLURM is here")]

FULL = ROOT / "shell/internvl1.2/2nd_finetune/internvl_chat_v1_2_hermes2_yi34b_448_res_2nd_finetune_full.sh"
LORA = ROOT / "shell/internvl2.0/2nd_finetune/internvl2_2b_internlm2_1_8b_dynamic_res_2nd_finetune_lora.sh"
PACKED = ROOT / "shell/internvl2.5/stage2/internvl2_5_1b_qwen2_5_0_5b_dynamic_res_stage2.sh"
SMALL = {"force_image_size": 28, "dataloader_num_workers": 0, "max_seq_length": 400, "learning_rate": 0.01}
# Long enough to be stopped twice.
STEPS = 24


@dataclass(frozen=True)
class Site:
    """Where the tests' jobs run, and what all of them use."""

    cluster: Cluster
    model: Path
    data: Path
    folder: Path

    def script(
        self, path: Path, out: str, env: Mapping[str, object], within: Sequence[str] = (), **flags: object
    ) -> Ended:
        """Run a script of shell/ as a user does, with small data and a small model; ``within``: words before it."""
        values = {"model_name_or_path": self.model, "meta_path": self.data, **SMALL, **flags}
        words = [word for name, value in values.items() for word in (f"--{name}", value)]
        settings = {
            "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CPUS_PER_TASK": "1",
            "OUTPUT_DIR": str(self.out(out)), **{name: str(value) for name, value in env.items()},
        }  # fmt: skip
        return self.cluster.run([*within, path, *words], settings, self.folder, timeout=240)

    def out(self, name: str) -> Path:
        return self.folder / name

    def log(self, name: str, number: int | None = None) -> str:
        """What a run has written, to be told when a test fails."""
        paths = [self.out(name) / "training_log.txt"]
        if number is not None:
            paths.append(Path(self.cluster.job(number)["StdOut"]))
        return "".join(f"--- {path}\n{path.read_text(errors='replace')[-6000:]}" for path in paths if path.is_file())


@dataclass(frozen=True)
class Story:
    """What happened to the job: its newest checkpoint at each restart, and the step before the second one."""

    number: int
    saved_at_limit: int
    saved_at_requeue: int
    seen_at_requeue: int
    log: str


@pytest.fixture(scope="module")
def site(tiny: Path, mixed_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("slurm")
    with running(folder / "cluster") as cluster:
        yield Site(cluster, tiny, mixed_data, folder)


@pytest.fixture(scope="module")
def story(site: Site) -> Iterator[Future[Story]]:
    """The job that is stopped again and again, under way while the other tests run."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(live_through_it, site)


def full(site: Site, out: str, env: Mapping[str, object], **flags: object) -> Ended:
    """The full fine-tuning on two nodes of one GPU each."""
    where = {"GPUS": 2, "GPUS_PER_NODE": 1, "BATCH_SIZE": 4, "PER_DEVICE_BATCH_SIZE": 2}
    return site.script(FULL, out, {**where, **env}, max_steps=STEPS, save_steps=1000, **flags)


def submit(site: Site, out: str, env: Mapping[str, object], **flags: object) -> int:
    """The same as a batch job; its number."""
    told = full(site, out, {**env, "SUBMIT": 1}, **flags)
    submitted = re.search(r"Submitted batch job (\d+)", told.output)
    assert submitted, told.output
    return int(submitted[1])


def live_through_it(site: Site) -> Story:
    cluster, out = site.cluster, site.out("story")
    # SLURM looks at time limits twice a minute: this warning comes as soon as the time left is less than two minutes.
    number = submit(site, "story", {"SBATCH_ARGS": "--time=60", "GRACE": 90})
    try:
        wait_until_step(site, "story", number, 2)
        freeze_until_warned(site, number)
        wait_until_restarted(site, number, 1)
        saved_at_limit = newest_checkpoint(out)
        cluster.scontrol("update", f"JobId={number}", "TimeLimit=60")

        wait_until_step(site, "story", number, saved_at_limit + 2)
        seen_at_requeue = steps_done(out)
        cluster.scontrol("requeue", number)
        wait_until_restarted(site, number, 2)
        saved_at_requeue = newest_checkpoint(out)

        cluster.follow(number, lambda job: job["JobState"] == "COMPLETED", "the end of the run")
    except Exception as error:
        told = [traceback.format_exc(), site.log("story", number), cluster.logs()]
        raise AssertionError("\n".join(told)) from error
    log = site.log("story", number)
    return Story(number, saved_at_limit, saved_at_requeue, seen_at_requeue, log)


def wait_until_step(site: Site, out: str, number: int, step: int) -> None:
    site.cluster.follow(number, lambda job: steps_done(site.out(out)) >= step, f"step {step}")


def wait_until_restarted(site: Site, number: int, restarts: int) -> None:
    def again(job: dict[str, str]) -> bool:
        return int(job["Restarts"]) == restarts and job["JobState"] == "RUNNING"

    site.cluster.follow(number, again, f"start number {restarts + 1}")


def freeze_until_warned(site: Site, number: int) -> None:
    """Hold the ranks still, let the job's time come to an end, and go on once SLURM has sent its warning.

    A time limit is whole minutes, and all steps take less than one.
    """
    ranks = site.cluster.ranks(number)
    assert len(ranks) == 2, ranks
    for rank in ranks:
        rank.suspend()
    minutes, seconds = map(int, site.cluster.job(number)["RunTime"].split(":")[1:])
    limit = minutes + 2 if seconds < 55 else minutes + 3
    site.cluster.scontrol("update", f"JobId={number}", f"TimeLimit={limit}")
    try:
        wait_for(lambda: any(map(is_warned, ranks)), 60, lambda: f"SIGUSR1 to the ranks of job {number}")
    finally:
        for rank in ranks:
            with contextlib.suppress(psutil.NoSuchProcess):
                rank.resume()


def end_of(story: Future[Story]) -> Story:
    error = story.exception()
    if error is not None:
        pytest.fail(str(error), pytrace=False)
    return story.result()


def is_warned(process: psutil.Process) -> bool:
    """Whether SIGUSR1 waits to be taken by a process that stands still, or has woken it: some SLURMs do that, too."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return True
    pending = int(re.findall(r"ShdPnd:\t(\w+)", status)[0], 16)
    return "T (stopped)" not in status or bool(pending & 1 << (signal.SIGUSR1 - 1))


def steps_done(out: Path) -> int:
    """The last step in the run's log of numbers; 0 before the first."""
    path = out / "train_log.jsonl"
    # The last line may be half written.
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return max((json.loads(line).get("step", 0) for line in lines), default=0)


def newest_checkpoint(out: Path) -> int:
    return max(
        (int(path.parent.name.split("-")[1]) for path in out.glob("checkpoint-*/internvl_state.json")), default=0
    )


@pytest.fixture(scope="module")
def undisturbed(site: Site, story: Future[Story]) -> Ended:
    """The same run as the story's, as one step of srun, with nothing happening to it."""
    return full(site, "undisturbed", {})


def test_full_fine_tuning_on_two_nodes(site: Site, undisturbed: Ended) -> None:
    assert undisturbed.code == 0, undisturbed.output
    out = site.out("undisturbed")
    seen = losses(out)
    assert len(seen) == STEPS
    assert sum(seen[-5:]) < 0.5 * sum(seen[:5]), seen
    logged = (out / "training_log.txt").read_text(errors="replace")
    assert all(f"the model is in {out}" in text for text in (logged, undisturbed.output)), undisturbed.output


def test_model_of_two_nodes_loads(site: Site, undisturbed: Ended) -> None:
    from internvl_chat.model.chat import InternVLChatModel

    assert undisturbed.code == 0, undisturbed.output
    before, after = (
        InternVLChatModel.from_pretrained(folder, dtype=torch.bfloat16)
        for folder in (site.model, site.out("undisturbed"))
    )
    frozen = after.vision_model.state_dict()
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in before.vision_model.state_dict().items())
    assert not torch.equal(before.get_output_embeddings().weight, after.get_output_embeddings().weight)


def test_lora_by_torchrun_inside_a_step(site: Site, story: Future[Story]) -> None:
    """The script is one task of srun, and starts two processes there by itself."""
    step = ("srun", "--nodes=1", "--ntasks=1", "--gres=gpu:2")
    sizes = {"BATCH_SIZE": 4, "PER_DEVICE_BATCH_SIZE": 1}
    done = site.script(LORA, "lora", sizes, step, max_steps=6, save_strategy="no")
    assert done.code == 0, done.output
    seen = losses(site.out("lora"))
    assert len(seen) == 6
    assert sum(seen[3:]) < sum(seen[:3]), seen
    assert (site.out("lora") / "adapter" / "adapter_config.json").is_file()
    assert (site.out("lora") / "model.safetensors").is_file(), "merged"


def test_packed_run_of_two_tasks_on_a_node_has_the_losses_of_one_process(site: Site, story: Future[Story]) -> None:
    """Two ranks by srun on one node; the other runs have one on each of two."""
    changes = {
        "max_steps": 4, "max_packed_tokens": 400, "num_images_expected": 4, "drop_path_rate": 0.0, "bf16": False,
        "save_strategy": "no",
    }  # fmt: skip
    nodes = {"GPUS": 2, "GPUS_PER_NODE": 2, "BATCH_SIZE": 2}
    done = site.script(PACKED, "packed", nodes, **changes)
    assert done.code == 0, done.output
    printed = site.script(PACKED, "alone", {**nodes, "LAUNCHER": "print"}, **changes)
    words = shlex.split(printed.output.replace("\\\n", " "))
    flags = words[words.index("internvl_chat.train") + 1 :]
    run_all([[*flags, "--gradient_accumulation_steps", "2"]])
    assert len(losses(site.out("packed"))) == 4
    assert losses(site.out("packed")) == pytest.approx(losses(site.out("alone")), rel=1e-5), done.output


def test_error_is_said_once_and_is_the_exit_status(site: Site, story: Future[Story]) -> None:
    absent = site.folder / "absent.json"
    done = site.script(PACKED, "failed", {"GPUS": 2, "GPUS_PER_NODE": 1}, meta_path=absent)
    assert done.code == 2, done.output
    errors = re.findall(r"^(?:\[rank .*\] )?error: .*", done.output, re.MULTILINE)
    assert len(errors) == 1, done.output
    assert str(absent) in errors[0]
    assert "Traceback" not in done.output


# -- jobs that are stopped ---------------------------------------------------------------------------------------------


def test_time_limit_saves_and_requeues(story: Future[Story]) -> None:
    told = end_of(story)
    assert 3 <= told.saved_at_limit < STEPS - 10, told.log


def test_requeue_by_hand_saves_and_goes_on(story: Future[Story]) -> None:
    told = end_of(story)
    assert told.seen_at_requeue <= told.saved_at_requeue < STEPS - 4, told.log
    assert f"resuming after step {told.saved_at_requeue}" in told.log


def test_after_all_that_the_bits_are_those_of_an_undisturbed_run(
    site: Site, story: Future[Story], undisturbed: Ended
) -> None:
    told = end_of(story)
    assert site.cluster.job(told.number)["ExitCode"] == "0:0"
    assert losses(site.out("story")) == losses(site.out("undisturbed")), told.log
    expected, found = weights(site.out("undisturbed")), weights(site.out("story"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected), told.log
    assert not (site.out("story") / "start_again.json").exists()


def test_lost_node_is_named_and_its_job_requeued(site: Site, story: Future[Story]) -> None:
    story.exception()  # waits: what still ran on that node would be lost with it
    number = submit(site, "lost", {}, late_after=8)  # its ranks look after each other every second
    try:
        wait_until_step(site, "lost", number, 2)
        site.cluster.kill_node("node2")
        site.cluster.follow(number, lambda job: job["Restarts"] == "1", "being requeued")
    except AssertionError as error:
        pytest.fail(f"{error}\n{site.log('lost', number)}\n{site.cluster.logs()}", pytrace=False)
    log = site.log("lost", number)
    named = re.search(r"rank 1 on (\S+)", log)
    assert named, log
    assert named[1] in ("node2", socket.gethostname())
