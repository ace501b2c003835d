"""Any folder -> an HF-native one, exported once: the key, two at once, what cannot be, adapters."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.infer.chat import Chat
from internvl_chat.infer.load import load
from internvl_chat.infer.serve import export
from internvl_chat.infer.serve.export import describe, exports_folder, served_folder
from internvl_chat.tools.tiny import make_tiny


@pytest.fixture()
def copy(tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, and a cache of its own."""
    monkeypatch.setenv("INTERNVL_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(tiny_folder("qwen2"), tmp_path / "model"))


def written(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Fills with the folders that are written."""
    made: list[Path] = []
    write = export.write_folder

    def spy(model: object, tokenizer: object, folder: Path, **options: object) -> None:
        made.append(folder)
        write(model, tokenizer, folder, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(export, "write_folder", spy)
    return made


def test_exported_once_and_anew_when_it_changes(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = written(monkeypatch)
    first = served_folder(copy)
    assert first.parent == exports_folder()
    assert served_folder(copy) == first
    assert len(made) == 1
    weights = copy / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    second = served_folder(copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "max_dynamic_patch": 2}))
    third = served_folder(copy)
    fourth = served_folder(copy, conv_style="Hermes-2")
    monkeypatch.setattr("transformers.__version__", "99.0")
    fifth = served_folder(copy)
    assert len({first, second, third, fourth, fifth}) == len(made) == 5
    assert describe(third).tiles.max_tiles == 2
    assert describe(fourth).encoder.template.name == "Hermes-2"
    assert sorted(exports_folder().iterdir()) == sorted([first, second, third, fourth, fifth]), "no unfinished folders"


def test_an_export_is_the_same_model(copy: Path, pictures: list[Path]) -> None:
    chats = [Chat(load(folder, device="cpu")) for folder in (copy, served_folder(copy))]
    assert len({chat.ask("What?", pictures[:1], max_new_tokens=12) for chat in chats}) == 1
    loaded, described = chats[0].loaded, describe(served_folder(copy))
    for name in ("stop_ids", "hidden_ids", "pad_id", "tiles"):
        assert getattr(described, name) == getattr(loaded, name)
    assert described.encoder.fingerprint() == loaded.encoder.fingerprint()
    assert next(described.model.parameters()).device == torch.device("meta")


def test_two_at_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = written(monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        found = set(pool.map(lambda _: served_folder(copy), range(2)))
    assert len(found) == 1
    assert len(made) >= 1
    assert [*exports_folder().iterdir()] == [*found]
    assert load(found.pop(), device="cpu")


def test_an_export_that_breaks_leaves_nothing(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(export, "write_folder", full)
        with pytest.raises(CheckpointError, match="No space left"):
            served_folder(copy)
    assert [*exports_folder().iterdir()] == []
    assert served_folder(copy).is_dir()


def test_what_a_killed_export_has_left_is_removed(copy: Path) -> None:
    """Not one that may be going on, nor a folder that is not ours."""
    day = 24 * 3600
    ages = {".part-killed": day + 60, ".part-new": day - 60, ".part-going-on": day + 60, ".mine": 9 * day}
    for name, age in ages.items():
        folder = exports_folder() / name
        folder.mkdir(parents=True)
        (folder / "weights").touch()
        then = time.time() - age
        if name != ".part-going-on":
            os.utime(folder / "weights", (then, then))
        os.utime(folder, (then, then))
    found = served_folder(copy)
    left = {path.name for path in exports_folder().iterdir()}
    assert left == {".part-new", ".part-going-on", ".mine", found.name}


def test_hf_native_folders_are_served_as_they_are(copy: Path) -> None:
    native = served_folder(copy)
    assert served_folder(native) == served_folder(native, conv_style="Hermes-2") == native
    assert describe(native, "Hermes-2").encoder.template.name == "Hermes-2"


def test_what_the_layout_cannot_express_is_told_first(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "load_model", lambda *_: pytest.fail("weights were read"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "ps_version": "v1", "use_thumbnail": False}))
    with pytest.raises(ConfigError, match=r"ps_version v1.*use_thumbnail"):
        served_folder(copy)


def test_a_disk_without_room_is_told_first(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(copy)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ConfigError, match="INTERNVL_CACHE"):
        served_folder(copy)


def test_an_adapter_is_merged_into_its_base(copy: Path, tmp_path: Path, pictures: list[Path]) -> None:
    from internvl_chat.model.adapter import Origin
    from internvl_chat.model.build import load_model
    from internvl_chat.model.lora import LoraOptions, add_lora, save_adapter

    wrapped = add_lora(load_model(copy, "auto"), LoraOptions(llm_rank=2), 2)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    save_adapter(wrapped, tmp_path / "adapter", Origin(copy))
    found = served_folder(tmp_path / "adapter")
    asked = {}
    for folder in (tmp_path / "adapter", found, copy):
        asked[folder] = Chat(load(folder, device="cpu")).ask("What?", pictures[:1], max_new_tokens=12)
    assert asked[tmp_path / "adapter"] == asked[found] != asked[copy]
    base = Path(shutil.copytree(copy, tmp_path / "moved"))
    assert served_folder(tmp_path / "adapter", base=base) != found, "another base is another model"


@pytest.mark.parametrize(("bits", "kind"), [(8, "Linear8bitLt"), (4, "Linear4bit")])
@pytest.mark.parametrize("wide", [False, True])
def test_served_in_few_bits_as_loaded_in_few_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, kind: str, wide: bool
) -> None:
    """Under transformers' names too neither the projector is packed, nor the output layer, nor a wide tower."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr("internvl_chat.infer.load._WIDE_TOWER", 128 if wide else 3200)
    from internvl_chat.infer.serve.app import OneModel, Settings

    folder = served_folder(make_tiny(tmp_path / "wide", "qwen2", vision_hidden=128, llm_hidden=128))
    manager = OneModel(Settings(folder, ("wide",), bits=bits), describe(folder))
    whole = {
        name
        for name, part in manager.model.named_modules()
        if isinstance(part, torch.nn.Linear) and type(part).__name__ != kind
    }
    tower = {name for name in whole if name.startswith("model.vision_tower.")}
    assert {name.rpartition(".")[2] for name in whole - tower} == {"linear_1", "linear_2", "lm_head"}
    assert bool(tower) is wide
    packed = [name for name, part in manager.model.named_modules() if type(part).__name__ == kind]
    assert any("language_model" in name for name in packed)
    assert any("vision_tower" in name for name in packed) is not wide
    with torch.no_grad():
        ids = manager.model.generate(input_ids=torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False)
    assert ids.shape == (1, 6)
    manager.shutdown()
