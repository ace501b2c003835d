"""LoRA by `internvl train`: the losses of one process on several, small checkpoints, exact resume, a merged model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from internvl_chat.model.build import load_model
from internvl_chat.tools.tiny import make_tiny
from internvl_chat.train.main import train
from tests.train.runs import flags, losses, run_all, weights
from tests.train.test_zero import STAGES, zero_config

ADAPTER = "adapter/adapter_model.safetensors"
LORA = {"freeze_llm": True, "freeze_backbone": True, "use_llm_lora": 4, "lora_dropout": 0.0}
WIDE = {**LORA, "use_backbone_lora": 2, "unfreeze_lm_head": True, "vit_lr": 0.003, "mlp_lr": 0.002}
# With these qwen2 and internlm2 are compared over the ZeRO stages.
COMPARED = {"qwen2": WIDE, "internlm2": LORA}
SHARED = {"max_steps": 4, "max_grad_norm": 1.0}
# Chance is in it, so that a resumed run shows whether it went on with the very same numbers.
SAVING = {**LORA, **SHARED, "use_backbone_lora": 2, "lora_dropout": 0.1, "save_strategy": "steps", "save_steps": 2}
BF16 = {"bf16": True, "max_steps": 2, "learning_rate": 0.001}
# What trains in them, of each of the two.
IN_BF16: dict[str, dict[str, Any]] = {"qwen2": LORA, "internlm2": {"drop_path_rate": 0.0}}
# Bytes of a checkpoint in multiples of the adapter's: weights and two moments; DeepSpeed's states have fp32 masters
# besides, and those of ZeRO-1 and 2 the weights once more.
PARTS_ON_DISK = {"none": 3, "zero1": 5, "zero2": 5, "zero3": 4}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models ``qwen2`` and ``internlm2``, and ``wide``, whose frozen weights would show in any file."""
    root = tmp_path_factory.mktemp("bases")
    for name, llm, hidden in (("qwen2", "qwen2", 32), ("internlm2", "internlm2", 32), ("wide", "qwen2", 256)):
        make_tiny(root / name, llm, image_size=28, vision_hidden=32, llm_hidden=hidden, max_dynamic_patch=3)
    return root


def saving_jobs(model: Path, data: Path, root: Path, name: str, **changes: Any) -> list[list[str]]:
    """A run, and the same run from its third step on."""
    checkpoint = "checkpoint-2"
    return [
        flags(model, data, root / f"{name}-whole", **SAVING, **changes),
        ["copy", str(root / f"{name}-whole" / checkpoint), str(root / f"{name}-resumed" / checkpoint)],
        flags(model, data, root / f"{name}-resumed", **SAVING, **changes),
    ]


@pytest.fixture(scope="module")
def alone(models: Path, mixed_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process without DeepSpeed."""
    root = tmp_path_factory.mktemp("alone")
    jobs = saving_jobs(models / "wide", mixed_data, root, "none")
    jobs.append(jobs[-1])  # started once more at its end, a run must leave everything as it is
    for llm, lora in COMPARED.items():
        words = {**lora, **SHARED, "gradient_accumulation_steps": 2, "report_to": "tensorboard"}
        jobs.append(flags(models / llm, mixed_data, root / llm, **words))
    for name in ("use_dora", "use_rslora"):
        jobs.append(flags(models / "qwen2", mixed_data, root / name, **LORA, **{name: True}, max_steps=3))
    jobs.append(flags(models / "qwen2", mixed_data, root / "apart", **LORA, merge_lora=False, max_steps=1))
    run_all(jobs)
    return root


@pytest.fixture(scope="module")
def together(models: Path, mixed_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two processes with DeepSpeed."""
    root = tmp_path_factory.mktemp("together")
    jobs: list[list[str]] = []
    for stage in STAGES:
        config = zero_config(stage, root)
        jobs += saving_jobs(models / "wide", mixed_data, root, stage, deepspeed=config)
        for llm, lora in COMPARED.items():
            jobs.append(flags(models / llm, mixed_data, root / f"{stage}-{llm}", deepspeed=config, **lora, **SHARED))
            if stage != "zero2":
                out = root / f"{stage}-{llm}-bf16"
                jobs.append(flags(models / llm, mixed_data, out, deepspeed=config, **IN_BF16[llm], **BF16))
    dora = {**LORA, "use_dora": True, "max_steps": 2}
    jobs.append(flags(models / "qwen2", mixed_data, root / "dora", deepspeed=root / "zero3.json", **dora))
    run_all(jobs, processes=2)
    return root


# -- several processes ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("llm", COMPARED)
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_have_the_losses_of_one(alone: Path, together: Path, stage: str, llm: str) -> None:
    assert len(losses(alone / llm)) == 4
    assert losses(together / f"{stage}-{llm}") == pytest.approx(losses(alone / llm), rel=1e-5)
    expected, found = weights(alone / llm), weights(together / f"{stage}-{llm}")
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["none", *STAGES])
def test_resumed_run_goes_on_bit_for_bit(alone: Path, together: Path, stage: str) -> None:
    root = alone if stage == "none" else together
    whole, resumed = root / f"{stage}-whole", root / f"{stage}-resumed"
    assert losses(whole)[2:] == losses(resumed)
    expected, found = load_file(whole / ADAPTER), load_file(resumed / ADAPTER)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert all(torch.equal(tensor, weights(resumed)[name]) for name, tensor in weights(whole).items())


# -- what is on disk --------------------------------------------------------------------------------------------------


def tensors_in(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested lists and mappings, with the keys that lead to it."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from tensors_in(inner, f"{path}/{key}")
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from tensors_in(inner, f"{path}/{number}")


def all_tensors(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in (path for path in folder.rglob("*") if path.is_file()):
        if file.suffix == ".safetensors":
            found |= {f"{file.name}:/{name}": tensor for name, tensor in load_file(file).items()}
        elif file.suffix in (".pt", ".pth", ".bin"):
            state = torch.load(file, weights_only=False)
            found |= {f"{file.name}:{name}": tensor for name, tensor in tensors_in(state)}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["none", *STAGES])
def test_checkpoint_holds_only_what_trains(alone: Path, together: Path, stage: str) -> None:
    folder = (alone if stage == "none" else together) / f"{stage}-whole" / "checkpoint-2"
    adapter = load_file(folder / "adapter_model.safetensors")
    trained = sum(tensor.numel() * tensor.element_size() for tensor in adapter.values())
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    allowed = PARTS_ON_DISK[stage] * trained
    assert allowed < size <= 1.2 * allowed
    base = (alone / "none-whole" / "model.safetensors").stat().st_size
    assert base > 1.2 * allowed, "the frozen weights alone would be more than is allowed"
    names = {name.removeprefix("base_model.model.").replace(".default", "") for name in adapter}
    for name, tensor in all_tensors(folder).items():
        leaf = name.rsplit("/", 1)[-1].removeprefix("base_model.model.").replace(".default", "")
        if leaf.endswith((".weight", ".bias")):
            assert leaf in names, name
        assert "base_layer" not in name and "embed_tokens" not in name
        assert tensor.numel() * tensor.element_size() <= 1.2 * trained, name


@pytest.mark.slow
def test_adapter_alone_if_merging_is_not_wanted(alone: Path) -> None:
    out = alone / "apart"
    assert sorted(path.name for path in (out / "adapter").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "internvl_adapter.json",
    ]  # fmt: skip
    assert not [*out.glob("*.safetensors"), *out.glob("config.json")]


@pytest.mark.slow
@pytest.mark.parametrize("llm", COMPARED)
def test_tensorboard_shows_what_trains(alone: Path, llm: str) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = {path.parent for path in (alone / llm).rglob("events.out.tfevents.*")}
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    tags = accumulator.Tags()["tensors"]
    (tag,) = [tag for tag in tags if tag.startswith("what trains")]
    text = accumulator.Tensors(tag)[0].tensor_proto.string_val[0].decode()
    assert "language LoRA" in text and "trainable" in text


# -- the final model --------------------------------------------------------------------------------------------------


def logits_of(model: Any) -> Tensor:
    """Of a text with one tile in it."""
    token = getattr(model.config, "img_context_token_id", None) or model.config.image_token_id
    ids = torch.tensor([[1, 2, token, 5, 6, 7, 40, 41]])
    tile = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(input_ids=ids, pixel_values=tile).logits.float()


def answer_all_ways(base: Path, out: Path, target: Path) -> None:
    """Run in a process of its own: the logits of every way to read what a run has left."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    from internvl_chat.model.merge import load_merged
    from internvl_chat.model.save import save_hf_folder

    merged, tokenizer = load_merged(out / "adapter")
    save_hf_folder(merged, tokenizer, target / "hf")
    native, info = AutoModelForImageTextToText.from_pretrained(target / "hf", output_loading_info=True)
    assert type(native).__name__ == "InternVLForConditionalGeneration"
    assert not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])
    wrapped = PeftModel.from_pretrained(load_model(base, "auto"), str(out / "adapter"))
    ways = {"folder": load_model(out, "auto"), "merged": merged, "native": native, "peft": wrapped}
    ways["base"] = load_model(base, "auto")
    torch.save({name: logits_of(model) for name, model in ways.items()}, target / "logits.pt")


READ_AGAIN = {
    "qwen2": "qwen2",
    "internlm2": "internlm2",
    "use_dora": "qwen2",
    "use_rslora": "qwen2",
    "none-whole": "wide",
}


@pytest.fixture(scope="module")
def answers(alone: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """Logits of every run of ``READ_AGAIN`` in every way to read it, by a process that knows only the folders."""
    root = tmp_path_factory.mktemp("answers")
    words = [str(word) for run, base in READ_AGAIN.items() for word in (models / base, alone / run, root / run)]
    run_all([["call", f"{__name__}:answer_all", *words]])
    return {run: torch.load(root / run / "logits.pt") for run in READ_AGAIN}


def answer_all(words: list[str]) -> None:
    for start in range(0, len(words), 3):
        answer_all_ways(*map(Path, words[start : start + 3]))


@pytest.mark.slow
@pytest.mark.parametrize("run", READ_AGAIN)
def test_every_reader_gets_the_same_model(answers: dict[str, dict[str, Tensor]], run: str) -> None:
    found = answers[run]
    assert torch.equal(found["folder"], found["merged"])
    torch.testing.assert_close(found["native"], found["folder"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["peft"], found["folder"], rtol=1e-5, atol=1e-5)
    assert (found["base"] - found["folder"]).abs().max() > 0.5


@pytest.mark.slow
def test_dora_and_rslora_say_so_in_the_adapter(alone: Path, together: Path) -> None:
    config = {name: json.loads((alone / name / "adapter" / "adapter_config.json").read_text()) for name in RARE}
    assert [config[name][name] for name in RARE] == [True, True]
    for folder in (alone / "use_dora", together / "dora"):
        adapter = load_file(folder / ADAPTER)
        magnitudes = [tensor for name, tensor in adapter.items() if "lora_magnitude_vector" in name]
        assert len(magnitudes) == 14 and all(tensor.numel() for tensor in magnitudes)
    one, two = (load_file(folder / ADAPTER) for folder in (alone / "use_dora", together / "dora"))
    assert {name: tensor.shape for name, tensor in one.items()} == {name: t.shape for name, t in two.items()}


RARE = ("use_dora", "use_rslora")


# -- bf16 -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("llm", IN_BF16)
def test_bf16_ends_in_the_same_model_under_zero1_and_zero3(together: Path, models: Path, llm: str) -> None:
    one, three = (weights(together / f"{stage}-{llm}-bf16") for stage in ("zero1", "zero3"))
    base = weights(models / llm)
    assert one.keys() == three.keys() == base.keys()
    assert {tensor.dtype for tensor in one.values()} == {tensor.dtype for tensor in three.values()}
    # Adam makes a whole step of the smallest gradient, so rounding moves single numbers; together they must agree.
    apart = sum((three[name].float() - one[name].float()).square().sum() for name in one)
    moved = sum((one[name].float() - base[name].bfloat16().float()).square().sum() for name in one)
    assert apart < 0.1**2 * moved
    assert losses(together / f"zero3-{llm}-bf16") == pytest.approx(losses(together / f"zero1-{llm}-bf16"), rel=2**-8)


# -- in this process --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_bf16_without_deepspeed_keeps_what_trains_in_fp32(models: Path, mixed_data: Path, tmp_path: Path) -> None:
    trainer = train(flags(models / "qwen2", mixed_data, tmp_path, **LORA, bf16=True, max_steps=2))
    for name, parameter in trainer.model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
    assert {tensor.dtype for tensor in load_file(tmp_path / ADAPTER).values()} == {torch.float32}


@pytest.mark.slow
def test_parts_have_their_learning_rates(models: Path, mixed_data: Path, tmp_path: Path) -> None:
    words = {**WIDE, "max_steps": 1, "merge_lora": False, "weight_decay": 0.1, "lr_scheduler_type": "constant"}
    trainer = train(flags(models / "qwen2", mixed_data, tmp_path, **words))
    rates: dict[int, float] = {}
    for group in trainer.optimizer.param_groups:
        assert group["params"]
        for parameter in group["params"]:
            assert id(parameter) not in rates, "in two groups"
            rates[id(parameter)] = group["lr"]
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert {id(parameter) for parameter in trained.values()} == rates.keys()
    for name, parameter in trained.items():
        wanted = 0.003 if ".vision_model." in name else 0.002 if ".mlp1." in name else 0.01
        assert rates[id(parameter)] == wanted, name
