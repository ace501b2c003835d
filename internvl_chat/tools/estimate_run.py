"""What an estimate is made of: the model by its config alone, the micro-batch, and how states are kept."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvl_chat.errors import ConfigError, InternVLError
from internvl_chat.tools.data_view import scan_flags, view_of

if TYPE_CHECKING:
    from internvl_chat.config.data import DataArguments
    from internvl_chat.config.model import ModelArguments
    from internvl_chat.config.train import TrainArguments
    from internvl_chat.data.corpus import Corpus
    from internvl_chat.model.activations import Adapters, Load, Setting
    from internvl_chat.model.config import InternVLChatConfig
    from internvl_chat.model.flops import Trains
    from internvl_chat.model.memory import Keeping, Parameter
    from internvl_chat.train.source import Draft

# Where no data can be read: this share of the tokens is trained on, and a pack holds so many samples.
SUPERVISED, SAMPLES_OF_A_PACK = 0.5, 4
# Bytes per quantised weight, with the scales beside them.
_FOUR_BITS, _EIGHT_BITS = 0.52, 1.01
# Matrices that share their input.
_TOGETHER = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "gate_up", "up_proj": "gate_up"}


@dataclass(frozen=True)
class Amount:
    """Data of an epoch, or of a step: tokens, sum over samples of their tokens squared, trained tokens, tiles."""

    tokens: float
    squares: float
    targets: float
    tiles: float

    def times(self, factor: float) -> Amount:
        return Amount(*(factor * value for value in (self.tokens, self.squares, self.targets, self.tiles)))


@dataclass(frozen=True, eq=False)
class Subject:
    """A run to be estimated. ``load``: its largest micro-batch; ``step``: of an average step on all GPUs.

    ``steps`` None: not known. ``notes``: what was assumed, and why.
    """

    name: str
    config: InternVLChatConfig
    model: ModelArguments
    data: DataArguments
    train: TrainArguments
    zero: dict[str, Any] | None
    trains: Trains
    parameters: tuple[Parameter, ...]
    setting: Setting
    keeping: Keeping
    load: Load
    step: Amount
    steps: int | None
    measured: bool
    notes: tuple[str, ...]


def read_subject(meta: str | None, flags: Sequence[str], world: int) -> Subject:
    """The run of these flags on ``world`` GPUs. Raises InternVLError with all that is wrong with them."""
    from internvl_chat.config.parse import build_arguments
    from internvl_chat.train.source import tuning_of
    from internvl_chat.train.zero_check import read_zero

    notes: list[str] = []
    found = scan_flags(flags, meta)
    unread = [problem for problem in found.problems if problem.startswith(("--meta_path", "--mlp_path"))]
    if problems := [problem for problem in found.problems if problem not in unread]:
        raise ConfigError("\n".join(problems))
    model, data, train = build_arguments(found.values, start=False)
    draft, name, config = _drafted(model, data, train, notes)
    zero = read_zero(train.deepspeed) if train.deepspeed else None
    tuning = tuning_of(model, draft.new_token_ids if draft else ())
    parameters, trains, adapters = _count(config, model, tuning)
    corpus_view = None if unread or draft is None else _view(draft, model, data, train, notes)
    notes += [f"the data are not read: {problem}" for problem in unread if problem.startswith("--meta_path")]
    if draft is None and not unread:
        notes.append("the data are not read: without the checkpoint's tokenizer their tokens cannot be counted")
    amounts = None if corpus_view is None else _amounts(*corpus_view, world)
    load, step, steps = amounts or assumed(config, data, train, world)
    if amounts is None:
        notes.append(
            f"assumed instead: micro-batches as full as the flags allow, {SUPERVISED:.0%} of the tokens trained on"
            + ("" if steps else "; how many steps there are is not known (--max_steps says so)")
        )
    setting, keeping = _keeping(model, train, zero, trains, adapters)
    return Subject(
        name, config, model, data, train, zero, trains, parameters, setting, keeping,
        replace(load, mask=_masked(model, data, train)), step, steps, amounts is not None, tuple(notes),
    )  # fmt: skip


# -- model ------------------------------------------------------------------------------------------------------------


def _drafted(
    model: ModelArguments, data: DataArguments, train: TrainArguments, notes: list[str]
) -> tuple[Draft | None, str, InternVLChatConfig]:
    """What the flags name, or a release of that name from the catalogue where nothing is there. Raises ConfigError."""
    from internvl_chat.train.source import draft_source

    named = [str(path) for path in (model.model_name_or_path, model.vision_path, model.llm_path) if path]
    try:
        draft = draft_source(model, data, train)
    except InternVLError as error:
        if all(Path(name).is_dir() for name in named):
            raise
        config = _from_catalogue(model, data)
        if config is None:
            raise ConfigError(
                f"{error}\nnor does the catalogue of released models know {' and '.join(named)}; `internvl models`"
            ) from error
        notes.append(f"{' and '.join(named)}: not there; sizes are those of the catalogue (`internvl models`)")
        return None, named[0], config
    return draft, " + ".join(named), draft.config


def _from_catalogue(model: ModelArguments, data: DataArguments) -> InternVLChatConfig | None:
    """Config of a release, or of the tower of one with the language model of another, by the names of the folders."""
    from internvl_chat.model import catalogue
    from internvl_chat.model.build import config_of
    from internvl_chat.train.source import checkpoint_overrides

    def of(key: str, path: str | None) -> dict[str, Any] | None:
        wanted = Path(str(path)).name.lower()
        for release in catalogue.releases():
            names = {
                "name": (release.name,),
                "vision": (release.vision_tower,),
                "llm": (release.llm, release.base_model),
            }
            if wanted in {str(name).rsplit("/", 1)[-1].lower() for name in names[key]} and release.supported:
                return catalogue.config_of(release).to_dict()
        return None

    if model.model_name_or_path is not None:
        raw = of("name", model.model_name_or_path)
    else:
        raw, tower = of("llm", model.llm_path), of("vision", model.vision_path)
        if raw is not None and tower is not None:
            raw = {**copy.deepcopy(raw), "vision_config": tower["vision_config"], "ps_version": "v2"}
        else:
            raw = None
    return None if raw is None else config_of(raw, checkpoint_overrides(model, data))


def _count(
    config: InternVLChatConfig, model: ModelArguments, tuning: Any
) -> tuple[tuple[Parameter, ...], Trains, tuple[Adapters, Adapters]]:
    """Parameters, what trains, and LoRA (of the vision tower, of the language model): of a model without memory."""
    import torch

    from internvl_chat.model.chat import InternVLChatModel
    from internvl_chat.model.flops import trains_of
    from internvl_chat.model.memory import Parameter
    from internvl_chat.model.tune import apply_tuning
    from internvl_chat.train.source import what_trains

    with torch.device("meta"):
        whole = apply_tuning(InternVLChatModel(config), tuning)
    promised = what_trains(config, model, tuning)
    trains = trains_of(whole, promised.vision_recompute, promised.llm_recompute)
    small = _FOUR_BITS if model.load_in_4bit else _EIGHT_BITS if model.load_in_8bit else None
    parameters = []
    for name, tensor in whole.named_parameters():
        part = part_of(name)
        matrix = part == "language" and tensor.dim() == 2 and not tensor.requires_grad
        parameters.append(Parameter(part, tensor.numel(), tensor.requires_grad, small if matrix else None))
    return tuple(parameters), trains, (adapters_of(whole, "vision_model."), adapters_of(whole, "language_model."))


def part_of(name: str) -> str:
    """The part of ``memory.PARTS`` that a parameter belongs to, by its name."""
    for part, mark in (
        ("vision", "vision_model."),
        ("projector", "mlp1."),
        ("head", "lm_head."),
        ("embedding", "embed_tokens."),
    ):
        if mark in name:
            return part
    return "language"


def adapters_of(model: Any, tower: str) -> Adapters:
    """LoRA under the modules whose names hold ``tower``."""
    from peft.tuners.lora import LoraLayer

    from internvl_chat.model.activations import Adapters

    inputs = ranks = 0
    distinct: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and tower in name:
            parent, _, own = name.rpartition(".")
            width: Any = module.in_features
            inputs, ranks = inputs + int(width), ranks + int(module.r["default"])
            distinct[f"{parent}.{_TOGETHER.get(own, own)}"] = int(width)
    return Adapters(inputs, sum(distinct.values()), ranks)


def _keeping(
    model: ModelArguments, train: TrainArguments, zero: Any, trains: Trains, adapters: tuple[Adapters, Adapters]
) -> tuple[Setting, Keeping]:
    """Sizes of numbers, as ``train/source.build_model`` chooses them."""
    from internvl_chat.model.activations import CUDA, Numbers, Setting
    from internvl_chat.model.memory import Keeping

    half, lora = bool(train.bf16 or train.fp16), bool(model.use_llm_lora or model.use_backbone_lora)
    wide = 4 if not half or zero is None else 2
    small = bool(train.bf16) and lora
    vision_full = trains.vision_embedding or bool(trains.vision_layers)
    numbers = Numbers(
        2 if half else 4,
        2 if small and not vision_full else wide,
        2 if small and not trains.llm else wide,
    )
    dropout = model.lora_dropout is None or model.lora_dropout > 0
    eager = model.attn_implementation == "eager"
    setting = Setting(trains, numbers, CUDA, *adapters, dropout=dropout, eager=eager)
    accumulates = train.gradient_accumulation_steps > 1
    return setting, Keeping(
        half, small, accumulates, not trains.llm_recompute, str(getattr(train.optim, "value", train.optim))
    )


# -- data -------------------------------------------------------------------------------------------------------------


def _masked(model: ModelArguments, data: DataArguments, train: TrainArguments) -> bool:
    """Whether attention of the language model is given a mask."""
    if model.attn_implementation == "flash_attention_2":
        return False
    return model.attn_implementation == "sdpa" if data.use_packed_ds else train.per_device_train_batch_size > 1


def assumed(
    config: InternVLChatConfig, data: DataArguments, train: TrainArguments, world: int
) -> tuple[Load, Amount, int | None]:
    """Micro-batches as full as the flags allow."""
    from internvl_chat.model.activations import Load

    batch = train.per_device_train_batch_size
    if data.use_packed_ds:
        tokens, row = (
            batch * int(data.max_packed_tokens or 0),
            min(data.max_seq_length, int(data.max_packed_tokens or 0)),
        )
        tiles = batch * int(data.num_images_expected or 0)
        sample = tokens / batch / SAMPLES_OF_A_PACK
    else:
        row = data.max_seq_length
        most = config.max_dynamic_patch + config.use_thumbnail if config.dynamic_image_size else 1
        tokens, tiles, sample = batch * row, batch * most, float(row)
    tiles = min(tiles, tokens // max(1, config.num_image_token))
    whole = world * train.gradient_accumulation_steps
    step = Amount(tokens, tokens * sample, SUPERVISED * tokens, tiles).times(whole)
    steps = train.max_steps if train.max_steps > 0 else None
    return Load(tokens, row, tiles, int(SUPERVISED * tokens)), step, steps


def _view(
    draft: Draft, model: ModelArguments, data: DataArguments, train: TrainArguments, notes: list[str]
) -> tuple[Any, Corpus] | None:
    """The data, indexed; None with a note where they cannot be read."""
    from internvl_chat.data.corpus import open_corpus
    from internvl_chat.data.manifest import load_manifest

    try:
        view = view_of(tuple(load_manifest(str(data.meta_path))), draft, model, data, train)
        corpus = open_corpus(
            view.specs, view.maker, view.index_dir, workers=view.workers, rebuild=data.rebuild_index,
            max_fault_share=1.0, resample=data.use_data_resampling,
        )  # fmt: skip
    except InternVLError as error:
        notes.append(f"the data are not read: {str(error).splitlines()[0]}")
        return None
    return view, corpus


def _amounts(view: Any, corpus: Corpus, world: int) -> tuple[Load, Amount, int]:
    """Largest micro-batch, average step and number of steps, from the plan of the first epoch."""
    from internvl_chat.data.plan.epoch import pack_sums, plan_epoch
    from internvl_chat.data.plan.report import numbers_of
    from internvl_chat.model.activations import Load
    from internvl_chat.train.setup import pack_cost, plan_settings

    train = view.train
    cost = pack_cost(view.config, view.trains, corpus.supervised_share)
    settings = plan_settings(view.config, view.data, train, world * train.gradient_accumulation_steps, cost)
    numbers = numbers_of(plan_epoch(corpus, settings, 0, view.workers), corpus, settings)
    squares = float(pack_sums(numbers.plan, corpus, 0)[3].sum())
    steps = train.max_steps if train.max_steps > 0 else round(train.num_train_epochs * numbers.steps)
    packs = train.per_device_train_batch_size if settings.packed else 1
    positions = numbers.tokens if settings.packed else numbers.longest * numbers.samples
    tokens, tiles = int(positions.max()) * packs, int(numbers.tiles.max()) * packs
    share = corpus.supervised_share
    total = float(numbers.tokens.sum())
    step = Amount(total, squares, share * total, float(numbers.tiles.sum())).times(1 / numbers.steps)
    return Load(tokens, int(numbers.longest.max()), tiles, int(share * tokens)), step, steps
