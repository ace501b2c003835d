"""All that a run measures of itself: loss on lines kept for it, and benchmarks; either may be missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers.trainer_utils import IntervalStrategy

from internvl_chat.config.data import DataArguments
from internvl_chat.config.train import TrainArguments
from internvl_chat.data.corpus import Corpus
from internvl_chat.errors import ConfigError, nearest
from internvl_chat.model.chat import InternVLChatModel
from internvl_chat.train.benchmarks import Benchmarks, build_benchmarks
from internvl_chat.train.best import key_of
from internvl_chat.train.held_out import build_validator
from internvl_chat.train.source import Draft, ModelSource
from internvl_chat.train.validate import LossOf, Validator, describe


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What is measured at each evaluation; at least one of both."""

    validator: Validator | None
    benchmarks: Benchmarks | None

    @property
    def names(self) -> list[str]:
        """Of the figures that a checkpoint may be chosen by."""
        losses = self.validator.losses if self.validator else []
        return [*losses, *(self.benchmarks.names if self.benchmarks else [])]

    def run(self, loss_of: LossOf, model: InternVLChatModel, together: bool) -> dict[str, float]:
        """The figures, equal on all ranks. Collective; ``together``: no rank has the weights whole (ZeRO-3)."""
        metrics = self.validator.run(loss_of) if self.validator else {}
        return metrics | (self.benchmarks.run(model, together) if self.benchmarks else {})

    def describe(self, metrics: dict[str, float]) -> str:
        """One line for the log."""
        parts = [describe(metrics)] if self.validator else []
        return "; ".join([*parts, *([self.benchmarks.describe(metrics)] if self.benchmarks else [])])


def build_evaluation(
    source: ModelSource | Draft,
    data: DataArguments,
    args: TrainArguments,
    trained: Corpus,
    pad_id: int,
    benchmarks: Benchmarks | None,
    look_again: bool,
) -> Evaluation | None:
    """What evaluates this run, None without ``--eval_strategy``. ``benchmarks``: see ``benchmarks_of``.

    Raises ConfigError when there is nothing to evaluate on or the metric to choose by is not measured, DataError for
    data that cannot be used, TooManyFaults as for training.
    """
    validator = build_validator(source, data, args, trained, pad_id, look_again)
    if args.eval_strategy == IntervalStrategy.NO:
        return None
    evaluation = Evaluation(validator, benchmarks)
    check_metric(args.metric_for_best_model, evaluation.names)
    return evaluation


def benchmarks_of(source: ModelSource | Draft, data: DataArguments, args: TrainArguments) -> Benchmarks | None:
    """Those of ``--eval_tasks``, if the run evaluates; quick to tell, so before any data are read for training.

    Raises ConfigError or DataError.
    """
    if args.eval_strategy == IntervalStrategy.NO:
        return None
    return build_benchmarks(source.config, source.tokenizer, data, args.per_device_eval_batch_size, args.seed)


def check_metric(wanted: str | None, measured: Sequence[str]) -> None:
    """Raise ConfigError if the metric to choose the best checkpoint by is not measured."""
    if wanted is None or key_of(wanted) in measured:
        return
    raise ConfigError(
        f"--metric_for_best_model {wanted}: is not measured; measured are {', '.join(measured)}"
        + nearest(key_of(wanted), measured)
    )
