"""Model folders: what is read, what is written, and what is said when they do not fit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from internvl_chat.constants import IMG_CONTEXT, SPECIAL_TOKENS
from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.model.build import load_model
from internvl_chat.model.config import InternVisionConfig, InternVLChatConfig
from internvl_chat.model.loss import ChunkedLMHead
from internvl_chat.model.save import save_hf_folder, save_model_folder
from internvl_chat.model.tokenizer import load_tokenizer


@pytest.fixture()
def folder(tiny_folder, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_folder("qwen2"), tmp_path / "model"))


def edit_config(folder: Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder: Path, change) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


# -- reading and writing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("llm", ["qwen2", "qwen3", "qwen3_moe", "llama", "phi3", "internlm2"])
def test_saved_folder_loads_with_the_same_names_and_bytes(tiny_folder, tmp_path, llm):
    before = tiny_folder(llm)
    model, tokenizer = load_model(before, torch.float32), load_tokenizer(before)
    save_model_folder(model, tokenizer, tmp_path, stop_token_ids=[3, 4])
    old, new = load_file(before / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    head = "output" if llm == "internlm2" else "lm_head"
    assert f"language_model.{head}.weight" in new and set(old) == set(new)
    assert all(torch.equal(old[key], new[key]) for key in old)
    again = load_model(tmp_path, torch.float32)
    assert again.language_model.generation_config.eos_token_id[:2] == [3, 4], "ours first, the source's behind"
    text = "What number? \u4e2d\u6587 \U0001f600"
    assert load_tokenizer(tmp_path)(text).input_ids == tokenizer(text).input_ids
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["size"] == 56


def test_fresh_process_gives_identical_logits(tiny_folder, tmp_path):
    model = load_model(tiny_folder("qwen2"), torch.float32)
    save_model_folder(model, load_tokenizer(tiny_folder("qwen2")), tmp_path / "out", max_shard_size="40KB")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    code = (
        "import sys, torch; from internvl_chat.model.build import load_model; torch.set_num_threads(1)\n"
        "model = load_model(sys.argv[1], torch.float32)\n"
        "torch.save(model(input_ids=torch.arange(9)[None]).logits, sys.argv[2])"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, tmp_path / "out", tmp_path / "logits.pt"], check=True, env=env)
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits.pt"), model(input_ids=torch.arange(9)[None]).logits)


def test_state_dict_is_honoured(folder, tmp_path):
    model = load_model(folder, torch.float32)
    state = {key: torch.ones_like(tensor) for key, tensor in model.state_dict().items()}
    save_model_folder(model, load_tokenizer(folder), tmp_path / "out", state_dict=state)
    assert all((tensor == 1).all() for tensor in load_file(tmp_path / "out" / "model.safetensors").values())


def test_bin_weights_load(folder):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    model = load_model(folder, torch.float32)
    assert torch.equal(model.state_dict()["mlp1.1.weight"], state["mlp1.1.weight"])


def test_dtype(folder):
    assert load_model(folder).dtype == torch.bfloat16
    assert load_model(folder, "float32").dtype == torch.float32
    assert {p.dtype for p in load_model(folder, "auto").parameters()} == {torch.float32}


def test_tied_weights_stay_tied(folder, tmp_path):
    def tie(state):
        del state["language_model.lm_head.weight"]

    edit_weights(folder, tie)
    edit_config(folder, lambda c: c["llm_config"].update(tie_word_embeddings=True))
    model = load_model(folder, torch.float32)
    head = model.get_output_embeddings()
    assert isinstance(head, ChunkedLMHead) and head.weight is model.get_input_embeddings().weight
    save_model_folder(model, load_tokenizer(folder), tmp_path / "out")
    assert "language_model.lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    model.train()
    labels = torch.arange(9)[None]
    model(input_ids=labels, labels=labels).loss.backward()
    assert head.weight.grad is model.get_input_embeddings().weight.grad


def test_separate_head_beats_a_tied_flag(folder):
    """InternVL2-1B says tied in llm_config but its file holds a head of its own."""
    edit_config(folder, lambda c: c["llm_config"].update(tie_word_embeddings=True))
    model = load_model(folder, torch.float32)
    stored = load_file(folder / "model.safetensors")["language_model.lm_head.weight"]
    assert torch.equal(model.get_output_embeddings().weight, stored)
    assert not model.config.llm_config.tie_word_embeddings


# -- config -----------------------------------------------------------------------------------------------------------


def test_published_config_loads_and_old_readers_can_read_what_we_write(folder, tmp_path):
    def published(config):
        llm = config["llm_config"]
        rope = llm.pop("rope_parameters")
        llm.pop("dtype", None)
        llm |= {"rope_theta": 1e6, "rope_scaling": {"type": "dynamic", "factor": 2.0}, "torch_dtype": "bfloat16"}
        llm |= {"attn_implementation": "flash_attention_2", "use_cache": False, "max_length": 20, "temperature": 1.0}
        llm["architectures"] = ["Qwen2ForCausalLM"]
        config["auto_map"] = {"AutoModel": "modeling_internvl_chat.InternVLChatModel"}
        config |= {"pad2square": False, "image_fold": None, "_commit_hash": None, "transformers_version": None}
        del config["img_context_token_id"], config["normalize_type"], llm["model_type"]
        assert rope["rope_theta"] == 10000.0

    edit_config(folder, published)
    model = load_model(folder, torch.float32)
    assert model.config.llm_config.model_type == "qwen2"
    assert model.config.llm_config.rope_parameters["rope_theta"] == 1e6
    tokenizer = load_tokenizer(folder)
    assert model.config.img_context_token_id == tokenizer.get_vocab()[IMG_CONTEXT]
    (folder / "modeling_internvl_chat.py").write_text("# remote code\n")
    save_model_folder(model, tokenizer, tmp_path / "out", source=folder)
    assert (tmp_path / "out" / "modeling_internvl_chat.py").read_text() == "# remote code\n"
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["llm_config"]["rope_theta"] == 1e6
    assert written["llm_config"]["rope_scaling"] == {"type": "dynamic", "factor": 2.0}
    assert written["llm_config"]["architectures"] == ["Qwen2ForCausalLM"]
    assert written["torch_dtype"] == written["dtype"] == "float32"
    assert written["auto_map"] == {"AutoModel": "modeling_internvl_chat.InternVLChatModel"}
    assert written["hidden_size"] == 32
    assert load_model(tmp_path / "out").config.llm_config.rope_parameters == model.config.llm_config.rope_parameters
    # Without the code that it names, auto_map would only break readers that run remote code.
    save_model_folder(model, tokenizer, tmp_path / "bare")
    assert "auto_map" not in json.loads((tmp_path / "bare" / "config.json").read_text())


def test_long_rope_tables_of_phi3_survive_under_both_names(tiny_folder, tmp_path):
    """Published as ``su`` with three keys; transformers calls it ``longrope``. The factors show in the logits."""
    folder = Path(shutil.copytree(tiny_folder("phi3"), tmp_path / "phi3"))
    plain = load_model(folder, torch.float32)
    half = plain.config.llm_config.hidden_size // plain.config.llm_config.num_attention_heads // 2
    factors = {"short_factor": [1.0 + 0.1 * i for i in range(half)], "long_factor": [2.0 + i for i in range(half)]}

    def published(config):
        llm = config["llm_config"]
        llm.pop("rope_parameters", None)
        llm |= {"rope_theta": 10000.0, "rope_scaling": {"type": "su", **factors}}
        llm |= {"max_position_embeddings": 64, "original_max_position_embeddings": 16}

    edit_config(folder, published)
    model = load_model(folder, torch.float32)
    rope = model.config.llm_config.rope_parameters
    assert (rope["rope_type"], rope["long_factor"]) == ("longrope", factors["long_factor"])
    for out, save in (("own", save_model_folder), ("hf", save_hf_folder)):
        save(model, load_tokenizer(folder), tmp_path / out)
        again = load_model(tmp_path / out, torch.float32)
        for length in (9, 30):  # within and beyond the original length: short and long table
            ids = torch.arange(length)[None]
            with torch.no_grad():
                assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)
                assert not torch.allclose(model(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-3)
    written = json.loads((tmp_path / "own" / "config.json").read_text())["llm_config"]
    assert written["rope_scaling"] == {"type": "su", **factors}
    assert written["original_max_position_embeddings"] == 16


def test_config_defaults_and_properties():
    config = InternVLChatConfig()
    assert (config.select_layer, config.downsample_ratio, config.ps_version) == (-1, 0.5, "v1")
    assert (config.dynamic_image_size, config.use_thumbnail, config.pad2square) == (False, False, False)
    assert (config.min_dynamic_patch, config.max_dynamic_patch, config.force_image_size) == (1, 6, None)
    llm = {"model_type": "llama", "hidden_size": 96}
    config = InternVLChatConfig(vision_config={"image_size": 448}, llm_config=llm)
    assert (config.image_size, config.num_image_token, config.hidden_size) == (448, 256, 96)
    config.force_image_size = 224
    assert (config.image_size, config.num_image_token) == (224, 64)


def test_vision_config_out_of_a_chat_folder(folder):
    assert InternVisionConfig.from_pretrained(folder).hidden_size == 32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"llm_config": {"model_type": "quen2"}}, "did you mean 'qwen2'"),
        ({"llm_config": {"architectures": ["MysteryForCausalLM"]}}, "MysteryForCausalLM"),
        ({"ps_version": "v3"}, "ps_version"),
        ({"normalize_type": "imagent"}, "did you mean 'imagenet'"),
        ({"select_layer": 90}, "48 layers"),
    ],
)
def test_config_errors(values, message):
    with pytest.raises(ConfigError, match=message):
        InternVLChatConfig(**values)


def test_overrides(folder):
    model = load_model(
        folder,
        torch.float32,
        config_overrides={"drop_path_rate": 0.2, "select_layer": -2, "force_image_size": 84, "template": None},
    )
    assert model.vision_model.encoder.layers[-1].drop_path2.rate == pytest.approx(0.2)
    assert model.config.select_layer == -2 and model.config.template == "internvl2_5"
    assert model.vision_model.embeddings.position_embedding.shape[1] == 37
    assert model.config.num_image_token == 9 and model.config.vision_config.image_size == 84
    with pytest.raises(ConfigError, match="did you mean 'drop_path_rate'"):
        load_model(folder, config_overrides={"drop_path": 0.1})


# -- folders that do not fit ------------------------------------------------------------------------------------------


def test_missing_weights_are_named(folder):
    edit_weights(folder, lambda state: state.pop("mlp1.1.weight"))
    with pytest.raises(CheckpointError, match=r"1 missing: mlp1\.1\.weight.*incomplete"):
        load_model(folder)


def test_unexpected_weights_are_named(folder):
    edit_weights(folder, lambda state: state.update({"qformer.weight": torch.ones(2)}))
    with pytest.raises(CheckpointError, match=r"1 unexpected: qformer\.weight"):
        load_model(folder)


def test_lora_wrappers_are_explained(folder):
    def wrap(state):
        key = "language_model.model.layers.0.mlp.up_proj.weight"
        state[key.replace(".weight", ".base_layer.weight")] = state.pop(key)

    edit_weights(folder, wrap)
    with pytest.raises(CheckpointError, match="merge them first"):
        load_model(folder)


def test_other_shapes_are_named(folder):
    edit_config(folder, lambda c: c["llm_config"].update(intermediate_size=96))
    with pytest.raises(CheckpointError, match=r"6 of another shape: .*down_proj\.weight \(32, 128\) for \(32, 96\)"):
        load_model(folder)


def test_hf_native_layout_is_recognised(folder):
    edit_config(folder, lambda c: c.update(model_type="internvl", architectures=["InternVLForConditionalGeneration"]))
    with pytest.raises(CheckpointError, match="HF-native layout"):
        load_model(folder)


def test_other_model_is_recognised(folder):
    edit_config(folder, lambda c: c.update(model_type="llava"))
    with pytest.raises(CheckpointError, match="'llava'"):
        load_model(folder)


def test_missing_files(folder, tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no model folder"):
        load_model(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        load_model(folder)


def test_truncated_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="weights cannot be loaded"):
        load_model(folder)


def test_tokenizer_without_image_token(folder):
    raw = (folder / "tokenizer.json").read_text().replace(IMG_CONTEXT, "<OTHER>")
    (folder / "tokenizer.json").write_text(raw)
    with pytest.raises(CheckpointError, match="has no token <IMG_CONTEXT>"):
        load_model(folder)


def test_tokenizer_ids_are_those_of_the_file(folder):
    """tokenizer_config.json may name a class that would rebuild the tokenizer with other ids."""
    raw = json.loads((folder / "tokenizer.json").read_text())
    ids = {token["content"]: token["id"] for token in raw["added_tokens"]}
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "LlamaTokenizer", "auto_map": {"AutoTokenizer": ["x.Y", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(folder)
    assert [tokenizer.convert_tokens_to_ids(t) for t in SPECIAL_TOKENS] == [ids[t] for t in SPECIAL_TOKENS]
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
