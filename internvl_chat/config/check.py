"""Rules over the flags: each a small function that returns a message or None. All are asked; all answers are shown."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

Rule = Callable[[dict[str, Any]], "str | None"]


def check_arguments(flags: dict[str, Any]) -> list[str]:
    """Every problem with the flags as given (defaults are legal by construction), in the order of the rules."""
    return [message for rule in RULES if (message := rule(flags)) is not None]


def _number(name: str, low: float, high: float = float("inf"), *, whole: bool = False, open_high: bool = False) -> Rule:
    """``low <= value <= high`` (``< high`` with ``open_high``), if the flag is given."""

    def rule(flags: dict[str, Any]) -> str | None:
        if name not in flags:
            return None
        span = f"a {'whole ' if whole else ''}number of at least {low:g}"
        if high != float("inf"):
            span = f"a {'whole ' if whole else ''}number from {low:g} to {'below ' if open_high else ''}{high:g}"
        try:
            value = int(str(flags[name])) if whole else float(flags[name])
        except (TypeError, ValueError):
            return f"--{name} {flags[name]!r}: must be {span}"
        legal = low <= value <= high and math.isfinite(value) and not (open_high and value == high)
        return None if legal else f"--{name} {flags[name]}: must be {span}"

    return rule


def _choice(name: str, *legal: str) -> Rule:
    def rule(flags: dict[str, Any]) -> str | None:
        if name not in flags or flags[name] in legal:
            return None
        return f"--{name} {flags[name]}: must be one of {', '.join(legal)}"

    return rule


def _unavailable(name: str, why: str) -> Rule:
    """A flag of the library that would do nothing here, or harm: only the values that switch it off are legal."""

    def rule(flags: dict[str, Any]) -> str | None:
        off = str(flags.get(name, "")).lower() in ("", "false", "no", "0", "none")
        return None if off else f"--{name} {flags[name]}: {why}"

    return rule


def _required(name: str, what: str) -> Rule:
    return lambda flags: None if flags.get(name) else f"--{name} is missing: {what}"


def _existing(name: str, what: str) -> Rule:
    def rule(flags: dict[str, Any]) -> str | None:
        value = flags.get(name)
        return None if not value or Path(str(value)).exists() else f"--{name} {value}: does not exist; give {what}"

    return rule


def _value(flags: dict[str, Any], name: str, default: float) -> float:
    try:
        return float(flags.get(name, default))
    except (TypeError, ValueError):
        return default  # the number rule reports it


def _is_true(flags: dict[str, Any], name: str) -> bool:
    return str(flags.get(name, False)).lower() in ("true", "1", "yes", "t", "y")


def _pack_holds_a_sample(flags: dict[str, Any]) -> str | None:
    longest, budget = _value(flags, "max_seq_length", 8192), _value(flags, "max_packed_tokens", 8192)
    if not (_is_true(flags, "use_packed_ds") or "max_packed_tokens" in flags):
        return None
    if longest <= budget or budget < 8:  # too small a budget has a rule of its own
        return None
    return (
        f"--max_seq_length {longest:g} is more than --max_packed_tokens {budget:g}: a sample that long fits no pack, "
        "and samples are never split; raise the second or lower the first"
    )


def _tile_bounds(flags: dict[str, Any]) -> str | None:
    low, high = _value(flags, "min_dynamic_patch", 1), _value(flags, "max_dynamic_patch", 12)
    if "max_dynamic_patch" in flags and low > high >= 1:
        return f"--min_dynamic_patch {low:g} is more than --max_dynamic_patch {high:g}; swap them"
    return None


def _frame_bounds(flags: dict[str, Any]) -> str | None:
    low, high = _value(flags, "min_num_frame", 8), _value(flags, "max_num_frame", 32)
    if low > high >= 1:
        return f"--min_num_frame {low:g} is more than --max_num_frame {high:g}; lower the first or raise the second"
    return None


def _pack_or_group(flags: dict[str, Any]) -> str | None:
    if _is_true(flags, "use_packed_ds") and flags.get("train_sampling_strategy") == "group_by_length":
        return "--group_by_length goes with padded batches; packs need no grouping: leave one of the two out"
    return None


def _model_or_parts(flags: dict[str, Any]) -> str | None:
    """Exactly one of: a whole checkpoint, or a vision tower with a language model."""
    whole, vision, llm = (flags.get(name) for name in ("model_name_or_path", "vision_path", "llm_path"))
    extra = [name for name in ("mlp_path", "new_tokens") if flags.get(name)]
    if whole and (vision or llm or extra):
        return (
            f"--model_name_or_path and --{'vision_path' if vision else 'llm_path' if llm else extra[0]}: give a whole "
            "checkpoint, or parts to build one from; to exchange a part of a checkpoint: internvl replace-llm"
        )
    if bool(vision) != bool(llm):
        return f"--{'llm_path' if vision else 'vision_path'} is missing: building from parts takes both"
    if not whole and not vision:
        return (
            "--model_name_or_path is missing: the folder of a checkpoint (`internvl tiny OUT` makes a small one), or "
            "--vision_path and --llm_path to build from parts"
        )
    return (
        None
        if whole or flags.get("conv_style")
        else "--conv_style is missing: parts name no template; e.g. internvl2_5"
    )


def _needs_lora(name: str, towers: tuple[str, ...] = ("use_llm_lora", "use_backbone_lora")) -> Rule:
    """A switch that says how LoRA works, and does nothing without it."""

    def rule(flags: dict[str, Any]) -> str | None:
        given = name in flags and str(flags[name]).lower() not in ("false", "0", "none", "")
        if not given or any(_value(flags, tower, 0) for tower in towers):
            return None
        return f"--{name} {flags[name]} does nothing without {' or '.join(f'--{tower} RANK' for tower in towers)}"

    return rule


def _idle(flags: dict[str, Any]) -> str | None:
    """Switches that would do nothing beside the others."""
    llm_lora, vit_lora = _value(flags, "use_llm_lora", 0), _value(flags, "use_backbone_lora", 0)
    vit_frozen = _is_true(flags, "freeze_backbone") and not vit_lora and not _value(flags, "unfreeze_vit_layers", 0)
    idle = {
        "vit_lr": vit_frozen and "the vision tower is frozen",
        "mlp_lr": _is_true(flags, "freeze_mlp") and "the projector is frozen",
        "unfreeze_vit_layers": not _is_true(flags, "freeze_backbone") and "the whole vision tower trains anyway",
        "unfreeze_lm_head": not _is_true(flags, "freeze_llm") and not llm_lora and "the language model trains anyway",
    }
    for name, why in idle.items():
        off = str(flags.get(name, "")).lower() in ("", "false", "0", "none")
        if why and not off:
            return f"--{name} {flags[name]} does nothing: {why}; leave it out"
    return None


def _evaluates(flags: dict[str, Any]) -> bool:
    return flags.get("eval_strategy", "no") in ("steps", "epoch")


def _needs_evaluation(name: str) -> Rule:
    def rule(flags: dict[str, Any]) -> str | None:
        off = str(flags.get(name, "")).lower() in ("", "false", "0", "none")
        if off or _evaluates(flags):
            return None
        return f"--{name} {flags[name]} does nothing without --eval_strategy steps (or epoch)"

    return rule


def _needs_tasks(name: str, default: object) -> Rule:
    def rule(flags: dict[str, Any]) -> str | None:
        if flags.get("eval_tasks") or str(flags.get(name, default)) == str(default):
            return None
        return f"--{name} {flags[name]} does nothing without --eval_tasks NAME,NAME"

    return rule


def _how_often(flags: dict[str, Any]) -> str | None:
    """The library would evaluate as often as it logs."""
    strategy, steps = flags.get("eval_strategy", "no"), _value(flags, "eval_steps", 0)
    if strategy == "steps" and not steps:
        return "--eval_strategy steps: say how often, e.g. --eval_steps 500 (below 1: a share of the run)"
    if strategy != "steps" and steps:
        return f"--eval_steps {flags['eval_steps']} does nothing without --eval_strategy steps"
    return None


def _best_checkpoint(flags: dict[str, Any]) -> str | None:
    if flags.get("save_strategy") == "best" and not _evaluates(flags):
        return "--save_strategy best: which is best is only known with --eval_strategy steps (or epoch)"
    if not _is_true(flags, "load_best_model_at_end"):
        return None
    strategies = flags.get("eval_strategy", "no"), flags.get("save_strategy", "steps")
    if _evaluates(flags) and strategies[1] not in (strategies[0], "best"):
        return f"--load_best_model_at_end: only what is saved can be best, with --save_strategy {strategies[0]} or best"
    every, saved = _value(flags, "eval_steps", 0), _value(flags, "save_steps", 500)
    if strategies == ("steps", "steps") and every >= 1 and saved >= 1 and saved % every:
        return f"--load_best_model_at_end: --save_steps {saved:g} must be a multiple of --eval_steps {every:g}"
    if _is_true(flags, "save_only_model") and flags.get("deepspeed"):
        return "--load_best_model_at_end with --save_only_model does not go with --deepspeed; leave the second out"
    return None


def _quantized(flags: dict[str, Any]) -> str | None:
    bits = [name for name in ("load_in_4bit", "load_in_8bit") if _is_true(flags, name)]
    if len(bits) > 1:
        return "--load_in_4bit and --load_in_8bit: choose one"
    if bits and flags.get("deepspeed"):
        return f"--{bits[0]} with --deepspeed: quantised weights cannot be sharded or cast; leave --deepspeed out"
    return None


def _new_rows(flags: dict[str, Any]) -> str | None:
    if not _is_true(flags, "train_new_tokens"):
        return None
    if flags.get("model_name_or_path"):
        return (
            "--train_new_tokens True: no tokens are added to a whole checkpoint; build it from parts, or leave it out"
        )
    if _is_true(flags, "unfreeze_lm_head"):
        return "--train_new_tokens True and --unfreeze_lm_head True: the output layer trains whole; choose one"
    if not _is_true(flags, "freeze_llm") and not _value(flags, "use_llm_lora", 0):
        return "--train_new_tokens True: the whole language model trains, its new rows too; leave the flag out"
    return None


RULES: tuple[Rule, ...] = (
    _model_or_parts,
    _idle,
    _quantized,
    _new_rows,
    _required("meta_path", "the manifest that names your annotations; see playground/README.md"),
    _required("output_dir", "the folder for checkpoints and logs, e.g. work_dirs/my_run"),
    _existing("meta_path", "a manifest (JSON or YAML)"),
    _existing("eval_meta_path", "a manifest (JSON or YAML)"),
    *(_needs_evaluation(f) for f in ("eval_meta_path", "eval_tasks", "do_eval", "eval_on_start", "eval_delay")),
    _needs_tasks("eval_task_items", 64),
    _needs_tasks("eval_data_root", "data"),
    _number("eval_task_items", 0, whole=True),
    *(_needs_evaluation(f) for f in ("load_best_model_at_end", "metric_for_best_model", "greater_is_better")),
    _how_often,
    _best_checkpoint,
    _existing("mlp_path", "a file with the projector's weights (.safetensors, .pth, .bin)"),
    _existing("new_tokens", "a text file with one token per line"),
    _number("use_llm_lora", 0, whole=True),
    _number("use_backbone_lora", 0, whole=True),
    _number("lora_alpha", 0.001),
    _number("lora_dropout", 0, 1, open_high=True),
    _number("vit_lr", 0),
    _number("mlp_lr", 0),
    *(_needs_lora(name) for name in ("lora_alpha", "lora_dropout", "use_dora", "use_rslora")),
    _needs_lora("lora_llm_targets", ("use_llm_lora",)),
    _needs_lora("lora_vit_targets", ("use_backbone_lora",)),
    *(_needs_lora(name, ("use_llm_lora",)) for name in ("load_in_4bit", "load_in_8bit")),
    _number("max_seq_length", 8, whole=True),
    _number("max_packed_tokens", 8, whole=True),
    _number("num_images_expected", 1, whole=True),
    _number("min_dynamic_patch", 1, whole=True),
    _number("max_dynamic_patch", 1, whole=True),
    _number("force_image_size", 14, whole=True),
    _number("min_num_frame", 1, whole=True),
    _number("max_num_frame", 1, whole=True),
    _frame_bounds,
    _number("down_sample_ratio", 0.01, 1),
    _number("drop_path_rate", 0, 1, open_high=True),
    _number("max_fault_share", 0, 1),
    _number("index_workers", 1, whole=True),
    _number("learning_rate", 0),
    _number("weight_decay", 0),
    _number("num_train_epochs", 0.001),
    _number("per_device_train_batch_size", 1, whole=True),
    _number("per_device_eval_batch_size", 0, whole=True),
    _number("gradient_accumulation_steps", 1, whole=True),
    _number("dataloader_num_workers", 0, whole=True),
    _number("warmup_steps", 0),
    _number("seed", 0, whole=True),
    _number("data_seed", 0, whole=True),
    _number("save_steps", 0),
    _number("eval_steps", 0),
    _number("eval_delay", 0),
    _number("logging_steps", 0),
    _number("save_total_limit", 1, whole=True),
    _choice("loss_reduction", "token", "sample", "square"),
    _choice("nonfinite_step", "stop", "skip"),
    _number("start_timeout", 1),
    _number("ddp_timeout", 1),
    _number("late_after", 0),
    _number("stop_before_end", 0),
    _number("peak_tflops", 0.001),
    _choice("image_backend", "torch", "pillow"),
    _choice("long_samples", "drop", "fail", "fewer_tiles", "truncate"),
    _choice("normalize_type", "imagenet", "clip", "siglip"),
    _choice("ps_version", "v1", "v2"),
    _choice("attn_implementation", "auto", "packed", "sdpa", "eager", "flash_attention_2"),
    _choice("train_sampling_strategy", "random", "group_by_length"),
    _choice("eval_strategy", "no", "steps", "epoch"),
    _unavailable("enable_jit_checkpoint", "it can hang a run of several ranks; lower --save_steps"),
    _pack_holds_a_sample,
    _tile_bounds,
    _pack_or_group,
)
