"""Checkpoints with LoRA inside the model, as the original training code saves them, become plain ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from internvl_chat.errors import CheckpointError
from internvl_chat.model.adapter import Origin
from internvl_chat.model.build import load_model
from internvl_chat.model.fingerprint import fingerprint
from internvl_chat.model.layout import original_tensors
from internvl_chat.model.lora import LoraOptions, save_adapter
from internvl_chat.model.merge import load_merged, load_unwrapped
from internvl_chat.model.save import save_hf_folder, save_model_folder
from internvl_chat.model.tune import Tuning, apply_tuning
from tests.tolerance import assert_same_numbers

IDS = torch.arange(3, 20)[None]


def wrapped_folder(source: Path, out: Path, state: dict[str, torch.Tensor], **ranks: int) -> Path:
    shutil.copytree(source, out)
    save_file({name: t.contiguous() for name, t in state.items()}, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | ranks))
    return out


@pytest.mark.parametrize("llm", ["qwen2", "phi3", "llama"])
def test_both_towers_wrapped_by_peft(tiny_folder, tiny_model, tmp_path, llm):
    """The reference: peft's own forward of the wrapped towers, alpha twice the rank."""
    model = tiny_model(llm)
    names = {"vision_model": ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"], "language_model": "all-linear"}
    for tower, targets in names.items():
        config = LoraConfig(r=4, lora_alpha=8, target_modules=targets)
        setattr(model, tower, get_peft_model(getattr(model, tower), config))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    state = {name: t.detach().clone() for name, t in model.state_dict().items()}
    assert any(name.startswith("language_model.base_model.model.model.layers.0.") for name in state)
    folder = wrapped_folder(tiny_folder(llm), tmp_path / "w", state, use_llm_lora=4, use_backbone_lora=4)
    with pytest.raises(CheckpointError, match=r"LoRA wrappers inside the model.*internvl merge-lora"):
        load_model(folder)
    merged, _ = load_unwrapped(folder, torch.float32)
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for tower in names:  # peft's wrapper does not know how our model calls the towers
            setattr(model, tower, getattr(model, tower).base_model.model)
        torch.testing.assert_close(merged.extract_feature(pixels), model.extract_feature(pixels), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(merged(IDS).logits, model(IDS).logits, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(merged(IDS).logits, tiny_model(llm)(IDS).logits, atol=1e-3)
    assert (merged.config.use_llm_lora, merged.config.use_backbone_lora) == (0, 0)


def test_lora_on_the_fused_matrix_of_internlm2(tiny_folder, tiny_model, tmp_path):
    """The original's targets are wqkv, wo, w1, w2, w3: fused on disk, three matrices here."""
    source = tiny_folder("internlm2")
    generator = torch.Generator().manual_seed(2)
    plain, wrapped = load_file(source / "model.safetensors"), {}
    expected = dict(plain)
    for name, tensor in plain.items():
        new = name.replace("language_model.", "language_model.base_model.model.", 1)
        if not name.endswith(("wqkv.weight", "wo.weight", "w1.weight")):
            wrapped[new] = tensor
            continue
        layer = new.removesuffix(".weight")
        a = torch.randn(4, tensor.shape[1], generator=generator)
        b = torch.randn(tensor.shape[0], 4, generator=generator) * 0.1
        wrapped |= {
            f"{layer}.base_layer.weight": tensor,
            f"{layer}.lora_A.default.weight": a,
            f"{layer}.lora_B.default.weight": b,
        }
        expected[name] = tensor + 2 * (b @ a)
    merged, _ = load_unwrapped(wrapped_folder(source, tmp_path / "w", wrapped, use_llm_lora=4), torch.float32)
    found = original_tensors(merged)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_half_an_adapter_is_an_error(tiny_folder, tmp_path):
    source = tiny_folder("qwen2")
    state = load_file(source / "model.safetensors")
    layer = "language_model.model.layers.0.mlp.up_proj"
    state[f"{layer}.base_layer.weight"] = state.pop(f"{layer}.weight")
    state[f"{layer}.lora_A.default.weight"] = torch.ones(4, 32)
    with pytest.raises(CheckpointError, match=r"up_proj is incomplete"):
        load_unwrapped(wrapped_folder(source, tmp_path / "w", state, use_llm_lora=4))


LLMS = ("qwen2", "qwen3", "qwen3_moe", "llama", "phi3", "internlm2")
BOTH = LoraOptions(llm_rank=4, vision_rank=2, dropout=0.0)
WAYS = {
    "both towers": Tuning(lora=BOTH),
    "vision tower in full": Tuning(lora=LoraOptions(llm_rank=4, dropout=0.0)),
    "language model in full": Tuning(freeze_mlp=True, lora=LoraOptions(vision_rank=2, dropout=0.0)),
    "thawed": Tuning(
        freeze_backbone=True, unfreeze_vit_layers=-1, unfreeze_lm_head=True, lora=LoraOptions(llm_rank=4, dropout=0.0)
    ),
    "dora": Tuning(lora=LoraOptions(llm_rank=4, vision_rank=4, dropout=0.0, dora=True, rslora=True)),
}


def trained(model, tuning, base, folder):
    """An adapter folder whose weights are far from their start, and the wrapped model in memory."""
    wrapped = apply_tuning(model, tuning)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    save_adapter(wrapped, folder, Origin(base, fingerprint=fingerprint(base)))
    return wrapped.eval()


def answer(model):
    """Logits for a tile and some text."""
    token = getattr(model.config, "image_token_id", None) or model.config.img_context_token_id
    ids = torch.tensor([[1, 2, token, token, token, token, 5, 6, 7]])
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(input_ids=ids, pixel_values=pixels).logits


@pytest.mark.parametrize("llm", LLMS)
def test_adapter_and_merged_folders_of_every_language_model_agree(tiny_folder, tiny_model, tmp_path, llm):
    base = tiny_folder(llm)
    wrapped = trained(tiny_model(llm), WAYS["both towers"], base, tmp_path / "adapter")
    merged, tokenizer = load_merged(tmp_path / "adapter", dtype=torch.float32)
    assert_same_numbers(answer(merged), answer(wrapped))
    assert not torch.allclose(answer(merged), answer(tiny_model(llm)), atol=0.01)
    save_model_folder(merged, tokenizer, tmp_path / "own")
    save_hf_folder(merged, tokenizer, tmp_path / "hf")
    assert torch.equal(answer(load_model(tmp_path / "own", torch.float32)), answer(merged))
    native = AutoModelForImageTextToText.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    torch.testing.assert_close(answer(native), answer(merged), atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_plain_peft_loads_what_we_save(tiny_folder, tiny_model, tmp_path, way, tied):
    base = tiny_folder("qwen2")
    if tied:
        if WAYS[way].unfreeze_lm_head:
            pytest.skip("a tied output layer cannot train alone")
        base = Path(shutil.copytree(base, tmp_path / "tied"))
        state = load_file(base / "model.safetensors")
        del state["language_model.lm_head.weight"]
        save_file(state, base / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((base / "config.json").read_text())
        config["llm_config"]["tie_word_embeddings"] = True
        (base / "config.json").write_text(json.dumps(config))
    wrapped = trained(load_model(base, torch.float32), WAYS[way], base, tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(load_model(base, torch.float32), tmp_path / "adapter").eval()
    assert_same_numbers(answer(theirs), answer(wrapped))
    merged, _ = load_merged(tmp_path / "adapter", dtype=torch.float32)
    assert_same_numbers(answer(merged), answer(wrapped))
