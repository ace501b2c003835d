"""Any model folder -> one in the HF-native layout, which transformers serves; exported once and kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GenerationConfig

from internvl_chat import __version__
from internvl_chat.config.cache import cache_folder
from internvl_chat.data.tiles import ImageBackend
from internvl_chat.errors import CheckpointError, ConfigError, first_line
from internvl_chat.folder import write_folder
from internvl_chat.infer.flags import model_name
from internvl_chat.infer.load import assemble
from internvl_chat.infer.loaded import Loaded
from internvl_chat.log import get_logger
from internvl_chat.model.adapter import Origin, is_adapter, read_origin
from internvl_chat.model.build import check_folder, flavour_of, load_config, load_model, read_config_file
from internvl_chat.model.chat import InternVLChatModel
from internvl_chat.model.hf_native import to_hf_config
from internvl_chat.model.hub import find_folder
from internvl_chat.model.layout import weight_files
from internvl_chat.model.tokenizer import load_tokenizer

logger = get_logger(__name__)

# Part of the key: raise it when exports of the same folder come out otherwise.
FORMAT = 1
# Files of a model folder that are read whole for the key; of the others size and time tell.
_READ = (".json", ".jinja", ".model", ".txt")
_LARGEST_READ = 64 * 2**20
# Unfinished exports are called so; one that nothing was written to for so long (seconds) is of a killed process.
_PART, _STALE_S = ".part-", 24 * 3600


def exports_folder() -> Path:
    """Where exports are kept: beside the indexes."""
    return cache_folder() / "serve"


def served_folder(path: str | Path, conv_style: str | None = None, base: str | Path | None = None) -> Path:
    """The HF-native form of a model folder: itself, or an export of it, which is made unless it is there already.

    ``conv_style``: template, None = the config's; ``base``: where the base of a LoRA adapter is.
    Raises CheckpointError for a folder that is no usable model, ConfigError for a model that the HF-native layout
    cannot express, both before weights are read.
    """
    folder = find_folder(path)
    adapter = is_adapter(folder)
    origin = read_origin(folder, base) if adapter else Origin(folder)
    overrides = {**origin.overrides, **({} if conv_style is None else {"template": conv_style})}
    config = load_config(origin.base, overrides)
    check_folder(origin.base, config)
    if not adapter and flavour_of(folder, read_config_file(folder)) == "hf":
        return folder
    to_hf_config(config)
    sources = [folder, origin.base] if adapter else [folder]
    target = exports_folder() / f"{model_name(folder)}-{_key(sources, conv_style)}"
    if target.is_dir():
        logger.info("using the HF-native export of before: %s (%s)", target, _megabytes(_size(target)))
        return target
    _export(folder, origin, conv_style, target, adapter)
    logger.info("exported %s to the HF-native layout: %s (%s; delete it when you like)", folder, target,
                _megabytes(_size(target)))  # fmt: skip
    return target


def describe(
    folder: Path,
    conv_style: str | None = None,
    system_message: str | None = None,
    image_backend: ImageBackend = "torch",
) -> Loaded:
    """All that asking and reading answers needs of a folder; its ``model`` has a config, but no weights."""
    given = {"template": conv_style, "system_message": system_message}
    config = load_config(folder, {name: value for name, value in given.items() if value is not None})
    generation = check_folder(folder, config) or GenerationConfig()
    with torch.device("meta"):
        model: InternVLChatModel = InternVLChatModel(config)
    model.language_model.generation_config = generation
    return assemble(model, load_tokenizer(folder), image_backend)


def _export(folder: Path, origin: Origin, conv_style: str | None, target: Path, adapter: bool) -> None:
    """Write the export under another name and rename it, so that what stands there is whole, whoever else writes."""
    needed = sum((origin.base / name).stat().st_size for name in weight_files(origin.base))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        free = shutil.disk_usage(target.parent).free
        if free < 1.05 * needed:
            raise ConfigError(
                f"{target.parent}: {_megabytes(free)} are free, an export needs {_megabytes(needed)}; set "
                "INTERNVL_CACHE to a folder with more room"
            )
        part = Path(tempfile.mkdtemp(prefix=f"{_PART}{target.name}-", dir=target.parent))
    except OSError as error:
        raise ConfigError(
            f"{target.parent} cannot be written ({first_line(error)}); set INTERNVL_CACHE to a folder that can"
        ) from error
    try:
        logger.info("exporting %s to the HF-native layout, once", folder)
        model, tokenizer = _read(folder, origin, conv_style, adapter)
        write_folder(model, tokenizer, part, layout="hf", source=origin.base)
        part.chmod(0o755)
        try:
            part.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            logger.info("another server has exported it meanwhile")
    except OSError as error:
        raise CheckpointError(f"the export to {target.parent} failed ({first_line(error)})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Remove what killed exports have left."""
    for part in parent.glob(f"{_PART}*"):
        with contextlib.suppress(OSError):  # another server has swept it meanwhile
            newest = max(path.stat().st_mtime for path in (part, *part.iterdir()))
            if time.time() - newest > _STALE_S:
                logger.info("removing an unfinished export: %s", part)
                shutil.rmtree(part, ignore_errors=True)


def _read(folder: Path, origin: Origin, conv_style: str | None, adapter: bool) -> tuple[InternVLChatModel, Any]:
    given = {} if conv_style is None else {"template": conv_style}
    if adapter:
        from internvl_chat.model.merge import load_merged  # peft is not needed otherwise

        return load_merged(folder, origin.base, "auto", config_overrides=given)
    return load_model(folder, "auto", config_overrides=given), load_tokenizer(folder)


def _key(folders: list[Path], conv_style: str | None) -> str:
    """Hash of all that an export depends on."""
    found = hashlib.sha256(json.dumps([FORMAT, __version__, transformers.__version__, conv_style]).encode())
    for folder in folders:
        found.update(f"\0{folder.resolve()}".encode())
        for file in sorted(folder.iterdir()):
            if not file.is_file():
                continue
            status = file.stat()
            found.update(f"\0{file.name}:{status.st_size}".encode())
            if file.suffix in _READ and status.st_size <= _LARGEST_READ:
                found.update(file.read_bytes())
            else:
                found.update(f":{status.st_mtime_ns}".encode())
    return found.hexdigest()[:16]


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def _megabytes(size: int) -> str:
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size / 2**20:.1f} MB"
