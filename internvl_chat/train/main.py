"""``internvl train``, read like a table of contents. What a user can get wrong is found before the model loads."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, set_seed
from transformers.utils import logging as library_logging

from internvl_chat.config.data import DataArguments
from internvl_chat.config.model import ModelArguments
from internvl_chat.config.parse import parse_arguments
from internvl_chat.config.train import TrainArguments
from internvl_chat.data.faults import Ledger, TooManyFaults
from internvl_chat.data.loader import MicroBatches, Place
from internvl_chat.log import get_logger, setup_logging
from internvl_chat.model.flops import Trains
from internvl_chat.model.lora import unwrap
from internvl_chat.model.tune import Tuning, assert_trainable, describe_layers, format_table, trainable_table
from internvl_chat.train import dist, elastic, setup, state
from internvl_chat.train.best import EvaluationTimes
from internvl_chat.train.callbacks import (
    GivenSteps,
    JsonLinesLog,
    NewSchedule,
    ShortBar,
    ShortLines,
    TrainableText,
    TrueEpoch,
)
from internvl_chat.train.evaluation import Evaluation, benchmarks_of, build_evaluation
from internvl_chat.train.finish import finish
from internvl_chat.train.held_out import start_ledger
from internvl_chat.train.nonfinite import forget_after
from internvl_chat.train.oversight import Oversight, StopAtStepEnd, oversee
from internvl_chat.train.source import (
    ModelSource,
    build_model,
    find_source,
    learning_rates,
    run_identity,
    tuning_of,
    what_trains,
)
from internvl_chat.train.trainer import InternVLTrainer

log = get_logger(__name__)


def train(argv: Sequence[str], oversight: Oversight | None = None) -> InternVLTrainer:
    """One training run, from flags to a model folder in ``--output_dir``.

    Raises InternVLError on user errors, Stopped when ``oversight`` is told to stop.
    """
    oversight = oversight or Oversight()
    model_args, data_args, args = _start(argv)
    with oversee(args, oversight):
        return _train(model_args, data_args, args, oversight)


def _train(
    model_args: ModelArguments, data_args: DataArguments, args: TrainArguments, oversight: Oversight
) -> InternVLTrainer:
    output_dir = Path(str(args.output_dir))
    resume = dist.decide_on_main(
        lambda: state.find_resume(output_dir, args.overwrite_output_dir, args.resume_from_checkpoint)
    )
    if model_args.model_name_or_path is not None:
        state.check_model_survives(output_dir, Path(model_args.model_name_or_path), not resume)
    source = find_source(model_args, data_args, args, keep=resume is not None)
    tuning = tuning_of(model_args, source.new_token_ids)
    rates = learning_rates(model_args)
    identity = run_identity(source, tuning, rates, args)
    trains = what_trains(source.config, model_args, tuning)
    try:
        batches, evaluation = _prepare_data(source, data_args, args, resume, trains)
    except TooManyFaults as error:
        if dist.rank() == 0:
            Ledger(output_dir / "faults.jsonl").rewrite(error.records)
        raise
    identity["data"] = setup.data_identity(batches, data_args)
    digest = setup.plan_digest(batches)
    oversight.progress.enter("agreement")
    dist.check_agreement("data", digest, "are all pictures and annotations visible on every node?")
    going_on = _prepare_resume(*resume, batches, identity, args) if resume else []

    oversight.progress.enter("model")
    set_seed(args.seed)
    model = _prepare_model(source, model_args, args, tuning, trains)
    if dist.rank() == 0:
        # Only now: nothing of an old run is deleted for a new one that could not have started.
        _tidy_output_dir(output_dir, args.overwrite_output_dir, batches, resume is not None)
        start_ledger(output_dir, evaluation.validator if evaluation else None)
    oversight.progress.enter("start")
    dist.barrier()  # a rank that is ahead must not write a ledger that rank 0 then clears away
    trainer = InternVLTrainer(
        model,
        args,
        batches,
        source=source,
        identity=identity,
        learning_rates=rates,
        loss_reduction=data_args.loss_reduction,
        ledger=Ledger(output_dir / (f"faults.rank{dist.rank()}.jsonl" if dist.rank() else "faults.jsonl")),
        # A line that cannot be loaded is so in every epoch.
        max_faults=int(data_args.max_fault_share * len(batches.corpus) * max(1.0, batches.epochs)),
        evaluation=evaluation,
        oversight=oversight,
    )
    _add_callbacks(trainer, args, output_dir)
    if resume:
        _go_on(trainer, *resume, going_on)
    _run(trainer, resume[0] if resume else None)
    oversight.progress.enter("finish")
    trainer.save_model()
    trainer.save_state()
    folder = finish(trainer, output_dir, model_args.merge_lora)
    _say_goodbye(trainer, folder)
    return trainer


def _run(trainer: InternVLTrainer, checkpoint: Path | None) -> None:
    """All steps that are left. Raises Stopped where the run is told to stop before."""
    request = trainer.oversight.request
    stop = StopAtStepEnd(request, can_go_on=not trainer.args.save_only_model)
    trainer.add_callback(stop)
    with request.training():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    stop.raise_if_stopped()


def _add_callbacks(trainer: InternVLTrainer, args: TrainArguments, output_dir: Path) -> None:
    """True epochs, evaluations, logs."""
    table = format_table(trainable_table(cast("nn.Module", trainer.model)))
    trainer.add_callback(GivenSteps())
    trainer.add_callback(TrueEpoch(trainer.batches.schedule))
    if trainer.evaluation is not None:
        trainer.add_callback(EvaluationTimes(trainer.batches.schedule))
    trainer.add_callback(TrainableText(table, lambda: trainer.callback_handler.callbacks))
    trainer.add_callback(JsonLinesLog(output_dir / "train_log.jsonl"))
    trainer.remove_callback(PrinterCallback if args.disable_tqdm else ProgressCallback)
    bar = sys.stderr.isatty() and not args.disable_tqdm  # in a file a bar is a line of a thousand pieces
    trainer.add_callback(ShortBar() if bar else ShortLines())


def _prepare_resume(
    checkpoint: Path, saved: state.DataState, batches: MicroBatches, identity: dict[str, Any], args: TrainArguments
) -> Sequence[TrainerCallback]:
    """Whether a run can go on from the checkpoint, and what it needs for that. Raises CheckpointError."""
    now = setup.data_state(batches, saved.step, identity)
    state.check_same_run(checkpoint, saved, now, batches.schedule.settings.as_json())
    if batches.first_step == batches.num_steps:
        log.info("nothing left to train: this run has ended; for more raise %s", setup.length_flag(args))
    return elastic.prepare(checkpoint, saved, args)


def _go_on(
    trainer: InternVLTrainer, checkpoint: Path, saved: state.DataState, callbacks: Sequence[TrainerCallback]
) -> None:
    """What going on from a checkpoint needs, beside what the library loads of it."""
    if checkpoint.parent.resolve() == Path(str(trainer.args.output_dir)).resolve():
        trainer.saved_step = saved.step
    trainer.meter.load_state_dict(saved.meter)
    trainer.args.eval_on_start = False  # it was evaluated already
    for callback in callbacks:
        trainer.add_callback(callback)
    if saved.num_steps != trainer.batches.num_steps:
        trainer.add_callback(NewSchedule())


def _say_goodbye(trainer: InternVLTrainer, folder: Path) -> None:
    """What was left out since the run, or its last resume, began; where the model is."""
    if trainer.meter.faults_in_all and dist.rank() == 0:  # a sum over all ranks
        log.warning("%d samples could not be loaded and were left out: faults.jsonl", trainer.meter.faults_in_all)
    log.info("the model is in %s; try it: internvl chat %s", folder, shlex.quote(str(folder)))


def _start(argv: Sequence[str]) -> tuple[ModelArguments, DataArguments, TrainArguments]:
    """Logging, environment, flags, process group."""
    setup_logging()
    library_logging.set_verbosity_warning()
    library_logging.disable_progress_bar()
    # DeepSpeed calls functions that this torch has renamed; nothing a user could do about it.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    warnings.filterwarnings("ignore", category=FutureWarning, message="`broadcast_buffers` is deprecated")
    model_args, data_args, args, notes = parse_arguments(argv)
    for note in notes:
        log.info("%s", note)
    if args.deepspeed:
        dist.start_deepspeed_group()
    return model_args, data_args, args


def _prepare_data(
    source: ModelSource,
    data: DataArguments,
    args: TrainArguments,
    resume: tuple[Path, state.DataState] | None,
    trains: Trains,
) -> tuple[MicroBatches, Evaluation | None]:
    """What the run learns from, and what it measures itself with; benchmarks first, for they are quick to look at."""
    benchmarks = benchmarks_of(source, data, args)
    batches = _prepare_batches(source, data, args, resume, trains)
    evaluation = build_evaluation(
        source, data, args, batches.corpus, batches.pad_id, benchmarks, look_again=resume is None
    )
    return batches, evaluation


def _prepare_batches(
    source: ModelSource,
    data: DataArguments,
    args: TrainArguments,
    resume: tuple[Path, state.DataState] | None,
    trains: Trains,
) -> MicroBatches:
    """Manifest -> index -> plan -> this rank's micro-batches of the whole run, or of what is left of it."""
    resumed = resume[1] if resume else None
    corpus = setup.build_corpus(source.config, source.tokenizer, data, args.seed, resumed)
    if resume:
        state.check_same_data(*resume, corpus.identity)
    schedule = setup.build_schedule(corpus, source.config, data, args, resumed, trains, keep=True)
    num_steps = args.max_steps if args.max_steps > 0 else schedule.steps_in(args.num_train_epochs)
    first_step = min(resumed.step if resumed else 0, num_steps)
    log.info(
        "%d steps of %s, %.2f epochs of %d samples%s",
        num_steps,
        schedule.describe(),
        schedule.about_epochs(num_steps),
        len(corpus),
        f", resuming after step {first_step}" if resumed else "",
    )
    place = Place(dist.rank(), dist.world_size(), args.gradient_accumulation_steps)
    return MicroBatches(corpus, schedule, place, first_step, num_steps, source.tokenizer.pad_token_id or 0)


def _tidy_output_dir(output_dir: Path, overwrite: bool, batches: MicroBatches, resumed: bool) -> None:
    """Remove what is in the way of this run, and list the lines that it leaves out."""
    if resumed:
        state.clear_unfinished(output_dir)
        forget_after(output_dir, batches.first_step)
        return
    state.clear_old_run(output_dir, overwrite)
    Ledger(output_dir / "faults.jsonl").write(batches.corpus.left_out())


def _prepare_model(
    source: ModelSource, model_args: ModelArguments, args: TrainArguments, tuning: Tuning, trains: Trains
) -> nn.Module:
    """Load, freeze, add LoRA, and say what trains."""
    model = build_model(source, model_args, args, tuning)
    for text in (f"what trains:\n{format_table(trainable_table(model))}", describe_layers(model, tuning)):
        if text:
            log.info("%s", text)
    assert_trainable(model, tuning)
    unwrap(model).set_activation_checkpointing(vision=trains.vision_recompute, llm=trains.llm_recompute)
    return model
