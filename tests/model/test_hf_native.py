"""Original layout -> ours -> HF-native -> ours -> original: nothing is lost, and plain transformers agrees."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.model.build import load_config, load_model
from internvl_chat.model.save import save_hf_folder, save_model_folder
from internvl_chat.model.tokenizer import load_tokenizer

LLMS = ("qwen2", "qwen3", "qwen3_moe", "llama", "phi3", "internlm2")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def logits_of(model, pixels: bool = True) -> torch.Tensor:
    token, count = model.config.img_context_token_id, 8
    ids = torch.tensor([[1, 2, *[token] * count, 5, 6, 7]])
    tiles = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=tiles).logits


@pytest.mark.parametrize("vision_norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("llm", LLMS)
def test_round_trip_over_the_hf_native_layout(tiny_folder, tmp_path, llm, vision_norm):
    source = tiny_folder(llm, vision_norm)
    model, tokenizer = load_model(source, torch.float32), load_tokenizer(source)
    save_hf_folder(model, tokenizer, tmp_path / "hf", stop_token_ids=[3])
    native, info = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "hf", dtype=torch.float32, output_loading_info=True
    )
    assert type(native).__name__ == "InternVLForConditionalGeneration"
    assert not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])
    native.config.img_context_token_id = native.config.image_token_id
    expected = logits_of(model)
    torch.testing.assert_close(logits_of(native), expected, atol=2e-6, rtol=1e-5)
    assert native.generation_config.eos_token_id[0] == 3

    again = load_model(tmp_path / "hf", torch.float32)
    assert torch.equal(logits_of(again), expected)
    save_model_folder(again, load_tokenizer(tmp_path / "hf"), tmp_path / "back")
    before, after = tensors(source), tensors(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    old, new = load_config(source).to_dict(), load_config(tmp_path / "back").to_dict()
    for config in (old, new):
        config["architectures"] = None
        config.pop("_name_or_path", None)
    assert old == new
    back = load_tokenizer(tmp_path / "back")
    assert back.get_vocab() == tokenizer.get_vocab(), "the processor's <video> has no row in the model"
    text = "Where is <ref>the cat</ref>?\n<img> 中文 <video>"
    assert back(text).input_ids == tokenizer(text).input_ids
    files = [json.loads((folder / "tokenizer_config.json").read_text()) for folder in (source, tmp_path / "back")]
    assert files[0].keys() == files[1].keys()
    # What readers before transformers 5 look for; without it they assume theta 10000.
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert written["text_config"]["rope_theta"] == 10000.0 and "rope_scaling" in written["text_config"]
    assert written["torch_dtype"] == "float32"


def test_folder_that_transformers_itself_wrote(tiny_folder, tmp_path):
    """Its own names, no word of ours in the config: a published ``-hf`` release."""
    source = tiny_folder("qwen2")
    model, tokenizer = load_model(source, torch.float32), load_tokenizer(source)
    save_hf_folder(model, tokenizer, tmp_path / "hf")
    native = AutoModelForImageTextToText.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    native.save_pretrained(tmp_path / "theirs")
    tokenizer.save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    raw = json.loads(path.read_text())
    raw.pop("internvl_chat")
    path.write_text(json.dumps(raw))
    found = load_model(tmp_path / "theirs", torch.float32)
    assert torch.equal(logits_of(found), logits_of(model))
    assert (found.config.template, found.config.max_dynamic_patch, found.config.use_thumbnail) == (
        "internvl2_5", 12, True,
    )  # fmt: skip


def test_names_of_today_are_read(tiny_folder, tmp_path):
    """Newer files carry the module names of transformers 5 (model.language_model.*, lm_head.*)."""
    from safetensors.torch import save_file

    source = tiny_folder("qwen3")
    model = load_model(source, torch.float32)
    save_hf_folder(model, load_tokenizer(source), tmp_path)
    names = {"language_model.lm_head.": "lm_head.", "language_model.model.": "model.language_model."}
    state = {}
    for name, tensor in tensors(tmp_path).items():
        old = next((n for n in names if name.startswith(n)), None)
        state[names[old] + name.removeprefix(old) if old else f"model.{name}"] = tensor
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(logits_of(load_model(tmp_path, torch.float32)), logits_of(model))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"ps_version": "v1"}, "ps_version v1"),
        ({"use_thumbnail": False}, "thumbnail"),
        ({"pad2square": True}, "pad2square"),
    ],
)
def test_what_hf_native_cannot_express_is_refused(tiny_folder, tmp_path, values, reason):
    source = tiny_folder("qwen2")
    model = load_model(source, torch.float32, config_overrides=values)
    with pytest.raises(ConfigError, match=reason):
        save_hf_folder(model, load_tokenizer(source), tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_mixed_up_layouts_are_named(tiny_folder, tmp_path):
    source = tiny_folder("qwen2")
    model, tokenizer = load_model(source, torch.float32), load_tokenizer(source)
    save_hf_folder(model, tokenizer, tmp_path / "hf")
    save_model_folder(model, tokenizer, tmp_path / "own")
    (tmp_path / "own" / "model.safetensors").replace(tmp_path / "kept")
    (tmp_path / "hf" / "model.safetensors").replace(tmp_path / "own" / "model.safetensors")
    (tmp_path / "kept").replace(tmp_path / "hf" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"weights are in the HF-native layout, config\.json is not"):
        load_model(tmp_path / "own")
    with pytest.raises(CheckpointError, match=r"weights are in the original layout, config\.json is not"):
        load_model(tmp_path / "hf")


def test_dynamic_positions_of_internlm2_survive(tiny_folder, tmp_path):
    """Beyond max_position_embeddings they change the logits, in our model as in transformers'."""
    folder = Path(shutil.copytree(tiny_folder("internlm2"), tmp_path / "model"))
    raw = json.loads((folder / "config.json").read_text())
    raw["llm_config"].pop("rope_parameters")
    raw["llm_config"] |= {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 16}
    (folder / "config.json").write_text(json.dumps(raw))
    model, plain = load_model(folder, torch.float32), load_model(tiny_folder("internlm2"), torch.float32)
    save_hf_folder(model, load_tokenizer(folder), tmp_path / "hf")
    native = AutoModelForImageTextToText.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with torch.no_grad():
        for length, same in ((9, True), (40, False)):
            ids = torch.arange(length)[None]
            logits = model(input_ids=ids).logits
            torch.testing.assert_close(native(input_ids=ids).logits, logits, atol=2e-6, rtol=1e-5)
            assert torch.allclose(plain(input_ids=ids).logits, logits, atol=1e-5) == same
    save_model_folder(load_model(tmp_path / "hf"), load_tokenizer(folder), tmp_path / "back")
    written = json.loads((tmp_path / "back" / "config.json").read_text())["llm_config"]
    assert written["rope_scaling"] == {"type": "dynamic", "factor": 2.0}, "the published class accepts these keys only"
