"""The catalogue against names, shapes and counts that are written down here a second time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.data.template import TEMPLATES
from internvl_chat.errors import ConfigError
from internvl_chat.model.build import load_config, settle_tying
from internvl_chat.model.catalogue import Release, config_of, release, releases
from internvl_chat.model.layout import expected_shapes
from internvl_chat.model.llm import LLMS

Shapes = dict[str, tuple[int, ...]]

# Name, tower, family, hidden, intermediate (of one expert), layers, heads, key heads, head width, vocabulary,
# rope theta, rope factor (0: none of one number).
SHAPES = """
InternVL-Chat-V1-2 6B llama 7168 20480 60 56 8 128 64000 5000000 0.0
InternVL-Chat-V1-2-Plus 6B llama 7168 20480 60 56 8 128 64000 5000000 0.0
InternVL-Chat-V1-5 6B internlm2 6144 16384 48 48 8 128 92553 1000000 3.0
Mini-InternVL-Chat-2B-V1-5 300M internlm2 2048 8192 24 16 8 128 92553 1000000 2.0
Mini-InternVL-Chat-4B-V1-5 300M phi3 3072 8192 32 32 32 96 32020 10000 0.0
InternVL2-1B 300M qwen2 896 4864 24 14 2 64 151655 1000000 0.0
InternVL2-2B 300M internlm2 2048 8192 24 16 8 128 92553 1000000 2.0
InternVL2-4B 300M phi3 3072 8192 32 32 32 96 32020 10000 0.0
InternVL2-8B 300M internlm2 4096 14336 32 32 8 128 92553 1000000 2.0
InternVL2-26B 6B internlm2 6144 16384 48 48 8 128 92553 1000000 3.0
InternVL2-40B 6B llama 7168 20480 60 56 8 128 64007 5000000 0.0
InternVL2-Llama3-76B 6B llama 8192 28672 80 64 8 128 128265 500000 0.0
InternVL2_5-1B 300M qwen2 896 4864 24 14 2 64 151674 1000000 0.0
InternVL2_5-2B 300M internlm2 2048 8192 24 16 8 128 92553 1000000 2.0
InternVL2_5-4B 300M qwen2 2048 11008 36 16 2 128 151674 1000000 0.0
InternVL2_5-8B 300M internlm2 4096 14336 32 32 8 128 92553 1000000 2.0
InternVL2_5-26B 6B internlm2 6144 16384 48 48 8 128 92553 1000000 3.0
InternVL2_5-38B 6B qwen2 5120 27648 64 40 8 128 151674 1000000 0.0
InternVL2_5-78B 6B qwen2 8192 29568 80 64 8 128 151674 1000000 0.0
InternVL3-1B 300M qwen2 896 4864 24 14 2 64 151674 1000000 2.0
InternVL3-2B 300M qwen2 1536 8960 28 12 2 128 151674 1000000 2.0
InternVL3-8B 300M qwen2 3584 18944 28 28 4 128 151674 1000000 2.0
InternVL3-9B 300M internlm2 4096 10240 48 32 2 128 128521 50000000 6.0
InternVL3-14B 300M qwen2 5120 13824 48 40 8 128 151674 1000000 2.0
InternVL3-38B 6B qwen2 5120 27648 64 40 8 128 151674 1000000 2.0
InternVL3-78B 6B qwen2 8192 29568 80 64 8 128 151674 1000000 2.0
InternVL3_5-1B 300M qwen3 1024 3072 28 16 8 128 151936 1000000 0.0
InternVL3_5-2B 300M qwen3 2048 6144 28 16 8 128 151936 1000000 0.0
InternVL3_5-4B 300M qwen3 2560 9728 36 32 8 128 151936 1000000 0.0
InternVL3_5-8B 300M qwen3 4096 12288 36 32 8 128 151936 1000000 0.0
InternVL3_5-14B 300M qwen3 5120 17408 40 40 8 128 151936 1000000 0.0
InternVL3_5-38B 6B qwen3 5120 25600 64 64 8 128 151936 1000000 0.0
InternVL3_5-30B-A3B 300M qwen3_moe 2048 768 48 32 4 128 151936 1000000 0.0
InternVL3_5-241B-A28B 6B qwen3_moe 4096 1536 94 64 4 128 151936 1000000 0.0
"""
# Name, parameters of tower, projector, language model, all; tensors, bytes in bfloat16, weight files, GB of the first.
SIZES = """
InternVL-Chat-V1-2 5536496000 143170560 34388917248 40068583808 1138 80137167616 17 4.99
InternVL-Chat-V1-2-Plus 5536496000 143170560 34388917248 40068583808 1138 80137167616 17 4.99
InternVL-Chat-V1-5 5536496000 116429824 19861260288 25514186112 934 51028372224 11 4.99
Mini-InternVL-Chat-2B-V1-5 304012288 12595200 1889146880 2205754368 517 4411508736 1 4.41
Mini-InternVL-Chat-4B-V1-5 304012288 22034432 3820809216 4146855936 541 8293711872 2 4.96
InternVL2-1B 304012288 4482816 629663872 938158976 637 1876317952 1 1.88
InternVL2-2B 304012288 12595200 1889146880 2205754368 517 4411508736 1 4.41
InternVL2-4B 304012288 22034432 3820809216 4146855936 541 8293711872 2 4.96
InternVL2-8B 304012288 33570816 7737782272 8075365376 573 16150730752 4 4.94
InternVL2-26B 5536496000 116429824 19861260288 25514186112 934 51028372224 11 4.99
InternVL2-40B 5536496000 143170560 34389017600 40068684160 1138 80137368320 17 4.99
InternVL2-Llama3-76B 5536496000 172008448 70553853952 76262358400 1318 152524716800 32 4.99
InternVL2_5-1B 304012288 4482816 629697920 938193024 637 1876386048 1 1.88
InternVL2_5-2B 304012288 12595200 1889146880 2205754368 517 4411508736 1 4.41
InternVL2_5-4B 304012288 12595200 3396030464 3712637952 781 7425275904 2 4.99
InternVL2_5-8B 304012288 33570816 7737782272 8075365376 573 16150730752 4 4.94
InternVL2_5-26B 5536496000 116429824 19861260288 25514186112 934 51028372224 11 4.99
InternVL2_5-38B 5536496000 91786240 32759882752 38388164992 1366 76776329984 16 4.99
InternVL2_5-78B 5536496000 172008448 72699813888 78408318336 1558 156816636672 33 4.99
InternVL3-1B 304012288 4482816 629697920 938193024 637 1876386048 1 1.88
InternVL3-2B 304012288 8662016 1776283136 2088957440 685 4177914880 1 4.18
InternVL3-8B 304012288 27540480 7612820992 7944373760 685 15888747520 4 4.99
InternVL3-9B 304012288 33570816 8804315136 9141898240 685 18283796480 4 4.96
InternVL3-14B 304012288 47204352 14766040064 15117256704 925 30234513408 7 4.99
InternVL3-38B 5536496000 91786240 32759882752 38388164992 1366 76776329984 16 4.99
InternVL3-78B 5536496000 172008448 72699813888 78408318336 1558 156816636672 33 4.99
InternVL3_5-1B 304012288 5253120 751632384 1060897792 657 2121795584 1 2.12
InternVL3_5-2B 304012288 12595200 2031739904 2348347392 657 4696694784 1 4.7
InternVL3_5-4B 304012288 17052672 4411424256 4732489216 745 9464978432 2 4.97
InternVL3_5-8B 304012288 33570816 8190735360 8528318464 745 17056636928 4 4.99
InternVL3_5-14B 304012288 47204352 14768307200 15119523840 789 30239047680 7 4.93
InternVL3_5-38B 5536496000 91786240 32762123264 38390405504 1302 76780811008 16 4.99
InternVL3_5-30B-A3B 304012288 12595200 30532122624 30848730112 19213 61697460224 13 4.99
"""
# V1-2 was not read: either the base's vocabulary or seven more. The sizes above are those of the base.
ASSUMED = {name: {"llm_config.vocab_size": 64000} for name in ("InternVL-Chat-V1-2", "InternVL-Chat-V1-2-Plus")}
SHAPELESS = ("InternVL-Chat-V1-1", "InternVL3_5-GPT-OSS-20B-A4B-Preview")
# Rows of the 2.5 document that describe the 2.0 model of that place.
COPIED = {
    "InternVL2_5-4B": "InternVL2-4B",
    "InternVL2_5-38B": "InternVL2-40B",
    "InternVL2_5-78B": "InternVL2-Llama3-76B",
}
# Published figures that are not the nearest: 4.147 by way of 4.15, and 91.786 cut off.
ROUNDED_OTHERWISE = {
    ("InternVL-Chat-V1-1", "mlp"): 0.0063e6,
    ("Mini-InternVL-Chat-4B-V1-5", "total"): 0.0532e9,
    ("InternVL2-4B", "total"): 0.0532e9,
}
SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Row:
    tower: str
    family: str
    hidden: int
    inter: int
    layers: int
    heads: int
    kv: int
    width: int
    vocab: int
    theta: float
    factor: float


def table(text: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in text.strip().splitlines()}


ROWS = {
    name: Row(*words[:2], *map(int, words[2:9]), *map(float, words[9:]))  # type: ignore[arg-type]
    for name, words in table(SHAPES).items()
}
COUNTS = {name: list(map(float, words)) for name, words in table(SIZES).items()}

each_release = pytest.mark.parametrize("name", ROWS)


# -- names and shapes, in the order of the published files ----------------------------------------------------------


def tower(kind: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    h, i, layers = (3200, 12800, 45) if kind == "6B" else (1024, 4096, 24)
    yield "vision_model.embeddings.class_embedding", (1, 1, h)
    yield "vision_model.embeddings.position_embedding", (1, 1025, h)
    yield "vision_model.embeddings.patch_embedding.weight", (h, 3, 14, 14)
    yield "vision_model.embeddings.patch_embedding.bias", (h,)
    for n in range(layers):
        at = f"vision_model.encoder.layers.{n}."
        yield from ((at + name, (h,)) for name in ("ls1", "ls2"))
        yield at + "attn.qkv.weight", (3 * h, h)
        if kind == "300M":
            yield at + "attn.qkv.bias", (3 * h,)
        else:
            yield from ((at + f"attn.{name}.weight", (h,)) for name in ("q_norm", "k_norm"))
        yield at + "attn.proj.weight", (h, h)
        yield at + "attn.proj.bias", (h,)
        yield at + "mlp.fc1.weight", (i, h)
        yield at + "mlp.fc1.bias", (i,)
        yield at + "mlp.fc2.weight", (h, i)
        yield at + "mlp.fc2.bias", (h,)
        yield from ((at + f"{norm}.weight", (h,)) for norm in ("norm1", "norm2"))
        if kind == "300M":
            yield from ((at + f"{norm}.bias", (h,)) for norm in ("norm1", "norm2"))


def internlm2_layer(r: Row) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "attention.wqkv.weight", ((r.heads + 2 * r.kv) * r.width, r.hidden)
    yield "attention.wo.weight", (r.hidden, r.heads * r.width)
    yield "feed_forward.w1.weight", (r.inter, r.hidden)
    yield "feed_forward.w3.weight", (r.inter, r.hidden)
    yield "feed_forward.w2.weight", (r.hidden, r.inter)
    yield "attention_norm.weight", (r.hidden,)
    yield "ffn_norm.weight", (r.hidden,)


def phi3_layer(r: Row) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "self_attn.o_proj.weight", (r.hidden, r.hidden)
    yield "self_attn.qkv_proj.weight", (3 * r.hidden, r.hidden)
    yield "mlp.gate_up_proj.weight", (2 * r.inter, r.hidden)
    yield "mlp.down_proj.weight", (r.hidden, r.inter)
    yield from norms(r)


def llama_layer(r: Row) -> Iterator[tuple[str, tuple[int, ...]]]:
    for letter, heads in (("q", r.heads), ("k", r.kv), ("v", r.kv)):
        yield f"self_attn.{letter}_proj.weight", (heads * r.width, r.hidden)
        if r.family == "qwen2":
            yield f"self_attn.{letter}_proj.bias", (heads * r.width,)
    yield "self_attn.o_proj.weight", (r.hidden, r.heads * r.width)
    if r.family.startswith("qwen3"):
        yield from ((f"self_attn.{letter}_norm.weight", (r.width,)) for letter in "qk")
    if r.family == "qwen3_moe":
        yield "mlp.gate.weight", (128, r.hidden)
    for expert in [f"mlp.experts.{e}" for e in range(128)] if r.family == "qwen3_moe" else ["mlp"]:
        yield from ((f"{expert}.{name}_proj.weight", (r.inter, r.hidden)) for name in ("gate", "up"))
        yield f"{expert}.down_proj.weight", (r.hidden, r.inter)
    yield from norms(r)


def norms(r: Row) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "input_layernorm.weight", (r.hidden,)
    yield "post_attention_layernorm.weight", (r.hidden,)


LAYERS: dict[str, Callable[[Row], Iterator[tuple[str, tuple[int, ...]]]]] = {
    "internlm2": internlm2_layer,
    "phi3": phi3_layer,
}


@cache
def written_down(name: str) -> Shapes:
    r = ROWS[name]
    first, last = ("model.tok_embeddings", "output") if r.family == "internlm2" else ("model.embed_tokens", "lm_head")
    found = dict(tower(r.tower))
    found[f"language_model.{first}.weight"] = (r.vocab, r.hidden)
    for n in range(r.layers):
        layer = LAYERS.get(r.family, llama_layer)(r)
        found |= {f"language_model.model.layers.{n}.{key}": shape for key, shape in layer}
    found["language_model.model.norm.weight"] = (r.hidden,)
    found[f"language_model.{last}.weight"] = (r.vocab, r.hidden)
    wide = 4 * (3200 if r.tower == "6B" else 1024)
    found |= {"mlp1.0.weight": (wide,), "mlp1.0.bias": (wide,)}
    found |= {"mlp1.1.weight": (r.hidden, wide), "mlp1.1.bias": (r.hidden,)}
    found |= {"mlp1.3.weight": (r.hidden, r.hidden), "mlp1.3.bias": (r.hidden,)}
    return found


def elements(shapes: Shapes, start: str = "") -> int:
    return sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(start))


def shards(shapes: Shapes) -> list[int]:
    """Bytes of the files: in order, a new one where the next tensor would go beyond the limit."""
    files = [0]
    for shape in shapes.values():
        size = 2 * math.prod(shape)
        if files[-1] and files[-1] + size > SHARD_BYTES:
            files.append(0)
        files[-1] += size
    return files


def config(name: str) -> Any:
    return config_of(release(name), ASSUMED.get(name))


def test_the_table_holds_all_releases_whose_shapes_are_known() -> None:
    assert {found.name for found in releases()} == {*ROWS, *SHAPELESS}
    assert len(releases()) == 36
    # The sizes of the largest one follow from the width of its experts, which was read in its base model only.
    assert ROWS.keys() - COUNTS.keys() == {"InternVL3_5-241B-A28B"}


@each_release
def test_names_and_shapes_are_those_of_the_published_files(name: str) -> None:
    expected, found = written_down(name), expected_shapes(config(name))
    assert sorted(found.keys() - expected.keys()) == []
    assert sorted(expected.keys() - found.keys()) == []
    assert {key: found[key] for key in expected if found[key] != expected[key]} == {}


@each_release
def test_sizes_are_those_of_the_shapes(name: str) -> None:
    found, shapes = release(name), written_down(name)
    parts = found.parameters
    assert parts.vision == elements(shapes, "vision_model.")
    assert parts.mlp == elements(shapes, "mlp1.")
    assert parts.llm == elements(shapes, "language_model.")
    assert parts.total == elements(shapes)
    assert found.bf16_bytes == sum(shards(shapes))
    assert (found.tensors, found.shards) == (len(shapes), len(shards(shapes)))


@pytest.mark.parametrize("name", COUNTS)
def test_sizes_are_those_written_down(name: str) -> None:
    found = release(name)
    parts = found.parameters
    sizes = [parts.vision, parts.mlp, parts.llm, parts.total, found.tensors, found.bf16_bytes, found.shards]
    assert sizes == COUNTS[name][:7]
    assert round(shards(written_down(name))[0] / 1e9, 2) == COUNTS[name][7]


@pytest.mark.parametrize("name", [found.name for found in releases() if found.published])
def test_sizes_round_to_the_published_ones(name: str) -> None:
    found = release(name)
    described = release(COPIED.get(name, name))
    assert found.published_is_wrong == (name in COPIED)
    for part, text in found.published.items():
        count = getattr(described.parameters, part)
        unit = {"B": 1e9, "M": 1e6}[text[-1]]
        half = 0.5 * unit / 10 ** len(text[:-1].partition(".")[2])
        half = ROUNDED_OTHERWISE.get((described.name, part), half)
        if count is None:
            assert name in SHAPELESS
        else:
            assert abs(count - float(text[:-1]) * unit) <= half, (part, count)
            if name in COPIED:
                assert abs(found.parameters.total - float(text[:-1]) * unit) > half  # type: ignore[operator]


@pytest.mark.parametrize("name", [found.name for found in releases() if found.download_gb])
def test_published_downloads_are_gib_rounded_up(name: str) -> None:
    found = release(name)
    size = found.bf16_bytes / 2**30  # type: ignore[operator]
    step = 0.1 if size < 10 else 1
    assert found.download_gb == pytest.approx(math.ceil(size / step) * step)


@each_release
def test_the_hf_native_layout_has_the_same_elements(name: str) -> None:
    if release(name).ps_version != "v2":
        pytest.skip("this layout knows the pixel shuffle v2 only")
    r = ROWS[name]
    found, ours = expected_shapes(config(name), "hf"), written_down(name)
    assert elements(found) == elements(ours)
    # Both kinds of fused matrices are cut in three, the towers' with their biases.
    cut = 45 if r.tower == "6B" else 2 * 24
    assert len(found) == len(ours) + 2 * cut + (2 * r.layers if r.family == "internlm2" else 0)
    assert {key.split(".")[0] for key in found} == {"vision_tower", "multi_modal_projector", "language_model"}


# -- configurations -------------------------------------------------------------------------------------------------


@each_release
def test_the_config_of_a_release(name: str) -> None:
    found, r = config(name), ROWS[name]
    llm, rope = found.llm_config, found.llm_config.rope_parameters
    assert llm.model_type == r.family
    assert (llm.tie_word_embeddings, found.tie_word_embeddings) == (False, False)
    assert rope["rope_theta"] == r.theta
    assert rope["rope_type"] == {0.0: "default"}.get(r.factor, "dynamic") if r.family != "phi3" else "longrope"
    assert rope.get("factor", 0.0) == r.factor
    assert llm.rms_norm_eps == (1e-6 if r.family.startswith("qwen") else 1e-5)
    assert getattr(llm, "bias", False) is False
    assert (llm.vocab_size, llm.num_key_value_heads) == (r.vocab, r.kv)
    assert found.vision_config.layer_norm_eps == 1e-6
    assert found.vision_config.norm_type == ("rms_norm" if r.tower == "6B" else "layer_norm")
    assert (found.num_image_token, found.image_size, found.select_layer) == (256, 448, -1)
    old = name.startswith("InternVL-Chat-V1-2")
    assert found.ps_version == ("v1" if old else "v2")
    assert (found.dynamic_image_size, found.use_thumbnail) == (not old, not old)
    assert (found.min_dynamic_patch, found.max_dynamic_patch) == (1, 1 if old else 12)
    assert found.template in TEMPLATES


UNUSED = {"capacity_factor": 1.2, "num_experts": 8, "moe_intermediate_size": 768, "use_moe": False}
INTERNLM2_CODE = {
    "AutoConfig": "configuration_internlm2.InternLM2Config",
    "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
}


def as_published(found: Release) -> dict[str, Any]:
    """A config.json of a release with what such files carry beside the values that count."""
    raw = json.loads(json.dumps(found.config))
    vision, llm = raw["vision_config"], raw["llm_config"]
    for part in (raw, vision, llm):
        part |= {"torch_dtype": "bfloat16", "transformers_version": "4.37.2"}
    raw |= {"architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "_commit_hash": None}
    raw |= {"use_backbone_lora": 0, "use_llm_lora": 0}
    raw["auto_map"] = {
        "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
        "AutoModelForCausalLM": "modeling_internvl_chat.InternVLChatModel",
    }
    vision |= {"architectures": ["InternVisionModel"], "model_type": "intern_vit_6b", "use_flash_attn": True}
    vision["auto_map"] = {"AutoConfig": "configuration_intern_vit.InternVisionConfig"}
    if vision["norm_type"] == "rms_norm" and found.generation < "2.5":
        del vision["norm_type"]  # the class's default
    assert "model_type" not in llm
    if found.llm_class == "InternLM2ForCausalLM":
        llm |= {"auto_map": INTERNLM2_CODE, "attn_implementation": "flash_attention_2"}
    if (llm.get("rope_scaling") or {}).get("type") == "su":
        llm["rope_scaling"] |= {"short_factor": [1.0] * 48, "long_factor": [1.0] * 48}
    if found.name == "InternVL2-1B":
        llm["tie_word_embeddings"] = True
    if found.generation == "3.0":
        vision |= UNUSED | {"_name_or_path": "OpenGVLab/InternViT-6B-448px-V1-5"}
        raw |= {"hidden_size": llm["hidden_size"], "image_fold": None, "system_message": None}
        raw["tie_word_embeddings"] = False
    if found.generation == "3.5":
        raw |= {"eos_token_id": 151645, "pad_token_id": 151643}
    return dict(raw)


def values_of(config: Any) -> dict[str, Any]:
    """The declared fields of a config and of its parts, and the rotary positions."""
    skipped = {"architectures", "transformers_version", "auto_map", "problem_type"}
    found: dict[str, Any] = {}
    for part in (config, config.vision_config, config.llm_config):
        for key in {item.name for item in fields(part)} - skipped - {"vision_config", "llm_config", "rope_parameters"}:
            found[f"{part.model_type}.{key}"] = getattr(part, key)
    rope = config.llm_config.rope_parameters
    return found | {f"rope.{key}": value for key, value in rope.items() if key != "type"}


@each_release
def test_a_published_config_file_parses_to_the_same_config(name: str, tmp_path: Path) -> None:
    raw = as_published(release(name))
    for key, value in ASSUMED.get(name, {}).items():
        raw["llm_config"][key.split(".")[1]] = value
    (tmp_path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    found = load_config(tmp_path)
    settle_tying(found, written_down(name))
    ours, theirs = values_of(config(name)), values_of(found)
    # Given at the top by the newest releases only, for readers of the old class.
    for key in ("eos_token_id", "pad_token_id"):
        assert theirs.pop(f"internvl_chat.{key}", None) in (None, raw.get(key))
        ours.pop(f"internvl_chat.{key}", None)
    assert {key: (theirs.get(key), value) for key, value in ours.items() if theirs.get(key) != value} == {}


@pytest.mark.parametrize("name", [*ASSUMED, *SHAPELESS])
def test_unknown_shapes_are_said(name: str) -> None:
    found = release(name)
    with pytest.raises(ConfigError) as error:
        config_of(found)
    assert name in str(error.value)
    assert all(value in str(error.value) for value in found.unknown)
    assert any(value.startswith("llm_config") for value in found.unknown)


def test_only_unknown_values_can_be_assumed() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'llm_config\.vocab_size'"):
        config_of(release("InternVL-Chat-V1-2"), {"llm_config.vocab": 64000})
    with pytest.raises(ConfigError, match="unknown: nothing"):
        config_of(release("InternVL2-2B"), {"llm_config.vocab_size": 92544})


def test_assumptions_can_complete_the_oldest_release() -> None:
    found = config_of(release("InternVL-Chat-V1-1"), {"llm_config.vocab_size": 42170, "config.select_layer": -4})
    assert found.select_layer == -4
    shapes = expected_shapes(found)
    assert (elements(shapes, "vision_model."), elements(shapes, "mlp1.")) == (5_905_251_200, 91_786_240)
    assert round(elements(shapes, "language_model.") / 1e9, 2) == 13.12


# -- what is known, and how -----------------------------------------------------------------------------------------


def test_a_release_is_found_by_its_name_or_told_the_nearest() -> None:
    assert release("OpenGVLab/InternVL2-8B") is release("InternVL2-8B")
    with pytest.raises(ConfigError, match="did you mean 'InternVL2_5-8B'"):
        release("InternVL2.5-8B")


@pytest.mark.parametrize("found", releases(), ids=lambda found: found.name)
def test_support_is_what_the_code_has(found: Release) -> None:
    classes = {spec.architecture for spec in LLMS.values()}
    assert found.supported == (found.llm_class in classes and found.template in TEMPLATES)
    assert found.supported == (found.unsupported is None)
    assert found.hub_id == f"OpenGVLab/{found.name}"


def test_how_values_are_known() -> None:
    read, guessed, old = release("InternVL2-8B"), release("InternVL3-9B"), release("InternVL-Chat-V1-1")
    assert read.unknown == ()
    assert read.inferred == ("parameters", "tensors", "shards")
    assert {guessed.known(name) for name in ("llm_config.vocab_size", "llm_config.rope_scaling")} == {"inferred"}
    assert {guessed.known(name) for name in ("llm_config.hidden_size", "template", "shards")} == {"read"}
    assert {guessed.known(name) for name in ("select_layer", "vision_config.hidden_size")} == {"inferred"}
    assert guessed.known("vision_config.drop_path_rate") == "read"
    assert (old.select_layer, old.context_length, old.parameters.total, old.bf16_bytes) == (None, None, None, None)
    assert {old.known(name) for name in ("select_layer", "context_length", "llm_config.rope_theta")} == {"unknown"}
    assert release("InternVL3_5-241B-A28B").known("llm_config.moe_intermediate_size") == "inferred"


@pytest.mark.parametrize("found", releases(), ids=lambda found: found.name)
def test_the_marks_name_values_that_exist(found: Release) -> None:
    """A misspelt mark would hide that a value was never read."""
    values = found.to_dict()
    parts = {"config": {**found.config}, **{key: found.config[key] for key in ("vision_config", "llm_config")}}
    for name, group in found._marks.items():
        part, _, key = name.partition(".")
        if not key:
            assert part in (*parts, *values), name
        elif group == "unknown":
            assert parts[part].get(key.split(".")[0]) in (None, {"type": "su"}), name
        else:
            assert key in parts[part], name
    assert set(values["known"].values()) <= {"read", "inferred", "unknown"}
