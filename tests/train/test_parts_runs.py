"""Building from a tower, a language model and a projector by `internvl train`: bit for bit, once, for all ranks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from internvl_chat import cli
from internvl_chat.constants import SPECIAL_TOKENS
from internvl_chat.model.build import load_model
from internvl_chat.model.config import InternVisionConfig
from internvl_chat.model.parts import load_vision
from internvl_chat.model.tokenizer import load_tokenizer
from internvl_chat.model.vit import InternVisionModel
from internvl_chat.tools.tiny import KINDS, make_tiny
from tests.train.runs import flags, losses, run_all, weights
from tests.train.test_zero import zero_config

LLMS = ("qwen2", "internlm2", "llama")
TOWERS = {"layer_norm": "vit-300m", "rms_norm": "vit-6b"}
EMBEDDING = {"internlm2": "model.tok_embeddings.weight"}
HEAD = {"internlm2": "output.weight"}
# Run -> language model, tower, projector, and further flags.
BUILDS: dict[str, tuple[str, str, str | None, dict[str, Any]]] = {
    "plain": ("qwen2", "vit-300m", "mlp.safetensors", {}),
    "cut": ("internlm2", "vit-6b", "mlp.pth", {"vision_select_layer": -2}),
    "large": ("llama", "vit-300m", None, {"force_image_size": 56, "max_seq_length": 800}),
}
SHARED = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
ROWS = {"train_new_tokens": True, "freeze_llm": True}
PAIRED = {"max_steps": 2, "max_grad_norm": 1.0}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Towers of both kinds, language models whose tokenizers know no picture, a projector in both forms."""
    root = tmp_path_factory.mktemp("parts")
    for seed, (norm, name) in enumerate(TOWERS.items()):
        torch.manual_seed(seed)
        InternVisionModel(tower_config(norm)).save_pretrained(root / name)
    for seed, llm in enumerate(LLMS):
        make_llm(root, llm, seed)
    mlp = {n.removeprefix("mlp1."): t for n, t in weights(root / "chat-qwen2").items() if n.startswith("mlp1.")}
    save_file(mlp, root / "mlp.safetensors")
    torch.save({f"mlp1.{name}": tensor for name, tensor in mlp.items()}, root / "mlp.pth")
    (root / "new.txt").write_text("<think>\n<cell 1>\n")
    return root


def tower_config(norm: str) -> InternVisionConfig:
    plain = norm == "layer_norm"
    return InternVisionConfig(
        image_size=28, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
        norm_type=norm, qkv_bias=plain, qk_normalization=not plain, initializer_range=0.2, initializer_factor=1.0,
    )  # fmt: skip


def make_llm(root: Path, llm: str, seed: int) -> None:
    """A folder as language models are published: the LLM of a tiny chat model, less the nine tokens and their rows."""
    chat, folder = root / f"chat-{llm}", root / llm
    make_tiny(chat, llm, image_size=28, vision_hidden=32, llm_hidden=32, seed=seed)
    folder.mkdir()
    prefix = "language_model."
    state = {n.removeprefix(prefix): t for n, t in weights(chat).items() if n.startswith(prefix)}
    for name in names_of_rows(llm):
        state[name] = state[name][: -len(SPECIAL_TOKENS)].clone()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((chat / "config.json").read_text())["llm_config"]
    config["vocab_size"] -= len(SPECIAL_TOKENS)
    (folder / "config.json").write_text(json.dumps(config))
    core = json.loads((chat / "tokenizer.json").read_text())
    core["added_tokens"] = [token for token in core["added_tokens"] if token["content"] not in SPECIAL_TOKENS]
    (folder / "tokenizer.json").write_text(json.dumps(core))
    shutil.copy(chat / "tokenizer_config.json", folder)


def names_of_rows(llm: str) -> tuple[str, str]:
    return EMBEDDING.get(llm, "model.embed_tokens.weight"), HEAD.get(llm, "lm_head.weight")


def build_flags(parts: Path, data: Path, out: Path, build: str, **changes: Any) -> list[str]:
    llm, tower, mlp, own = BUILDS[build]
    given = {
        "vision_path": parts / tower,
        "llm_path": parts / llm,
        "mlp_path": parts / mlp if mlp else None,
        "conv_style": KINDS[llm].template,
        "max_dynamic_patch": 2,
    }
    return flags(None, data, out, **{**given, **own, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def built(parts: Path, mixed_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every build trained for two steps by one process; one of them resumed; one with tokens of its own."""
    root = tmp_path_factory.mktemp("built")
    jobs = [build_flags(parts, mixed_data, root / name, name, **SHARED) for name in BUILDS]
    for name in ("checkpoint-1", "assembled"):
        jobs.append(["copy", str(root / "plain" / name), str(root / "resumed" / name)])
    jobs.append(build_flags(parts, mixed_data, root / "resumed", "plain", **SHARED))
    jobs.append(
        build_flags(parts, mixed_data, root / "tokens", "plain", new_tokens=parts / "new.txt", max_steps=2, **ROWS)
    )
    for name in ("plain", "cut"):
        changes = {**PAIRED, "gradient_accumulation_steps": 2}
        jobs.append(build_flags(parts, mixed_data, root / f"one-{name}", name, **changes))
    rows = {**PAIRED, **ROWS, "new_tokens": parts / "new.txt", "gradient_accumulation_steps": 2}
    jobs.append(build_flags(parts, mixed_data, root / "one-tokens", "plain", **rows))
    run_all(jobs)
    return root


def assembled(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], Any]:
    """Weights, config and tokenizer of what a run was built into."""
    folder = folder / "assembled"
    return weights(folder), json.loads((folder / "config.json").read_text()), load_tokenizer(folder)


@pytest.mark.slow
@pytest.mark.parametrize("build", BUILDS)
def test_built_model_is_its_parts(parts: Path, built: Path, build: str) -> None:
    llm, tower, mlp, own = BUILDS[build]
    state, config, tokenizer = assembled(built / build)
    old = load_file(parts / llm / "model.safetensors")
    size = old[names_of_rows(llm)[0]].shape[0]
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert ids == list(range(size, size + 9)) and len(tokenizer) == size + 9 == config["llm_config"]["vocab_size"]
    text = "".join(SPECIAL_TOKENS)
    assert tokenizer(text, add_special_tokens=False).input_ids == ids
    expected = {f"language_model.{name}": tensor for name, tensor in old.items()}
    for name in names_of_rows(llm):
        rows = expected[f"language_model.{name}"]
        mean = rows.float().mean(0, keepdim=True).expand(9, -1)
        expected[f"language_model.{name}"] = torch.cat([rows, mean])
    layers = 2 if "vision_select_layer" in own else 3
    for name, tensor in load_file(parts / tower / "model.safetensors").items():
        if "layers.2." not in name or layers == 3:
            expected[f"vision_model.{name}"] = tensor
    if mlp:
        expected |= {f"mlp1.{name}": tensor for name, tensor in load_file(parts / "mlp.safetensors").items()}
    position = "vision_model.embeddings.position_embedding"
    if "force_image_size" in own:
        assert state[position].shape == (1, 17, 32), "4 x 4 patches and the class token"
        assert torch.equal(state[position][:, 0], expected[position][:, 0])
        expected[position] = state[position]
    fresh = {name for name in state if name.startswith("mlp1.")} if not mlp else set()
    assert state.keys() == expected.keys() | fresh
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name
    assert config["template"] == KINDS[llm].template
    assert (config["vision_config"]["num_hidden_layers"], config["select_layer"]) == (layers, -1)
    wanted = own.get("force_image_size", 28)
    assert (config["force_image_size"], config["vision_config"]["image_size"]) == (wanted, wanted)
    assert (config["downsample_ratio"], config["ps_version"]) == (0.5, "v2")


@pytest.mark.slow
def test_cut_tower_gives_the_hidden_state_of_the_whole_one(parts: Path, built: Path) -> None:
    tiles = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    whole = load_vision(parts / "vit-6b").eval()
    model = load_model(built / "cut" / "assembled", torch.float32)
    with torch.no_grad():
        states = whole(tiles, output_hidden_states=True).hidden_states
        found = model.vision_model(tiles, select_layer=model.config.select_layer).last_hidden_state
    assert len(states) == 4
    assert torch.equal(found, states[-2])


@pytest.mark.slow
@pytest.mark.parametrize("build", BUILDS)
def test_training_goes_on_from_the_built_model(built: Path, build: str) -> None:
    assert len(losses(built / build)) == 2
    start, end = weights(built / build / "assembled"), weights(built / build)
    assert start.keys() == end.keys()
    assert not torch.equal(start["mlp1.3.weight"], end["mlp1.3.weight"])
    assert json.loads((built / build / "config.json").read_text())["select_layer"] == -1


@pytest.mark.slow
def test_resumed_run_takes_what_was_built(built: Path) -> None:
    first, again = (sorted((built / run / "assembled").iterdir()) for run in ("plain", "resumed"))
    assert [(p.name, p.stat().st_mtime_ns) for p in first] == [(p.name, p.stat().st_mtime_ns) for p in again]
    assert losses(built / "resumed") == losses(built / "plain")[1:]
    for name, tensor in weights(built / "plain").items():
        assert torch.equal(tensor, weights(built / "resumed")[name]), name


@pytest.mark.slow
def test_tokens_of_ones_own_follow_the_nine(parts: Path, built: Path) -> None:
    state, config, tokenizer = assembled(built / "tokens")
    size = len(load_tokenizer(parts / "qwen2"))
    assert tokenizer.convert_tokens_to_ids([SPECIAL_TOKENS[0], "<think>", "<cell 1>"]) == [size, size + 9, size + 10]
    assert tokenizer("a<cell 1>b", add_special_tokens=False).input_ids[1:-1] == [size + 10]
    assert config["llm_config"]["vocab_size"] == size + 11
    end = weights(built / "tokens")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        before, after = state[f"language_model.{name}"], end[f"language_model.{name}"]
        assert before.shape[0] == size + 11
        assert torch.equal(before[:size], after[:size]), "only the new rows train"
        assert not torch.equal(before[size:], after[size:])
    gate = "language_model.model.layers.0.mlp.gate_proj.weight"
    assert torch.equal(state[gate], end[gate])


@pytest.mark.slow
def test_zero3_on_two_processes_builds_and_trains_the_same(
    parts: Path, built: Path, mixed_data: Path, tmp_path: Path
) -> None:
    config = zero_config("zero3", tmp_path)
    jobs = [
        build_flags(parts, mixed_data, tmp_path / name, name, deepspeed=config, **PAIRED) for name in ("plain", "cut")
    ]
    rows = {**PAIRED, **ROWS, "new_tokens": parts / "new.txt", "deepspeed": config}
    jobs.append(build_flags(parts, mixed_data, tmp_path / "tokens", "plain", **rows))
    run_all(jobs, processes=2)
    for name in ("plain", "cut", "tokens"):
        assert losses(tmp_path / name) == pytest.approx(losses(built / f"one-{name}"), rel=1e-5)
        expected = weights(built / f"one-{name}" / "assembled")
        found = weights(tmp_path / name / "assembled")
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected)


# -- parts that do not fit --------------------------------------------------------------------------------------------


Fail = Callable[..., str]


@pytest.fixture
def fail(parts: Path, mixed_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Fail:
    """Run with other parts; returns the one error line."""

    def run(**changes: Any) -> str:
        assert cli.main(["train", *build_flags(parts, mixed_data, tmp_path / "out", "plain", **changes)]) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, errors
        assert not list((tmp_path / "out").rglob("*.safetensors"))
        return errors[0]

    return run


def test_projector_of_another_shape(fail: Fail, tmp_path: Path) -> None:
    save_file({"0.weight": torch.ones(5), "1.weight": torch.ones(3, 5)}, tmp_path / "mlp.safetensors")
    message = fail(mlp_path=tmp_path / "mlp.safetensors")
    for part in (f"{tmp_path}/mlp.safetensors", "not the projector", "(3, 5)", "leave --mlp_path out"):
        assert part in message


def test_chat_model_given_as_language_model(fail: Fail, parts: Path) -> None:
    message = fail(llm_path=parts / "chat-qwen2")
    assert f"{parts / 'chat-qwen2'}: this is a whole chat model" in message
    assert "--llm_path" in message


def test_language_model_given_as_vision_tower(fail: Fail, parts: Path) -> None:
    message = fail(vision_path=parts / "llama")
    assert str(parts / "llama") in message
    assert "'llama': this is no InternViT" in message


def test_vision_tower_given_as_language_model(fail: Fail, parts: Path) -> None:
    assert "'intern_vit_6b' is not supported" in fail(llm_path=parts / "vit-6b")


def test_shard_of_the_language_model_is_missing(fail: Fail, parts: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(parts / "qwen2", tmp_path / "llm"))
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    places = {name: f"model-0000{1 + (name == names[0])}-of-00002.safetensors" for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    message = fail(llm_path=folder)
    for part in (str(folder), "1 of 2 weight files", "model-00002-of-00002.safetensors", "fetch them"):
        assert part in message


def test_shard_of_the_tower_is_cut_off(fail: Fail, parts: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(parts / "vit-300m", tmp_path / "vit"))
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    message = fail(vision_path=folder)
    assert f"{folder / 'model.safetensors'}: the weights cannot be loaded" in message


def test_token_that_is_there_already(fail: Fail, tmp_path: Path) -> None:
    (tmp_path / "new.txt").write_text("<box>\n")
    assert "'<box>' is in the vocabulary already" in fail(new_tokens=tmp_path / "new.txt")


def test_tiles_that_make_no_whole_tokens(fail: Fail, parts: Path) -> None:
    wanted = "--force_image_size 50: must be a multiple of 28"
    assert wanted in fail(force_image_size=50)
    whole = {"vision_path": None, "llm_path": None, "mlp_path": None, "model_name_or_path": parts / "chat-qwen2"}
    assert wanted in fail(force_image_size=50, **whole)


def test_select_layer_beyond_the_tower(fail: Fail) -> None:
    assert "--vision_select_layer" in fail(vision_select_layer=-9)
