"""``internvl estimate``: against tensors counted in real runs, against published figures, and what it says."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.errors import ConfigError
from internvl_chat.model.activations import CPU
from internvl_chat.model.memory import GIB
from internvl_chat.tools import estimate as tool
from internvl_chat.tools.estimate import Estimate, estimate, memory_of
from internvl_chat.tools.estimate_json import to_json
from internvl_chat.tools.estimate_run import read_subject
from internvl_chat.tools.estimate_text import report_lines
from tests.train.runs import flags, run_all


def look(words: list[str], gpus: int = 8, gpu: str | None = None, **own: Any) -> Estimate:
    given = {
        "meta": None,
        "gpu": gpu,
        "gpus": gpus,
        "gpu_memory": None,
        "mfu": None,
        "price": None,
        "json": None,
        **own,
    }
    return estimate(argparse.Namespace(**given), words)


def released(name: str, **values: Any) -> list[str]:
    """Flags of a release that is not on this machine, with data that are not either."""
    every = {"model_name_or_path": f"pretrained/{name}", "meta_path": "gone.json", "bf16": True, **values}
    return [word for key, value in every.items() for word in (f"--{key}", str(value))]


# -- against real runs ------------------------------------------------------------------------------------------------

LORA = {"use_llm_lora": 8, "freeze_llm": True, "freeze_backbone": True}
RUNS: dict[str, tuple[int | None, dict[str, Any]]] = {
    "DDP, all": (None, {}),
    "stage 1, all, checkpointing": (1, {"grad_checkpoint": True}),
    "stage 2, vision frozen": (2, {"freeze_backbone": True}),
    "stage 3, LoRA": (3, LORA),
}


def zero(stage: int, folder: Path) -> Path:
    """Buckets small enough for a tiny model."""
    part: dict[str, Any] = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
    part["reduce_bucket_size"] = part["allgather_bucket_size"] = 100_000
    if stage == 3:
        part |= {"stage3_prefetch_bucket_size": 10_000, "stage3_param_persistence_threshold": 1000}
        part |= {"stage3_max_live_parameters": 100_000, "stage3_max_reuse_distance": 100_000}
    auto = ("gradient_accumulation_steps", "gradient_clipping", "train_batch_size", "train_micro_batch_size_per_gpu")
    path = folder / f"stage{stage}.json"
    path.write_text(json.dumps({"zero_optimization": part, "bf16": {"enabled": "auto"}, **dict.fromkeys(auto, "auto")}))
    return path


@pytest.mark.slow
def test_the_peak_of_two_ranks_is_what_is_counted_there(tmp_path: Path, tiny: Path, mixed_data: Path) -> None:
    jobs, words = [], {}
    for name, (stage, values) in RUNS.items():
        packs = {"use_packed_ds": True, "max_packed_tokens": 600, "num_images_expected": 8, "index_workers": 1}
        every = {**packs, "bf16": True, "max_steps": 2, "gradient_accumulation_steps": 2, **values}
        if stage is not None:
            every["deepspeed"] = zero(stage, tmp_path)
        words[name] = flags(tiny, mixed_data, tmp_path / name, **every)
        jobs.append(["measure", str(tmp_path / f"{name}.json"), *words[name]])
    run_all(jobs, processes=2)
    for name, given in words.items():
        found = max(json.loads((tmp_path / f"{name}.json").read_text())["peaks"][1:])
        subject = read_subject(None, given, 2)
        on_cpu = replace(subject.setting, kernels=CPU)
        subject = replace(subject, setting=on_cpu, keeping=replace(subject.keeping, cuda=False))
        assert subject.measured and subject.steps == 2
        assert memory_of(subject, 2).peak == pytest.approx(found, rel=0.15), name


# -- against published figures ----------------------------------------------------------------------------------------

FULL = {"freeze_backbone": True, "max_dynamic_patch": 6, "dynamic_image_size": True, "use_thumbnail": True}
SIDE = {**FULL, "freeze_llm": True, "freeze_mlp": True, "use_llm_lora": 16}


@pytest.mark.parametrize(
    ("name", "gpus", "gib", "stage", "batch", "trains"),
    [
        ("InternVL2-2B", 8, 30, "zero1", 4, FULL),
        ("InternVL2-8B", 8, 77, "zero1", 4, FULL),
        ("InternVL2-26B", 8, 77, "zero3", 2, FULL),
        ("InternVL2-40B", 16, 77, "zero3", 2, FULL),
        ("InternVL2-2B", 2, 27, "zero1", 4, SIDE),
        ("InternVL2-Llama3-76B", 8, 74, "zero3", 1, SIDE),
    ],
)
def test_published_needs_are_of_the_same_order(
    name: str, gpus: int, gib: int, stage: str, batch: int, trains: dict[str, Any]
) -> None:
    """The published runs made all logits at once (in bf16 and float32, with their gradient): 12 bytes each, put in."""
    values = {"deepspeed": stage, "per_device_train_batch_size": batch, "max_seq_length": 4096, **trains}
    subject = read_subject(None, released(name, gradient_accumulation_steps=4, **values), gpus)
    logits = 12 * subject.config.llm_config.vocab_size * subject.load.tokens
    assert 0.5 * gib < (memory_of(subject, gpus).peak + logits) / GIB < 1.6 * gib


# -- what it says -----------------------------------------------------------------------------------------------------


def test_a_release_is_known_by_name_and_too_large_a_run_gets_advice() -> None:
    words = released("InternVL2_5-78B", deepspeed="zero3", gradient_accumulation_steps=4, max_steps=100, **FULL)
    found = look(words, 8, "H100", price=2.0)
    report = to_json(found)
    assert report["parameters"]["all"]["parameters"] == 78_408_318_336
    assert report["parameters"]["vision"]["trainable"] == 0
    assert report["memory"]["fits"] is False and report["memory"]["largest"] == "optimizer"
    assert "32 GPUs with zero3" in report["advice"]
    assert any("catalogue" in note for note in report["notes"])
    assert report["load"]["measured"] is False
    run = report["run"]
    assert run["steps"] == 100 and run["gpu_hours"] == pytest.approx(8 * run["hours"])
    assert run["cost"] == pytest.approx(2 * run["gpu_hours"])
    rows = report["memory"]["rows"]
    assert sum(rows.values()) == pytest.approx(report["memory"]["peak"]) == max(report["memory"]["phases"].values())
    text = "\n".join(report_lines(found))
    assert "does NOT fit" in text and "GPU-hours" in text and "advice: does not fit" in text
    json.dumps(report)


def test_more_gpus_and_higher_stages_never_take_more() -> None:
    found = look(released("InternVL2_5-8B", deepspeed="zero1", gradient_accumulation_steps=2), 8, "H100").fits
    peaks = {(one.gpus, one.stage): one.peak for one in found}
    for stage in ("zero1", "zero2", "zero3"):
        of_stage = [peaks[count, stage] for count in (2, 4, 8, 16)]
        assert of_stage == sorted(of_stage, reverse=True) and of_stage[0] > of_stage[-1]
    assert peaks[8, "zero1"] > peaks[8, "zero2"] > peaks[8, "zero3"] > peaks[8, "zero3_offload"]


def test_flops_and_hours_by_hand() -> None:
    """Peak 100 TFLOP/s, MFU 50 %, 2 GPUs: hours follow from FLOPs and steps."""
    words = released("InternVL2_5-1B", max_steps=36, peak_tflops=100.0, use_packed_ds=True)
    run = look(words, 2, mfu=0.5).run
    assert run.hours == pytest.approx(36 * run.flops / (100e12 * 0.5 * 2) / 3600)
    assert run.flops_done > run.flops and run.tokens == 2 * 8192
    # Six FLOPs per parameter and token, within what vision and attention add.
    assert run.flops > 6 * 0.49e9 * run.tokens


def test_parts_are_known_by_name() -> None:
    words = ["--vision_path", "pretrained/InternViT-6B-448px-V2_5", "--llm_path", "pretrained/Qwen2.5-72B-Instruct",
             "--conv_style", "internvl2_5", "--meta_path", "gone.json", "--freeze_llm", "True"]  # fmt: skip
    parts = to_json(look(words))["parameters"]
    assert parts["vision"]["parameters"] == pytest.approx(5.5e9, rel=0.05)
    assert parts["language"]["parameters"] == pytest.approx(70e9, rel=0.05)
    assert parts["language"]["trainable"] == 0


def test_data_that_can_be_read_are_measured(tiny: Path, mixed_data: Path) -> None:
    words = ["--model_name_or_path", str(tiny), "--meta_path", str(mixed_data), "--use_packed_ds", "True",
             "--max_packed_tokens", "400", "--max_seq_length", "400", "--index_workers", "1"]  # fmt: skip
    found = look(words, 1)
    assert found.subject.measured and not found.subject.notes
    assert 0 < found.subject.load.tokens <= 400 and found.run.steps
    assert "as the data give it" in "\n".join(report_lines(found))


@pytest.mark.parametrize(
    ("own", "words", "told"),
    [
        ({"gpu": "H10"}, [], "--gpu H10: not known"),
        ({}, ["--model_name_or_path", "no/InternVL9-1B", "--meta_path", "x"], "catalogue of released models"),
        ({}, ["--model_name_or_path", "InternVL2-1B", "--meta_path", "x", "--deepsped", "zero1"], "is not a flag"),
    ],
)
def test_what_is_wrong_is_said(own: dict[str, Any], words: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        look(words, **own)


def test_wrong_own_flags_are_all_said_at_once(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    tool.add_arguments(parser)
    words = ["--gpus", "0", "--mfu", "2", "--price", "-1", "--json", str(tmp_path)]
    with pytest.raises(ConfigError) as error:
        tool.run(parser.parse_args(words))
    assert len(str(error.value).splitlines()) == 4


def test_the_command_writes_json_and_says_by_its_status_whether_it_fits(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    tool.add_arguments(parser)
    words = ["--gpu", "H100", "--gpus", "8", "--json", str(tmp_path / "a" / "b.json")]
    assert tool.run(parser.parse_args([*words, *released("InternVL2_5-1B", deepspeed="zero1")])) == 0
    assert json.loads((tmp_path / "a" / "b.json").read_text())["memory"]["fits"] is True
    assert tool.run(parser.parse_args([*words, *released("InternVL2_5-78B", deepspeed="zero1")])) == 1
