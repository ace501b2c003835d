"""A hash of weights from samples: no tensor may change unseen, and copies are the same."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from internvl_chat.errors import CheckpointError
from internvl_chat.model.fingerprint import fingerprint


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Tensors of very different sizes: samples spread over the file would miss the small ones between the large."""
    sizes = {"embed": (4000, 300), "mlp1.0.weight": (64, 64), "mlp1.0.bias": (7,), "none": (0,), "layer": (3000, 300)}
    return {name: torch.randn(size, generator=torch.Generator().manual_seed(1)) for name, size in sizes.items()}


def test_a_tensor_that_is_trained_changes_it(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(weights, tmp_path / "model.safetensors")
    prints = {fingerprint(tmp_path)}
    for name in weights:
        if weights[name].numel():
            save_file({**weights, name: weights[name] + 0.01}, tmp_path / "model.safetensors")
            prints.add(fingerprint(tmp_path))
    assert len(prints) == len(weights)


@pytest.mark.parametrize("row", [0, 2000, 3999])
def test_rows_at_the_ends_and_in_the_middle(row: int, weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """New tokens have the last rows of an embedding, and may be all that trains."""
    save_file(weights, tmp_path / "a.safetensors")
    rows = weights["embed"].clone()
    rows[row] += 0.01
    save_file({**weights, "embed": rows}, tmp_path / "b.safetensors")
    assert fingerprint(tmp_path / "a.safetensors") != fingerprint(tmp_path / "b.safetensors")


def test_names_types_and_shapes_count(tmp_path: Path) -> None:
    zeros = torch.zeros(4, 6)
    kinds = {"a": zeros, "b": zeros.view(6, 4), "c": zeros.view(torch.int32)}
    prints = set()
    for name, tensor in [*kinds.items(), ("a", kinds["b"]), ("a", kinds["c"])]:
        save_file({name: tensor}, tmp_path / "model.safetensors")
        prints.add(fingerprint(tmp_path))
    assert len(prints) == 5


@pytest.mark.parametrize("old_format", [False, True])
def test_files_of_torch(old_format: bool, weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path, prints = tmp_path / "pytorch_model.bin", set()
    for change in (0.0, 0.01):
        changed = {**weights, "mlp1.0.weight": weights["mlp1.0.weight"] + change} if not old_format else weights
        if old_format:
            changed = {**weights, "embed": weights["embed"] + change}
        torch.save(changed, path, _use_new_zipfile_serialization=not old_format)
        prints.add(fingerprint(tmp_path))
    assert len(prints) == 2


def test_copies_are_the_same(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    save_file(weights, tmp_path / "one" / "model.safetensors")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    os.utime(tmp_path / "two" / "model.safetensors", (0, 0))
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")
    assert torch.equal(load_file(tmp_path / "two" / "model.safetensors")["embed"], weights["embed"])


def test_the_last_rows_of_a_vocabulary(tmp_path: Path) -> None:
    """A new token's row need not be the very last one."""
    rows, prints = torch.zeros(2**15, 256, dtype=torch.bfloat16), set()
    for row in (None, -1, -60):
        changed = rows.clone()
        if row is not None:
            changed[row] += 0.01
        save_file({"embed": changed, "behind": torch.ones(3000)}, tmp_path / "model.safetensors")
        prints.add(fingerprint(tmp_path))
    assert len(prints) == 3


def test_a_file_that_is_cut_short(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(weights, path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="its tensors need more than the"):
        fingerprint(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x05\0\0\0\0\0\0\0hello", b'\x0d\0\0\0\0\0\0\0{"a":{"b":1}}'])
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        fingerprint(tmp_path)
