"""Where a run's model comes from: a checkpoint folder, or parts that are first built into one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, TrainingArguments, set_seed
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from internvl_chat.config.data import DataArguments
from internvl_chat.config.model import ModelArguments
from internvl_chat.config.train import TrainArguments
from internvl_chat.data.chat_template import template_of
from internvl_chat.data.template import OWN_TEMPLATE, get_template
from internvl_chat.errors import ConfigError
from internvl_chat.log import get_logger
from internvl_chat.model.adapter import Origin
from internvl_chat.model.bits import bits_config, bits_problem
from internvl_chat.model.build import config_of, load_config, load_model
from internvl_chat.model.config import InternVLChatConfig
from internvl_chat.model.draft import Parts, check_image_size, draft
from internvl_chat.model.fingerprint import fingerprint
from internvl_chat.model.flops import Trains, trains_by_flags
from internvl_chat.model.hub import find_folder
from internvl_chat.model.lora import LoraOptions
from internvl_chat.model.parts import added_tokens, assemble, read_new_tokens
from internvl_chat.model.tokenizer import load_tokenizer
from internvl_chat.model.tune import Tuning, apply_tuning
from internvl_chat.train import dist
from internvl_chat.train.state import ADAPTER

log = get_logger(__name__)

BUILT = "assembled"
# Flags that name a field of config.json otherwise than the config does.
_MODEL_FLAGS = {"vision_select_layer": "select_layer", "ps_version": "ps_version", "drop_path_rate": "drop_path_rate"}
_DATA_FLAGS = {
    "conv_style": "template",
    "system_message": "system_message",
    "force_image_size": "force_image_size",
    "dynamic_image_size": "dynamic_image_size",
    "use_thumbnail": "use_thumbnail",
    "min_dynamic_patch": "min_dynamic_patch",
    "max_dynamic_patch": "max_dynamic_patch",
    "normalize_type": "normalize_type",
}


@dataclass(frozen=True, eq=False)
class ModelSource:
    """A model folder, the settings of its config that the user changed, and what can be had without the weights."""

    folder: Path
    overrides: dict[str, Any]
    config: InternVLChatConfig
    tokenizer: Any
    fingerprint: str
    new_token_ids: tuple[int, ...] = ()

    @property
    def origin(self) -> Origin:
        """What an adapter trained on this model has to know."""
        return Origin(self.folder, self.overrides, self.new_token_ids, self.fingerprint)


@dataclass(frozen=True, eq=False)
class Draft:
    """What a run would train, as far as it is known without reading weights.

    ``folder`` None, and ``built`` True: parts, from which a folder would be built. ``overrides`` as of a ModelSource.
    """

    config: InternVLChatConfig
    tokenizer: Any
    folder: Path | None
    new_token_ids: tuple[int, ...]
    built: bool
    overrides: dict[str, Any]


def checkpoint_overrides(model: ModelArguments, data: DataArguments) -> dict[str, Any]:
    """Keys of config.json that the user set anew; what is None stays as the checkpoint has it."""
    wanted = {key: getattr(model, flag) for flag, key in _MODEL_FLAGS.items()}
    wanted |= {key: getattr(data, flag) for flag, key in _DATA_FLAGS.items()}
    wanted["pad2square"] = data.pad2square or None
    return {name: value for name, value in wanted.items() if value is not None}


def find_source(model: ModelArguments, data: DataArguments, args: TrainArguments, keep: bool) -> ModelSource:
    """Read config and tokenizer; parts are built first, by rank 0. Raises ConfigError, CheckpointError.

    ``keep``: what was built before must not be built anew, for a run goes on from it.
    """
    overrides = checkpoint_overrides(model, data)
    if model.vision_path is None:
        folder = _found(str(model.model_name_or_path))
    else:
        folder = _build(model, data, args, keep)
        overrides = _after_building(model)
    config, tokenizer = load_config(folder, overrides), load_tokenizer(folder)
    new = _new_tokens(model, tuple(added_tokens(folder) or ()))
    _check_source(config, tokenizer, data)
    return ModelSource(folder, overrides, config, tokenizer, fingerprint(folder), new)


def draft_source(model: ModelArguments, data: DataArguments, args: TrainArguments, weights: bool = False) -> Draft:
    """What ``find_source`` would make of these flags, without building anything or reading a weight.

    Raises what it would raise. ``weights``: parts must have their weight files, whose heads are looked at.
    """
    folder, overrides = None, checkpoint_overrides(model, data)
    if model.vision_path is None:
        folder = find_folder(str(model.model_name_or_path), weights=False)
        config, tokenizer = load_config(folder, overrides), load_tokenizer(folder)
        added = tuple(added_tokens(folder) or ())
    else:
        drafted = draft(parts_of(model, data, args, lambda name: find_folder(name, weights=False)), weights)
        overrides = _after_building(model)
        config, tokenizer = config_of(drafted.config.to_dict(), overrides), drafted.tokenizer
        added = drafted.new_token_ids
    new = _new_tokens(model, added)
    _check_source(config, tokenizer, data)
    return Draft(config, tokenizer, folder, new, folder is None, overrides)


def _after_building(model: ModelArguments) -> dict[str, Any]:
    """What the flags change of a folder that was built by them: all else is in it."""
    return {"drop_path_rate": model.drop_path_rate}


def _new_tokens(model: ModelArguments, added: tuple[int, ...]) -> tuple[int, ...]:
    """The tokens whose rows alone train, if asked for."""
    if model.train_new_tokens and not added:
        raise ConfigError("--train_new_tokens True: building from these parts added no tokens; leave the flag out")
    return added if model.train_new_tokens else ()


def _check_source(config: InternVLChatConfig, tokenizer: Any, data: DataArguments) -> None:
    """Raise ConfigError unless projector, tiles and template go with flags and tokenizer."""
    if data.down_sample_ratio is not None and data.down_sample_ratio != config.downsample_ratio:
        raise ConfigError(
            f"--down_sample_ratio {data.down_sample_ratio} contradicts the checkpoint, whose projector is made for "
            f"{config.downsample_ratio}; leave the flag out"
        )
    check_image_size(config.image_size, config.vision_config.patch_size, config.downsample_ratio)
    template_of(config, tokenizer)


def _found(name: str) -> Path:
    """The folder of a model; what has to be downloaded is so by one process per node."""
    with dist.local_main_first():
        return find_folder(name)


def _build(model: ModelArguments, data: DataArguments, args: TrainArguments, keep: bool) -> Path:
    """The folder built from parts, below the output folder; on a resumed run it is there already."""
    parts = parts_of(model, data, args, _found)
    if data.dynamic_image_size is None:
        log.info(
            "--dynamic_image_size is not given: the model is built for one tile per picture. The series since 1.5 cuts "
            "pictures into tiles: --dynamic_image_size True --use_thumbnail True"
        )
    out = built_folder(args)
    with whole_models(args):
        return dist.decide_on_main(lambda: assemble(parts, out, keeps_build(args, keep)))


def built_folder(args: TrainArguments) -> Path:
    """Where a model is built from parts."""
    return Path(str(args.output_dir)) / BUILT


def keeps_build(args: TrainArguments, resumes: bool) -> bool:
    """Whether what was built before must stay: a run goes on from it, or an adapter without checkpoints needs it."""
    return resumes or ((Path(str(args.output_dir)) / ADAPTER).exists() and not args.overwrite_output_dir)


def parts_of(model: ModelArguments, data: DataArguments, args: TrainArguments, find: Callable[[str], Path]) -> Parts:
    """The parts that the flags name; ``find``: folder or name on the hub -> folder."""
    if data.conv_style != OWN_TEMPLATE:
        get_template(str(data.conv_style))  # before gigabytes are read
    overrides = checkpoint_overrides(model, data)
    settings = {name: value for name, value in overrides.items() if name not in _after_building(model)}
    # Fine-tuned models of this family since 1.5 have these; the class defaults are those of the first releases.
    settings |= {"downsample_ratio": data.down_sample_ratio or 0.5, "ps_version": model.ps_version or "v2"}
    settings.setdefault("max_dynamic_patch", 12)
    return Parts(
        vision=find(str(model.vision_path)).resolve(),
        llm=find(str(model.llm_path)).resolve(),
        mlp=None if model.mlp_path is None else Path(model.mlp_path).resolve(),
        new_tokens=() if model.new_tokens is None else read_new_tokens(Path(model.new_tokens)),
        settings=settings,
        seed=args.seed,
    )


@contextmanager
def whole_models(args: TrainingArguments) -> Iterator[None]:
    """Inside, rank 0 can load a model by itself though the run's own is loaded in ZeRO-3 pieces."""
    config = getattr(args, "hf_deepspeed_config", None)
    if config is None:
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(config)


def learning_rates(model: ModelArguments) -> dict[str, float | None]:
    """Part of the model -> its own learning rate, if it has one."""
    return {"vision_model": model.vit_lr, "mlp1": model.mlp_lr}


# What the state of an optimizer holds beside its moments: a resumed run would go on with the checkpoint's.
_OPTIMIZER = ("optim", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")


def run_identity(
    source: ModelSource, tuning: Tuning, rates: dict[str, float | None], args: TrainArguments
) -> dict[str, Any]:
    """What a run must share with the checkpoint that it goes on from, beside the data.

    The base belongs to it where checkpoints hold adapters only: its weights are what the adapter was trained beside.
    """
    optimizer = {name: getattr(args, name) for name in _OPTIMIZER}
    overrides = {name: value for name, value in source.overrides.items() if name != "drop_path_rate"}
    base = {"base": source.fingerprint} if tuning.lora else {}
    return {
        "config": overrides,
        "trains": asdict(tuning),
        "learning_rates": dict(rates),
        "optimizer": {**optimizer, "optim": str(getattr(args.optim, "value", args.optim))},
        **base,
    }


def tuning_of(model: ModelArguments, new_token_ids: tuple[int, ...] = ()) -> Tuning:
    """What the flags say about what trains."""
    return Tuning(
        freeze_llm=model.freeze_llm,
        freeze_mlp=model.freeze_mlp,
        freeze_backbone=model.freeze_backbone,
        unfreeze_vit_layers=model.unfreeze_vit_layers,
        unfreeze_lm_head=model.unfreeze_lm_head,
        new_token_ids=new_token_ids,
        lora=LoraOptions(
            llm_rank=model.use_llm_lora,
            vision_rank=model.use_backbone_lora,
            alpha=model.lora_alpha,
            dropout=0.05 if model.lora_dropout is None else model.lora_dropout,
            llm_targets=_names(model.lora_llm_targets),
            vision_targets=_names(model.lora_vit_targets),
            dora=model.use_dora,
            rslora=model.use_rslora,
        ),
    )


def what_trains(config: InternVLChatConfig, model: ModelArguments, tuning: Tuning) -> Trains:
    """What trains, and what is computed twice for it, by the flags: of a vision tower all, if it trains."""
    trains = trains_by_flags(config, tuning, llm_recompute=model.grad_checkpoint)
    vision = trains.vision_embedding or bool(trains.vision_layers) or trains.vision_adapter > 0
    told = model.vision_grad_checkpoint
    return replace(trains, vision_recompute=vision if told is None else told)


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(word.strip() for word in text.split(",") if word.strip())


def build_model(source: ModelSource, model: ModelArguments, args: TrainArguments, tuning: Tuning) -> nn.Module:
    """Load the weights and set what trains.

    bf16 where DeepSpeed keeps fp32 masters of the weights; else what trains is fp32 under autocast, and beside LoRA
    the frozen rest is bf16.
    """
    small = args.bf16 and (args.deepspeed or tuning.lora)
    loaded = load_model(
        source.folder,
        dtype=torch.bfloat16 if small else torch.float32,
        attn_implementation=model.attn_implementation,
        config_overrides=source.overrides,
        quantization=_quantization(model, args),
    )
    set_seed(args.seed)  # adapters start alike, whatever loading (in ZeRO-3 pieces, say) has drawn
    whole = apply_tuning(loaded, tuning)
    if small and not args.deepspeed:
        for parameter in whole.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return whole


def quantization_problem(model: ModelArguments) -> str | None:
    """Why a quantised model cannot be loaded here."""
    return bits_problem(model.load_in_8bit, model.load_in_4bit)


def _quantization(model: ModelArguments, args: TrainArguments) -> BitsAndBytesConfig | None:
    if not (model.load_in_4bit or model.load_in_8bit):
        return None
    # Small beside the language model, and the output layer feeds the chunked loss.
    kept = ("vision_model", "mlp1", "lm_head")
    compute = torch.bfloat16 if args.bf16 else torch.float32
    return bits_config(model.load_in_8bit, model.load_in_4bit, compute, kept)
