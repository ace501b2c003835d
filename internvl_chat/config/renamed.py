"""Old flags -> today's. Command lines and JSON files written for the original, or for transformers 4, keep working.

A flag is renamed, dropped with a note when what it asked for is always so, or refused with a reason. Values that ask
for nothing (a LoRA rank of 0) are dropped silently.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from internvl_chat.errors import ConfigError

Change = Callable[[str, str, dict[str, str]], "str | None"]


def _is_false(value: Any) -> bool:
    return str(value).strip().lower() in ("false", "0", "no", "none", "", "0.0")


def _rename(new: str, translate: dict[str, str] | None = None) -> Change:
    def change(old: str, value: str, flags: dict[str, str]) -> str | None:
        flags.setdefault(new, (translate or {}).get(value, value))
        return f"--{old} is now --{new}"

    return change


def _always(why: str) -> Change:
    return lambda old, value, flags: f"--{old} is not needed: {why}"


def _refuse(why: str) -> Change:
    """Refused unless the value switches the feature off."""

    def change(old: str, value: str, flags: dict[str, str]) -> str | None:
        if _is_false(value):
            return None
        raise ConfigError(f"--{old} {value}: {why}")

    return change


def _warmup_ratio(old: str, value: str, flags: dict[str, str]) -> str | None:
    try:
        legal = 0 <= float(value) < 1
    except ValueError:
        legal = False
    if not legal:
        raise ConfigError(f"--warmup_ratio {value}: must be at least 0 and below 1; for whole steps use --warmup_steps")
    if _is_false(flags.get("warmup_steps", "0")):
        flags["warmup_steps"] = value
    return "--warmup_ratio is now --warmup_steps with a value below 1"


def _group_by_length(old: str, value: str, flags: dict[str, str]) -> str | None:
    if _is_false(value):
        return None
    flags.setdefault("train_sampling_strategy", "group_by_length")
    return "--group_by_length True is now --train_sampling_strategy group_by_length"


_LATER = "not available in this version yet"
_GONE = "transformers 5 has it no more; leave it out"
_SUMS = "evaluation sums up losses, nothing else is gathered; leave it out"
_MPO = f"preference training is {_LATER}"
_FULL_EVAL = ("fp16_full_eval", "bf16_full_eval")
CHANGES: dict[str, Change] = {
    "evaluation_strategy": _rename("eval_strategy"),
    "no_cuda": _rename("use_cpu"),
    "gradient_checkpointing": _rename("grad_checkpoint"),
    "activation_checkpointing": _rename("grad_checkpoint"),
    "per_gpu_train_batch_size": _rename("per_device_train_batch_size"),
    "per_gpu_eval_batch_size": _rename("per_device_eval_batch_size"),
    "warmup_ratio": _warmup_ratio,
    "group_by_length": _group_by_length,
    "adafactor": _refuse("use --optim adafactor"),
    "fp16_backend": _always("there is one backend"),
    "half_precision_backend": _always("there is one backend"),
    "save_safetensors": _always("weights are always saved as safetensors"),
    "remove_unused_columns": _always("batches hold just what the model takes"),
    "use_fast_tokenizer": _always("tokenizers are always the fast ones"),
    "log_freq": _always("packing is planned ahead and reported once at the start"),
    "max_buffer_size": _always("packs are planned over the whole epoch, not in a buffer"),
    "loss_reduction_all_gather": _always("the loss has one denominator over all ranks and micro-batches"),
    "strict_mode": _refuse("packs are never padded with empty tiles; leave it out"),
    "replacement": _refuse("an epoch shows every sample once; raise num_train_epochs or repeat_time instead"),
    "allow_overflow": _refuse("samples are never split over packs; raise --max_packed_tokens instead"),
    "use_liger": _refuse(f"{_LATER}; the loss is chunked anyway"),
    "use_liger_kernel": _refuse(f"{_LATER}; the loss is chunked anyway"),
    **{name: _refuse(_MPO) for name in ("loss_type", "rpo_alpha", "sigmoid_loss_weight", "bco_pair_loss_weight")},
    "logging_dir": _refuse("logs go to --output_dir; for another folder set the variable TENSORBOARD_LOGGING_DIR"),
    **{name: _refuse(_GONE) for name in ("fp16_opt_level", "use_ipex", "jit_mode_eval", "torchdynamo")},
    "include_num_input_tokens_seen": _refuse("tokens per second are always logged"),
    **{name: _refuse(_LATER) for name in ("torch_compile", "torch_compile_backend", "torch_compile_mode")},
    **{name: _refuse(_SUMS) for name in ("eval_accumulation_steps", "include_for_metrics", "batch_eval_metrics")},
    **{name: _always(_SUMS) for name in ("prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object")},
    **{name: _refuse("evaluation computes as training does; leave it out") for name in _FULL_EVAL},
    "dataloader_drop_last": _refuse("no sample is dropped: the last step of an epoch may be smaller"),
    "dataloader_persistent_workers": _always("there is one loader for the whole run"),
    "average_tokens_across_devices": _always("the loss has one denominator over all ranks and micro-batches"),
    "label_smoothing_factor": _refuse(_LATER),
    "auto_find_batch_size": _refuse("the plan fixes what is in a step; lower --max_packed_tokens instead"),
    "activation_checkpointing_kwargs": _refuse("use --grad_checkpoint and --vision_grad_checkpoint"),
    "gradient_checkpointing_kwargs": _refuse("use --grad_checkpoint and --vision_grad_checkpoint"),
    "accelerator_config": _refuse("batches are dealt to ranks by the plan"),
    "ignore_data_skip": _always("a resumed run starts at its step; nothing is skipped over"),
    "fsdp": _refuse(f"{_LATER}; use --deepspeed zero3"),
    **{name: _refuse(_GONE) for name in ("dispatch_batches", "split_batches", "include_tokens_per_second")},
}
# Renamed by a plain translation of values rather than of names.
VALUES = {"optim": {"adamw_hf": "adamw_torch"}}


def translate_flags(flags: dict[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
    """Today's flags, a note for each one that changed, and the refusals."""
    notes: list[str] = []
    refusals: list[str] = []
    new = {name: value for name, value in flags.items() if name not in CHANGES}
    for name, value in flags.items():
        if name in CHANGES:
            try:
                note = CHANGES[name](name, str(value), new)
            except ConfigError as error:
                refusals.append(str(error))
                continue
            if note:
                notes.append(note)
        elif str(value) in VALUES.get(name, {}):
            new[name] = VALUES[name][str(value)]
            notes.append(f"--{name} {value} is now {new[name]}")
    return new, notes, refusals
