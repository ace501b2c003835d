"""``internvl train``, read like a table of contents. What a user can get wrong is found before the model loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import set_seed
from transformers.utils import logging as library_logging

from internvl_chat.config.parse import parse_arguments
from internvl_chat.data.faults import Ledger
from internvl_chat.log import get_logger, setup_logging
from internvl_chat.model.build import load_tokenizer
from internvl_chat.model.tune import apply_freeze, assert_trainable, format_table, trainable_table
from internvl_chat.train import dist, setup, state
from internvl_chat.train.callbacks import JsonLinesLog, TrueEpoch
from internvl_chat.train.trainer import InternVLTrainer

log = get_logger(__name__)


def train(argv: Sequence[str]) -> InternVLTrainer:
    """One training run, from flags to a model folder in ``--output_dir``. Raises InternVLError on user errors."""
    setup_logging()
    library_logging.set_verbosity_warning()
    library_logging.disable_progress_bar()
    dist.prepare_environment(argv)
    model_args, data_args, args, notes = parse_arguments(argv)
    for note in notes:
        log.info("%s", note)
    if args.deepspeed:
        dist.start_deepspeed_group()

    output_dir = Path(str(args.output_dir))
    resume = dist.decide_on_main(
        lambda: state.find_resume(output_dir, args.overwrite_output_dir, args.resume_from_checkpoint)
    )
    config = setup.read_config(model_args, data_args)
    tokenizer = load_tokenizer(str(model_args.model_name_or_path))
    if dist.rank() == 0:
        output_dir.mkdir(parents=True, exist_ok=True)
        if resume is None:
            state.remove_checkpoints(output_dir)
            for old in output_dir.glob("faults*.jsonl"):
                old.unlink()
    with dist.local_main_first():
        ledger = Ledger(output_dir / "faults.jsonl" if dist.rank() == 0 and resume is None else None)
        corpus = setup.build_corpus(config, tokenizer, data_args, args.seed, ledger)

    schedule = setup.build_schedule(corpus, config, data_args, args)
    num_steps = args.max_steps if args.max_steps > 0 else schedule.steps_in(args.num_train_epochs)
    first_step = state.read_marker(resume).step if resume else 0
    batches = setup.build_batches(
        corpus, schedule, args, setup.Run(min(first_step, num_steps), num_steps), tokenizer.pad_token_id or 0
    )
    log.info(
        "%d samples, %d steps of %d %s (%.2f epochs)%s",
        len(corpus),
        num_steps,
        schedule.settings.packs_per_step,
        "packs" if data_args.use_packed_ds else f"x {args.per_device_train_batch_size} samples",
        schedule.epoch_at(num_steps),
        f", resuming {resume.name}" if resume else "",
    )

    set_seed(args.seed)
    model = setup.build_model(model_args, data_args, args)
    apply_freeze(
        model,
        freeze_llm=model_args.freeze_llm,
        freeze_mlp=model_args.freeze_mlp,
        freeze_backbone=model_args.freeze_backbone,
    )
    log.info("what trains:\n%s", format_table(trainable_table(model)))
    assert_trainable(model, setup.expected_trainable(model_args))
    vision_checkpoint = model_args.vision_grad_checkpoint
    model.set_activation_checkpointing(
        vision=not model_args.freeze_backbone if vision_checkpoint is None else vision_checkpoint,
        llm=model_args.grad_checkpoint,
    )

    load_ledger = Ledger(output_dir / ("faults.jsonl" if dist.rank() == 0 else f"faults.rank{dist.rank()}.jsonl"))
    trainer = InternVLTrainer(
        model,
        args,
        batches,
        tokenizer=tokenizer,
        loss_reduction=data_args.loss_reduction,
        ledger=load_ledger,
        max_faults=int(data_args.max_fault_share * len(corpus)),
        plan_id=setup.plan_id(corpus, schedule),
    )
    if resume:
        state.check_same_run(resume, trainer.data_state())
    trainer.add_callback(TrueEpoch(schedule))
    trainer.add_callback(JsonLinesLog(output_dir / "train_log.jsonl"))
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    trainer.save_model()
    trainer.save_state()
    log.info("the model is in %s; try it: internvl chat %s", output_dir, output_dir)
    return trainer
