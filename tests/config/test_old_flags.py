"""Command lines of the original and of transformers 4: renamed with a note, refused with a reason, or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import TrainingArguments

from internvl_chat.config.parse import argument_defaults, parse_arguments
from internvl_chat.config.renamed import CHANGES, translate_flags
from internvl_chat.config.rule import is_off, is_on
from internvl_chat.config.zero import FOLDER, ORIGINAL_NAMES, resolve_zero
from internvl_chat.errors import ConfigError
from tests.config.helpers import Parse, Refuse


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--evaluation_strategy", "no"], "eval_strategy", "no"),
        (["--no_cuda", "True"], "use_cpu", True),
        (["--no_cuda"], "use_cpu", True),
        (["--warmup_ratio", "0.03"], "warmup_steps", 0.03),
        (["--warmup_ratio", "0.03", "--warmup_steps", "0"], "warmup_steps", 0.03),
        (["--warmup_ratio", "0.03", "--warmup_steps", "100"], "warmup_steps", 100),
        (["--group_by_length", "True"], "train_sampling_strategy", "group_by_length"),
        (["--group_by_length"], "train_sampling_strategy", "group_by_length"),
        (["--per_gpu_train_batch_size", "3"], "per_device_train_batch_size", 3),
        (["--optim", "adamw_hf"], "optim", "adamw_torch"),
    ],
)
def test_an_old_flag_is_renamed_and_says_so(required: list[str], words: list[str], name: str, value: object) -> None:
    *_, train, notes = parse_arguments([*required, *words])
    assert getattr(train, name) == value
    assert len(notes) == 1
    assert words[0] in notes[0]
    assert f"--{name}" in notes[0] or "is now" in notes[0]


@pytest.mark.parametrize("flag", ["gradient_checkpointing", "activation_checkpointing"])
@pytest.mark.parametrize("value", [True, False])
def test_checkpointing_of_activations_has_one_name(parse: Parse, flag: str, value: bool) -> None:
    model, _, train = parse(f"--{flag}", str(value))
    assert model.grad_checkpoint is value
    # The library would call its own method on the model and find no layers of its own.
    assert not train.gradient_checkpointing


def test_todays_name_wins_over_the_old_one(parse: Parse) -> None:
    assert parse("--no_cuda", "True", "--use_cpu", "False")[2].train_batch_size == 1
    assert parse("--gradient_checkpointing", "True", "--grad_checkpoint", "False")[0].grad_checkpoint is False


@pytest.mark.parametrize("value", ["-0.1", "1", "1.0", "100", "x", "nan"])
def test_a_warmup_ratio_is_a_share(refuse: Refuse, value: str) -> None:
    assert refuse("--warmup_ratio", value) == [
        f"--warmup_ratio {value}: must be at least 0 and below 1; for whole steps use --warmup_steps"
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["--use_llm_lora", "0"],
        ["--use_backbone_lora", "0"],
        ["--unfreeze_vit_layers", "0"],
        ["--unfreeze_lm_head", "False"],
        ["--use_liger", "False"],
        ["--strict_mode", "False"],
        ["--replacement", "False"],
        ["--allow_overflow", "False"],
        ["--group_by_length", "False"],
        ["--adafactor", "False"],
        ["--label_smoothing_factor", "0.0"],
        ["--fsdp", ""],
        ["--do_train", "True"],
        ["--do_predict", "False"],
        ["--hub_strategy", "every_save"],
        ["--length_column_name", "length"],
        ["--dataloader_in_order", "True"],
        ["--logging_nan_inf_filter", "True"],
        ["--ddp_backend", "nccl"],
        ["--label_names", "[]"],
        ["--fsdp", "{}"],
        ["--debug", "[]"],
        ["--use_liger", " no "],
        ["--label_smoothing_factor", "0.00"],
    ],
)
def test_values_that_ask_for_nothing_pass_in_silence(required: list[str], words: list[str]) -> None:
    assert parse_arguments([*required, *words])[3] == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--use_liger", "True"], "the loss is chunked anyway"),
        (["--strict_mode", "True"], "packs are never padded with empty tiles; leave it out"),
        (["--replacement", "True"], "raise num_train_epochs or repeat_time instead"),
        (["--allow_overflow", "True"], "samples are never split over packs; raise --max_packed_tokens instead"),
        (["--loss_type", "sigmoid,bco_pair"], "preference training is not available"),
        (["--rpo_alpha", "1"], "preference training is not available"),
        (["--adafactor", "True"], "use --optim adafactor"),
        (["--logging_dir", "logs"], "set the variable TENSORBOARD_LOGGING_DIR"),
        (["--do_predict", "True"], "use internvl eval"),
        (["--length_column_name", "x"], "lengths come from the index"),
        (["--label_names", "a"], "answers are what is learnt"),
        (["--use_cache", "True"], "training keeps no cache"),
        (["--push_to_hub", "True"], "hf upload"),
        (["--hub_strategy", "end"], "hf upload"),
        (["--dataloader_in_order", "False"], "batches come in the order of the plan"),
        (["--dataloader_multiprocessing_context", "spawn"], "workers are forked"),
        (["--save_on_each_node", "True"], "that all nodes see"),
        (["--restore_callback_states_from_checkpoint", "True"], "leave it out"),
        (["--parallelism_config", "x"], "--deepspeed zero3"),
        (["--fsdp_config", "x"], "--deepspeed zero3"),
        (["--liger_kernel_config", "x"], "the loss is chunked anyway"),
        (["--ddp_backend", "mpi"], "leave it out"),
        (["--enable_jit_checkpoint", "True"], "it can hang a run of several ranks"),
    ],
)
def test_what_is_not_there_is_refused_with_a_reason(refuse: Refuse, words: list[str], says: str) -> None:
    (problem,) = refuse(*words)
    assert problem.startswith(f"{words[0]} {words[1]}: ")
    assert says in problem


def test_a_token_is_never_shown(refuse: Refuse) -> None:
    (problem,) = refuse("--hub_token", "hf_secret")
    assert problem.startswith("--hub_token: ")
    assert "secret" not in problem


@pytest.mark.parametrize("flag", ["max_buffer_size", "log_freq", "loss_reduction_all_gather", "logging_nan_inf_filter"])
def test_what_is_always_so_is_dropped_with_a_note(required: list[str], flag: str) -> None:
    *_, notes = parse_arguments([*required, f"--{flag}", "20"])
    assert len(notes) == 1
    assert notes[0].startswith(f"--{flag} is not needed: ")


def test_a_dump_of_all_arguments_of_the_library_asks_for_nothing(required: list[str], tmp_path: Path) -> None:
    library = TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True)
    (tmp_path / "dump.json").write_text(json.dumps({**library.to_dict(), "project": "huggingface"}))
    *_, train, notes = parse_arguments([str(tmp_path / "dump.json"), *required])
    assert notes == [
        "--activation_checkpointing is now --grad_checkpoint",
        "--gradient_checkpointing is now --grad_checkpoint",
        "--do_train is not used: training is all that this command does; to score a model: internvl eval",
    ]
    assert (train.report_to, train.logging_steps, train.per_device_train_batch_size) == ([], 500, 8), "it is said"


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--logging_steps", "500"], "logging_steps", 500),
        (["--report_to", "none"], "report_to", []),
        (["--group_by_length", "True", "--train_sampling_strategy", "random"], "train_sampling_strategy", "random"),
        (["--eval_strategy", "no", "--evaluation_strategy", "epoch"], "eval_strategy", "no"),
    ],
)
def test_the_librarys_default_is_kept_where_it_decides_something(
    required: list[str], words: list[str], name: str, value: object
) -> None:
    assert getattr(parse_arguments([*required, *words])[2], name) == value


@pytest.mark.parametrize(
    "value", ["", " ", "0", "0.0", "-0", "0e5", "No", " false ", "none", "[]", "{}", 0, False, [], {}]
)
def test_what_asks_for_nothing(value: object) -> None:
    assert is_off(value)
    assert not is_on({"x": value}, "x")


@pytest.mark.parametrize("value", ["1", "true", "x", "0.1", "nan", [0], {"a": 0}])
def test_what_asks_for_something(value: object) -> None:
    assert not is_off(value)


def test_no_renamed_flag_leads_to_one_that_does_not_exist() -> None:
    """Whatever a change writes is a flag of today, for values that are on and off."""
    known = set(argument_defaults())
    for name in CHANGES:
        for value in ("True", "False", "0.5", "7"):
            flags, _, _ = translate_flags({name: value})
            assert set(flags) <= known, name


# -- DeepSpeed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3"])
def test_short_names_lead_to_the_shipped_files(parse: Parse, name: str) -> None:
    assert parse("--deepspeed", name)[2].deepspeed == str(FOLDER / f"{name}.json")


@pytest.mark.parametrize(("old", "new"), ORIGINAL_NAMES.items())
@pytest.mark.parametrize("folder", ["", "./", "shell/configs/"])
def test_the_originals_file_names_lead_there_too(old: str, new: str, folder: str) -> None:
    assert resolve_zero(folder + old) == str(FOLDER / f"{new}.json")


def test_a_file_of_the_users_own_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if it has the name of one of the original's."""
    monkeypatch.chdir(tmp_path)
    for name in ("mine.json", "zero_stage1_config.json"):
        (tmp_path / name).write_text("{}")
        assert resolve_zero(name) == name


def test_a_configuration_itself_is_passed_on() -> None:
    assert resolve_zero({"zero_optimization": {"stage": 1}}) == {"zero_optimization": {"stage": 1}}
    assert resolve_zero('{"zero_optimization": {"stage": 1}}') == '{"zero_optimization": {"stage": 1}}'


@pytest.mark.parametrize("name", ["zero", "zero4", "zero_1", "zero2.jsn"])
def test_an_unknown_configuration_gets_the_list_and_the_nearest(name: str) -> None:
    legal = "zero1, zero2, zero3, zero3_offload"
    with pytest.raises(ConfigError, match=rf"neither a file nor one of {legal}; did you mean 'zero\d'\?"):
        resolve_zero(name)
