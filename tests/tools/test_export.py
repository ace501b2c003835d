"""The tools on model folders, each through its command: what it writes is loaded by others and says the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoTokenizer

from internvl_chat.cli import main
from internvl_chat.constants import IMG_CONTEXT, IMG_END, IMG_START
from internvl_chat.infer.answer import decode
from internvl_chat.infer.chat import Chat
from internvl_chat.infer.load import load
from internvl_chat.infer.pictures import cut_pictures
from internvl_chat.model.build import load_config, load_model
from internvl_chat.tools.tiny import make_tiny

LLMS = ("qwen2", "qwen3", "qwen3_moe", "llama", "phi3", "internlm2")
QUESTIONS = ("What number is written?", "What do you see? Please describe the image shortly.")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {llm: make_tiny(root / llm, llm, seed=5, max_dynamic_patch=4) for llm in LLMS}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    from skimage import data

    folder = tmp_path_factory.mktemp("pictures")
    found = []
    for name in ("chelsea", "coffee", "rocket"):
        Image.fromarray(getattr(data, name)()).save(folder / f"{name}.png")
        found.append(folder / f"{name}.png")
    return found


def through_plain_transformers(folder: Path, question: str, picture: Path) -> tuple[np.ndarray, list[int]]:
    """Tiles and ids of the greedy answer with nothing of ours but the folder: model, image processor, chat template.

    ``AutoProcessor`` would do these steps, but cannot be built without a torchvision that matches this torch.
    """
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    images = GotOcr2ImageProcessorPil.from_pretrained(folder)(Image.open(picture).convert("RGB"), return_tensors="pt")
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    count = json.loads((folder / "processor_config.json").read_text())["image_seq_length"]
    context = IMG_CONTEXT * count * int(images["num_patches"][0])
    ids = tokenizer(
        text.replace(IMG_CONTEXT, IMG_START + context + IMG_END), add_special_tokens=False, return_tensors="pt"
    )
    out = model.generate(**ids, pixel_values=images["pixel_values"], max_new_tokens=12, do_sample=False)
    return images["pixel_values"].numpy(), out[0, ids["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("llm", LLMS)
def test_hf_export_answers_the_same_through_plain_transformers(models, pictures, tmp_path, llm, capsys):
    assert main(["export", str(models[llm]), str(tmp_path / "hf"), "--format", "hf"]) == 0
    assert "its logits differ by at most" in capsys.readouterr().out
    ours = load(models[llm], dtype="float32", device="cpu", image_backend="pillow")
    for number, picture in enumerate(pictures):
        question = QUESTIONS[number % 2]
        tiles, answer = through_plain_transformers(tmp_path / "hf", question, picture)
        cut = cut_pictures([str(picture)], ours.tiles).pixels
        mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        expected = (cut.float() / 255 - mean) / std
        np.testing.assert_allclose(tiles, expected.numpy(), atol=1e-5)
        # Decoded as we do: grounding tokens are special in the releases, and part of an answer.
        assert decode(ours, answer) == Chat(ours).ask(question, [str(picture)], max_new_tokens=12)


@pytest.mark.parametrize("llm", ["qwen2", "internlm2"])
def test_there_and_back_again(models, tmp_path, llm):
    assert main(["export", str(models[llm]), str(tmp_path / "hf")]) == 0
    assert main(["export", str(tmp_path / "hf"), str(tmp_path / "back"), "--format", "original"]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (models[llm], tmp_path / "back"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    card = (tmp_path / "back" / "README.md").read_text()
    assert str(tmp_path / "hf") in card and "pipeline_tag: image-text-to-text" in card


def test_dtype(models, tmp_path):
    assert main(["export", str(models["qwen2"]), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


def test_parts_taken_out_build_the_same_model(models, tmp_path):
    """extract-vit, extract-mlp, and a language model saved by transformers: together they are the whole again."""
    source = models["qwen2"]
    whole = load_model(source, torch.float32)
    vit, mlp, llm = tmp_path / "vit", tmp_path / "mlp.pth", tmp_path / "llm"
    assert main(["extract-vit", str(source), str(vit)]) == 0
    assert main(["extract-mlp", str(source), str(mlp)]) == 0
    assert main(["extract-mlp", str(source), str(tmp_path / "mlp.safetensors")]) == 0
    whole.language_model.save_pretrained(llm)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (llm / file).write_bytes((source / file).read_bytes())
    again = tmp_path / "again"
    assert main(["replace-llm", str(source), str(again), "--llm", str(llm), "--template", "internvl2_5"]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (source, again))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(load_file(tmp_path / "mlp.safetensors")["1.weight"], before["mlp1.1.weight"])
    assert json.loads((vit / "config.json").read_text())["architectures"] == ["InternVisionModel"]


def test_extract_vit_cuts(models, tmp_path):
    assert main(["extract-vit", str(models["qwen2"]), str(tmp_path / "vit"), "--select_layer", "-2"]) == 0
    assert json.loads((tmp_path / "vit" / "config.json").read_text())["num_hidden_layers"] == 1


def test_replace_llm_needs_a_fresh_projector_for_another_width(models, tmp_path, capsys):
    make_tiny(tmp_path / "wide", "llama", llm_hidden=96)
    llm = tmp_path / "llm"
    load_model(tmp_path / "wide", torch.float32).language_model.save_pretrained(llm)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (llm / file).write_bytes((tmp_path / "wide" / file).read_bytes())
    words = ["replace-llm", str(models["qwen2"]), str(tmp_path / "out"), "--llm", str(llm)]
    words += ["--template", "internlm2-chat"]
    assert main(words) == 2
    assert "--fresh_mlp" in capsys.readouterr().err
    assert main([*words, "--fresh_mlp"]) == 0
    config = load_config(tmp_path / "out")
    assert (config.llm_config.model_type, config.hidden_size, config.template) == ("llama", 96, "internlm2-chat")


def test_resize_pos_embed(models, tmp_path, capsys):
    words = ["resize-pos-embed", str(models["qwen2"]), str(tmp_path / "out"), "--image_size"]
    assert main([*words, "70"]) == 2
    assert "must be a multiple of 28" in capsys.readouterr().err
    assert main([*words, "112"]) == 0
    assert load_config(tmp_path / "out").num_image_token == 16


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["export", "{model}", "{full}"], "exists already; choose another OUT"),
        (["export", "{model}", "{out}", "--dtype", "float23"], "did you mean 'float32'"),
        (["export", "{out}", "{out}x"], "no such folder; check the path"),
        (["merge-lora", "{model}", "{out}"], "neither an adapter folder nor a checkpoint with LoRA inside"),
        (["merge-lora", "{model}", "{out}", "--base", "x"], "is no adapter folder"),
        (["extract-mlp", "{model}", "{out}"], "ends in .safetensors or .pth"),
        (["replace-llm", "{model}", "{out}", "--llm", "{model}", "--template", "internvl2_5"], "a whole chat model"),
        (["replace-llm", "{model}", "{out}", "--llm", "{model}", "--template", "internvl"], "is not a template"),
    ],
)
def test_wrong_arguments(models, tmp_path, capsys, words, says):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    places = {"model": models["qwen2"], "out": tmp_path / "out", "full": tmp_path / "full"}
    assert main([word.format(**places) for word in words]) == 2
    assert says in capsys.readouterr().err


def test_ps_v1_cannot_be_exported(tmp_path, capsys):
    make_tiny(tmp_path / "v1", "llama", ps_version="v1")
    assert main(["export", str(tmp_path / "v1"), str(tmp_path / "hf")]) == 2
    assert "ps_version v1" in capsys.readouterr().err and not (tmp_path / "hf").exists()
