"""The frozen command line: a flag that is added, dropped or gets another default shows up here, in the README and in
check.py, or not at all."""

from __future__ import annotations

import dataclasses
import os

import pytest
from transformers import TrainingArguments

from internvl_chat.config.check import check_arguments
from internvl_chat.config.data import DataArguments
from internvl_chat.config.model import ModelArguments
from internvl_chat.config.parse import argument_defaults, make_parser, parse_arguments
from internvl_chat.config.renamed import CHANGES
from internvl_chat.config.train import TrainArguments
from internvl_chat.errors import ConfigError

MODEL = {
    "model_name_or_path": None,
    "vision_path": None,
    "llm_path": None,
    "mlp_path": None,
    "new_tokens": None,
    "freeze_llm": False,
    "freeze_backbone": False,
    "freeze_mlp": False,
    "unfreeze_vit_layers": 0,
    "unfreeze_lm_head": False,
    "use_llm_lora": 0,
    "use_backbone_lora": 0,
    "lora_alpha": None,
    "lora_dropout": None,
    "lora_llm_targets": None,
    "lora_vit_targets": None,
    "use_dora": False,
    "use_rslora": False,
    "merge_lora": True,
    "train_new_tokens": False,
    "load_in_4bit": False,
    "load_in_8bit": False,
    "vit_lr": None,
    "mlp_lr": None,
    "vision_select_layer": None,
    "drop_path_rate": 0.0,
    "ps_version": None,
    "grad_checkpoint": True,
    "vision_grad_checkpoint": None,
    "attn_implementation": "auto",
}
DATA = {
    "meta_path": None,
    "eval_meta_path": None,
    "eval_tasks": None,
    "eval_task_items": 64,
    "eval_data_root": "data",
    "conv_style": None,
    "system_message": None,
    "max_seq_length": 8192,
    "long_samples": "drop",
    "force_image_size": None,
    "down_sample_ratio": None,
    "pad2square": False,
    "dynamic_image_size": None,
    "use_thumbnail": None,
    "min_dynamic_patch": None,
    "max_dynamic_patch": None,
    "min_num_frame": 8,
    "max_num_frame": 32,
    "sampling_method": "rand",
    "remote_media": False,
    "normalize_type": None,
    "image_backend": "torch",
    "use_packed_ds": False,
    "max_packed_tokens": None,
    "num_images_expected": None,
    "worst_first": False,
    "use_data_resampling": False,
    "loss_reduction": "token",
    "max_fault_share": 0.01,
    "index_dir": None,
    "index_workers": None,
    "rebuild_index": False,
}
# Of the library's arguments: those that we add or whose default we change.
TRAIN = {
    "overwrite_output_dir": False,
    "report_to": "tensorboard",
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 0,
    "dataloader_num_workers": max(1, min(4, len(os.sched_getaffinity(0)))),
    "logging_steps": 10,
    "logging_first_step": True,
    "nonfinite_step": "stop",
    "start_timeout": 600.0,
    "late_after": 120.0,
    "stop_before_end": None,
    "peak_tflops": None,
}


def defaults_of(group: type) -> dict[str, object]:
    return {field.name: field.default for field in dataclasses.fields(group)}


def test_model_flags() -> None:
    assert defaults_of(ModelArguments) == MODEL


def test_data_flags() -> None:
    assert defaults_of(DataArguments) == DATA


def test_train_flags_that_are_ours() -> None:
    library = defaults_of(TrainingArguments)
    ours = {name: value for name, value in defaults_of(TrainArguments).items() if library.get(name, ...) != value}
    assert ours == TRAIN


def test_the_groups_share_no_flag_and_every_own_flag_has_a_help_text() -> None:
    assert not set(MODEL) & set(DATA)
    assert not (set(MODEL) | set(DATA)) & set(defaults_of(TrainingArguments))
    fields = [*dataclasses.fields(ModelArguments), *dataclasses.fields(DataArguments)]
    fields += [field for field in dataclasses.fields(TrainArguments) if field.name in TRAIN]
    for field in fields:
        assert field.metadata["help"].endswith("."), field.name


def test_no_own_flag_is_also_an_old_one() -> None:
    assert not (set(MODEL) | set(DATA) | set(TRAIN)) & set(CHANGES)


def test_defaults_are_legal_but_for_what_only_the_user_knows() -> None:
    given = {name: value for name, value in argument_defaults().items() if name in {**MODEL, **DATA, **TRAIN}}
    problems = check_arguments({name: value for name, value in given.items() if value is not None})
    assert [problem.split(" ")[0] for problem in problems] == ["--model_name_or_path", "--meta_path", "--output_dir"]


def test_help_names_every_own_flag_and_does_not_ask_for_others(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        parse_arguments(["--learning_rate", "nonsense", "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"--{name}" in shown for name in {**MODEL, **DATA, **TRAIN})


def test_the_parser_raises_instead_of_leaving_the_process() -> None:
    with pytest.raises(ConfigError, match="see internvl train --help"):
        make_parser().parse_args(["--max_steps", "x"])
