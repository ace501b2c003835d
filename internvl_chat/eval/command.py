"""``internvl eval``: a checkpoint, benchmarks, scores; shared by the processes of torchrun and srun."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvl_chat.errors import ConfigError, InternVLError
from internvl_chat.eval.flags import OF_MODEL, wishes_of
from internvl_chat.eval.flags import add_arguments as add_arguments
from internvl_chat.infer.flags import model_name, model_options
from internvl_chat.log import get_logger, setup_logging

if TYPE_CHECKING:
    from internvl_chat.eval.plan import Job
    from internvl_chat.eval.results import Run
    from internvl_chat.eval.run import Setup
    from internvl_chat.eval.task import Judge, Task
    from internvl_chat.infer.loaded import Loaded
    from internvl_chat.launch import Launch

logger = get_logger(__name__)

_INSTEAD = ("list", "verify", "prepare", "predictions", "report", "vlm_table")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Arguments of ``python -m internvl_chat.eval``, as ``evaluate.sh`` calls it."""
    parser = argparse.ArgumentParser(prog="python -m internvl_chat.eval")
    add_arguments(parser)
    return parser.parse_intermixed_args(argv)


def run(args: argparse.Namespace) -> int:
    """Returns the exit status: 0 if every item of every task has an answer."""
    chosen = [name for name in _INSTEAD if getattr(args, name)]
    if len(chosen) > 1:
        raise ConfigError(f"--{chosen[0]} and --{chosen[1]}: one at a time")
    if args.auto:
        args.device_map = args.device_map or "auto"
    setup_logging()
    if args.report is not None:
        if args.names:
            raise ConfigError(f"--report {args.report} stands alone: evaluate first, without it ({args.names[0]} ...)")
        return _report(Path(args.report))
    if args.vlm_table is not None:
        return _write_tables(args)
    if args.list:
        if args.names:
            raise ConfigError(f"--list shows all tasks; to evaluate, leave it out ({args.names[0]} ...)")
        from internvl_chat.eval.listing import list_tasks

        print(list_tasks(Path(args.data_root)))
        return 0
    if args.verify or args.prepare:
        return _look_after(args)
    if args.predictions is not None:
        return _score_file(args)
    return _evaluate(args)


def _tasks(names: Sequence[str], datasets: str | None = None) -> list[Task]:
    """Tasks of keys, groups, names and YAML files; of these only the ``datasets``. Raises ConfigError."""
    from internvl_chat.eval.registry import resolve

    found = {task.name: task for task in resolve(names)}
    if not found:
        raise ConfigError("no task is named (behind the checkpoint, if one is asked); `internvl eval --list` shows all")
    if datasets is None:
        return list(found.values())
    wanted = [name for name in datasets.split(",") if name]
    if not wanted:
        raise ConfigError(f"--datasets {datasets}: names of tasks, separated by commas: {', '.join(found)}")
    for name in wanted:
        if name not in found:
            raise ConfigError(f"--datasets {name}: not one of {', '.join(found)}")
    return [found[name] for name in wanted]


def _evaluate(args: argparse.Namespace) -> int:
    from internvl_chat.eval.plan import plan_jobs
    from internvl_chat.eval.run import Setup, run_job
    from internvl_chat.infer.checkpoint import config_of_checkpoint, name_checkpoint
    from internvl_chat.infer.load import resolve_device, resolve_dtype
    from internvl_chat.infer.sharing import share_machine
    from internvl_chat.launch import find_launch, name_of_run

    if not args.names:
        raise ConfigError("internvl eval CKPT TASK: name a checkpoint and tasks; `internvl eval --list` shows all")
    checkpoint, *names = args.names
    wishes = wishes_of(args)
    tasks = _tasks(names, args.datasets)
    launch = find_launch(os.environ, resolve=str)
    _set_up_process(args, launch)
    config = config_of_checkpoint(checkpoint, args.base, args.conv_style)
    judge = _judges(args, tasks)
    jobs = plan_jobs(tasks, wishes, bool(config.dynamic_image_size), args.skip_missing)
    if launch.rank == 0:
        for note in filter(None, (job.odd_count for job in jobs)):
            logger.warning(note)
    device = share_machine(launch, args.device) if args.device_map is None else args.device
    settings = {
        "checkpoint": name_checkpoint(checkpoint, args.base),
        **{name: getattr(args, name) for name in OF_MODEL},
        "seed": args.seed if args.temperature else None,
        "dtype": str(resolve_dtype(args.dtype, resolve_device(device))).removeprefix("torch."),
        "template": args.conv_style or config.template,
    }
    setup = Setup(
        Path(args.out_dir), args.name or model_name(checkpoint), settings, launch, name_of_run(os.environ, launch),
        args.batch_size, args.batch_tokens, max(1, args.num_workers), args.overwrite, judge,
    )  # fmt: skip
    model = _Once(args, checkpoint, device)
    runs = []
    try:
        for job in jobs:
            if (found := run_job(job, setup, model.get)) is not None:
                runs.append(found)
                _tell(found)
    except KeyboardInterrupt:
        print(
            f"stopped; the same command goes on, what is answered is in {setup.out_dir / setup.model}", file=sys.stderr
        )
        raise
    return _finish(args, setup, jobs, runs, len(tasks))


def _set_up_process(args: argparse.Namespace, launch: Launch) -> None:
    if launch.world_size > 1:
        os.environ.update(launch.variables())
    if launch.local_world_size > 1 and args.device_map is not None:
        raise ConfigError("--auto spreads a model over all GPUs, and each process has one; GPUS=1 starts one process")


class _Once:
    """The model, loaded when the first question is due."""

    def __init__(self, args: argparse.Namespace, checkpoint: str, device: str | None) -> None:
        self._args, self._checkpoint, self._device = args, checkpoint, device
        self._loaded: Loaded | None = None

    def get(self) -> Loaded:
        if self._loaded is None:
            from transformers.utils.logging import disable_progress_bar

            from internvl_chat.infer.load import load

            disable_progress_bar()
            options = {**model_options(self._args), "device": self._device, "system_message": self._args.system}
            self._loaded = load(self._checkpoint, **options)
        return self._loaded


def _judges(args: argparse.Namespace, tasks: Sequence[Task]) -> Any:
    """Folder -> judge. Raises ConfigError where one is needed and there is none, before anything is asked."""
    from internvl_chat.eval.judge import open_judge, refusal

    def judge(folder: Path) -> Judge | None:
        return None if args.no_judge else open_judge(args.judge, folder / "judge.jsonl", os.environ)

    needed = [task.name for task in tasks if task.judged == "needed"]
    there = judge(Path(args.out_dir)) is not None  # one that is named and cannot be asked is told now
    if needed and not args.no_judge and not there:
        raise ConfigError(refusal(", ".join(needed)))
    return judge


def _tell(run: Run) -> None:
    from internvl_chat.eval.report.table import figure_text
    from internvl_chat.eval.results import partial_of

    manifest = run.manifest
    print(f"\n== {manifest['task']}: {manifest['title']}")
    figures = run.metrics.get("figures", {})
    for line in run.metrics.get("lines") or [f"{name}: {figure_text(value)}" for name, value in figures.items()]:
        print(line)
    if not run.metrics:
        print("no score here; the answers are written, and the file for a server where there is one")
    if (partial := partial_of(manifest)) is not None:
        reasons = {
            f"{manifest['failed']} without an answer": manifest["failed"],
            f"--limit {manifest['limit']}": manifest["limit"] is not None,
            f"the data here have {manifest['there']}": manifest["there"] < (manifest["count"] or 0),
        }
        why = ", ".join(reason for reason, holds in reasons.items() if holds)
        print(f"{partial.replace('partial', 'PARTIAL', 1)}{f' ({why})' if why else ''}; this is no score")
    if manifest["files_failed"]:
        print(f"its files are not written: {manifest['files_failed']}")
    if "dynamic" in manifest["changed"]:
        print(f"NOTE: --dynamic {manifest['settings']['dynamic']} is not how this checkpoint was trained")
    print(f"-> {run.folder}")


def _finish(args: argparse.Namespace, setup: Setup, jobs: Sequence[Job], runs: Sequence[Run], asked: int) -> int:
    """Table and TensorBoard, by a process that finds all tasks ended. Returns the exit status."""
    from internvl_chat.eval.report.runs import log_scalars, read_entries
    from internvl_chat.eval.report.table import markdown_table
    from internvl_chat.eval.results import MANIFEST, write_whole

    status = int(any(_unfinished(run.manifest) for run in runs) or len(jobs) < asked)
    folders = [setup.folder_of(job) for job in jobs]
    if not runs or not all((folder / MANIFEST).is_file() for folder in folders):
        return status  # another process is still at work, and will see the rest
    place = setup.out_dir / setup.model
    entries, lost = read_entries(place)
    for folder, why in lost.items():
        logger.warning("%s: left out of the table, it cannot be read (%s)", folder, why)
    done = [entry for entry in entries if entry.folder in folders]
    print(f"\n{markdown_table(done)}")
    write_whole(place / "table.md", markdown_table(entries).encode())
    if args.tensorboard:
        log_scalars(Path(args.tensorboard), args.step, done)
    return int(status or len(done) < len(jobs) or any(_unfinished(entry.meta) for entry in done))


def _unfinished(manifest: Mapping[str, Any]) -> bool:
    return any(manifest.get(name) for name in ("failed", "unjudged", "files_failed"))


def _report(folder: Path) -> int:
    from internvl_chat.eval.report.page import write_report

    print(write_report(folder))
    return 0


def _write_tables(args: argparse.Namespace) -> int:
    from internvl_chat.eval.vlm_table import write_vlm_table

    if not args.names:
        raise ConfigError("--vlm_table TSV DIR: name the folder of a finished evaluation, results/MODEL/TASK")
    for name in args.names:
        print(write_vlm_table(Path(name), Path(args.vlm_table)))
    return 0


def _look_after(args: argparse.Namespace) -> int:
    from internvl_chat.eval.prepare import prepare, verify

    root, status = Path(args.data_root), 0
    for task in _tasks(args.names):
        try:
            if args.prepare:
                for line in prepare(task, root, overwrite=args.overwrite):
                    print(f"{task.name}: {line}")
            verdict = verify(task, root)
        except InternVLError as error:  # the other tasks are looked at all the same
            print(f"{task.name}: {error}", file=sys.stderr)
            status = 2
            continue
        print(verdict.text())
        status = max(status, int(not verdict.good))
    return status


def _score_file(args: argparse.Namespace) -> int:
    """Score a file of answers that something else has made; what is left is as of an evaluation."""
    from internvl_chat.eval.plan import plan_jobs
    from internvl_chat.eval.results import PREDICTIONS, read_answers, write_whole
    from internvl_chat.eval.run import Setup, write_down
    from internvl_chat.launch import Launch

    tasks = _tasks(args.names)
    if len(tasks) != 1:
        raise ConfigError(f"--predictions has the answers to one task; named: {', '.join(task.name for task in tasks)}")
    path = Path(args.predictions)
    (job,) = plan_jobs(tasks, wishes_of(args), dynamic=True)
    found = read_answers(path, job)
    model = args.name or path.stem
    settings = {"checkpoint": None, "predictions": str(path.absolute()), "template": None}
    setup = Setup(Path(args.out_dir), model, settings, Launch(), "", judge=_judges(args, tasks))
    answers = setup.folder_of(job) / PREDICTIONS
    if answers.resolve() != path.resolve():
        if answers.exists() and not args.overwrite:
            what = f"{answers.parent} has answers already"
            raise ConfigError(f"{what}; --name NAME gives these another name, --overwrite replaces them")
        lines = (
            json.dumps({"id": item.id, "question": item.text, "answer": found[item.id], "gold": item.gold})
            for item in job.items
            if item.id in found
        )
        write_whole(answers, "".join(f"{line}\n" for line in lines).encode())
    run = write_down(job, setup, found, {})
    _tell(run)
    if run.metrics and run.metrics.get("lines"):
        for name, value in run.metrics["figures"].items():
            print(f"{name}: {value}")
    return int(_unfinished(run.manifest))
