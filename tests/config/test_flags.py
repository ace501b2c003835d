"""The frozen command line: a flag that is added, dropped or gets another default shows up here, in the README and in
check.py, or not at all."""

from __future__ import annotations

import dataclasses
import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import TrainingArguments

import internvl_chat
from internvl_chat.config.check import check_arguments
from internvl_chat.config.data import DataArguments
from internvl_chat.config.model import ModelArguments
from internvl_chat.config.parse import argument_defaults, make_parser, parse_arguments
from internvl_chat.config.renamed import CHANGES
from internvl_chat.config.train import TrainArguments
from internvl_chat.errors import ConfigError
from tests.config.helpers import Parse, Refuse

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
# Of the library's arguments: those that our package reads, the library, or both.
OURS = """
    output_dir per_device_train_batch_size num_train_epochs max_steps gradient_accumulation_steps bf16 deepspeed
    logging_strategy disable_tqdm eval_delay eval_strategy per_device_eval_batch_size save_only_model save_total_limit
    save_strategy load_best_model_at_end metric_for_best_model seed data_seed dataloader_num_workers
    dataloader_pin_memory dataloader_prefetch_factor train_sampling_strategy resume_from_checkpoint
"""
LIBRARY = {
    "trainer": """
        learning_rate lr_scheduler_type lr_scheduler_kwargs optim_args weight_decay max_grad_norm eval_on_start
        neftune_noise_alpha torch_empty_cache_steps greater_is_better full_determinism
        ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph debug report_to
        skip_memory_metrics
    """,
    "trainer_callback": "logging_first_step logging_steps eval_steps save_steps",
    "trainer_optimizer": "optim optim_target_modules adam_beta1 adam_beta2 adam_epsilon",
    "training_args": "warmup_steps fp16 tf32 log_level log_level_replica log_on_each_node use_cpu ddp_timeout",
    "integrations.integration_utils": """
        run_name project hub_private_repo trackio_space_id trackio_bucket_id trackio_static_space_id
    """,
}
# Ours that are read by their name as a text, as they are laid over what the checkpoint says.
BY_NAME = """
    vision_select_layer system_message force_image_size use_thumbnail min_dynamic_patch max_dynamic_patch normalize_type
"""
# Nobody reads them: what they say that is not so is refused, or told in a note (config/idle.py).
UNREAD = ("do_train", "do_eval")


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


def read_in(source: str, name: str, owners: str = "args|arguments|model_args|model|data|train") -> bool:
    """As an attribute of the arguments, not only assigned."""
    return re.search(rf"\b({owners})\.{name}\b(?! *=[^=])", source) is not None


def test_every_flag_of_the_library_does_something_or_is_refused_with_a_reason() -> None:
    """A new version of transformers brings new flags: put each into a list above, or into config/renamed.py."""
    does = [*OURS.split(), *(name for names in LIBRARY.values() for name in names.split())]
    flags = set(defaults_of(TrainingArguments))
    assert len(does) == len(set(does))
    assert not set(does) & (set(CHANGES) | set(UNREAD))
    undecided = flags - set(does) - set(CHANGES) - set(UNREAD)
    assert not undecided, "flags of this transformers that nobody has looked at"
    assert set(does) | set(UNREAD) <= flags, "this transformers has them no more"


def test_what_is_said_to_be_read_is_read() -> None:
    files = [*Path(internvl_chat.__file__).parent.rglob("*.py")]
    ours = "\n".join(path.read_text() for path in files if path.parent.name != "config")
    unread = [name for name in [*MODEL, *DATA, *OURS.split()] if not read_in(ours, name)]
    assert unread == [name for name in unread if name in BY_NAME.split() and f'"{name}"' in ours]
    for module, names in LIBRARY.items():
        found = find_spec(f"transformers.{module}")
        assert found is not None
        assert found.origin is not None
        source = Path(found.origin).read_text()
        # Steps are copied to the state under a name put together from parts; the arguments' own file says self.
        owners = {"trainer_callback": "args|state", "training_args": "self"}.get(module, "args")
        assert [name for name in names.split() if not read_in(source, name, owners)] == [], module


def test_a_flag_that_nobody_reads_takes_only_what_is_so(refuse: Refuse, parse: Parse, required: list[str]) -> None:
    (problem,) = refuse("--do_eval", "True")
    assert problem.startswith("--do_eval True")
    parse("--do_eval", "False")
    (note,) = parse_arguments([*required, "--do_train", "False"])[3]
    assert note.startswith("--do_train is not used: training is all that this command does")
    assert parse_arguments([*required, "--do_train", "True"])[3] == []


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
    assert not [name for name in CHANGES if re.search(rf"--(no_)?{name}\b", shown)], "what is refused is not offered"


def test_the_parser_raises_instead_of_leaving_the_process() -> None:
    with pytest.raises(ConfigError, match="see internvl train --help"):
        make_parser().parse_args(["--max_steps", "x"])
