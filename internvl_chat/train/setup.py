"""Arguments -> the data of a run: corpus, schedule, and what a resumed run must share."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from internvl_chat.config.cache import cache_folder
from internvl_chat.config.data import DataArguments
from internvl_chat.config.train import TrainArguments
from internvl_chat.data.corpus import Corpus, open_corpus
from internvl_chat.data.fit import Limits
from internvl_chat.data.frames import check_method
from internvl_chat.data.loader import MicroBatches
from internvl_chat.data.manifest import DatasetSpec, load_manifest
from internvl_chat.data.plan.cost import Cost
from internvl_chat.data.plan.epoch import PlanSettings
from internvl_chat.data.plan.schedule import Schedule
from internvl_chat.data.plan.store import PlanStore, plan_in_memory
from internvl_chat.data.sample import SampleMaker, VideoSettings, own_encoders
from internvl_chat.data.tiles import TileSettings
from internvl_chat.data.tokens import Encoder
from internvl_chat.errors import ConfigError
from internvl_chat.model.config import InternVLChatConfig
from internvl_chat.model.flops import Trains, pack_cost_terms
from internvl_chat.train import dist
from internvl_chat.train.state import DataState

_NO_LIMIT = 2**30


def build_corpus(
    config: InternVLChatConfig, tokenizer: Any, data: DataArguments, seed: int, resumed: DataState | None
) -> Corpus:
    """Manifest -> indexed corpus, with the very lines that a run to go on began with.

    Raises ConfigError or DataError with all that is wrong.
    """
    specs = load_manifest(str(data.meta_path))
    crew = dist.local_crew()
    return open_corpus(
        specs,
        build_maker(specs, config, tokenizer, data, seed),
        index_folder(data),
        workers=data.index_workers or cores(crew.size),
        rebuild=data.rebuild_index,
        # A picture that was mended since stays out until the next run.
        look_again=resumed is None,
        without={name: one["left_out"] for name, one in resumed.data.items()} if resumed else None,
        max_fault_share=data.max_fault_share,
        resample=data.use_data_resampling,
        crew=crew,
    )


def build_maker(
    specs: Sequence[DatasetSpec], config: InternVLChatConfig, tokenizer: Any, data: DataArguments, seed: int
) -> SampleMaker:
    """What makes the samples of these data sets under these flags. Raises ConfigError."""
    check_method(data.sampling_method)
    max_tiles = data.num_images_expected or _NO_LIMIT
    maker = SampleMaker(
        Encoder.from_config(tokenizer, config),
        TileSettings.from_config(config, data.image_backend),
        Limits(data.max_seq_length, max_tiles, data.long_samples),
        seed,
        VideoSettings(data.sampling_method, data.min_num_frame, data.max_num_frame),
        own_encoders(specs, config, tokenizer),
        data.remote_media,
    )
    for spec in specs:
        videos = maker.videos_of(spec)
        if videos.min_frames > videos.max_frames:
            raise ConfigError(
                f"data set {spec.name!r}: min_num_frame {videos.min_frames} is more than max_num_frame "
                f"{videos.max_frames} (manifest and flags together); lower the first or raise the second"
            )
    return maker


def index_folder(data: DataArguments) -> Path:
    """Where indexes are kept."""
    return Path(data.index_dir) if data.index_dir else cache_folder() / "index"


def cores(processes: int = 1) -> int:
    """Cores for each of the processes of this machine: those it is bound to, or its share of all."""
    bound, there = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    return bound if bound < there else max(1, there // processes)


def pack_cost(config: InternVLChatConfig, trains: Trains | None = None, supervised: float = 0.0) -> Cost:
    """FLOPs of training per token, tile and squared token, recomputation included. ``trains`` None: everything does.

    ``supervised``: share of the tokens (0..1) that the output layer sees.
    """
    return Cost(*pack_cost_terms(config, trains, supervised=supervised, recompute=True))


def plan_settings(
    config: InternVLChatConfig, data: DataArguments, args: TrainArguments, parts: int, cost: Cost | None = None
) -> PlanSettings:
    """``parts``: micro-batches of an optimizer step, over all ranks and accumulation."""
    return PlanSettings(
        packed=data.use_packed_ds,
        packs_per_step=parts * (args.per_device_train_batch_size if data.use_packed_ds else 1),
        seed=args.data_seed if args.data_seed is not None else args.seed,
        max_tokens=data.max_packed_tokens or 0,
        max_tiles=data.num_images_expected or 0,
        batch_size=1 if data.use_packed_ds else args.per_device_train_batch_size,
        by_length=args.train_sampling_strategy == "group_by_length",
        cost=cost or pack_cost(config),
        worst_first=data.worst_first,
    )


def length_flag(args: TrainArguments) -> str:
    """The flag that decides how long a run is."""
    return "--max_steps" if args.max_steps > 0 else "--num_train_epochs"


def build_schedule(
    corpus: Corpus,
    config: InternVLChatConfig,
    data: DataArguments,
    args: TrainArguments,
    resumed: DataState | None = None,
    trains: Trains | None = None,
    keep: bool = False,
    world: int | None = None,
) -> Schedule:
    """Which samples make which step; of a run that goes on, the steps it has done are those it did.

    ``keep`` plans on disk, beside the indexes. ``world``: ranks, if they are not those of this process group.
    """
    cost = pack_cost(config, trains, corpus.supervised_share)
    ranks = dist.world_size() if world is None else world
    settings = plan_settings(config, data, args, ranks * args.gradient_accumulation_steps, cost)
    done = resumed.segments() if resumed else ()
    if done and replace(done[-1].settings, cost=settings.cost) == settings:
        # The weights of the cost may be known better today; the plan goes on as it began.
        settings, done = done[-1].settings, done[:-1]
    store = PlanStore(index_folder(data), _digest(corpus.identity), cores())  # one process plans, the others wait
    return Schedule(corpus, settings, done, store.plan if keep else plan_in_memory)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def plan_digest(batches: MicroBatches) -> str:
    """Hash of the data and of the steps to come: what all ranks must agree on."""
    step = max(0, min(batches.first_step, batches.num_steps - 1))
    return _digest([batches.corpus.identity, batches.schedule.digest(step)])


def data_identity(batches: MicroBatches, data: DataArguments) -> dict[str, Any]:
    """What a resumed run must share so that a sample is the same and weighs the same, beside its place in the plan."""
    maker, specs = batches.corpus.maker, batches.corpus.specs
    augmented = {spec.name: spec.data_augment for spec in specs}
    return {
        "seed": maker.seed,
        "image_backend": maker.tiles.backend,
        "loss_reduction": data.loss_reduction,
        "data_augment": augmented,
    }


def data_state(
    batches: MicroBatches, step: int, model: dict[str, Any], meter: dict[str, Any] | None = None
) -> DataState:
    """What a run that is resumed after ``step`` must share with this one, and its counts so far."""
    schedule = batches.schedule
    history = [segment.as_json() for segment in schedule.history(step)]
    plan = schedule.digest(step - 1) if step else ""
    world_size = batches.place.world_size
    return DataState(step, history, plan, batches.corpus.identity, batches.num_steps, world_size, model, meter or {})
