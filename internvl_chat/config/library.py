"""Rules about what the library finds out only when the run has begun: absent packages, arguments that nothing takes."""

from __future__ import annotations

import inspect
import json
import re
from importlib.util import find_spec
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR

from internvl_chat.config.rule import Rule, names_of
from internvl_chat.errors import nearest

# --report_to -> modules, where they are not just its name; and what pip calls a module, where that is another name.
_TRACKERS = {"azure_ml": ("azureml", "mlflow"), "dagshub": ("dagshub", "mlflow"), "flyte": ("flytekit",)}
_PIP = {
    "azureml": "azureml-core",
    "lomo_optim": "lomo-optim",
    "optimi": "torch-optimi",
    "galore_torch": "git+https://github.com/jiaweizzhao/GaLore",
    "apollo_torch": "git+https://github.com/zhuhanqing/APOLLO",
    "torchdistx": "git+https://github.com/pytorch/torchdistx",
}
# --optim (beginning) -> the module that it is in; the first that matches.
_OPTIMIZERS = {
    "galore": "galore_torch",
    "apollo": "apollo_torch",
    "(ada)?lomo": "lomo_optim",
    "grokadamw": "grokadamw",
    "stable_adamw": "optimi",
    "schedule_free": "schedulefree",
    "adamw_torch_[48]bit": "torchao",
    "adamw_torch_xla": "torch_xla",
    "adamw_torch_npu": "torch_npu",
    "adamw_anyprecision": "torchdistx",
    "paged_|ademamix|lion|rmsprop_bnb|adamw_bnb|adamw_8bit": "bitsandbytes",
}

# Schedules whose functions take anything, and hand it to these.
_CLASSES = {"reduce_lr_on_plateau": ReduceLROnPlateau, "greedy": GreedyLR}


def _absent(flag: str, module: str) -> str | None:
    if find_spec(module) is not None:
        return None
    return f"{flag}: the package {module} is not installed: pip install {_PIP.get(module, module)}"


def _trackers(flags: dict[str, Any]) -> str | None:
    told = names_of(flags.get("report_to", "tensorboard"))
    if told in (["all"], ["none"]):
        return None
    for name in told:
        if name not in INTEGRATION_TO_CALLBACK:
            legal = sorted(INTEGRATION_TO_CALLBACK)
            return f"--report_to {name}: must be none, all, or some of {', '.join(legal)}{nearest(name, legal)}"
        for module in _TRACKERS.get(name, (name,)):
            if problem := _absent(f"--report_to {name}", module):
                return problem
    return None


def _optimizer(flags: dict[str, Any]) -> str | None:
    name = str(flags.get("optim", ""))
    module = next((module for start, module in _OPTIMIZERS.items() if re.match(start, name)), None)
    if module is not None and (problem := _absent(f"--optim {name}", module)):
        return problem
    if module in ("galore_torch", "apollo_torch") and not flags.get("optim_target_modules"):
        return f"--optim {name}: say which layers with --optim_target_modules, e.g. all-linear"
    return None


def _optimizer_arguments(flags: dict[str, Any]) -> str | None:
    given = flags.get("optim_args")
    if not given or all(pair.count("=") == 1 for pair in str(given).split(",")):
        return None
    return f"--optim_args {given}: must be name=value,name=value"


def _schedule_arguments(flags: dict[str, Any]) -> str | None:
    name, given = str(flags.get("lr_scheduler_type", "linear")), flags.get("lr_scheduler_kwargs") or {}
    if name not in TYPE_TO_SCHEDULER_FUNCTION or name.startswith("constant"):
        return None  # the first is told by the parser; a constant rate ignores them
    try:
        values = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        values = None
    if not isinstance(values, dict):
        return f"--lr_scheduler_kwargs {given}: must be a JSON object, e.g. '{{\"num_cycles\": 0.5}}'"
    schedules: dict[Any, Any] = {**TYPE_TO_SCHEDULER_FUNCTION, **_CLASSES}
    signature = inspect.signature(schedules[name])
    given_by_library = {"optimizer", "num_warmup_steps", "num_training_steps"} & set(signature.parameters)
    try:
        signature.bind(**dict.fromkeys(given_by_library), **values)
    except TypeError as error:
        return f"--lr_scheduler_kwargs {given}: --lr_scheduler_type {name} does not go with that ({error})"
    if "min_lr_rate" in signature.parameters and len({"min_lr", "min_lr_rate"} & set(values)) != 1:
        return (
            f"--lr_scheduler_type {name}: say how low in one way, e.g. --lr_scheduler_kwargs '{{\"min_lr_rate\": 0.1}}'"
        )
    return None


def _schedule_by_score(flags: dict[str, Any]) -> str | None:
    name, metric = str(flags.get("lr_scheduler_type")), str(flags.get("metric_for_best_model", ""))
    measure, slash, _ = re.sub("^eval[_/]", "", metric).partition("/")
    if name not in ("reduce_lr_on_plateau", "greedy") or not slash or measure == "loss":
        return None
    return (
        f"--lr_scheduler_type {name} with --metric_for_best_model {metric}: an evaluation may lack that figure, and "
        "the schedule would end the run; take --lr_scheduler_type cosine, or a loss as the metric"
    )


RULES: tuple[Rule, ...] = (
    _trackers,
    _optimizer,
    _optimizer_arguments,
    _schedule_arguments,
    _schedule_by_score,
)
