"""Features, logits, losses and gradients of the original code on its tiny checkpoints (tests/goldens/models)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.core_model_loading import revert_weight_conversion

from internvl_chat.model.attention import register_packed_attention
from internvl_chat.model.chat import InternVLChatModel
from internvl_chat.model.config import InternVisionConfig, InternVLChatConfig
from internvl_chat.model.loss import token_weights
from internvl_chat.model.projector import pixel_shuffle
from internvl_chat.model.vit import InternVisionModel
from tests.tolerance import assert_same_numbers

GOLDENS = Path(__file__).parent.parent / "goldens"
NAMES = ("qwen2", "phi3", "internlm2")
SUMMARY = json.loads((GOLDENS / "models" / "summary.json").read_text())
VARIANTS = [("v1", -1), ("v1", -4), ("v2", -1), ("v2", -4)]


def load(name: str, ps_version: str = "v2", select_layer: int = -1, attn: str = "packed") -> InternVLChatModel:
    folder = GOLDENS / "models" / name
    config = InternVLChatConfig.from_pretrained(folder)
    config.ps_version, config.select_layer = ps_version, select_layer
    config.img_context_token_id = SUMMARY["img_context_token_id"]
    register_packed_attention()
    model, info = InternVLChatModel.from_pretrained(
        folder,
        config=config,
        dtype=torch.float32,
        attn_implementation={"": "sdpa", "vision_config": "sdpa" if attn != "eager" else "eager", "llm_config": attn},
        output_loading_info=True,
    )
    assert not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])
    return model


def expected(name: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDENS / "models" / name / "expected.npz") as data:
        return {key: torch.from_numpy(data[key]) for key in data.files}


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert_same_numbers(ours, theirs)


def padded_inputs(data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    keys = ("input_ids", "pixel_values", "attention_mask", "position_ids", "labels", "image_flags")
    return {key: data[key] for key in keys}


def assert_grad_norms(model: InternVLChatModel, norms: dict[str, float]) -> None:
    # InternLM2's fused matrix is split here; its gradient is that of the parts, put together as on disk.
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found = {name: grad.norm().item() for name, grad in revert_weight_conversion(model, grads).items()}
    assert set(found) == set(norms)
    for name, norm in norms.items():
        assert found[name] == pytest.approx(norm, rel=2e-4, abs=1e-6), name


@pytest.mark.parametrize(("ps_version", "select_layer"), VARIANTS)
@pytest.mark.parametrize("name", NAMES)
def test_padded_batch(name, ps_version, select_layer):
    data, variant = expected(name), f"{ps_version}_sl{select_layer}"
    golden = SUMMARY["models"][name]["variants"][variant]
    model = load(name, ps_version, select_layer).train()
    inputs = padded_inputs(data)
    close(model.extract_feature(inputs["pixel_values"]), data[f"{variant}_vit_embeds"])
    out = model(**inputs, return_logits=True)
    real = inputs["attention_mask"] == 1
    if f"{variant}_logits" in data:
        close(out.logits[real], data[f"{variant}_logits"][real])
    close(out.loss, data[f"{variant}_loss"])
    assert out.loss.item() == pytest.approx(golden["loss"], abs=1e-5)
    # Without logits the loss comes from the chunked head.
    chunked = model(**inputs)
    assert chunked.logits is None
    close(chunked.loss, data[f"{variant}_loss"])
    chunked.loss.backward()
    untouched = sorted(n for n, p in model.named_parameters() if p.grad is None)  # all of the vision tower
    assert untouched == sorted(golden["no_grad"])
    if golden["grad_norms"]:
        assert_grad_norms(model, golden["grad_norms"])


@pytest.mark.parametrize("attn", ["packed", "sdpa", "eager"])
@pytest.mark.parametrize("name", NAMES)
def test_packed_row_with_square_weights(name, attn):
    data = expected(name)
    golden = SUMMARY["models"][name]["variants"]["v2_sl-1"]
    model = load(name, attn=attn).train()
    cu_seqlens = data["packed_attention_mask"][0]
    # The original lets the padding tail keep positions of 0; sdpa and eager here then see samples of one token.
    weights = token_weights(data["packed_labels"], cu_seqlens, "square")
    close(weights, data["packed_loss_weight"])
    inputs = {
        "input_ids": data["packed_input_ids"],
        "pixel_values": data["pixel_values"],
        "position_ids": data["packed_position_ids"],
        "labels": data["packed_labels"],
        "image_flags": data["packed_image_flags"],
        "cu_seqlens": cu_seqlens,
        "loss_weight": weights,
    }
    out = model(**inputs, return_logits=True)
    tail = int(cu_seqlens[-2]) if attn != "packed" else int(cu_seqlens[-1])
    close(out.logits[:, :tail], data["packed_logits"][:, :tail])
    loss = model(**inputs).loss
    close(loss, data["packed_loss"])
    loss.backward()
    assert_grad_norms(model, golden["packed_grad_norms"])


@pytest.mark.parametrize("name", NAMES)
def test_four_adamw_steps(name):
    data = expected(name)
    losses = SUMMARY["models"][name]["variants"]["v2_sl-1"]["loss_after_adamw_steps_lr1e-3_wd0.01"]
    model = load(name).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    found = []
    for _ in range(len(losses) + 1):
        loss = model(**padded_inputs(data)).loss
        found.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert any(found[start : start + len(losses)] == pytest.approx(losses, abs=2e-4) for start in (0, 1))


@pytest.mark.parametrize("name", NAMES)
def test_last_hidden_state_of_the_tower(name):
    data = expected(name)
    with torch.no_grad():
        hidden = load(name).vision_model(data["pixel_values"]).last_hidden_state
    close(hidden, data["vit_last_hidden_state"])


@pytest.mark.parametrize("name", NAMES)
def test_saved_folder_holds_the_same_bytes(name, tmp_path):
    """Read and written back: the published names, every tensor bit for bit."""
    from safetensors.torch import load_file

    load(name).save_pretrained(tmp_path)
    before = load_file(GOLDENS / "models" / name / "model.safetensors")
    after = load_file(tmp_path / "model.safetensors")
    assert set(before) == set(after)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_position_embedding_and_pixel_shuffle():
    with np.load(GOLDENS / "vision_small.npz") as file:
        data = {key: torch.from_numpy(file[key]) for key in file.files}
    config = InternVisionConfig(
        image_size=56, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    model = InternVisionModel(config)
    model.embeddings.load_state_dict(load("qwen2").vision_model.embeddings.state_dict())
    with torch.no_grad():
        model.embeddings.position_embedding.copy_(data["pos_before"])
        close(model.embeddings(data["pixels_84"]), data["embeddings_84_before_resize"])
        model.resize_position_embeddings(84)
        close(model.embeddings.position_embedding, data["pos_after_84"])
        close(model.embeddings(data["pixels_84"]), data["embeddings_84_after_resize"])
    assert model.config.image_size == 84
    for version in ("v1", "v2"):
        assert torch.equal(pixel_shuffle(data["shuffle_in"], 0.5, version), data[f"shuffle_{version}"])
