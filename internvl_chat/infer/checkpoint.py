"""What a checkpoint is, without its weights: which one, and how it wants to be asked."""

from __future__ import annotations

import hashlib
from pathlib import Path

from internvl_chat.errors import CheckpointError
from internvl_chat.model.adapter import ORIGIN, WEIGHTS, is_adapter, read_origin
from internvl_chat.model.build import load_config
from internvl_chat.model.config import InternVLChatConfig
from internvl_chat.model.fingerprint import fingerprint
from internvl_chat.model.hub import find_folder
from internvl_chat.model.layout import ADAPTER_FILE

# Files of a folder beside its weights that change what it answers: how text becomes ids, when an answer ends.
_SMALL_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", ADAPTER_FILE, ORIGIN,
)  # fmt: skip


def find_checkpoint(path: str | Path) -> tuple[Path, bool]:
    """The folder, and whether it is that of an adapter. Raises CheckpointError if it is that of nothing."""
    folder = find_folder(path)
    if is_adapter(folder) or (folder / "config.json").is_file():
        return folder, is_adapter(folder)
    inside = sorted(str(found.parent) for found in folder.glob("*/config.json"))
    hint = f"did you mean {inside[-1]}?" if inside else "it needs config.json, tokenizer.json, *.safetensors"
    raise CheckpointError(f"{path}: not a model folder, there is no config.json in it; {hint}")


def name_checkpoint(path: str, base: str | None = None) -> str:
    """Name of a model or adapter folder and hashes that tell it from a changed one. Raises CheckpointError.

    They are of samples of the weights and of the small files that answers depend on, an adapter's base included.
    """
    folder, adapter = find_checkpoint(path)
    if adapter:
        origin = read_origin(folder, base).base
        hashes = [fingerprint(folder / WEIGHTS), _hash_small_files(folder)]
        hashes += [fingerprint(origin), _hash_small_files(origin)]
    else:
        hashes = [fingerprint(folder), _hash_small_files(folder)]
    return " ".join([folder.resolve().name, *hashes])


def _hash_small_files(folder: Path) -> str:
    found = hashlib.sha256()
    for name in _SMALL_FILES:
        if (folder / name).is_file():
            found.update(f"{name};{hashlib.sha256((folder / name).read_bytes()).hexdigest()};".encode())
    return found.hexdigest()[:16]


def config_of_checkpoint(path: str, base: str | None = None, conv_style: str | None = None) -> InternVLChatConfig:
    """Config of a model folder, or of an adapter's base with what its run changed.

    Raises CheckpointError, ConfigError.
    """
    folder, adapter = find_checkpoint(path)
    overrides = {} if conv_style is None else {"template": conv_style}
    if adapter:
        origin = read_origin(folder, base)
        return load_config(origin.base, {**origin.overrides, **overrides})
    return load_config(folder, overrides)
