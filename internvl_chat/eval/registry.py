"""All tasks, the keys of ``evaluate.sh`` that name them, and groups of keys."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import import_module
from pathlib import Path

from internvl_chat.errors import ConfigError, nearest
from internvl_chat.eval.own import load_task
from internvl_chat.eval.task import Task

# Modules of eval/tasks, each with TASKS (a tuple of Task) and KEYS (key of evaluate.sh -> names of its tasks).
MODULES: tuple[str, ...] = (
    "vqa",
    "charts",
    "documents",
    "mpdocvqa",
    "exact",
    "captions",
    "grounding",
    "remote_sensing",
    "scienceqa",
    "mme",
    "pope",
    "tiny_lvlm",
    "mmmu",
    "mmmu_pro",
    "mmbench",
    "seed",
    "mmvp",
    "mvbench",
    "realworld",
    "several",
    "mmvet",
    "llava_bench",
    "mmhal",
    "mathvista",
    "drivelm",
    "vlm_options",
    "vlm_short",
    "vlm_mathvista",
    "vlm_judged",
)
# Groups of keys.
GROUPS: dict[str, tuple[str, ...]] = {
    "quick": (
        "vqa-textvqa-val", "vqa-chartqa-test", "vqa-docvqa-val", "vqa-ai2d-test", "scienceqa", "pope", "mmmu-val",
        "mmbench-dev-en", "ocrbench", "refcoco-val",
    ),
    "all-image": (
        "mme", "vqa-okvqa-val", "vqa-textvqa-val", "vqa-vizwiz-val", "vqa-chartqa-test", "vqa-docvqa-val",
        "vqa-infovqa-val", "vqa-ai2d-test", "vqa-gqa-testdev", "scienceqa", "pope", "mmmu-val", "mmbench-dev-en",
        "mmbench-dev-cn", "ccbench-dev", "seed", "mmvp", "refcoco", "caption", "mmstar", "realworldqa", "ocrbench",
        "hallusionbench", "mathvista-mini-vlm",
    ),
    "all-several": ("mantis", "mirb", "mmiu", "vqa-mpdocvqa-val"),
    "all-video": ("mvbench",),
    "all-judged": ("mmvet", "mmvetv2", "llava-bench", "mmhal", "mmvet-vlm", "llava-bench-vlm"),
    "all-submit": (
        "vqa-vizwiz-test", "vqa-vqav2-testdev", "vqa-docvqa-test", "vqa-infovqa-test", "vqa-mpdocvqa-test",
        "mmbench-test-en", "mmbench-test-cn", "mmmu-test",
    ),
}  # fmt: skip


@cache
def tasks() -> dict[str, Task]:
    """Every task by its name."""
    found: dict[str, Task] = {}
    for module in MODULES:
        for task in import_module(f"internvl_chat.eval.tasks.{module}").TASKS:
            if task.name in found:
                raise ValueError(f"two tasks are called {task.name!r}")
            found[task.name] = task
    return found


@cache
def keys() -> dict[str, tuple[str, ...]]:
    """Key of ``evaluate.sh`` -> names of its tasks."""
    found: dict[str, tuple[str, ...]] = {}
    for module in MODULES:
        found |= import_module(f"internvl_chat.eval.tasks.{module}").KEYS
    return found


def resolve(names: Iterable[str]) -> list[Task]:
    """Tasks of keys, groups, task names and YAML files of one's own (``own.py``), in order, each once.

    Raises ConfigError for a name that nothing has, and for a YAML file that cannot be used.
    """
    chosen: dict[str, Task] = {}
    for name in names:
        if name.endswith((".yaml", ".yml")):
            own = load_task(Path(name))
            if own.name in tasks() or own.name in chosen:
                raise ConfigError(f"{name}: name: there is a task {own.name!r} already; give it another name")
            chosen[own.name] = own
            continue
        for key in GROUPS.get(name, (name,)):
            for task in keys().get(key, (key,)):
                if task not in tasks():
                    known = [*keys(), *tasks(), *GROUPS]
                    raise ConfigError(f"no task {name!r}{nearest(name, known)}; `internvl eval --list` shows all")
                chosen[task] = tasks()[task]
    return list(chosen.values())
