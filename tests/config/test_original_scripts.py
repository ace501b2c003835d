"""Command lines of the original's own scripts (figures of its shell folder): they parse, or say what is not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from internvl_chat.config.parse import parse_arguments
from internvl_chat.config.zero import FOLDER
from internvl_chat.errors import ConfigError

Words = Callable[[str], list[str]]

IN_ALL = """
--bf16 True --do_train True --down_sample_ratio 0.5 --evaluation_strategy no --force_image_size 448
--grad_checkpoint True --logging_steps 1 --lr_scheduler_type cosine --output_dir {out} --report_to tensorboard
--vision_select_layer -1 --meta_path {meta} --overwrite_output_dir True
"""
# Packed, all of the model trains, square-root loss weights.
V2_5_STAGE_2 = (
    IN_ALL
    + """
--model_name_or_path ./pretrained/InternVL2_5-8B-stage1.5 --conv_style internvl2_5 --use_fast_tokenizer False
--freeze_llm False --freeze_mlp False --freeze_backbone False --drop_path_rate 0.1 --ps_version v2
--dynamic_image_size True --use_thumbnail True --min_num_frame 8 --max_num_frame 32 --max_seq_length 16384
--use_packed_ds True --num_images_expected 48 --max_packed_tokens 16384 --max_buffer_size 20 --log_freq 1000
--strict_mode False --replacement False --allow_overflow False --remove_unused_columns False
--loss_reduction square --loss_reduction_all_gather True --group_by_length False
--dataloader_num_workers 8 --max_steps 5500 --per_device_train_batch_size 1 --gradient_accumulation_steps 1
--save_strategy steps --save_steps 100 --save_total_limit 3 --learning_rate 4e-5 --weight_decay 0.05
--warmup_ratio 0.03 --deepspeed zero_stage1_config.json
"""
)
# Padded, grouped by length, vision tower frozen.
V2_0_SECOND_FINETUNE = (
    IN_ALL
    + """
--model_name_or_path ./pretrained/InternVL2-8B --conv_style internlm2-chat --max_dynamic_patch 6
--drop_path_rate 0.1 --freeze_llm False --freeze_mlp False --freeze_backbone True --dataloader_num_workers 4
--num_train_epochs 1 --per_device_train_batch_size 4 --gradient_accumulation_steps 4 --save_strategy steps
--save_steps 200 --save_total_limit 1 --learning_rate 4e-5 --weight_decay 0.05 --warmup_ratio 0.03
--max_seq_length 4096 --group_by_length True --dynamic_image_size True --use_thumbnail True --ps_version v2
--deepspeed zero_stage1_config.json
"""
)
V2_0_LORA = V2_0_SECOND_FINETUNE.replace("--freeze_llm False", "--freeze_llm True --use_llm_lora 16")
V1_2_FINETUNE = (
    V2_0_SECOND_FINETUNE.replace("zero_stage1_config.json", "zero_stage3_config_34b.json")
    .replace("--model_name_or_path ./pretrained/InternVL2-8B", "--model_name_or_path x")
    .replace("--conv_style internlm2-chat", "--conv_style Hermes-2")
    .replace("--dynamic_image_size True --use_thumbnail True", "--dynamic_image_size False")
    .replace("--ps_version v2", "--ps_version v1")
)
FROM_PARTS = V2_0_SECOND_FINETUNE.replace(
    "--model_name_or_path ./pretrained/InternVL2-8B",
    "--vision_path ./pretrained/InternViT-300M-448px --llm_path ./pretrained/internlm2_5-7b-chat",
)
MPO = (
    V2_0_SECOND_FINETUNE.replace("--group_by_length True", "--group_by_length False")
    + "--loss_type sigmoid,bco_pair --sigmoid_loss_weight 0.8 --bco_pair_loss_weight 0.2 --rpo_alpha 1 --use_liger True"
    + " --use_data_resampling False --pad2square False"
)


@pytest.fixture
def words(tmp_path: Path) -> Words:
    (tmp_path / "meta.json").write_text("{}")

    def split(script: str) -> list[str]:
        return script.format(out=tmp_path / "out", meta=tmp_path / "meta.json").split()

    return split


def test_packed_stage_2_of_2_5(words: Words) -> None:
    model, data, train, notes = parse_arguments(words(V2_5_STAGE_2))
    assert (model.freeze_llm, model.freeze_mlp, model.freeze_backbone) == (False, False, False)
    assert (model.drop_path_rate, model.ps_version, model.vision_select_layer) == (0.1, "v2", -1)
    assert (data.use_packed_ds, data.max_packed_tokens, data.num_images_expected) == (True, 16384, 48)
    assert (data.loss_reduction, data.conv_style, data.max_seq_length) == ("square", "internvl2_5", 16384)
    assert (train.max_steps, train.learning_rate, train.weight_decay, train.warmup_steps) == (5500, 4e-5, 0.05, 0.03)
    assert (train.bf16, train.eval_strategy, train.save_total_limit) == (True, "no", 3)
    assert train.deepspeed == str(FOLDER / "zero1.json")
    assert train.train_sampling_strategy == "random"
    told = [note.split(" ")[0].removeprefix("--") for note in notes]
    assert sorted(told) == [
        *("evaluation_strategy", "log_freq", "loss_reduction_all_gather", "max_buffer_size"),
        *("remove_unused_columns", "use_fast_tokenizer", "warmup_ratio"),
    ]
    assert (data.min_num_frame, data.max_num_frame) == (8, 32)


def test_second_finetune_of_2_0(words: Words) -> None:
    model, data, train, notes = parse_arguments(words(V2_0_SECOND_FINETUNE))
    assert (model.freeze_llm, model.freeze_backbone) == (False, True)
    assert (data.use_packed_ds, data.max_dynamic_patch, data.max_seq_length) == (False, 6, 4096)
    assert (train.per_device_train_batch_size, train.gradient_accumulation_steps) == (4, 4)
    assert train.train_sampling_strategy == "group_by_length"
    assert train.overwrite_output_dir is True
    assert len(notes) == 3


def test_finetune_of_1_2_without_tiles(words: Words) -> None:
    model, data, train, _ = parse_arguments(words(V1_2_FINETUNE))
    assert (data.dynamic_image_size, data.use_thumbnail, model.ps_version) == (False, None, "v1")
    assert train.deepspeed == str(FOLDER / "zero3.json")


def test_lora(words: Words) -> None:
    model, *_ = parse_arguments(words(V2_0_LORA))
    assert (model.freeze_llm, model.use_llm_lora, model.use_backbone_lora) == (True, 16, 0)


def test_building_from_parts(words: Words) -> None:
    model, *_ = parse_arguments(words(FROM_PARTS))
    assert model.model_name_or_path is None
    assert model.vision_path == "./pretrained/InternViT-300M-448px"


def test_what_a_script_asks_for_and_is_not_there_is_named_and_nothing_else(words: Words) -> None:
    refused = ["--loss_type", "--sigmoid_loss_weight", "--bco_pair_loss_weight", "--rpo_alpha", "--use_liger"]
    with pytest.raises(ConfigError) as error:
        parse_arguments(words(MPO))
    problems = str(error.value).splitlines()
    assert [problem.split(" ")[0] for problem in problems] == refused
    assert all("not a flag" not in problem for problem in problems)


def test_offload_of_1_2(words: Words) -> None:
    *_, train, _ = parse_arguments(words(V1_2_FINETUNE.replace("config_34b", "config_100b_1e7_offload")))
    assert train.deepspeed == str(FOLDER / "zero3_offload.json")


def test_appended_flags_override_the_scripts(words: Words) -> None:
    _, data, train, _ = parse_arguments([*words(V2_5_STAGE_2), "--learning_rate", "1e-6", "--max_packed_tokens=32768"])
    assert (train.learning_rate, data.max_packed_tokens) == (1e-6, 32768)
