"""Model folders that are damaged, mixed up or something else: one line that names folder and mend, no weight read."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from internvl_chat import cli
from internvl_chat.errors import CheckpointError
from internvl_chat.model.build import load_model
from internvl_chat.model.chat import InternVLChatModel
from internvl_chat.model.lora import LoraOptions, Origin, add_lora, save_adapter
from internvl_chat.model.save import save_hf_folder, save_model_folder
from internvl_chat.model.tokenizer import load_tokenizer

Change = Callable[[Path], object]


@pytest.fixture()
def folder(tiny_folder, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_folder("qwen2"), tmp_path / "model"))


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_weights(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def in_shards(folder: Path) -> list[Path]:
    """Write the weights anew, in several files with an index."""
    save_model_folder(load_model(folder, "auto"), load_tokenizer(folder), folder.parent / "cut", max_shard_size="150KB")
    (folder / "model.safetensors").unlink()
    for file in (folder.parent / "cut").glob("model*"):
        shutil.move(file, folder)
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    return shards


def as_bins(folder: Path) -> None:
    """The shards as the first releases have them: pickled state dicts."""
    for shard in in_shards(folder):
        name = shard.name.replace("model", "pytorch_model").replace(".safetensors", ".bin")
        torch.save(load_file(shard), folder / name)
        shard.unlink()
    index = folder / "model.safetensors.index.json"
    text = index.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
    (folder / "pytorch_model.bin.index.json").write_text(text)
    index.unlink()


# -- what can be wrong ------------------------------------------------------------------------------------------------


def hf_weights(folder: Path) -> None:
    save_hf_folder(load_model(folder, "auto"), load_tokenizer(folder), folder.parent / "hf")
    shutil.copy(folder.parent / "hf" / "model.safetensors", folder)


def hf_config(folder: Path) -> None:
    save_hf_folder(load_model(folder, "auto"), load_tokenizer(folder), folder.parent / "hf")
    shutil.copy(folder.parent / "hf" / "config.json", folder)


def image_token_beyond_the_rows(folder: Path) -> None:
    def move(core: dict[str, Any]) -> None:
        (token,) = [token for token in core["added_tokens"] if token["content"] == "<IMG_CONTEXT>"]
        core["added_tokens"].remove(token)
        core["added_tokens"].append({**token, "id": max(t["id"] for t in core["added_tokens"]) + 1})

    edit_json(folder / "tokenizer.json", move)

    def fewer(state: dict[str, Any]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            state[f"language_model.{name}"] = state[f"language_model.{name}"][:-9].clone()

    edit_weights(folder, fewer)
    edit_json(folder / "config.json", lambda c: c["llm_config"].update(vocab_size=c["llm_config"]["vocab_size"] - 9))


def longer_tokenizer(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(folder)


def other_rows(folder: Path) -> None:
    edit_json(folder / "config.json", lambda c: c["llm_config"].update(vocab_size=c["llm_config"]["vocab_size"] + 64))


def cut_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def cut_shard(folder: Path) -> None:
    path = in_shards(folder)[1]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty_shard(folder: Path) -> None:
    in_shards(folder)[1].write_bytes(b"")


def garbled_head(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:40] = b"\xff" * 32
    path.write_bytes(bytes(data))


def pointer_instead_of_weights(folder: Path) -> None:
    """What a clone without git-lfs leaves."""
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 4567\n"
    (folder / "model.safetensors").write_text(text)


def missing_shard(folder: Path) -> None:
    in_shards(folder)[1].unlink()


def shard_without_a_promised_tensor(folder: Path) -> None:
    path = in_shards(folder)[1]
    state = load_file(path)
    state.pop(sorted(state)[0])
    save_file(state, path, metadata={"format": "pt"})


def broken_index(folder: Path) -> None:
    in_shards(folder)
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text()[:-20])


def cut_bin(folder: Path) -> None:
    as_bins(folder)
    path = sorted(folder.glob("pytorch_model-*.bin"))[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def bin_that_is_no_state_dict(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save([torch.ones(2)], folder / "pytorch_model.bin")


def adapter(folder: Path) -> None:
    wrapped = add_lora(load_model(folder, "auto"), LoraOptions(llm_rank=2), 2)
    shutil.rmtree(folder)
    save_adapter(wrapped, folder, Origin(folder.parent / "base"))


def adapter_beside_a_config(folder: Path) -> None:
    config = (folder / "config.json").read_text()
    adapter(folder)
    (folder / "config.json").write_text(config)


def wrapped(folder: Path) -> None:
    """As the original training code saves a LoRA run: the wrapped language model, whole."""

    def wrap(state: dict[str, Any]) -> None:
        for name in [name for name in state if name.startswith("language_model.")]:
            inner = name.replace("language_model.", "language_model.base_model.model.", 1)
            tensor = state.pop(name)
            if "_proj.weight" in name:
                layer = inner.removesuffix(".weight")
                state[f"{layer}.base_layer.weight"] = tensor
                state[f"{layer}.lora_A.default.weight"] = torch.ones(2, tensor.shape[1])
                state[f"{layer}.lora_B.default.weight"] = torch.ones(tensor.shape[0], 2)
            else:
                state[inner] = tensor

    edit_weights(folder, wrap)


def remote_code(folder: Path) -> None:
    def other(config: dict[str, Any]) -> None:
        config["model_type"] = "shiny_vlm"
        config["auto_map"] = {"AutoModel": "modeling_shiny.ShinyModel"}

    edit_json(folder / "config.json", other)
    (folder / "modeling_shiny.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


# Fault -> what the message must say, besides the folder.
FAULTS: dict[Change, tuple[str, ...]] = {
    hf_weights: ("weights are in the HF-native layout", "take both from one release"),
    hf_config: ("weights are in the original layout", "take both from one release"),
    image_token_beyond_the_rows: ("<IMG_CONTEXT>", "tokenizer and weights are of different models"),
    longer_tokenizer: ("tokenizer", "rows|tokens", "resizing"),
    other_rows: ("another vocabulary", r"config.json says \d+", "without resizing"),
    cut_file: ("model.safetensors", "damaged or cut off", "fetch it again"),
    cut_shard: ("model-00002-of-", "damaged or cut off", "fetch it again"),
    empty_shard: ("model-00002-of-", "damaged or cut off", "fetch it again"),
    garbled_head: ("model.safetensors", "damaged or cut off", "fetch it again"),
    pointer_instead_of_weights: ("model.safetensors", "damaged or cut off", "fetch it again"),
    missing_shard: (r"1 of \d weight files", "model-00002-of-", "are missing", "fetch them"),
    shard_without_a_promised_tensor: ("model-00002-of-", "lacks 1 tensors that the index promises", "fetch both again"),
    broken_index: ("model.safetensors.index.json cannot be read", "download it again"),
    cut_bin: ("pytorch_model-00001-of-", "damaged or cut off", "fetch it again"),
    bin_that_is_no_state_dict: ("pytorch_model.bin is not a state dict",),
    adapter: ("this is a LoRA adapter, not a full model", "internvl merge-lora"),
    adapter_beside_a_config: ("this is a LoRA adapter", "internvl merge-lora"),
    wrapped: ("LoRA wrappers inside the model", "internvl merge-lora"),
    remote_code: ("'shiny_vlm'", "its code is remote", "never run here"),
    no_config: ("no model folder", "config.json", "check the path"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_fault_is_one_line_before_weights_are_read(
    folder: Path, fault: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(folder)

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the weights were read before the folder was checked")

    monkeypatch.setattr(InternVLChatModel, "from_pretrained", never)
    with pytest.raises(CheckpointError) as caught:
        load_model(folder, torch.float32)
    message = str(caught.value)
    assert "\n" not in message
    for part in (re.escape(str(folder)), *FAULTS[fault]):
        assert re.search(part, message), message
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "fault", [cut_file, missing_shard, wrapped, remote_code, other_rows, hf_weights], ids=lambda fault: fault.__name__
)
def test_chat_says_it_in_one_line(folder: Path, fault: Change, capsys: pytest.CaptureFixture[str]) -> None:
    fault(folder)
    capsys.readouterr()
    assert cli.main(["chat", str(folder), "Hello?"]) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in error
    for part in (re.escape(str(folder)), *FAULTS[fault]):
        assert re.search(part, lines[0]), error


# -- pickles ----------------------------------------------------------------------------------------------------------


class Payload:
    """Writes a file where it is unpickled without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def zipped(state: dict[str, Any], path: Path) -> None:
    torch.save(state, path)


def old_format(state: dict[str, Any], path: Path) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def bare_pickle(state: dict[str, Any], path: Path) -> None:
    path.write_bytes(pickle.dumps(state["payload"], protocol=2))


@pytest.mark.parametrize("write", [zipped, old_format, bare_pickle], ids=lambda write: write.__name__)
def test_code_in_a_bin_is_refused_and_does_not_run(folder: Path, tmp_path: Path, write: Callable[..., None]) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    write({**state, "payload": Payload(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin .*refused") as caught:
        load_model(folder, torch.float32)
    assert "safetensors" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists(), "the payload does work where nobody is careful"


def test_code_in_a_shard_is_refused_and_does_not_run(folder: Path, tmp_path: Path) -> None:
    as_bins(folder)
    last = sorted(folder.glob("pytorch_model-*.bin"))[-1]
    torch.save({**torch.load(last), "payload": Payload(tmp_path / "ran")}, last)
    with pytest.raises(CheckpointError, match=f"{re.escape(str(last))} .*refused"):
        load_model(folder, torch.float32)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("change", [as_bins, in_shards], ids=lambda change: change.__name__)
def test_shards_load_like_one_file(folder: Path, tmp_path: Path, change: Change) -> None:
    expected = load_model(folder, "auto").state_dict()
    change(folder)
    assert not (folder / "model.safetensors").exists()
    found = load_model(folder, "auto").state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
