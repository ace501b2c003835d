"""A chat model built from parts: vision tower, language model, projector; and parts taken out of one.

What is built is written as an ordinary model folder and loaded like any other, so that there is one way to load.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.log import get_logger
from internvl_chat.model.chat import InternVLChatModel
from internvl_chat.model.config import InternVLChatConfig
from internvl_chat.model.draft import (
    Parts,
    check_projector,
    check_tower,
    draft,
    layers_left,
    llm_config,
    tower_heads,
    tower_prefix,
    vision_config,
)
from internvl_chat.model.layout import read_bin, stored_tensors
from internvl_chat.model.loading import ONE_AT_A_TIME
from internvl_chat.model.projector import build_projector
from internvl_chat.model.save import save_model_folder
from internvl_chat.model.tokenizer import save_tokenizer
from internvl_chat.model.vit import InternVisionModel

log = get_logger(__name__)

RECORD = "internvl_build.json"


def assemble(parts: Parts, out: Path, keep: bool = False) -> Path:
    """Build the model and write it to ``out``; an ``out`` that holds just this build already is kept.

    With ``keep`` an ``out`` that holds another build is an error: something goes on from it.

    The tower is cut to the layers that ``select_layer`` lets run. The nine special tokens (and ``new_tokens``) are
    added where the tokenizer lacks them; their rows, in embedding and output layer, start as the mean of the others.
    Not for use while transformers loads models in ZeRO-3 pieces. Raises CheckpointError for parts that cannot be read
    or do not fit together, ConfigError for settings.
    """
    if is_built(parts, out, keep):
        log.info("%s: built before from the same parts, taken as it is", out)
        return out
    drafted = draft(parts)
    config, tokenizer = drafted.config, drafted.tokenizer
    vision, llm = load_vision(parts.vision), load_llm(parts.llm, config.llm_config.dtype)
    cut_tower(vision, int(parts.settings.get("select_layer", -1)))
    vision.to(llm.dtype)  # one dtype for the whole model: that of its largest part
    untie(llm)
    if drafted.added:
        grow_vocabulary(llm, config.llm_config.vocab_size, drafted.added)
    if config.image_size != vision.config.image_size:
        vision.resize_position_embeddings(config.image_size)
    model = compose(vision, llm, config, parts)
    (out / RECORD).unlink(missing_ok=True)  # of other parts, should this be cut short
    save_model_folder(model, tokenizer, out)
    save_tokenizer(tokenizer, out, parts.llm)
    record = {"parts": parts.record(), "added_tokens": list(drafted.new_token_ids)}
    (out / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return out


def is_built(parts: Parts, out: Path, keep: bool = False) -> bool:
    """Whether ``out`` holds just this build. Raises CheckpointError if it holds another one that is to be kept."""
    if not (out / RECORD).is_file():
        return False
    wanted, built = parts.record(), _read_record(out)["parts"]
    changed = [name for name in sorted(wanted.keys() | built.keys()) if wanted.get(name) != built.get(name)]
    if changed and keep:
        raise CheckpointError(
            f"{out} was built from other parts ({', '.join(changed)} changed), and this run goes on from it; give "
            "the same parts and flags, choose another --output_dir, or start again with --overwrite_output_dir True"
        )
    return not changed


def added_tokens(folder: Path) -> list[int] | None:
    """ids of the tokens that building this folder has added; None if it was not built from parts."""
    return _read_record(folder)["added_tokens"] if (folder / RECORD).is_file() else None


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder / RECORD} cannot be read ({error}); delete {folder}, it is built anew"
        ) from error
    return record


def compose(vision: nn.Module, llm: PreTrainedModel, config: InternVLChatConfig, parts: Parts) -> InternVLChatModel:
    """The chat model around two towers, with the projector of ``parts.mlp`` or a fresh one."""
    with torch.device("meta"):
        model = InternVLChatModel(config)
    model.vision_model = vision  # type: ignore[assignment]
    model.language_model = llm
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(parts.seed)
        model.mlp1 = build_projector(
            config.vision_config.hidden_size, config.llm_config.hidden_size, config.downsample_ratio
        )
    if parts.mlp is not None:
        load_projector(model.mlp1, parts.mlp)
    model.mlp1.to(llm.dtype)
    model.set_output_embeddings(llm.get_output_embeddings())
    return model


def load_vision(path: Path) -> Any:
    """InternVisionModel of a tower's own folder, or of a chat folder in the original layout. Raises CheckpointError."""
    config = vision_config(path)
    with torch.device("meta"):
        model = InternVisionModel(config)
    check_tower(path, config, tower_heads(path))
    state = read_tensors(path, tower_prefix(path))
    model.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    return model


def load_llm(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Language model of a folder whose config ``llm_config`` accepts. Raises CheckpointError."""
    config = llm_config(path)
    try:
        with ONE_AT_A_TIME:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path,
                config=config,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path}: the language model cannot be loaded: {error}") from error
    model, info = loaded
    faults = [*info["missing_keys"], *info["unexpected_keys"]]
    if faults or info["mismatched_keys"]:
        raise CheckpointError(
            f"{path}: weights and config of the language model do not fit ({', '.join(sorted(map(str, faults))[:4])})"
        )
    return model


def load_projector(mlp1: nn.Module, path: Path) -> None:
    """Fill the projector from a file (.safetensors, .pth, .bin) or from a chat folder. Raises CheckpointError."""
    if path.is_dir():
        state = read_tensors(path, "mlp1.")
    elif path.suffix == ".safetensors":
        state = _read_safetensors(path)
    else:
        state = read_bin(path)
    state = {name.removeprefix("mlp1."): tensor for name, tensor in state.items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    check_projector(path, {name: tuple(tensor.shape) for name, tensor in mlp1.state_dict().items()}, found)
    mlp1.load_state_dict(state)


def untie(llm: PreTrainedModel) -> None:
    """Give a tied language model an output layer of its own, as all releases have one.

    Readers of the original layout take it so whatever its config says, and would start with a random one.
    """
    if not llm.config.tie_word_embeddings:
        return
    llm.config.tie_word_embeddings = False
    head: Any = llm.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    llm.all_tied_weights_keys = {}


def grow_vocabulary(llm: PreTrainedModel, size: int, added: int) -> None:
    """Resize embedding and output layer to ``size`` rows; the last ``added`` are the mean of those before them."""
    llm.resize_token_embeddings(size, mean_resizing=False)
    both: list[Any] = [llm.get_input_embeddings(), llm.get_output_embeddings()]
    with torch.no_grad():
        for layer in {id(layer.weight): layer for layer in both}.values():
            weight = layer.weight
            weight[-added:] = weight[:-added].float().mean(0).to(weight.dtype)
            if getattr(layer, "bias", None) is not None:
                layer.bias[-added:] = layer.bias[:-added].float().mean().to(layer.bias.dtype)


def cut_tower(vision: Any, select_layer: int) -> None:
    """Remove the layers that ``select_layer`` never runs; what is left is selected by -1 (6B: 48 layers, -4 -> 45)."""
    count = layers_left(len(vision.encoder.layers), select_layer)
    vision.encoder.layers = vision.encoder.layers[:count]
    vision.config.num_hidden_layers = count


def read_tensors(folder: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors of a folder whose names begin with ``prefix``, without it; nothing else is read."""
    stored = stored_tensors(folder)
    files: dict[str, list[str]] = {}
    for name, place in stored.items():
        if name.startswith(prefix):
            files.setdefault(place.file, []).append(name)
    found: dict[str, Tensor] = {}
    for file, names in files.items():
        state = _read_safetensors(folder / file, names) if file.endswith(".safetensors") else read_bin(folder / file)
        found.update({name.removeprefix(prefix): state[name] for name in names})
    return found


def _read_safetensors(path: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or cut off ({error}); fetch it again") from error


def read_new_tokens(path: Path) -> tuple[str, ...]:
    """Tokens of a text file, one per line, in order. Raises ConfigError for blank lines and repetitions."""
    try:
        lines: Sequence[str] = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--new_tokens {path}: not a readable text file ({error})") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line in lines[: number - 1]:
            raise ConfigError(
                f"--new_tokens {path}:{number}: {'blank line' if not line.strip() else 'repeats a token'}"
            )
    return tuple(lines)
