"""Old flags -> today's. Command lines and JSON files written for the original, or for transformers 4, keep working.

A flag is renamed, dropped with a note when what it asked for is always so, or refused with a reason. Values that ask
for nothing (a LoRA rank of 0) are dropped silently. The library's own flags that would do nothing here, or harm, are
among them; tests/config/test_flags.py holds the list of those that do something.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig

from internvl_chat.config.rule import is_off
from internvl_chat.config.train import TrainArguments
from internvl_chat.errors import ConfigError

Change = Callable[[str, str, dict[str, str]], "str | None"]


def _rename(new: str, translate: dict[str, str] | None = None) -> Change:
    def change(old: str, value: str, flags: dict[str, str]) -> str | None:
        flags.setdefault(new, (translate or {}).get(value, value))
        return f"--{old} is now --{new}"

    return change


def _always(why: str) -> Change:
    return lambda old, value, flags: f"--{old} is not needed: {why}"


def _refuse(why: str, *as_it_is: str) -> Change:
    """Refused unless the value switches the feature off, or is one of those that ask for what is so anyway."""

    def change(old: str, value: str, flags: dict[str, str]) -> str | None:
        if is_off(value) or value in as_it_is:
            return None
        shown = "" if old.endswith("_token") else f" {value}"  # messages are logged
        raise ConfigError(f"--{old}{shown}: {why}")

    return change


def _only_true(why: str) -> Change:
    """Refused where it switches off what is always so."""

    def change(old: str, value: str, flags: dict[str, str]) -> str | None:
        if is_off(value):
            raise ConfigError(f"--{old} {value}: {why}")
        return None

    return change


def _warmup_ratio(old: str, value: str, flags: dict[str, str]) -> str | None:
    try:
        legal = 0 <= float(value) < 1
    except ValueError:
        legal = False
    if not legal:
        raise ConfigError(f"--warmup_ratio {value}: must be at least 0 and below 1; for whole steps use --warmup_steps")
    if is_off(flags.get("warmup_steps", "0")):
        flags["warmup_steps"] = value
    return "--warmup_ratio is now --warmup_steps with a value below 1"


def _group_by_length(old: str, value: str, flags: dict[str, str]) -> str | None:
    if is_off(value):
        return None
    flags.setdefault("train_sampling_strategy", "group_by_length")
    return "--group_by_length True is now --train_sampling_strategy group_by_length"


_LATER = "not available in this version yet"
_GONE = "transformers 5 has it no more; leave it out"
_SUMS = "evaluation sums up losses, nothing else is gathered; leave it out"
_UPLOAD = "nothing is uploaded by a run; upload the finished folder with `hf upload NAME FOLDER`"
_HUB = ("push_to_hub", "hub_token", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision")
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
    "liger_kernel_config": _refuse(f"{_LATER}; the loss is chunked anyway"),
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
    "fsdp_config": _refuse(f"{_LATER}; use --deepspeed zero3"),
    "parallelism_config": _refuse("ranks split the data, and the weights with --deepspeed zero3, nothing else"),
    "local_rank": _always("the environment says which process this is"),
    "ddp_backend": _refuse("it is NCCL between GPUs and gloo between CPUs; leave it out", "nccl"),
    "save_on_each_node": _refuse("all nodes write to one folder; give an --output_dir that all nodes see"),
    "enable_jit_checkpoint": _refuse("it can hang a run of several ranks; lower --save_steps"),
    "restore_callback_states_from_checkpoint": _refuse("what a run needs to go on is always restored; leave it out"),
    "logging_nan_inf_filter": _always("steps that are not finite are counted and never hidden; see --nonfinite_step"),
    "dataloader_multiprocessing_context": _refuse("workers are forked; leave it out", "fork"),
    "dataloader_in_order": _only_true("batches come in the order of the plan; leave it out"),
    "length_column_name": _refuse("lengths come from the index; leave it out"),
    "label_names": _refuse("the answers are what is learnt; leave it out"),
    "use_cache": _refuse("training keeps no cache; leave it out"),
    "do_predict": _refuse("use internvl eval on the finished folder"),
    **{name: _refuse(_UPLOAD) for name in _HUB},
    **{name: _refuse(_GONE) for name in ("dispatch_batches", "split_batches", "include_tokens_per_second")},
}
# Renamed by a plain translation of values rather than of names.
VALUES = {"optim": {"adamw_hf": "adamw_torch"}}


# Said, also the library's default decides: against an old name, or against another flag.
_DECIDES = ("do_eval", "do_train", "eval_strategy", "train_sampling_strategy", "use_cpu")


def without_defaults(flags: dict[str, Any]) -> dict[str, Any]:
    """Less those of the library that are as it has them anyway: a dump of all its arguments asks for nothing.

    Flags whose default is another one here stay.
    """
    ours = {field.name: field.default for field in dataclasses.fields(TrainArguments)}
    same = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    same = {name: value for name, value in same.items() if ours[name] == value and name not in _DECIDES}
    return {
        name: value for name, value in flags.items() if name not in same or not _is_default(name, value, same[name])
    }


def _is_default(name: str, value: Any, default: Any) -> bool:
    if value in ([], {}, "[]", "{}", f"<{name.upper()}>"):  # the last: a token, as the library writes it
        return True
    if name == "accelerator_config":
        return isinstance(value, dict) and value.items() <= AcceleratorConfig().to_dict().items()
    if default is False:
        return is_off(value)
    try:
        return float(value) == float(default)
    except (TypeError, ValueError, OverflowError):
        return str(value).lower() == str(default).lower()


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
