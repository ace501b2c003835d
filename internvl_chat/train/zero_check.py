"""A DeepSpeed configuration, looked at before DeepSpeed is started: known keys, the flags' own values, finite steps."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pydantic import ValidationError

from internvl_chat.config.train import TrainArguments
from internvl_chat.errors import ConfigError, first_line, nearest
from internvl_chat.train.nonfinite import check_deepspeed

# For the values that follow from the model's width, where no model is known.
_WIDTH = 1024
_OF_WIDTH = ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold")


def check_one_rate(rates: Mapping[str, float | None], config: Mapping[str, Any]) -> None:
    """Raise ConfigError where parts have learning rates of their own and DeepSpeed would make the optimizer."""
    own = [part for part, rate in rates.items() if rate is not None]
    if own and "optimizer" in config:
        raise ConfigError(
            f"a learning rate of its own for {', '.join(own)}: the --deepspeed configuration has an optimizer, "
            "which knows one rate; remove its optimizer block"
        )


def read_zero(value: str | Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a path, a text or an object, as ``--deepspeed`` takes it. Raises ConfigError."""
    if isinstance(value, Mapping):
        return copy.deepcopy(dict(value))
    where = "--deepspeed" if value.lstrip().startswith("{") else f"--deepspeed {value}"
    try:
        found = json.loads(value if where == "--deepspeed" else Path(value).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: is not JSON ({first_line(error)})") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: must hold one object")
    return found


def zero_problems(
    value: str | Mapping[str, Any], args: TrainArguments, world: int, rates: Mapping[str, float | None]
) -> Iterator[str]:
    """All that would stop a run of ``world`` processes with this configuration, or that DeepSpeed would pass over.

    DeepSpeed itself reads the configuration, filled from the flags as the Trainer does; no process group is started.
    """
    try:
        config = read_zero(value)
    except ConfigError as error:
        yield str(error)
        return
    yield from _contradictions(config, args, world)
    for check in (lambda: check_one_rate(rates, config), lambda: check_deepspeed(config)):
        try:
            check()
        except ConfigError as error:
            yield str(error)
    yield from _read_by_deepspeed(config, world)


def _contradictions(config: dict[str, Any], args: TrainArguments, world: int) -> Iterator[str]:
    """Fill what is "auto" from the flags, in place; what says something else than a flag."""
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig, unset_hf_deepspeed_config

    # An object of its own, for the library keeps a reference to the newest one.
    try:
        filled = HfTrainerDeepSpeedConfig(config)
        flags = SimpleNamespace(**{**vars(args), "world_size": world})
        filled.trainer_config_process(flags)
    finally:
        unset_hf_deepspeed_config()
    for text in filled.mismatches:
        ours, _, theirs = text.removeprefix("- ds ").partition(" vs hf ")
        yield f'--deepspeed: {ours} contradicts the flags ({theirs}); write "auto" there, or leave the key out'
    config.clear()
    config.update(filled.config)
    zero = config.get("zero_optimization")
    if isinstance(zero, dict):
        zero.update({key: _WIDTH for key in _OF_WIDTH if zero.get(key) == "auto"})
    scheduler = config.get("scheduler")
    for key, number in (("total_num_steps", 1000), ("warmup_num_steps", 1)):
        if isinstance(scheduler, dict) and scheduler.get("params", {}).get(key) == "auto":
            scheduler["params"][key] = number


class _Watched(dict[str, Any]):
    """Knows which of its keys were asked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)


def _read_by_deepspeed(config: dict[str, Any], world: int) -> Iterator[str]:
    """What DeepSpeed's own reading of the configuration refuses, and keys of which it never asks."""
    try:
        from deepspeed.runtime.config import DeepSpeedConfig
    except ImportError:
        yield "--deepspeed needs the package deepspeed: pip install deepspeed"
        return
    watched = _Watched(config)
    if not {"train_batch_size", "train_micro_batch_size_per_gpu"} & config.keys():
        yield '--deepspeed: "train_micro_batch_size_per_gpu" is missing; write "auto" there, for the flags say it'
        watched["train_micro_batch_size_per_gpu"] = 1
    # DeepSpeed counts the ranks itself; here there is one.
    if isinstance(config.get("train_batch_size"), int) and config["train_batch_size"] % world == 0:
        watched["train_batch_size"] = config["train_batch_size"] // world
    try:
        DeepSpeedConfig(watched)
    except ValidationError as error:
        for one in error.errors():
            key = ".".join(map(str, one["loc"]))
            yield f"--deepspeed: {error.title}, {key}: {one['msg']} (it is {one['input']!r})"
        return
    except (AssertionError, ValueError, TypeError, KeyError) as error:
        yield f"--deepspeed: DeepSpeed refuses it: {first_line(error)}"
        return
    for key in watched.keys() - watched.asked:
        yield f"--deepspeed: DeepSpeed knows no key {key!r}{nearest(key, watched.asked)}"
