"""Our model against transformers' own InternVL with the same weights: features and logits."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig

from internvl_chat.model.chat import InternVLChatModel
from tests.tolerance import assert_same_numbers

LLMS = ("qwen2", "qwen3", "llama", "phi3")
RENAMED = {
    "embeddings.class_embedding": "embeddings.cls_token",
    "embeddings.position_embedding": "embeddings.position_embeddings",
    "embeddings.patch_embedding": "embeddings.patch_embeddings.projection",
    "encoder.layers": "encoder.layer",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".ls1": ".lambda_1",
    ".ls2": ".lambda_2",
    ".attn.proj.": ".attention.projection_layer.",
    ".attn.": ".attention.",
}
MLP = {"mlp1.0": "layer_norm", "mlp1.1": "linear_1", "mlp1.3": "linear_2"}


def native_state(model: InternVLChatModel) -> dict[str, torch.Tensor]:
    """Our weights under the module names of InternVLForConditionalGeneration."""
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("vision_model."):
            new = name.replace("vision_model.", "model.vision_tower.")
            for old, today in RENAMED.items():
                new = new.replace(old, today)
            if ".attention.qkv." in new:
                for part, piece in zip("qkv", tensor.chunk(3, 0), strict=True):
                    state[new.replace(".qkv.", f".{part}_proj.")] = piece
            else:
                state[new] = tensor
        elif name.startswith("mlp1."):
            head, last = name.rsplit(".", 1)
            state[f"model.multi_modal_projector.{MLP[head]}.{last}"] = tensor
        elif name.startswith("language_model.lm_head."):
            state[name.removeprefix("language_model.")] = tensor
        else:
            state[name.replace("language_model.model.", "model.language_model.")] = tensor
    return state


def native_twin(model: InternVLChatModel) -> InternVLForConditionalGeneration:
    """transformers' model of the same sizes and weights."""
    vision = model.config.vision_config
    text = copy.deepcopy(model.config.llm_config)
    text._attn_implementation = "eager"
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=vision.hidden_size,
            num_hidden_layers=vision.num_hidden_layers,
            num_attention_heads=vision.num_attention_heads,
            intermediate_size=vision.intermediate_size,
            image_size=[vision.image_size] * 2,
            patch_size=[vision.patch_size] * 2,
            attention_bias=vision.qkv_bias,
            use_qk_norm=vision.qk_normalization,
            norm_type=vision.norm_type,
            layer_norm_eps=vision.layer_norm_eps,
        ),
        text_config=text,
        image_token_id=model.config.img_context_token_id,
        image_seq_length=model.config.num_image_token,
        vision_feature_layer=model.config.select_layer,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    twin = InternVLForConditionalGeneration(config).float().eval()
    twin.load_state_dict(native_state(model), strict=True)
    return twin


@pytest.mark.parametrize("vision_norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("llm", LLMS)
def test_features_and_logits_equal_transformers_internvl(tiny_model, make_sample, llm, vision_norm):
    model = tiny_model(llm, vision_norm=vision_norm)
    twin = native_twin(model)
    sample = make_sample(model, length=30, tiles=3, seed=1)
    pixels = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours = model.extract_feature(pixels)
        theirs = twin.model.get_image_features(pixel_values=pixels, vision_feature_layer=-1).pooler_output
        assert ours.std() > 0.1
        torch.testing.assert_close(ours, theirs.view_as(ours), atol=1e-5, rtol=0)
        logits = model(input_ids=sample["input_ids"][None], pixel_values=pixels).logits
        expected = twin(input_ids=sample["input_ids"][None], pixel_values=pixels).logits
    assert_same_numbers(logits, expected)
