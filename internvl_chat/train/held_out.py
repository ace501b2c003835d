"""What a run evaluates on: lines that training holds back, and a second manifest; all said before the model loads."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers.trainer_utils import IntervalStrategy

from internvl_chat.config.data import DataArguments
from internvl_chat.config.train import TrainArguments
from internvl_chat.data.corpus import Corpus, held_out_lines, open_corpus
from internvl_chat.data.faults import FaultRecord, Ledger, TooManyFaults
from internvl_chat.data.manifest import DatasetSpec, load_manifest
from internvl_chat.data.plan.pack import NO_LIMIT
from internvl_chat.data.share import Share
from internvl_chat.errors import ConfigError, DataError
from internvl_chat.log import get_logger
from internvl_chat.train import dist
from internvl_chat.train.setup import build_maker, cores, index_folder
from internvl_chat.train.source import Draft, ModelSource
from internvl_chat.train.validate import EvalBatches, EvalSettings, Validator

log = get_logger(__name__)


def build_validator(
    source: ModelSource | Draft,
    data: DataArguments,
    args: TrainArguments,
    trained: Corpus,
    pad_id: int,
    look_again: bool,
) -> Validator | None:
    """What measures the loss of this run, None without ``--eval_strategy``, or where there are only ``--eval_tasks``.

    Raises ConfigError when there is nothing to evaluate on, DataError when no line is usable, TooManyFaults as for
    training.
    """
    if args.eval_strategy == IntervalStrategy.NO:
        if names := [spec.name for spec in trained.specs if _holds_lines(spec)]:
            log.info("no --eval_strategy: the lines kept for evaluation are not used (%s)", ", ".join(names))
        return None
    specs = evaluation_specs(trained.specs, data.eval_meta_path, alone=not data.eval_tasks)
    if not specs:
        return None
    crew = dist.local_crew()
    try:
        corpus = open_corpus(
            specs,
            build_maker(specs, source.config, source.tokenizer, data, args.seed),
            index_folder(data),
            split="eval",
            workers=data.index_workers or cores(crew.size),
            rebuild=data.rebuild_index,
            look_again=look_again,
            max_fault_share=data.max_fault_share,
            crew=crew,
        )
    except TooManyFaults:
        raise
    except DataError as error:
        where = data.eval_meta_path or data.meta_path
        raise DataError(
            f"nothing to evaluate on in {where} (--eval_strategy {IntervalStrategy(args.eval_strategy).value}): {error}"
        ) from error
    validator = Validator(
        EvalBatches(corpus, _settings(data, args), pad_id, dist.rank(), dist.world_size()),
        Ledger(_ledger_path(Path(str(args.output_dir)), dist.rank())),
    )
    if both := count_trained_on(corpus, trained):
        log.warning(
            "%d of %d lines to evaluate on are also trained on: their loss says nothing about new data",
            both,
            len(corpus),
        )
    digest = zlib.crc32(json.dumps(corpus.identity).encode())
    dist.check_agreement("data to evaluate on", digest, "are all pictures and annotations visible on every node?")
    return validator


def evaluation_specs(
    trained: Sequence[DatasetSpec], eval_meta_path: str | None, alone: bool = True
) -> list[DatasetSpec]:
    """Data sets of which lines are evaluated: those that training holds back, and all of a second manifest.

    Pictures are not augmented. Raises ConfigError when there are two of one name, or none although nothing else is
    evaluated (``alone``).
    """
    kept = [replace(spec, data_augment=False) for spec in trained if _holds_lines(spec)]
    second = load_manifest(eval_meta_path) if eval_meta_path else []
    if twice := {spec.name for spec in kept} & {spec.name for spec in second}:
        raise ConfigError(
            f"data set {min(twice)!r}: lines of it are held out of training (split or eval_share in --meta_path), and "
            f"{eval_meta_path} names one like it; give one of them another name"
        )
    specs = kept + [replace(spec, data_augment=False, split="eval", eval_share=0.0) for spec in second]
    if alone and not specs:
        raise ConfigError(
            "--eval_strategy: there is nothing to evaluate on; give a second manifest with --eval_meta_path, or hold "
            "lines back in the manifest (`eval_share: 0.02`, or `split: eval`), or name benchmarks with --eval_tasks"
        )
    return specs


def _holds_lines(spec: DatasetSpec) -> bool:
    return spec.split == "eval" or spec.eval_share > 0


def _settings(data: DataArguments, args: TrainArguments) -> EvalSettings:
    return EvalSettings(
        packed=data.use_packed_ds,
        batch_size=args.per_device_eval_batch_size,
        max_tokens=data.max_packed_tokens or NO_LIMIT,
        max_tiles=data.num_images_expected or NO_LIMIT,
        loss_reduction=data.loss_reduction,
        max_fault_share=data.max_fault_share,
        workers=args.dataloader_num_workers,
        prefetch=args.dataloader_prefetch_factor,
        pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
    )


def count_trained_on(held: Corpus, trained: Corpus) -> int:
    """How many lines of ``held`` are trained on too: same annotation file, same line."""
    both = 0
    for spec, share in zip(held.specs, held.shares, strict=True):
        path = spec.annotation.resolve()
        same = [
            other for one, other in zip(trained.specs, trained.shares, strict=True) if one.annotation.resolve() == path
        ]
        if same:
            both += int(np.isin(_lines(share), np.concatenate([_lines(other) for other in same])).sum())
    return both


def _lines(share: Share) -> np.ndarray:
    """All lines that a data set gives to an epoch; drawn by weight, to one epoch or another."""
    count = len(share.lines) if share.drawn else min(share.count, len(share.lines))
    return share.lines.take(np.arange(count))


def _ledger_path(output_dir: Path, rank: int) -> Path:
    return output_dir / (f"eval_faults.rank{rank}.jsonl" if rank else "eval_faults.jsonl")


def start_ledger(output_dir: Path, validator: Validator | None) -> None:
    """Begin the list of what is left out anew, also of a run that goes on: each evaluation finds all of it again."""
    for ledger in output_dir.glob("eval_faults*.jsonl"):
        ledger.unlink()
    if validator is not None:
        Ledger(_ledger_path(output_dir, 0)).write(_left_out(validator.batches.corpus))


def _left_out(corpus: Corpus) -> Iterator[FaultRecord]:
    """Lines kept for evaluation that the index found faulty. Each is measured again: asked once, on one process."""
    held = {
        spec.name: held_out_lines(spec, len(index)) for spec, index in zip(corpus.specs, corpus.indexes, strict=True)
    }
    return (record for record in corpus.left_out() if held[record.dataset][record.line - 1])
