"""What a checkpoint is, without its weights: which one, and how it wants to be asked."""

from __future__ import annotations

import hashlib
from pathlib import Path

from internvl_chat.errors import CheckpointError
from internvl_chat.model.adapter import ORIGIN, is_adapter, read_origin
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


def name_checkpoint(path: str, base: str | None = None) -> str:
    """Name of a model or adapter folder and hashes that tell it from a changed one. Raises CheckpointError.

    They are of samples of the weights and of the small files that answers depend on, an adapter's base included.
    """
    folder = find_folder(path)
    if is_adapter(folder):
        origin = read_origin(folder, base).base
        hashes = [fingerprint(folder / "adapter_model.safetensors"), _hash_small_files(folder)]
        hashes += [fingerprint(origin), _hash_small_files(origin)]
    elif (folder / "config.json").is_file():
        hashes = [fingerprint(folder), _hash_small_files(folder)]
    else:
        raise CheckpointError(f"{path}: not a model folder, there is no config.json in it")
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
    folder = find_folder(path)
    overrides = {} if conv_style is None else {"template": conv_style}
    if is_adapter(folder):
        origin = read_origin(folder, base)
        return load_config(origin.base, {**origin.overrides, **overrides})
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{path}: not a model folder, there is no config.json in it")
    return load_config(folder, overrides)
