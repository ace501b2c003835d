"""What parts will make, told from configs and file heads: the very config and tokenizer of what is then built."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from internvl_chat.constants import SPECIAL_TOKENS
from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.model.build import load_config
from internvl_chat.model.config import InternVisionConfig
from internvl_chat.model.draft import Parts, draft
from internvl_chat.model.parts import added_tokens, assemble
from internvl_chat.model.tokenizer import load_tokenizer
from internvl_chat.model.vit import InternVisionModel
from internvl_chat.tools.tiny import KINDS, make_tiny

PREFIX = "language_model."
ROWS = ("model.embed_tokens.weight", "lm_head.weight", "model.tok_embeddings.weight", "output.weight")
SETTINGS = {"template": "internvl2_5", "downsample_ratio": 0.5, "ps_version": "v2", "max_dynamic_patch": 4}


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision tower of five layers, in bf16."""
    folder = tmp_path_factory.mktemp("tower")
    config = InternVisionConfig(
        image_size=28, hidden_size=32, intermediate_size=64, num_hidden_layers=5, num_attention_heads=2
    )
    torch.manual_seed(0)
    InternVisionModel(config).bfloat16().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of language model as it is published: alone, and without the nine tokens; one of them tied."""
    root = tmp_path_factory.mktemp("llms")
    for kind in KINDS:
        chat = make_tiny(root / f"chat-{kind}", kind, image_size=28, vision_hidden=32, llm_hidden=32, vocab_size=300)
        state = load_file(chat / "model.safetensors")
        state = {n.removeprefix(PREFIX): t for n, t in state.items() if n.startswith(PREFIX)}
        state = {n: t[: -len(SPECIAL_TOKENS)].clone() if n in ROWS else t for n, t in state.items()}
        values = json.loads((chat / "config.json").read_text())["llm_config"]
        values["vocab_size"] -= len(SPECIAL_TOKENS)
        core = json.loads((chat / "tokenizer.json").read_text())
        core["added_tokens"] = [token for token in core["added_tokens"] if token["content"] not in SPECIAL_TOKENS]
        write_llm(root / kind, state, values, core, chat)
    tied = {n: t.bfloat16() for n, t in load_file(root / "qwen2" / "model.safetensors").items()}
    tied.pop("lm_head.weight")
    values = json.loads((root / "qwen2" / "config.json").read_text()) | {"tie_word_embeddings": True}
    for name in ("dtype", "torch_dtype"):  # the dtype has to be seen in the file
        values.pop(name, None)
    write_llm(root / "tied", tied, values, json.loads((root / "qwen2" / "tokenizer.json").read_text()), root / "qwen2")
    return root


def write_llm(folder: Path, state: dict[str, Any], config: dict[str, Any], core: dict[str, Any], source: Path) -> None:
    folder.mkdir()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(core))
    shutil.copy(source / "tokenizer_config.json", folder)


def parts_of(llms: Path, tower: Path, kind: str, **changes: Any) -> Parts:
    settings = SETTINGS | changes.pop("settings", {})
    return Parts(**{"vision": tower, "llm": llms / kind, "settings": settings, **changes})


BUILDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "new tokens": {"new_tokens": ("<think>", "<cell 1>")},
    "cut": {"settings": {"select_layer": -4}},
    "large": {"settings": {"force_image_size": 56, "dynamic_image_size": True, "system_message": "Be brief."}},
}


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("kind", [*KINDS, "tied"])
def test_draft_is_what_is_built(llms: Path, tower: Path, tmp_path: Path, kind: str, build: str) -> None:
    parts = parts_of(llms, tower, kind, **BUILDS[build])
    drafted = draft(parts)
    folder = assemble(parts, tmp_path / "out")
    drafted.config.save_pretrained(tmp_path / "drafted")
    written, expected = (json.loads((path / "config.json").read_text()) for path in (tmp_path / "drafted", folder))
    assert expected.pop("architectures") == ["InternVLChatModel"] and written.pop("architectures", None) is None
    written["use_cache"] = expected["use_cache"]  # said when a folder is written
    assert written == expected
    size = len(load_tokenizer(llms / kind))
    new = 9 + len(BUILDS[build].get("new_tokens", ()))
    assert drafted.new_token_ids == tuple(added_tokens(folder) or ()) == tuple(range(size, size + new))
    assert expected["llm_config"]["vocab_size"] == size + new
    assert expected["vision_config"]["num_hidden_layers"] == (2 if build == "cut" else 5)
    assert expected["dtype"] == ("bfloat16" if kind == "tied" else "float32")
    built = load_tokenizer(folder)
    assert built.get_vocab() == drafted.tokenizer.get_vocab()
    assert json.loads(built.backend_tokenizer.to_str()) == json.loads(drafted.tokenizer.backend_tokenizer.to_str())
    assert load_config(folder).to_dict()["llm_config"] == load_config(tmp_path / "drafted").to_dict()["llm_config"]


def test_weights_need_not_be_there(llms: Path, tower: Path, tmp_path: Path) -> None:
    vision, llm = (Path(shutil.copytree(path, tmp_path / path.name)) for path in (tower, llms / "qwen3"))
    for folder in (vision, llm):
        (folder / "model.safetensors").unlink()
    whole = draft(parts_of(llms, tower, "qwen3"))
    bare = Parts(vision, llm, settings=dict(SETTINGS))
    found = draft(bare, weights=False).config
    for config in (found, found.llm_config, whole.config, whole.config.llm_config):
        config.dtype = None  # of this language model only the weights know it
    assert found.to_dict() == whole.config.to_dict()
    with pytest.raises(CheckpointError, match="no weights"):
        draft(bare)


def refusals(llms: Path, tower: Path, tmp_path: Path) -> dict[str, tuple[Parts, str]]:
    short = Path(shutil.copytree(llms / "llama", tmp_path / "short"))
    state = load_file(short / "model.safetensors")
    norm = state.pop("model.norm.weight")
    save_file(state, short / "model.safetensors", metadata={"format": "pt"})
    wide = Path(shutil.copytree(llms / "llama", tmp_path / "wide"))
    save_file({**state, "model.norm.weight": torch.ones(len(norm) + 1)}, wide / "model.safetensors")
    other = Path(shutil.copytree(tower, tmp_path / "other"))
    values = json.loads((other / "config.json").read_text()) | {"num_hidden_layers": 4}
    (other / "config.json").write_text(json.dumps(values))
    save_file({"0.weight": torch.ones(5)}, tmp_path / "mlp.safetensors")
    torch.save({"0.weight": torch.ones(5)}, tmp_path / "mlp.pth")
    hf = Path(shutil.copytree(tower, tmp_path / "hf"))
    (hf / "config.json").write_text(json.dumps({"model_type": "internvl"}))
    return {
        "chat model": (parts_of(llms, tower, "chat-qwen2"), "this is a whole chat model"),
        "HF-native": (parts_of(llms, hf, "qwen2"), "internvl extract-vit"),
        "no tower": (parts_of(llms, llms / "llama", "qwen2"), "'llama': this is no InternViT"),
        "tower": (parts_of(llms, other, "qwen2"), "weights do not fit its config: encoder.layers.4"),
        "projector": (parts_of(llms, tower, "qwen2", mlp=tmp_path / "mlp.safetensors"), r"needed are .*\(128,\)"),
        "old projector": (parts_of(llms, tower, "qwen2", mlp=tmp_path / "mlp.pth"), "not the projector"),
        "tensor lacks": (Parts(tower, short, settings=dict(SETTINGS)), "do not fit .*model.norm.weight"),
        "another shape": (Parts(tower, wide, settings=dict(SETTINGS)), "do not fit .*model.norm.weight"),
    }


def test_what_building_refuses_the_draft_refuses_in_the_same_words(llms: Path, tower: Path, tmp_path: Path) -> None:
    for name, (parts, message) in refusals(llms, tower, tmp_path).items():
        with pytest.raises(CheckpointError, match=message) as drafted:
            draft(parts)
        with pytest.raises(CheckpointError) as built:
            assemble(parts, tmp_path / "out")
        assert str(drafted.value) == str(built.value), name
    with pytest.raises(ConfigError, match="--vision_select_layer"):
        draft(parts_of(llms, tower, "qwen2", settings={"select_layer": -9}))
    with pytest.raises(ConfigError, match="--force_image_size 50: must be a multiple of 28"):
        draft(parts_of(llms, tower, "qwen2", settings={"force_image_size": 50}))
    assert not (tmp_path / "out").exists()
