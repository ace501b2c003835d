"""Rules over the flags: each a small function that returns a message or None. All are asked; all answers are shown."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from internvl_chat.config import idle, library
from internvl_chat.config.idle import evaluates
from internvl_chat.config.rule import Rule, is_on, is_true, value_of


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


def _required(name: str, what: str) -> Rule:
    return lambda flags: None if flags.get(name) else f"--{name} is missing: {what}"


def _existing(name: str, what: str) -> Rule:
    def rule(flags: dict[str, Any]) -> str | None:
        value = flags.get(name)
        return None if not value or Path(str(value)).exists() else f"--{name} {value}: does not exist; give {what}"

    return rule


def _folder(name: str) -> Rule:
    """A folder that is there, or can be made, and written into."""

    def rule(flags: dict[str, Any]) -> str | None:
        path = Path(str(flags.get(name) or ".")).absolute()
        there = next(one for one in (path, *path.parents) if os.path.lexists(one))
        if not there.is_dir():
            return f"--{name} {flags[name]}: {there} is a file; name a folder"
        if not os.access(there, os.W_OK | os.X_OK):
            return f"--{name} {flags[name]}: you may not write in {there}; choose another one"
        return None

    return rule


def _pack_holds_a_sample(flags: dict[str, Any]) -> str | None:
    longest, budget = value_of(flags, "max_seq_length", 8192), value_of(flags, "max_packed_tokens", 8192)
    if not (is_true(flags, "use_packed_ds") or "max_packed_tokens" in flags):
        return None
    if longest <= budget or budget < 8:  # too small a budget has a rule of its own
        return None
    return (
        f"--max_seq_length {longest:g} is more than --max_packed_tokens {budget:g}: a sample that long fits no pack, "
        "and samples are never split; raise the second or lower the first"
    )


def _tile_bounds(flags: dict[str, Any]) -> str | None:
    low, high = value_of(flags, "min_dynamic_patch", 1), value_of(flags, "max_dynamic_patch", 12)
    if "max_dynamic_patch" in flags and low > high >= 1:
        return f"--min_dynamic_patch {low:g} is more than --max_dynamic_patch {high:g}; swap them"
    return None


def _frame_bounds(flags: dict[str, Any]) -> str | None:
    low, high = value_of(flags, "min_num_frame", 8), value_of(flags, "max_num_frame", 32)
    if low > high >= 1:
        return f"--min_num_frame {low:g} is more than --max_num_frame {high:g}; lower the first or raise the second"
    return None


def _pack_or_group(flags: dict[str, Any]) -> str | None:
    if is_true(flags, "use_packed_ds") and flags.get("train_sampling_strategy") == "group_by_length":
        return (
            "--train_sampling_strategy group_by_length goes with padded batches; packs need no grouping: leave one of "
            "the two out"
        )
    return None


def _pack_or_noise(flags: dict[str, Any]) -> str | None:
    if is_true(flags, "use_packed_ds") and is_on(flags, "neftune_noise_alpha"):
        return (
            f"--neftune_noise_alpha {flags['neftune_noise_alpha']} goes with padded batches: it is scaled by the "
            "length of a row, which with --use_packed_ds is that of a pack; leave one of the two out"
        )
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


def _how_often(flags: dict[str, Any]) -> str | None:
    """The library would evaluate as often as it logs."""
    strategy, steps = flags.get("eval_strategy", "no"), value_of(flags, "eval_steps", 0)
    if strategy == "steps" and not steps:
        return "--eval_strategy steps: say how often, e.g. --eval_steps 500 (below 1: a share of the run)"
    if strategy != "steps" and steps:
        return f"--eval_steps {flags['eval_steps']} does nothing without --eval_strategy steps"
    return None


def _best_checkpoint(flags: dict[str, Any]) -> str | None:
    if flags.get("save_strategy") == "best" and not evaluates(flags):
        return "--save_strategy best: which is best is only known with --eval_strategy steps (or epoch)"
    if not is_true(flags, "load_best_model_at_end"):
        return None
    strategies = flags.get("eval_strategy", "no"), flags.get("save_strategy", "steps")
    if evaluates(flags) and strategies[1] not in (strategies[0], "best"):
        return f"--load_best_model_at_end: only what is saved can be best, with --save_strategy {strategies[0]} or best"
    every, saved = value_of(flags, "eval_steps", 0), value_of(flags, "save_steps", 500)
    if strategies == ("steps", "steps") and every >= 1 and saved >= 1 and saved % every:
        return f"--load_best_model_at_end: --save_steps {saved:g} must be a multiple of --eval_steps {every:g}"
    if is_true(flags, "save_only_model") and flags.get("deepspeed"):
        return "--load_best_model_at_end with --save_only_model does not go with --deepspeed; leave the second out"
    return None


def _quantized(flags: dict[str, Any]) -> str | None:
    bits = [name for name in ("load_in_4bit", "load_in_8bit") if is_true(flags, name)]
    if len(bits) > 1:
        return "--load_in_4bit and --load_in_8bit: choose one"
    if bits and flags.get("deepspeed"):
        return f"--{bits[0]} with --deepspeed: quantised weights cannot be sharded or cast; leave --deepspeed out"
    return None


def _new_rows(flags: dict[str, Any]) -> str | None:
    if not is_true(flags, "train_new_tokens"):
        return None
    if flags.get("model_name_or_path"):
        return (
            "--train_new_tokens True: no tokens are added to a whole checkpoint; build it from parts, or leave it out"
        )
    if is_true(flags, "unfreeze_lm_head"):
        return "--train_new_tokens True and --unfreeze_lm_head True: the output layer trains whole; choose one"
    if not is_true(flags, "freeze_llm") and not value_of(flags, "use_llm_lora", 0):
        return "--train_new_tokens True: the whole language model trains, its new rows too; leave the flag out"
    return None


RULES: tuple[Rule, ...] = (
    _model_or_parts,
    *idle.RULES,
    *library.RULES,
    _quantized,
    _new_rows,
    _required("meta_path", "the manifest that names your annotations; see playground/README.md"),
    _required("output_dir", "the folder for checkpoints and logs, e.g. work_dirs/my_run"),
    _folder("output_dir"),
    _existing("meta_path", "a manifest (JSON or YAML)"),
    _existing("eval_meta_path", "a manifest (JSON or YAML)"),
    _number("eval_task_items", 0, whole=True),
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
    _choice("debug", "underflow_overflow", ""),
    _pack_holds_a_sample,
    _tile_bounds,
    _pack_or_group,
    _pack_or_noise,
)
