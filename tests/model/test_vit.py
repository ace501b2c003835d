"""The vision tower: both kinds, chosen layer, drop path, sizes."""

from __future__ import annotations

import pytest
import torch

from internvl_chat.errors import ConfigError
from internvl_chat.model.config import InternVisionConfig
from internvl_chat.model.projector import build_projector, merge_factor, pixel_shuffle, project
from internvl_chat.model.vit import DropPath, InternVisionModel

SMALL = {"image_size": 56, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}


def tower(**changes) -> InternVisionModel:
    torch.manual_seed(0)
    return InternVisionModel(InternVisionConfig(**{**SMALL, **changes})).eval()


def test_class_defaults_are_the_6b_tower():
    config = InternVisionConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.image_size) == (3200, 48, 224)
    assert (config.norm_type, config.qk_normalization, config.qkv_bias) == ("rms_norm", True, False)


def test_published_parameter_names():
    names = set(dict(tower().named_parameters()))
    layer = {"norm1.weight", "norm2.weight", "ls1", "ls2", "attn.qkv.weight", "attn.proj.weight", "attn.proj.bias"}
    layer |= {"attn.q_norm.weight", "attn.k_norm.weight"}
    layer |= {f"mlp.{fc}.{kind}" for fc in ("fc1", "fc2") for kind in ("weight", "bias")}
    assert {name.removeprefix("encoder.layers.3.") for name in names if ".3." in name} == layer
    assert {name for name in names if name.startswith("embeddings.")} == {
        "embeddings.class_embedding",
        "embeddings.position_embedding",
        "embeddings.patch_embedding.weight",
        "embeddings.patch_embedding.bias",
    }
    plain = set(dict(tower(norm_type="layer_norm", qk_normalization=False, qkv_bias=True).named_parameters()))
    assert {"encoder.layers.0.norm1.bias", "encoder.layers.0.attn.qkv.bias"} <= plain
    assert not any("q_norm" in name for name in plain)


@pytest.mark.parametrize("kind", [{}, {"norm_type": "layer_norm", "qk_normalization": False, "qkv_bias": True}])
def test_sdpa_equals_eager(kind):
    model, pixels = tower(initializer_factor=1.0, **kind), torch.randn(2, 3, 56, 56)
    model.config._attn_implementation = "sdpa"
    with torch.no_grad():
        fused = model(pixels).last_hidden_state
        model.config._attn_implementation = "eager"
        plain = model(pixels).last_hidden_state
    torch.testing.assert_close(fused, plain, atol=1e-5, rtol=1e-5)


def test_select_layer_runs_no_more_than_it_needs():
    model, pixels = tower(), torch.randn(1, 3, 56, 56)
    ran: list[int] = []
    for number, layer in enumerate(model.encoder.layers):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    with torch.no_grad():
        states = model(pixels, output_hidden_states=True).hidden_states
        assert len(states) == 5
        for select in range(-5, 5):
            ran.clear()
            assert torch.equal(model(pixels, select_layer=select).last_hidden_state, states[select])
            assert ran == list(range(select if select >= 0 else 5 + select))
    with pytest.raises(ValueError, match="4 layers"):
        model(pixels, select_layer=5)


def test_drop_path_per_sample():
    torch.manual_seed(0)
    drop = DropPath(0.25).train()
    x = torch.ones(20_000, 3, 2)
    y = drop(x)
    values = y[:, 0, 0]
    assert torch.equal(y, values[:, None, None].expand_as(y))  # a sample goes as a whole
    assert values.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (values == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert y.mean().item() == pytest.approx(1.0, abs=0.02)
    assert drop.eval()(x) is x


def test_drop_path_grows_linearly_and_only_while_training():
    model, pixels = tower(drop_path_rate=0.3, initializer_factor=1.0), torch.randn(2, 3, 56, 56)
    assert [layer.drop_path1.rate for layer in model.encoder.layers] == pytest.approx([0, 0.1, 0.2, 0.3])
    with torch.no_grad():
        assert torch.equal(model(pixels).last_hidden_state, model(pixels).last_hidden_state)
        model.train()
        outs = [model(pixels).last_hidden_state for _ in range(8)]
    assert any(not torch.equal(outs[0], out) for out in outs[1:])


def test_other_sizes_are_interpolated_alike_on_the_fly_and_for_good():
    model, pixels = tower(), torch.randn(1, 3, 84, 84)
    with torch.no_grad():
        on_the_fly = model(pixels).last_hidden_state
        model.resize_position_embeddings(84)
        assert model.embeddings.position_embedding.shape == (1, 37, 32)
        assert torch.equal(model(pixels).last_hidden_state, on_the_fly)
    assert model.embeddings.position_embedding.requires_grad and model.config.image_size == 84


def test_bfloat16_forward_and_checkpointing():
    model = tower(initializer_factor=1.0).to(torch.bfloat16).train()
    model.activation_checkpointing_enable()
    out = model(torch.randn(1, 3, 56, 56, dtype=torch.bfloat16)).last_hidden_state
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_every_own_parameter_is_initialised_from_meta(tmp_path):
    """from_pretrained builds on the meta device; what a checkpoint lacks must not stay uninitialised memory."""
    from safetensors.torch import load_file, save_file

    model = tower()
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    lost = ("ls1", "ls2", "class_embedding", "position_embedding")
    save_file({k: v for k, v in state.items() if not k.endswith(lost)}, tmp_path / "model.safetensors")
    loaded = InternVisionModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.encoder.layers[1].ls1, torch.full((32,), 0.1))
    assert 0.01 < loaded.embeddings.position_embedding.std() < 0.03
    assert 0.005 < loaded.embeddings.class_embedding.std() < 0.04


def test_config_refuses_what_cannot_work():
    with pytest.raises(ConfigError, match="norm_type"):
        InternVisionConfig(norm_type="batch_norm")
    with pytest.raises(ConfigError, match="multiple of num_attention_heads"):
        InternVisionConfig(hidden_size=100, num_attention_heads=3)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_pixel_shuffle_places(version):
    grid = torch.arange(16.0).reshape(1, 4, 4, 1)
    merged = pixel_shuffle(grid, 0.5, version)
    assert merged.shape == (1, 2, 2, 4)
    assert merged[0, 0, 0].tolist() == [0, 1, 4, 5]
    second = [2, 3, 6, 7]
    assert merged[0, 0, 1].tolist() == (second if version == "v2" else [8, 9, 12, 13])
    assert torch.equal(pixel_shuffle(grid, 1.0, "v2"), grid)


def test_projector_refuses_what_does_not_fit():
    assert merge_factor(0.5) == 2 and merge_factor(1) == 1
    with pytest.raises(ConfigError, match="downsample_ratio"):
        merge_factor(0.4)
    with pytest.raises(ValueError, match="cannot be merged"):
        pixel_shuffle(torch.zeros(1, 3, 3, 2))
    with pytest.raises(ValueError, match="square"):
        project(build_projector(8, 8, 0.5), torch.zeros(1, 6, 8), 0.5, "v2")
