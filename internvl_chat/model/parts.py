"""A chat model built from parts: vision tower, language model, projector; and parts taken out of one.

What is built is written as an ordinary model folder and loaded like any other, so that there is one way to load.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from internvl_chat.errors import CheckpointError, ConfigError
from internvl_chat.log import get_logger
from internvl_chat.model.build import read_config_file
from internvl_chat.model.chat import InternVLChatModel
from internvl_chat.model.config import InternVisionConfig, InternVLChatConfig
from internvl_chat.model.layout import fingerprint, is_hf_native, read_bin, stored_tensors
from internvl_chat.model.llm import llm_spec, register_language_models
from internvl_chat.model.projector import build_projector, merge_factor
from internvl_chat.model.save import save_model_folder
from internvl_chat.model.tokenizer import add_special_tokens, image_token_id, load_tokenizer, save_tokenizer
from internvl_chat.model.vit import InternVisionModel

log = get_logger(__name__)

RECORD = "internvl_build.json"


@dataclass(frozen=True)
class Parts:
    """What to build from. ``settings``: fields of InternVLChatConfig (template, select_layer, ...)."""

    vision: Path
    llm: Path
    mlp: Path | None = None
    new_tokens: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def record(self) -> dict[str, Any]:
        """All that the result depends on, as JSON values; weights by their fingerprint, wherever they lie."""
        paths = {"vision": self.vision, "llm": self.llm, "mlp": self.mlp}
        values = {**asdict(self), **{name: path and fingerprint(path) for name, path in paths.items()}}
        return dict(json.loads(json.dumps(values)))


def assemble(parts: Parts, out: Path, keep: bool = False) -> Path:
    """Build the model and write it to ``out``; an ``out`` that holds just this build already is kept.

    With ``keep`` an ``out`` that holds another build is an error: something goes on from it.

    The tower is cut to the layers that ``select_layer`` lets run. The nine special tokens (and ``new_tokens``) are
    added where the tokenizer lacks them; their rows, in embedding and output layer, start as the mean of the others.
    Not for use while transformers loads models in ZeRO-3 pieces. Raises CheckpointError for parts that cannot be read
    or do not fit together, ConfigError for settings.
    """
    wanted = parts.record()
    if (out / RECORD).is_file():
        built = _read_record(out)["parts"]
        changed = [name for name in sorted(wanted.keys() | built.keys()) if wanted.get(name) != built.get(name)]
        if not changed:
            log.info("%s: built before from the same parts, taken as it is", out)
            return out
        if keep:
            raise CheckpointError(
                f"{out} was built from other parts ({', '.join(changed)} changed), and this run goes on from it; give "
                "the same parts and flags, choose another --output_dir, or start again with --overwrite_output_dir True"
            )
    check_llm(parts.llm)
    tokenizer = load_tokenizer(parts.llm)
    added = add_special_tokens(tokenizer, parts.new_tokens)
    vision = load_vision(parts.vision)
    cut_tower(vision, int(parts.settings.get("select_layer", -1)))
    size = parts.settings.get("force_image_size") or vision.config.image_size
    check_image_size(size, vision.config.patch_size, parts.settings.get("downsample_ratio", 0.5))
    llm = load_llm(parts.llm)
    vision.to(llm.dtype)  # one dtype for the whole model: that of its largest part
    untie(llm)
    if added:
        grow_vocabulary(llm, len(tokenizer), added)
    if size != vision.config.image_size:
        vision.resize_position_embeddings(size)  # before compose, which copies the tower's config
    model = compose(vision, llm, parts)
    model.config.img_context_token_id = image_token_id(tokenizer)
    model.config.force_image_size = size
    (out / RECORD).unlink(missing_ok=True)  # of other parts, should this be cut short
    save_model_folder(model, tokenizer, out)
    save_tokenizer(tokenizer, out, parts.llm)
    record = {"parts": wanted, "added_tokens": sorted(range(len(tokenizer) - added, len(tokenizer)))}
    (out / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return out


def check_image_size(size: int, patch_size: int, downsample_ratio: float, flag: str = "--force_image_size") -> None:
    """Raise ConfigError unless the patches of a tile can be merged into whole image tokens."""
    side = merge_factor(downsample_ratio)
    if size < 1 or size % (patch_size * side):
        raise ConfigError(
            f"{flag} {size}: must be a multiple of {patch_size * side} ({side} x {side} patches of "
            f"{patch_size} pixels make an image token)"
        )


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


def compose(vision: nn.Module, llm: PreTrainedModel, parts: Parts) -> InternVLChatModel:
    """The chat model around two towers, with the projector of ``parts.mlp`` or a fresh one."""
    values = {
        k: v for k, v in parts.settings.items() if v is not None and k not in ("select_layer", "force_image_size")
    }
    config = InternVLChatConfig(
        vision_config=vision.config.to_dict(),  # type: ignore[operator,union-attr]
        llm_config={name: value for name, value in llm.config.to_dict().items() if name != "_name_or_path"},
        tie_word_embeddings=bool(llm.config.tie_word_embeddings),
        dtype=llm.dtype,
        **values,
    )
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
    raw = read_config_file(path)
    if is_hf_native(raw):
        raise CheckpointError(f"{path}: HF-native layout; take the tower out first: internvl extract-vit {path} OUT")
    whole = raw.get("model_type") == InternVLChatConfig.model_type
    if not whole and raw.get("model_type") != InternVisionConfig.model_type:
        raise CheckpointError(f"{path}: config.json says model_type {raw.get('model_type')!r}: this is no InternViT")
    config = InternVisionConfig.from_dict(raw["vision_config"] if whole else raw)
    with torch.device("meta"):
        model = InternVisionModel(config)
    _fill(model, path, read_tensors(path, "vision_model." if whole else ""))
    return model


def check_llm(path: Path) -> None:
    """Raise CheckpointError or ConfigError unless the folder is a language model of a kind that is supported."""
    raw = read_config_file(path)
    if raw.get("model_type") in (InternVLChatConfig.model_type, "internvl"):
        raise CheckpointError(f"{path}: this is a whole chat model; as --llm_path give a language model alone")
    llm_spec(str(raw.get("model_type")))
    stored_tensors(path)  # missing or damaged files have their own words


def load_llm(path: Path) -> PreTrainedModel:
    """Language model of a folder that ``check_llm`` accepts, in the dtype it is stored in. Raises CheckpointError."""
    register_language_models()
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype="auto", local_files_only=True, trust_remote_code=False, output_loading_info=True
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
    own = mlp1.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if shapes != found:
        raise CheckpointError(
            f"{path}: not the projector of this tower and language model: it holds {found or 'nothing'}, needed are "
            f"{shapes}; leave --mlp_path out to start with a fresh one"
        )
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
    try:
        count = vision.layers_for(select_layer)
    except ValueError as error:
        raise ConfigError(f"--vision_select_layer: {error}") from error
    if count == 0:
        raise ConfigError(f"--vision_select_layer {select_layer}: no layer of the vision tower would be left")
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


def _fill(model: nn.Module, path: Path, state: dict[str, Tensor]) -> None:
    """Put the tensors into a model on the meta device. Raises CheckpointError unless all of them fit."""
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    wrong = sorted(name for name in own.keys() | found.keys() if own.get(name) != found.get(name))
    if wrong:
        shown = ", ".join(f"{n} {found.get(n, 'missing')} for {own.get(n, 'nothing')}" for n in wrong[:4])
        raise CheckpointError(f"{path}: the vision tower's weights do not fit its config: {shown}")
    model.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)


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
