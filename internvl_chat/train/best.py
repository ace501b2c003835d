"""When a run evaluates, which of its checkpoints is the best, and its weights back in memory at the end."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from internvl_chat.data.plan.schedule import Schedule
from internvl_chat.log import get_logger
from internvl_chat.model.build import load_weights
from internvl_chat.model.chat import InternVLChatModel
from internvl_chat.model.lora import load_trained, unwrap
from internvl_chat.model.token_rows import unfolded_state
from internvl_chat.train import dist
from internvl_chat.train.source import whole_models

log = get_logger(__name__)


def key_of(metric: str) -> str:
    """A metric's key among those of an evaluation; the library lets ``eval_`` be left out."""
    return f"eval_{metric.removeprefix('eval_')}"


def may_be_best(args: TrainingArguments, control: TrainerControl, metrics: Mapping[str, float]) -> bool:
    """Whether an evaluation can make its step the best one.

    A step that is not saved cannot be the best checkpoint, nor hide one that is worse but there.
    """
    wanted = args.metric_for_best_model
    if wanted is not None and key_of(wanted) not in metrics:
        log.warning("--metric_for_best_model %s: no figure at this evaluation, so it cannot be the best", wanted)
        return False
    return args.save_strategy == SaveStrategy.BEST or control.should_save


class EvaluationTimes(TrainerCallback):
    """At the end of the true epochs (the library sees one pass over one loader), and never twice at one step."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._last = -1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if (
            args.load_best_model_at_end
            and args.save_strategy == SaveStrategy.STEPS
            and state.save_steps > state.max_steps
        ):
            log.warning(
                "--save_steps %d of %d steps: only the last step is saved, so it is the best; lower --save_steps",
                state.save_steps, state.max_steps,
            )  # fmt: skip
        if state.best_global_step:
            found = dist.decide_on_main(lambda: _find_best(Path(str(args.output_dir)), state))
            state.best_model_checkpoint = found
            if found is None:
                log.warning(
                    "checkpoint-%d was the best so far, but is gone: the best is looked for from here on",
                    state.best_global_step,
                )
                state.best_metric, state.best_global_step = None, None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.eval_strategy == IntervalStrategy.EPOCH and self._schedule.ends_epoch(state.global_step):
            control.should_evaluate |= args.eval_delay <= self._schedule.epoch_at(state.global_step)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._last = state.global_step

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        control.should_evaluate &= self._last != state.global_step

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.load_best_model_at_end and state.best_model_checkpoint is None:
            log.warning("no checkpoint was ever evaluated, so none is the best: the model is that of the last step")
        elif args.load_best_model_at_end:
            log.info("the model is that of %s, %s %g", state.best_model_checkpoint, args.metric_for_best_model,
                     state.best_metric)  # fmt: skip


def _find_best(output_dir: Path, state: TrainerState) -> str | None:
    """Where the best checkpoint lies now; the folder of the run may have been moved."""
    places = [str(output_dir / f"checkpoint-{state.best_global_step}"), state.best_model_checkpoint]
    return next((place for place in places if place and Path(place).is_dir()), None)


def load_best(model: nn.Module, folder: Path, args: TrainingArguments, zero3: bool) -> None:
    """Fill the model with the weights of a checkpoint of this run. Collective under ZeRO-3.

    The optimizer's state is left alone, so that the number of ranks need not be that of the run which saved it. Raises
    CheckpointError unless all weights fit.
    """
    if not zero3:
        if isinstance(model, PeftModel):
            load_trained(model, folder)
        else:
            load_weights(unwrap(model), folder)
        return
    import deepspeed

    if isinstance(model, PeftModel):
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        with deepspeed.zero.GatheredParameters(trained, modifier_rank=0):
            if dist.rank() == 0:
                load_trained(model, folder)
        return
    with whole_models(args):
        state = _stored(unwrap(model), folder) if dist.rank() == 0 else {}
    # One by one: the whole model fits no single card.
    for name, parameter in unwrap(model).named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
            if dist.rank() == 0:
                parameter.copy_(state[name])


def _stored(model: InternVLChatModel, folder: Path) -> dict[str, Tensor]:
    """All weights of a model folder under the names they have in memory."""
    found = InternVLChatModel.from_pretrained(
        folder, config=copy.deepcopy(model.config), dtype="auto", local_files_only=True
    )
    return unfolded_state(model, found.state_dict())
