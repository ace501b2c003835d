"""``internvl check`` with the flags of a run: all that would stop it, from every area, at once and without a GPU."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from internvl_chat.errors import ConfigError
from internvl_chat.model.config import InternVisionConfig
from internvl_chat.model.tune import TrainableRow
from internvl_chat.model.vit import InternVisionModel
from internvl_chat.tools import check as tool
from internvl_chat.tools.check import check_all, to_json
from internvl_chat.tools.check_run import checkpoint_bytes
from internvl_chat.tools.data_view import read_flags, read_own, read_view
from tests.data.helpers import line
from tests.tools.test_check import write_manifest
from tests.train.runs import flags, run_all

ZERO = {"zero_optimization": {"stage": 2}, "bf16": {"enabled": "auto"}, "train_batch_size": "auto"}


@pytest.fixture()
def given(tiny: Path, tmp_path: Path) -> dict[str, Any]:
    """Flags of a run that would train: ten lines, an output folder that is not there yet."""
    data = write_manifest(tmp_path, good=[line(f"q {n}", "a") for n in range(10)])
    return {"model_name_or_path": tiny, "meta_path": data, "output_dir": tmp_path / "out", "max_seq_length": 300}


def words_of(given: dict[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in given.items() if value is not None]


def found(given: dict[str, Any], **options: Any) -> dict[str, Any]:
    return to_json(check_all(words_of(given), **options))


def texts(report: dict[str, Any], area: str) -> list[str]:
    return [problem["text"] for problem in report["problems"] if problem["area"] == area]


def test_flags_of_a_script_as_they_are(given: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    tool.add_arguments(parser)
    assert tool.run(parser.parse_args([*words_of(given), "--world_size", "2", "--num_train_epochs", "3"])) == 0
    out = capsys.readouterr().out
    assert "the run would train: 15 steps of 2 x 1 samples with 2 processes" in out
    assert "an epoch of 10 samples" in out and not Path(given["output_dir"]).exists()


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("report_to", "foo", "must be none, all, or some of"),
        ("optim", "adamw_torch_xla", "the package torch_xla is not installed"),
        ("lr_scheduler_kwargs", '{"a": 1}', "unexpected keyword argument 'a'"),
    ],
)
def test_what_the_trainer_would_find_out_late_is_found(given: dict[str, Any], flag: str, value: str, says: str) -> None:
    (problem,) = texts(found({**given, flag: value}), "flags")
    assert problem.startswith(f"--{flag} {value}: ") and says in problem


def test_every_area_speaks_whatever_is_wrong_in_the_others(given: dict[str, Any], tmp_path: Path) -> None:
    model = Path(shutil.copytree(given["model_name_or_path"], tmp_path / "model"))
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:500])
    (tmp_path / "bad.json").write_text(json.dumps({"x": {"annotation": "none.jsonl", "root": "", "colour": 1}}))
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimisation": {"stage": 2}, "bf16": {"enabled": False}}))
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.safetensors").touch()
    changes = {
        "model_name_or_path": model,
        "meta_path": tmp_path / "bad.json",
        "learning_rate": "fast",
        "max_seq_lenght": 5,
        "use_llm_lora": 4,
        "lora_llm_targets": "q_porj",
        "deepspeed": tmp_path / "zero.json",
        "bf16": True,
    }
    report = found({**given, **changes})
    assert not report["would_train"] and report["data_sets"] == [] and report["run"] is None
    flag_problems = texts(report, "flags")
    assert any("--learning_rate 'fast'" in text for text in flag_problems)
    assert any("--max_seq_lenght is not a flag" in text for text in flag_problems) and len(flag_problems) == 2
    assert any("colour" in text for text in texts(report, "manifest"))
    (cut,) = texts(report, "model")
    assert f"{model / 'model.safetensors'}: the weights cannot be loaded" in cut
    (target,) = texts(report, "trains")
    assert "--lora_llm_targets q_porj: no such linear layer" in target and "q_proj" in target
    zero = " ".join(texts(report, "deepspeed"))
    assert "bf16.enabled=False contradicts the flags" in zero and "'zero_optimization'" in zero
    assert (
        "--output_dir" in texts(report, "output")[0] and "nothing this program can resume" in texts(report, "output")[0]
    )
    assert report["reasons"] == [problem["text"] for problem in report["problems"]]


@pytest.mark.parametrize(
    ("changes", "area", "says"),
    [
        ({"freeze_llm": True, "freeze_mlp": True, "freeze_backbone": True}, "trains", "nothing trains"),
        ({"freeze_backbone": True, "unfreeze_vit_layers": -9}, "trains", "--unfreeze_vit_layers -9"),
        ({"model_name_or_path": "OpenGVLab/NoSuchModel-1B"}, "model", "not in the hub's cache; hf download"),
        ({"force_image_size": 50}, "model", "--force_image_size 50: must be a multiple of 28"),
        ({"down_sample_ratio": 0.25}, "model", "--down_sample_ratio 0.25 contradicts the checkpoint"),
        ({"resume_from_checkpoint": "nowhere"}, "output", "there is no such folder"),
        ({"eval_strategy": "epoch"}, "eval", "there is nothing to evaluate on"),
        ({"eval_strategy": "epoch", "eval_meta_path": "meta"}, "eval", "name one like it|nothing to evaluate|colour"),
        ({"deepspeed": '{"zero_optimization": '}, "deepspeed", "is not JSON"),
        ({"deepspeed": json.dumps({**ZERO, "train_batch_size": 64})}, "deepspeed", "train_batch_size=64 contradicts"),
        ({"deepspeed": json.dumps({"zero_optimization": {"stage": 2, "bucket": 1}})}, "deepspeed", "bucket: Extra"),
        ({"deepspeed": json.dumps({"train_batch_size": "auto"})}, "deepspeed", "stage 0"),
        ({"deepspeed": json.dumps({"zero_optimization": {"stage": 1}})}, "deepspeed", "per_gpu\" is missing"),
        ({"deepspeed": json.dumps({**ZERO, "optimizer": {"type": "AdamW"}}), "vit_lr": 1e-5}, "deepspeed", "one rate"),
        ({"load_in_4bit": True, "use_llm_lora": 4, "deepspeed": "zero2"}, "flags", "cannot be sharded"),
        ({"lr_scheduler_type": "wavy"}, "flags", "wavy"),
    ],
)  # fmt: skip
def test_one_thing_wrong_is_one_problem(
    given: dict[str, Any], tmp_path: Path, changes: dict[str, Any], area: str, says: str
) -> None:
    import re

    if changes.get("eval_meta_path") == "meta":
        (tmp_path / "eval.json").write_text(json.dumps({"e": {"annotation": "none.jsonl", "root": "", "colour": 1}}))
        changes = {**changes, "eval_meta_path": tmp_path / "eval.json"}
    report = found({**given, **changes})
    assert {problem["area"] for problem in report["problems"]} == {area}, report["problems"]
    assert any(re.search(says, text) for text in texts(report, area)), texts(report, area)
    if "model_name_or_path" not in changes:
        assert report["epoch"]["samples"] == 10, "the data are looked at all the same"


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "zero3_offload", "zero_stage1_config.json"])
def test_shipped_configurations_pass(given: dict[str, Any], name: str) -> None:
    report = found({**given, "deepspeed": name, "bf16": True, "gradient_accumulation_steps": 2}, world=4)
    assert report["problems"] == [] and report["would_train"]
    assert report["run"]["world"] == 4 and report["run"]["done"] is None


def test_two_manifests_are_one_too_many(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"META other.json and --meta_path .*meta.json are two manifests"):
        read_flags(words_of(given), "other.json")
    data = read_flags(words_of(given), str(given["meta_path"]))[1]
    assert data.meta_path == str(given["meta_path"])


def test_words_of_the_tools(given: dict[str, Any]) -> None:
    def own(words: list[str], extra: tuple[str, str] | None = None) -> tuple[Any, Any, list[str]]:
        args, rest = read_own(argparse.Namespace(flags=words), "x", tool.add_own, extra)
        return args.meta, args.extra, rest

    out = ("OUT_DIR", "a folder")
    assert own(["--a", "1", "--json", "-", "--b"]) == (None, None, ["--a", "1", "--b"])
    assert own(["--json", "-", "m.json", "--a", "1"]) == ("m.json", None, ["--a", "1"])
    assert own(["m.json", "flags.json", "--a"]) == ("m.json", None, ["flags.json", "--a"])
    assert own(["out", "--meta_path", "m.json"], out) == (None, "out", ["--meta_path", "m.json"])
    assert own(["m.json", "out", "--a"], out) == ("m.json", "out", ["--a"])
    with pytest.raises(ConfigError, match="OUT_DIR is missing"):
        own(["--meta_path", "m.json"], out)


def test_the_file_of_flags_may_come_first_as_in_train(tmp_path: Path, given: dict[str, Any]) -> None:
    file, manifest = tmp_path / "args.json", str(given["meta_path"])
    file.write_text(json.dumps(given, default=str))
    for words, meta, extra, rest in (
        ([str(file), "--seed", "1"], None, None, [str(file), "--seed", "1"]),
        ([str(file), manifest, "--seed", "1"], manifest, None, [str(file), "--seed", "1"]),
        ([str(file), "out", "--seed", "1"], None, "out", [str(file), "--seed", "1"]),
        ([manifest, str(file)], manifest, None, [str(file)]),
    ):
        wanted = None if extra is None else ("OUT_DIR", "a folder")
        args, found = read_own(argparse.Namespace(flags=words), "x", tool.add_own, wanted)
        assert (args.meta, args.extra, found) == (meta, extra, rest)
    assert read_flags([str(file)])[1].meta_path == manifest


def test_a_weight_file_that_lacks_a_tensor(given: dict[str, Any], tmp_path: Path) -> None:
    model = Path(shutil.copytree(given["model_name_or_path"], tmp_path / "model"))
    tensors = load_file(model / "model.safetensors")
    del tensors["mlp1.1.weight"]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    report = found({**given, "model_name_or_path": model})
    assert ["1 missing: mlp1.1.weight" in text for text in texts(report, "model")] == [True]


def test_parts_are_looked_at_without_being_built(given: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = InternVisionConfig(
        image_size=28, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    InternVisionModel(config).save_pretrained(tmp_path / "vit")
    tiny, llm = Path(given.pop("model_name_or_path")), tmp_path / "llm"
    shutil.copytree(tiny, llm)
    state_dict = load_file(tiny / "model.safetensors")
    prefix = "language_model."
    llm_only = {n.removeprefix(prefix): t for n, t in state_dict.items() if n.startswith(prefix)}
    save_file(llm_only, llm / "model.safetensors", metadata={"format": "pt"})
    (llm / "config.json").write_text(json.dumps(json.loads((tiny / "config.json").read_text())["llm_config"]))
    parts = {**given, "vision_path": tmp_path / "vit", "llm_path": llm, "conv_style": "internvl2_5"}
    report = found(parts)
    assert report["problems"] == [] and report["epoch"]["samples"] == 10
    view = read_view(None, words_of(parts))
    assert view.built and view.model.llm_path == str(llm) and not Path(given["output_dir"]).exists()
    save_file({"0.weight": torch.ones(5)}, tmp_path / "mlp.safetensors")
    report = found({**parts, "mlp_path": tmp_path / "mlp.safetensors"})
    assert ["not the projector" in text for text in texts(report, "model")] == [True]
    (tmp_path / "vit" / "model.safetensors").unlink()
    report = found(parts)
    assert ["no weights" in text for text in texts(report, "model")] == [True]
    assert report["epoch"]["samples"] == 10


def test_checkpoints_that_will_not_fit_are_a_hint(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    hints = found({**given, "save_steps": 3, "save_total_limit": 1})["hints"]
    assert any("2 checkpoints of about" in hint and "0.0 GB are free" in hint for hint in hints)
    assert found({**given})["would_train"]


def test_bytes_of_a_checkpoint() -> None:
    rows = [TrainableRow("language_model", 1, 1000, 0, "bfloat16"), TrainableRow("language LoRA", 1, 10, 10, "float32")]
    assert checkpoint_bytes(rows, False, False) == 10 * 4 + 10 * 8
    whole = [TrainableRow("language_model", 1, 1000, 1000, "float32")]
    assert checkpoint_bytes(whole, False, False) == 1000 * (4 + 8)
    assert checkpoint_bytes(whole, False, True) == 4000
    assert checkpoint_bytes(whole, True, False) == 1000 * (2 + 2 + 12)


@pytest.mark.slow
def test_a_run_to_go_on_with(tiny: Path, mixed_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}
    run_all([flags(tiny, mixed_data, out, **run)])
    shutil.rmtree(out / "checkpoint-4")

    def look(**changes: Any) -> dict[str, Any]:
        return to_json(check_all(flags(tiny, changes.pop("data", mixed_data), out, **{**run, **changes})))

    report = look()
    assert report["problems"] == [] and (report["run"]["done"], report["run"]["steps"]) == (2, 4)
    assert ["freeze_mlp: False then, True now" in text for text in texts(look(freeze_mlp=True), "resume")] == [True]
    assert ["without --deepspeed and cannot go on with" in t for t in texts(look(deepspeed="zero2"), "resume")] == [
        True
    ]
    lines = mixed_data.with_suffix(".jsonl").read_text().splitlines()
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("\n".join(lines[:-1]) + "\n")
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"mixed": {"root": str(mixed_data.parent), "annotation": str(fewer)}}))
    report = look(data=other)
    assert ["8 usable lines then, 7 now" in text for text in texts(report, "resume")] == [True]
    again = look(overwrite_output_dir=True)
    assert again["problems"] == [] and again["run"]["done"] is None
