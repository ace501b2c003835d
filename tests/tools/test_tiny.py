"""``internvl tiny``: deterministic, complete, and small."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl_chat.constants import SPECIAL_TOKENS
from internvl_chat.errors import ConfigError
from internvl_chat.model.build import load_model
from internvl_chat.model.tokenizer import load_tokenizer
from internvl_chat.tools import tiny
from internvl_chat.tools.tiny import KINDS, make_tiny, train_tokenizer


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_same_arguments_same_bytes(tmp_path):
    state = torch.random.get_rng_state()
    one, two, other = (make_tiny(tmp_path / str(i), seed=seed) for i, seed in enumerate((0, 0, 1)))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert digests(one) == digests(two)
    assert digests(one)["model.safetensors"] != digests(other)["model.safetensors"]
    assert digests(one)["tokenizer.json"] == digests(other)["tokenizer.json"]


@pytest.mark.parametrize("llm", sorted(KINDS))
def test_folder_loads_and_tokens_are_in_order(tmp_path, llm):
    folder = make_tiny(tmp_path, llm, vision_norm="rms_norm", image_size=112, ps_version="v1", max_dynamic_patch=3)
    model, tokenizer = load_model(folder, torch.float32), load_tokenizer(folder)
    assert model.config.llm_config.model_type == llm
    assert model.config.template == KINDS[llm].template
    assert (model.config.num_image_token, model.config.max_dynamic_patch) == (16, 3)
    assert model.config.dynamic_image_size and model.config.use_thumbnail
    ids = [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS]
    assert ids == list(range(len(tokenizer) - 9, len(tokenizer)))
    assert len(tokenizer) == model.config.llm_config.vocab_size
    for marker in KINDS[llm].markers:
        assert tokenizer(marker, add_special_tokens=False).input_ids == [tokenizer.convert_tokens_to_ids(marker)]
    starts = tokenizer("x").input_ids[0] == tokenizer.bos_token_id
    assert starts == (KINDS[llm].bos is not None)
    stops = model.language_model.generation_config.eos_token_id
    assert tokenizer.convert_tokens_to_ids(KINDS[llm].stop) in stops and tokenizer.eos_token_id in stops


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(KINDS["qwen2"], 400, ["extraordinary extraordinary"])


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if not any(marker in text for marker in (*KINDS["qwen2"].markers, *SPECIAL_TOKENS)):
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_digits_are_single_tokens_and_extra_texts_are_learnt(tokenizer):
    assert len(tokenizer("12345").input_ids) == 5
    assert len(tokenizer("extraordinary").input_ids) == 1


def test_unknown_llm(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'phi3'"):
        make_tiny(tmp_path, "phi-3")


def test_command_line(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    tiny.add_arguments(parser)
    args = parser.parse_args([str(tmp_path / "out"), "--llm", "phi3", "--llm_hidden", "32", "--seed", "4"])
    assert tiny.run(args) == 0
    assert str(tmp_path / "out") in capsys.readouterr().out
    assert load_model(tmp_path / "out").config.hidden_size == 32
