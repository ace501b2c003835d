"""From words or a JSON file to arguments: every way of writing a flag, and one clear line for whatever is wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internvl_chat.config.data import DataArguments
from internvl_chat.config.model import ModelArguments
from internvl_chat.config.parse import argument_defaults, make_parser, parse_arguments, read_flags
from internvl_chat.config.renamed import CHANGES
from internvl_chat.config.train import TrainArguments
from internvl_chat.errors import ConfigError
from tests.config.helpers import Parse, Refuse
from tests.data.helpers import properties

# -- ways to write a flag -----------------------------------------------------------------------------------------


def test_the_three_required_flags_are_enough(parse: Parse) -> None:
    model, data, train = parse()
    assert (model.freeze_llm, data.use_packed_ds, train.learning_rate) == (False, False, 5e-5)


@pytest.mark.parametrize(
    "words",
    [
        ["--learning_rate", "4e-5"],
        ["--learning_rate=4e-5"],
        ["--learning-rate", "4e-5"],
        ["--learning-rate=4e-5"],
        ["--learning_rate", "1", "--learning_rate", "4e-5"],
        ["--learning_rate=1", "--learning-rate=4e-5"],
    ],
)
def test_a_value_may_follow_or_be_joined_and_the_last_one_counts(parse: Parse, words: list[str]) -> None:
    """A script puts "$@" last so that a user overrides a flag by appending it."""
    assert parse(*words)[2].learning_rate == 4e-5


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--freeze_llm"], True),
        (["--freeze_llm", "True"], True),
        (["--freeze_llm", "true"], True),
        (["--freeze_llm=1"], True),
        (["--freeze_llm", "False"], False),
        (["--freeze_llm=no"], False),
        (["--freeze_llm", "--freeze_mlp"], True),
    ],
)
def test_a_switch_is_bare_or_has_a_value(parse: Parse, words: list[str], value: bool) -> None:
    assert parse(*words)[0].freeze_llm is value


def test_a_switch_that_is_on_by_default_has_its_negation(parse: Parse) -> None:
    assert parse()[0].grad_checkpoint is True
    assert parse("--no_grad_checkpoint")[0].grad_checkpoint is False
    assert parse("--no-grad-checkpoint")[0].grad_checkpoint is False
    assert parse("--grad_checkpoint", "False")[0].grad_checkpoint is False


@pytest.mark.parametrize("value", ["-4", "-1", "7"])
def test_values_may_begin_with_a_dash(parse: Parse, value: str) -> None:
    assert parse("--vision_select_layer", value)[0].vision_select_layer == int(value)
    assert parse(f"--vision_select_layer={value}")[0].vision_select_layer == int(value)


def test_a_negative_number_in_scientific_notation_is_a_value_too(parse: Parse, refuse: Refuse) -> None:
    """argparse of older Pythons takes -1e-5 for a flag."""
    assert parse("--max_grad_norm", "-1e-5")[2].max_grad_norm == -1e-5
    assert refuse("--learning_rate", "-1e-5") == ["--learning_rate -1e-5: must be a number of at least 0"]


def test_text_values_may_hold_anything(parse: Parse) -> None:
    assert parse("--system_message", "a=b c -- d")[1].system_message == "a=b c -- d"
    assert parse("--system_message=a=b")[1].system_message == "a=b"
    assert parse("--system_message", "-dash")[1].system_message == "-dash"
    assert parse("--system_message", "")[1].system_message == ""


def test_optional_numbers_and_switches_keep_none(parse: Parse) -> None:
    _, data, _ = parse("--max_dynamic_patch", "6", "--use_thumbnail", "False")
    assert (data.max_dynamic_patch, data.use_thumbnail, data.dynamic_image_size) == (6, False, None)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--report_to", "tensorboard"], ["tensorboard"]),
        (["--report_to", "tensorboard", "wandb"], ["tensorboard", "wandb"]),
        (["--report_to=tensorboard,wandb"], ["tensorboard", "wandb"]),
        (["--report_to", "none"], []),
    ],
)
@pytest.mark.usefixtures("all_packages")
def test_lists(parse: Parse, words: list[str], expected: list[str]) -> None:
    assert parse(*words)[2].report_to == expected


SWITCHES = [
    field.name
    for group in (ModelArguments, DataArguments, TrainArguments)
    for field in dataclasses.fields(group)
    if get_type_hints(group)[field.name] in (bool, bool | None) and field.name not in CHANGES
]


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_may_be_bare_or_true_in_a_file(name: str, tmp_path: Path) -> None:
    """Whatever the rules say of it beside the others."""
    (tmp_path / "args.json").write_text(json.dumps({name: True}))
    for words in ([f"--{name}"], [str(tmp_path / "args.json")], [f"--{name}", "True"]):
        flags = read_flags(words)
        assert not [problem for problem in flags.problems if "needs a value" in problem]
        assert str(flags.values.get(name, argument_defaults()[name])) == "True"
    assert getattr(make_parser().parse_args([f"--{name}=True"]), name) is True


def test_a_name_of_the_run_that_nobody_reads_is_a_note(required: list[str]) -> None:
    (note,) = parse_arguments([*required, "--run_name", "x"])[3]
    assert note.startswith("--run_name is not used: only --report_to comet_ml, ")


@pytest.mark.usefixtures("all_packages")
def test_a_name_of_the_run_that_is_read_needs_no_note(required: list[str]) -> None:
    assert parse_arguments([*required, "--run_name", "x", "--report_to", "wandb"])[3] == []


def test_several_words_behind_a_refused_flag_are_one_problem(refuse: Refuse) -> None:
    assert len(refuse("--label_names", "a", "b")) == 1


# -- the JSON file ------------------------------------------------------------------------------------------------


@pytest.fixture
def json_file(tmp_path: Path, required: list[str]) -> Any:
    def write(content: Any) -> str:
        path = tmp_path / "args.json"
        if isinstance(content, dict):
            flags = {name.removeprefix("--"): value for name, value in zip(required[::2], required[1::2], strict=True)}
            content = json.dumps({**flags, **content})
        path.write_text(content, encoding="utf-8")
        return str(path)

    return write


@pytest.mark.usefixtures("all_packages")
def test_a_json_file_holds_values_of_their_own_types(json_file: Any) -> None:
    path = json_file(
        {
            "bf16": True,
            "learning_rate": 1e-5,
            "vision_select_layer": -4,
            "report_to": ["tensorboard", "wandb"],
            "run_name": None,
            "deepspeed": {"zero_optimization": {"stage": 1}},
            "--max-steps": 7,
            "warmup_ratio": 0.03,
            "group_by_length": True,
            "use_llm_lora": 0,
        }
    )
    model, _, train, notes = parse_arguments([path])
    assert (train.bf16, train.learning_rate, train.max_steps, train.warmup_steps) == (True, 1e-5, 7, 0.03)
    assert train.report_to == ["tensorboard", "wandb"]
    assert train.deepspeed == {"zero_optimization": {"stage": 1}}
    assert train.train_sampling_strategy == "group_by_length"
    assert model.vision_select_layer == -4
    assert len(notes) == 2


def test_flags_behind_a_json_file_override_it(json_file: Any) -> None:
    path = json_file({"learning_rate": 1e-5, "max_steps": 3})
    train = parse_arguments([path, "--learning_rate", "4e-5"])[2]
    assert (train.learning_rate, train.max_steps) == (4e-5, 3)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"a": 1,}', r"args\.json: not JSON \(.*line 1 column"),
        ("[1]", r"args\.json: must hold one object of flags"),
        ('{"learning_rte": 1}', r"--learning_rte is not a flag; did you mean '--learning_rate'\?"),
        ('{"learning_rate": true}', "--learning_rate needs a value"),
        ('{"learning_rate": [1]}', r"--learning_rate \[1\]: must be a number|--learning_rate \[1\]"),
    ],
)
def test_a_bad_json_file_says_what_is_wrong(json_file: Any, content: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_arguments([json_file(content)])


def test_a_missing_json_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.json: cannot be read"):
        parse_arguments([str(tmp_path / "gone.json")])


# -- what is wrong ------------------------------------------------------------------------------------------------


def test_nothing_given_asks_for_the_three() -> None:
    with pytest.raises(ConfigError) as error:
        parse_arguments([])
    lines = str(error.value).splitlines()
    assert [text.split(" ")[0] for text in lines] == ["--model_name_or_path", "--meta_path", "--output_dir"]
    assert all("is missing: " in text for text in lines)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--learning_rte", "1"], "--learning_rte is not a flag; did you mean '--learning_rate'?"),
        (["--freeze_backbones"], "--freeze_backbones is not a flag; did you mean '--freeze_backbone'?"),
        (["--qqqq", "1"], "--qqqq is not a flag"),
        (["--learning_rate"], "--learning_rate needs a value"),
        (["--run_name", "--bf16"], "--run_name needs a value"),
        (["--learning_rate", "1", "2"], "--learning_rate 1 is followed by '2'; a flag takes one value (quote it)"),
        (["--learning_rate", "abc"], "--learning_rate 'abc': must be a number of at least 0"),
        (["--learning_rate", "nan"], "--learning_rate nan: must be a number of at least 0"),
        (["--learning_rate", "inf"], "--learning_rate inf: must be a number of at least 0"),
        (["--num_train_epochs", "inf"], "--num_train_epochs inf: must be a number of at least 0.001"),
        (["--num_train_epochs", "0"], "--num_train_epochs 0: must be a number of at least 0.001"),
        (["--max_seq_length", "4"], "--max_seq_length 4: must be a whole number of at least 8"),
        (["--max_seq_length", "1e4"], "--max_seq_length '1e4': must be a whole number of at least 8"),
        (["--max_packed_tokens", "0"], "--max_packed_tokens 0: must be a whole number of at least 8"),
        (["--num_images_expected", "0"], "--num_images_expected 0: must be a whole number of at least 1"),
        (["--max_dynamic_patch", "0"], "--max_dynamic_patch 0: must be a whole number of at least 1"),
        (["--drop_path_rate", "1"], "--drop_path_rate 1: must be a number from 0 to below 1"),
        (["--drop_path_rate", "-0.1"], "--drop_path_rate -0.1: must be a number from 0 to below 1"),
        (["--down_sample_ratio", "2"], "--down_sample_ratio 2: must be a number from 0.01 to 1"),
        (["--max_fault_share", "1.5"], "--max_fault_share 1.5: must be a number from 0 to 1"),
        (["--seed", "-1"], "--seed -1: must be a whole number of at least 0"),
        (["--data_seed", "x"], "--data_seed 'x': must be a whole number of at least 0"),
        (
            ["--per_device_train_batch_size", "0"],
            "--per_device_train_batch_size 0: must be a whole number of at least 1",
        ),
        (
            ["--gradient_accumulation_steps", "0"],
            "--gradient_accumulation_steps 0: must be a whole number of at least 1",
        ),
        (["--dataloader_num_workers", "-1"], "--dataloader_num_workers -1: must be a whole number of at least 0"),
        (["--save_total_limit", "-1"], "--save_total_limit -1: must be a whole number of at least 1"),
        (["--loss_reduction", "mean"], "--loss_reduction mean: must be one of token, sample, square"),
        (["--image_backend", "cv2"], "--image_backend cv2: must be one of torch, pillow"),
        (["--ps_version", "v3"], "--ps_version v3: must be one of v1, v2"),
        (["--normalize_type", "none"], "--normalize_type none: must be one of imagenet, clip, siglip"),
        (["--attn_implementation", "flash"], "--attn_implementation flash: must be one of auto, packed, sdpa, eager"),
        (["--train_sampling_strategy", "sequential"], "sequential: must be one of random, group_by_length"),
        (["--eval_strategy", "steps"], "--eval_strategy steps: say how often, e.g. --eval_steps 500"),
        (["--eval_strategy", "always"], "--eval_strategy always: must be one of no, steps, epoch"),
        (["--eval_steps", "5"], "--eval_steps 5 does nothing without --eval_strategy steps"),
        (["--eval_strategy", "epoch", "--eval_steps", "5"], "--eval_steps 5 does nothing without --eval_strategy ste"),
        (["--eval_strategy", "epoch", "--eval_delay", "-1"], "--eval_delay -1: must be a number of at least 0"),
        (["--eval_meta_path", "."], "--eval_meta_path . does nothing without --eval_strategy steps (or epoch)"),
        (["--eval_strategy", "epoch", "--eval_meta_path", "gone.json"], "--eval_meta_path gone.json: does not exist"),
        (["--do_eval"], "--do_eval True does nothing without --eval_strategy"),
        (["--do_eval", "False", "--eval_strategy", "epoch"], "--do_eval False contradicts --eval_strategy epoch"),
        (["--eval_on_start", "--eval_strategy", "no"], "--eval_on_start True does nothing without --eval_strategy"),
        (["--load_best_model_at_end"], "--load_best_model_at_end True does nothing without --eval_strategy"),
        (["--metric_for_best_model", "loss"], "--metric_for_best_model loss does nothing without --eval_strategy"),
        (["--save_strategy", "best"], "--save_strategy best: which is best is only known with --eval_strategy"),
        (
            [
                "--eval_strategy",
                "epoch",
                "--load_best_model_at_end",
                "--save_strategy",
                "best",
                "--save_only_model",
                *("--deepspeed", "zero2"),
            ],
            "--load_best_model_at_end with --save_only_model does not go with --deepspeed",
        ),
        (
            ["--eval_strategy", "epoch", "--load_best_model_at_end"],
            "only what is saved can be best, with --save_strategy epoch or best",
        ),
        (
            ["--eval_strategy", "steps", "--eval_steps", "300", "--load_best_model_at_end"],
            "--save_steps 500 must be a multiple of --eval_steps 300",
        ),
        (["--bf16_full_eval", "True"], "--bf16_full_eval True: evaluation computes as training does; leave it out"),
        (["--batch_eval_metrics", "True"], "--batch_eval_metrics True: evaluation sums up losses"),
        (["--label_smoothing_factor", "0.1"], "--label_smoothing_factor 0.1: not available in this version yet"),
        (["--auto_find_batch_size", "True"], "--auto_find_batch_size True: the plan fixes what is in a step"),
        (["--enable_jit_checkpoint", "True"], "--enable_jit_checkpoint True: it can hang a run of several ranks"),
        (["--fsdp", "full_shard"], "--fsdp full_shard: not available in this version yet; use --deepspeed zero3"),
        (
            ["--min_dynamic_patch", "7", "--max_dynamic_patch", "6"],
            "--min_dynamic_patch 7 is more than --max_dynamic_patch 6",
        ),
        (["--bf16", "perhaps"], "--bf16: Truthy value expected: got perhaps"),
        (["--bf16", "--fp16"], "At most one of fp16 and bf16"),
        (["--lr_scheduler_type", "cosin"], "invalid choice: 'cosin'"),
        (
            ["--max_steps", "1e3"],
            "argument --max_steps/--max-steps: invalid int value: '1e3'; see internvl train --help",
        ),
        (["--deepspeed"], "--deepspeed needs a value"),
        (
            ["--deepspeed", "zero4"],
            "--deepspeed 'zero4' is neither a file nor one of zero1, zero2, zero3, zero3_offload; did you mean",
        ),
        (
            ["--max_packed_tokens", "4000"],
            "--max_seq_length 8192 is more than --max_packed_tokens 4000: a sample that long fits no pack",
        ),
        (
            ["--use_packed_ds", "True", "--max_seq_length", "9000"],
            "--max_seq_length 9000 is more than --max_packed_tokens 8192: a sample that long fits no pack",
        ),
        (
            ["--use_packed_ds", "--group_by_length", "True"],
            "--train_sampling_strategy group_by_length goes with padded",
        ),
        (
            ["--report_to", "tensorboard", "--project", "x"],
            "--project x does nothing without --report_to trackio",
        ),
        (
            ["--ddp_bucket_cap_mb", "25", "--deepspeed", "zero2"],
            "--ddp_bucket_cap_mb 25 does nothing: with --deepspeed",
        ),
        (["--optim_args", "a=1"], "--optim_args a=1 does nothing: --optim adamw_torch_fused has no further arguments"),
        (["--optim_target_modules", "x"], "--optim_target_modules x does nothing: it is for --optim galore_"),
        (["--use_packed_ds", "--neftune_noise_alpha", "5"], "--neftune_noise_alpha 5 goes with padded batches"),
        (["--debug", "tpu_metrics_debug"], "--debug tpu_metrics_debug: must be one of underflow_overflow"),
    ],
)
def test_a_flag_that_cannot_be_used_says_why(refuse: Refuse, words: list[str], says: str) -> None:
    problems = refuse(*words)
    assert len(problems) == 1
    assert says in problems[0]


def test_a_folder_below_a_file_cannot_be_made(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for where in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        assert refuse("--output_dir", str(where)) == [
            f"--output_dir {where}: {tmp_path / 'file'} is a file; name a folder"
        ]


def test_a_manifest_that_does_not_exist_is_found_here(refuse: Refuse) -> None:
    assert refuse("--meta_path", "gone.json") == [
        "--meta_path gone.json: does not exist; give a manifest (JSON or YAML)"
    ]


def test_a_stray_word_at_the_start() -> None:
    with pytest.raises(ConfigError, match="'stray' does not follow a flag; write --name value"):
        parse_arguments(["stray"])


def test_all_problems_are_reported_at_once(refuse: Refuse) -> None:
    problems = refuse(
        *["--learning_rte", "1", "--strict_mode", "True", "--rpo_alpha", "16", "--deepspeed", "zero9"],
        *["--num_images_expected", "0", "--loss_reduction", "mean", "--run_name", "--warmup_ratio", "2"],
    )
    starts = ["--learning_rte", "--run_name", "--strict_mode", "--rpo_alpha", "--warmup_ratio", "--deepspeed"]
    assert [problem.split(" ")[0] for problem in problems] == [*starts, "--num_images_expected", "--loss_reduction"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--vision_path", "{here}"], "give a whole checkpoint, or parts to build one from"),
        (["--mlp_path", "{here}"], "give a whole checkpoint, or parts to build one from"),
        (["--lora_alpha", "8"], "does nothing without --use_llm_lora RANK or --use_backbone_lora RANK"),
        (["--use_dora", "True"], "does nothing without"),
        (["--lora_vit_targets", "qkv", "--use_llm_lora", "8"], "does nothing without --use_backbone_lora RANK"),
        (["--load_in_4bit", "True"], "does nothing without --use_llm_lora RANK"),
        (["--load_in_4bit", "True", "--load_in_8bit", "True", "--use_llm_lora", "8"], "choose one"),
        (["--load_in_8bit", "True", "--use_llm_lora", "8", "--deepspeed", "zero1"], "leave --deepspeed out"),
        (["--train_new_tokens", "True", "--freeze_llm", "True"], "no tokens are added to a whole checkpoint"),
        (["--use_llm_lora", "-1"], "a whole number of at least 0"),
        (["--vit_lr", "-1"], "a number of at least 0"),
    ],
)
def test_switches_that_contradict_each_other_or_do_nothing(
    refuse: Refuse, tmp_path: Path, words: list[str], says: str
) -> None:
    (problem,) = refuse(*(word.format(here=tmp_path) for word in words))
    assert says in problem


def test_parts_need_each_other_and_a_template(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text("{}")
    needed = ["--meta_path", str(tmp_path / "meta.json"), "--output_dir", str(tmp_path / "out")]
    parts = ["--vision_path", str(tmp_path), "--llm_path", str(tmp_path)]
    for words, says in (
        ([], "--model_name_or_path is missing"),
        (parts[:2], "--llm_path is missing: building from parts takes both"),
        (parts[2:], "--vision_path is missing"),
        (parts, "--conv_style is missing"),
    ):
        with pytest.raises(ConfigError, match=says):
            parse_arguments([*needed, *words])
    assert parse_arguments([*needed, *parts, "--conv_style", "internvl2_5"])[0].llm_path == str(tmp_path)


# -- what the run itself asks of the library's arguments --------------------------------------------------------------


def test_what_must_hold_in_every_run_is_set_whatever_the_user_says(parse: Parse) -> None:
    against = ["--remove_unused_columns", "True", "--ignore_data_skip", "False"]
    for words in ([], [*against, "--average_tokens_across_devices", "False"]):
        train = parse(*words)[2]
        assert train.logging_nan_inf_filter is False, "a NaN must be seen"
        assert train.remove_unused_columns is False
        assert train.average_tokens_across_devices is True
        assert train.ignore_data_skip is True, "the loader starts at the step"
        assert train.ddp_find_unused_parameters is False


def test_the_groups_come_back_as_what_they_are(parse: Parse) -> None:
    assert [type(group) for group in parse()] == [ModelArguments, DataArguments, TrainArguments]


FLAGS = sorted({*argument_defaults(), *CHANGES, "no_grad_checkpoint", "nonsense", ""} - {"help"})
VALUES = [
    "",
    "True",
    "False",
    "0",
    "1",
    "-1",
    "0.5",
    "1e5",
    "nan",
    "inf",
    "-inf",
    "x",
    "None",
    "{",
    '{"a": 1}',
    "[1]",
    "a=b",
]


@properties(150)
@given(st.lists(st.tuples(st.sampled_from(FLAGS), st.sampled_from([None, *VALUES]), st.booleans()), max_size=4))
def test_any_command_line_is_arguments_or_messages(words: list[tuple[str, str | None, bool]]) -> None:
    """Never another exception: the library's parser and its checks are behind ours."""
    argv = ["--model_name_or_path", "x", "--meta_path", __file__, "--output_dir", "never_made"]
    for name, value, joined in words:
        argv += [f"--{name}"] if value is None else [f"--{name}={value}"] if joined else [f"--{name}", value]
    try:
        parse_arguments(argv)
    except ConfigError as error:
        assert str(error).strip()


@pytest.mark.parametrize(
    ("words", "metric", "greater"),
    [
        (["--load_best_model_at_end", "--save_strategy", "epoch"], "eval_loss", False),
        (["--save_strategy", "best"], "eval_loss", False),
        (["--metric_for_best_model", "loss/mine"], "loss/mine", False),
        (["--metric_for_best_model", "eval_loss/mine"], "eval_loss/mine", False),
        (["--metric_for_best_model", "eval_loss/mine", "--greater_is_better", "True"], "eval_loss/mine", True),
        ([], None, None),
    ],
)
def test_the_best_checkpoint_is_that_of_the_lowest_loss(
    parse: Parse, words: list[str], metric: str | None, greater: bool | None
) -> None:
    train = parse("--eval_strategy", "epoch", *words)[2]
    assert (train.metric_for_best_model, train.greater_is_better) == (metric, greater)


def test_an_evaluation_takes_as_much_at_once_as_training_unless_told(parse: Parse) -> None:
    assert parse("--per_device_train_batch_size", "3")[2].per_device_eval_batch_size == 3
    assert parse("--per_gpu_eval_batch_size", "5")[2].per_device_eval_batch_size == 5
