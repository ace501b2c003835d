"""Arguments -> the data of a run: corpus, schedule, and what a resumed run must share."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from internvl_chat.config.data import DataArguments
from internvl_chat.config.train import TrainArguments
from internvl_chat.data.corpus import Corpus, open_corpus
from internvl_chat.data.fit import Limits
from internvl_chat.data.frames import check_method
from internvl_chat.data.loader import MicroBatches
from internvl_chat.data.manifest import DatasetSpec, load_manifest
from internvl_chat.data.plan.schedule import Cost, PlanSettings, Schedule
from internvl_chat.data.sample import SampleMaker, VideoSettings, own_encoders
from internvl_chat.data.tiles import TileSettings
from internvl_chat.data.tokens import Encoder
from internvl_chat.errors import ConfigError
from internvl_chat.model.config import InternVLChatConfig
from internvl_chat.train import dist
from internvl_chat.train.state import DataState

_NO_LIMIT = 2**30


def build_corpus(
    config: InternVLChatConfig, tokenizer: Any, data: DataArguments, seed: int, look_again: bool
) -> Corpus:
    """Manifest -> indexed corpus. Raises ConfigError or DataError with all that is wrong."""
    specs = load_manifest(str(data.meta_path))
    crew = dist.local_crew()
    return open_corpus(
        specs,
        build_maker(specs, config, tokenizer, data, seed),
        index_folder(data),
        workers=data.index_workers or cores(crew.size),
        rebuild=data.rebuild_index,
        look_again=look_again,
        max_fault_share=data.max_fault_share,
        crew=crew,
    )


def build_maker(
    specs: Sequence[DatasetSpec], config: InternVLChatConfig, tokenizer: Any, data: DataArguments, seed: int
) -> SampleMaker:
    """What makes the samples of these data sets under these flags. Raises ConfigError."""
    check_method(data.sampling_method)
    max_tiles = data.num_images_expected if data.use_packed_ds else _NO_LIMIT
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
    cache = Path(os.environ.get("INTERNVL_CACHE", "~/.cache/internvl_chat")).expanduser()
    return Path(data.index_dir) if data.index_dir else cache / "index"


def cores(processes: int = 1) -> int:
    """Cores for each of the processes of this machine: those it is bound to, or its share of all."""
    bound, there = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    return bound if bound < there else max(1, there // processes)


def pack_cost(config: InternVLChatConfig) -> Cost:
    """Forward FLOPs per token, tile and squared token (2 per weight and use; 4 * hidden per causal pair / 2)."""
    vision, llm = config.vision_config, config.llm_config
    patches = (config.image_size // vision.patch_size) ** 2 + 1
    block = 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size
    tile = vision.num_hidden_layers * (2 * patches * block + 4 * patches**2 * vision.hidden_size)
    layer = 4 * llm.hidden_size**2 + 3 * llm.hidden_size * llm.intermediate_size
    return Cost(2.0 * llm.num_hidden_layers * layer, float(tile), 2.0 * llm.num_hidden_layers * llm.hidden_size)


def build_schedule(corpus: Corpus, config: InternVLChatConfig, data: DataArguments, args: TrainArguments) -> Schedule:
    """Which samples make which step."""
    parts = dist.world_size() * args.gradient_accumulation_steps
    settings = PlanSettings(
        packed=data.use_packed_ds,
        packs_per_step=parts * (args.per_device_train_batch_size if data.use_packed_ds else 1),
        seed=args.data_seed if args.data_seed is not None else args.seed,
        max_tokens=data.max_packed_tokens,
        max_tiles=data.num_images_expected,
        batch_size=args.per_device_train_batch_size,
        by_length=args.train_sampling_strategy == "group_by_length",
        cost=pack_cost(config),
    )
    return Schedule(corpus.tokens, corpus.tiles, settings)


def _plan_id(corpus: Corpus, schedule: Schedule) -> str:
    """Hash of all that decides which sample stands where: index files, repeats, budgets."""
    data = [[i.table_path.name, s.name, s.repeat_time] for s, i in zip(corpus.specs, corpus.indexes, strict=True)]
    sizes = [len(corpus), int(corpus.tokens.sum()), int(corpus.tiles.sum()), zlib.crc32(corpus.line.tobytes())]
    return hashlib.sha256(json.dumps([data, sizes, asdict(schedule.settings)]).encode()).hexdigest()[:16]


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


def data_state(batches: MicroBatches, step: int, model: dict[str, Any]) -> DataState:
    """What a run that is resumed after ``step`` must share with this one."""
    settings = batches.schedule.settings
    plan = _plan_id(batches.corpus, batches.schedule)
    place = batches.place
    return DataState(step, settings.seed, settings.packs_per_step, plan, batches.num_steps, place.world_size, model)
