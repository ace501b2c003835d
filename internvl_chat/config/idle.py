"""Rules about flags that would do nothing beside the others, each a function that returns a message or None."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from internvl_chat.config.rule import Rule, is_on, is_true, names_of, value_of


def _needs_lora(name: str, towers: tuple[str, ...] = ("use_llm_lora", "use_backbone_lora")) -> Rule:
    """A switch that says how LoRA works, and does nothing without it."""

    def rule(flags: dict[str, Any]) -> str | None:
        if not is_on(flags, name) or any(value_of(flags, tower, 0) for tower in towers):
            return None
        return f"--{name} {flags[name]} does nothing without {' or '.join(f'--{tower} RANK' for tower in towers)}"

    return rule


def _idle_beside_others(flags: dict[str, Any]) -> str | None:
    """Switches that would do nothing beside the others."""
    llm_lora, vit_lora = value_of(flags, "use_llm_lora", 0), value_of(flags, "use_backbone_lora", 0)
    vit_frozen = is_true(flags, "freeze_backbone") and not vit_lora and not value_of(flags, "unfreeze_vit_layers", 0)
    reasons = {
        "vit_lr": vit_frozen and "the vision tower is frozen",
        "mlp_lr": is_true(flags, "freeze_mlp") and "the projector is frozen",
        "unfreeze_vit_layers": not is_true(flags, "freeze_backbone") and "the whole vision tower trains anyway",
        "unfreeze_lm_head": not is_true(flags, "freeze_llm") and not llm_lora and "the language model trains anyway",
    }
    return _first(flags, reasons)


def _first(flags: dict[str, Any], reasons: Mapping[str, str | bool]) -> str | None:
    """About the first flag that is given and has a reason why it does nothing."""
    found = next((name for name, why in reasons.items() if why and is_on(flags, name)), None)
    return None if found is None else f"--{found} {flags[found]} does nothing: {reasons[found]}; leave it out"


_DDP = ("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph")


def _idle_in_the_library(flags: dict[str, Any]) -> str | None:
    """The same of flags that the library reads in some runs only."""
    optim = str(flags.get("optim", "adamw_torch_fused"))
    plain, low_rank = optim in ("adamw_torch", "adamw_torch_fused"), optim.startswith(("galore", "apollo"))
    return _first(
        flags,
        {
            "optim_args": plain and f"--optim {optim} has no further arguments",
            "optim_target_modules": not low_rank and "it is for --optim galore_... and apollo_...",
            **dict.fromkeys(_DDP, bool(flags.get("deepspeed")) and "with --deepspeed there is no DDP"),
        },
    )


_TRACKIO = ("project", "hub_private_repo", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")
_NAMED = ("comet_ml", "dagshub", "mlflow", "swanlab", "trackio", "wandb")  # trackers that read a name of the run


def _needs_tracker(name: str, *trackers: str) -> Rule:
    """A flag that only these of the ``--report_to`` services read."""

    def rule(flags: dict[str, Any]) -> str | None:
        told = names_of(flags.get("report_to", "tensorboard"))
        if not is_on(flags, name) or {"all", *trackers} & set(told):
            return None
        return f"--{name} {flags[name]} does nothing without --report_to {' or '.join(trackers)}; leave it out"

    return rule


def idle_notes(flags: dict[str, Any]) -> list[str]:
    """About flags that do nothing, but that scripts and dumps of arguments hold as a matter of course."""
    notes = []
    if is_on(flags, "run_name") and not {"all", *_NAMED} & set(names_of(flags.get("report_to", "tensorboard"))):
        notes.append(f"--run_name is not used: only --report_to {', '.join(_NAMED[:-1])} and {_NAMED[-1]} read it")
    if "do_train" in flags and not is_on(flags, "do_train"):
        notes.append("--do_train is not used: training is all that this command does; to score a model: internvl eval")
    return notes


def _what_is_done(flags: dict[str, Any]) -> str | None:
    """A flag of the library that nobody reads: it must not say the opposite of what happens."""
    if "do_eval" in flags and not is_true(flags, "do_eval") and evaluates(flags):
        return (
            f"--do_eval {flags['do_eval']} contradicts --eval_strategy {flags['eval_strategy']}; leave one of them out"
        )
    return None


def evaluates(flags: dict[str, Any]) -> bool:
    return flags.get("eval_strategy", "no") in ("steps", "epoch")


def _needs_evaluation(name: str) -> Rule:
    def rule(flags: dict[str, Any]) -> str | None:
        if not is_on(flags, name) or evaluates(flags):
            return None
        return f"--{name} {flags[name]} does nothing without --eval_strategy steps (or epoch)"

    return rule


def _needs_tasks(name: str, default: object) -> Rule:
    def rule(flags: dict[str, Any]) -> str | None:
        if flags.get("eval_tasks") or str(flags.get(name, default)) == str(default):
            return None
        return f"--{name} {flags[name]} does nothing without --eval_tasks NAME,NAME"

    return rule


RULES: tuple[Rule, ...] = (
    _idle_beside_others,
    _idle_in_the_library,
    _what_is_done,
    *(_needs_tracker(name, "trackio") for name in _TRACKIO),
    *(_needs_evaluation(f) for f in ("eval_meta_path", "eval_tasks", "do_eval", "eval_on_start", "eval_delay")),
    *(_needs_evaluation(f) for f in ("load_best_model_at_end", "metric_for_best_model", "greater_is_better")),
    _needs_tasks("eval_task_items", 64),
    _needs_tasks("eval_data_root", "data"),
    *(_needs_lora(name) for name in ("lora_alpha", "lora_dropout", "use_dora", "use_rslora")),
    _needs_lora("lora_llm_targets", ("use_llm_lora",)),
    _needs_lora("lora_vit_targets", ("use_backbone_lora",)),
    *(_needs_lora(name, ("use_llm_lora",)) for name in ("load_in_4bit", "load_in_8bit")),
)
