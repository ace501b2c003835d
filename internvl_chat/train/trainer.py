"""Subclass of transformers' Trainer: own batches, one loss denominator per optimizer step, exact resume.

The whole run is one pass over a loader that knows its length, so the number of steps, the learning rate schedule and
the time left are exact. Only methods meant for it are overridden.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer

from internvl_chat.config.train import TrainArguments
from internvl_chat.data.batch import Batch
from internvl_chat.data.faults import FaultRecord, Ledger
from internvl_chat.data.loader import MicroBatches, make_loader
from internvl_chat.errors import DataError
from internvl_chat.folder import write_folder
from internvl_chat.log import get_logger
from internvl_chat.model.build import load_weights
from internvl_chat.model.flops import peak_flops, tower_flops, trains_of
from internvl_chat.model.lora import load_trained, save_adapter, unwrap
from internvl_chat.model.token_rows import folded_state, token_row_ids
from internvl_chat.train import dist
from internvl_chat.train.best import load_best, may_be_best
from internvl_chat.train.evaluation import Evaluation
from internvl_chat.train.inputs import MicroBatch, make_micro_batch, send
from internvl_chat.train.metrics import COLUMNS, Meter, step_counts
from internvl_chat.train.nonfinite import StepGuard, check_deepspeed, ledger_path, poison
from internvl_chat.train.oversight import Oversight
from internvl_chat.train.setup import data_state
from internvl_chat.train.source import ModelSource
from internvl_chat.train.state import ADAPTER, begin_saving, finish_saving, keep_newest
from internvl_chat.train.validate import quiet
from internvl_chat.train.watch import StepWatch
from internvl_chat.train.zero_check import check_one_rate

log = get_logger(__name__)

# Samples of a rank that could not be loaded and are shown in the log; the ledger has all.
_SHOWN = 3


class InternVLTrainer(Trainer):
    """Trains on ``MicroBatches``. ``ledger`` gets the faults found on loading (one file per rank).

    ``identity``: what a run that goes on from its checkpoints must share. ``learning_rates``: of whole parts of the
    model by their name in it, None = ``--learning_rate``. A model that peft has wrapped is saved as an adapter.
    """

    # The model divides by the denominator of the whole step; nothing is left to scale.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: nn.Module,
        args: TrainArguments,
        batches: MicroBatches,
        *,
        source: ModelSource,
        identity: dict[str, Any],
        learning_rates: Mapping[str, float | None],
        loss_reduction: str,
        ledger: Ledger,
        max_faults: int,
        evaluation: Evaluation | None = None,
        oversight: Oversight | None = None,
    ) -> None:
        zero = getattr(args, "hf_deepspeed_config", None)
        if zero is not None:
            check_one_rate(learning_rates, zero.config)
            check_deepspeed(zero.config)
        self.saved_step = -1
        self.oversight = oversight or Oversight()
        # Old checkpoints are deleted here, after the new one is complete, not by the library before that.
        self._keep_checkpoints, args.save_total_limit = args.save_total_limit, None
        args.max_steps = batches.num_steps
        super().__init__(
            model=model, args=args, train_dataset=batches, eval_dataset=evaluation, processing_class=source.tokenizer
        )
        self.evaluation = evaluation
        self.source = source
        self.identity = identity
        self.learning_rates = learning_rates
        self.batches = batches
        self.loss_reduction = loss_reduction
        self.ledger = ledger
        self.max_faults = max_faults
        self._faults_shown = 0
        self.meter = self._make_meter()
        guard = StepGuard(args.nonfinite_step, ledger_path(Path(str(args.output_dir)), dist.rank()), dist.rank())
        self.watch = StepWatch(self, guard)
        self.add_callback(self.watch)

    def _make_meter(self) -> Meter:
        """What is logged, with the arithmetic of a step as this model trains."""
        model, device = cast("nn.Module", self.model), self.args.device
        inner = unwrap(model)
        again = [
            any(getattr(module, "gradient_checkpointing", False) for module in tower.modules())
            for tower in (inner.vision_model, inner.language_model)
        ]
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        peak = peak_flops(name, cast("TrainArguments", self.args).peak_tflops)
        datasets = [spec.name for spec in self.batches.corpus.specs]
        flops = tower_flops(inner.config, trains_of(model, *again))
        return Meter(dist.world_size(), datasets, device, flops, peak)

    # -- data ---------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """This rank's micro-batches; not handed to accelerate, which would deal them to ranks again."""
        args = self.args
        pin = args.dataloader_pin_memory and torch.cuda.is_available()
        return make_loader(self.batches, args.dataloader_num_workers, pin, args.dataloader_prefetch_factor)

    def num_examples(self, dataloader: DataLoader) -> int:
        return len(self.batches)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | None]:
        """The micro-batches of one optimizer step, and its loss denominator: the weights of all ranks' tokens."""
        self.oversight.step_begins(self.state.global_step + 1)
        self.meter.clock.enter("data")
        started = time.perf_counter()
        batches = list(islice(epoch_iterator, num_batches))
        waited = time.perf_counter() - started
        self.meter.clock.enter("other")
        if not batches:
            return [], None
        self._note_faults([fault for batch in batches for fault in batch.faults])
        micro_batches = [self._micro_batch(batch) for batch in batches]
        schedule, place = self.batches.schedule, self.batches.place
        settings = schedule.settings
        padded = sum(batch.input_ids.numel() for batch in batches)
        capacity = settings.max_tokens * self.args.per_device_train_batch_size * len(batches)
        self.oversight.progress.enter("exchange", self.state.global_step + 1)
        counts = dist.sum_over_ranks(step_counts(micro_batches, capacity if settings.packed else padded, waited))
        idle = schedule.idle_share(self.state.global_step, place.world_size, place.accumulation, self.is_zero3)
        self.meter.add(counts, micro_batches, idle)
        if self.meter.faults_in_all > self.max_faults:
            here = [str(fault) for batch in batches for fault in batch.faults][:_SHOWN]
            told = (
                f"samples that could not be loaded so far: {self.meter.faults_in_all}, more than --max_fault_share "
                f"allows ({self.max_faults}); all are listed in {self.ledger.path}; `internvl check --decode` finds "
                "them before, `internvl repair --decode` takes them out"
            )
            raise DataError("\n".join([told, *here]))
        self.watch.begin(micro_batches)
        denominator = send(counts[COLUMNS.index("weight")].float(), device)
        return micro_batches, denominator

    def _micro_batch(self, batch: Batch) -> MicroBatch:
        config = unwrap(cast("nn.Module", self.model)).config
        image = (config.img_context_token_id, config.num_image_token)
        return make_micro_batch(batch, self.loss_reduction, self.meter.datasets, *image)

    def _note_faults(self, faults: list[FaultRecord]) -> None:
        """Samples of this rank that could not be loaded: into the ledger, the first also into the log."""
        self.ledger.write(faults)
        for fault in faults[: max(0, _SHOWN - self._faults_shown)]:
            log.warning("left out, could not be loaded: %s", fault)
        self._faults_shown += len(faults)

    def _prepare_inputs(self, inputs: Any) -> dict[str, Any]:
        """A micro-batch, or (batch, weights), as the model's arguments on the device; with ``groups`` for the former.

        (The library would cast the weights to bf16.)
        """
        device = self.args.device
        if isinstance(inputs, MicroBatch):
            values, groups = inputs.inputs(device)
            return {**values, "groups": groups}
        batch, weights = inputs
        return {**batch.to(device).tensors(), "loss_weight": weights.to(device, non_blocking=True)}

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted here: the library's estimate knows no tiles."""
        return 0

    # -- optimizer ----------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The library's optimizer; parts with a learning rate of their own get groups of their own."""
        optimizer = super().create_optimizer(model)
        # DeepSpeed steps inside the backward pass: only the optimizer itself knows when.
        optimizer.register_step_pre_hook(lambda *_: self.meter.clock.enter("optimizer"))
        rates = {part: rate for part, rate in self.learning_rates.items() if rate is not None}
        names = {id(parameter): name for name, parameter in cast("nn.Module", model or self.model).named_parameters()}
        for group in list(optimizer.param_groups) if rates else []:
            for part, rate in rates.items():
                own = [p for p in group["params"] if f".{part}." in f".{names[id(p)]}"]
                if own:
                    group["params"] = [p for p in group["params"] if f".{part}." not in f".{names[id(p)]}"]
                    optimizer.add_param_group({**group, "params": own, "lr": rate})
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    # -- evaluate -----------------------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """What ``evaluation`` measures, logged; the library's arguments are not used. Collective."""
        assert self.evaluation is not None, "an evaluation without data is refused before the model is loaded"
        started = time.perf_counter()
        self.oversight.progress.enter("evaluate", self.state.global_step)
        model = self.model_wrapped if self.is_deepspeed_enabled else cast("nn.Module", self.model)

        def loss_of(batch: Batch, weights: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = model(**self._prepare_inputs((batch, weights)), num_items_in_batch=1.0).loss
            return found

        with quiet(model, self.optimizer), self.compute_loss_context_manager():
            metrics = self.evaluation.run(loss_of, unwrap(cast("nn.Module", self.model)), self.is_zero3)
        log.info("evaluation after step %d: %s", self.state.global_step, self.evaluation.describe(metrics))
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.meter.skip(time.perf_counter() - started)
        self.oversight.request.took("evaluation", time.perf_counter() - started)
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        return may_be_best(self.args, self.control, metrics) and super()._determine_best_metric(metrics, trial)

    def _load_best_model(self) -> None:
        if self.control.should_training_stop and self.state.global_step < self.state.max_steps:
            return  # it goes on later
        load_best(cast("nn.Module", self.model), Path(str(self.state.best_model_checkpoint)), self.args, self.is_zero3)

    # -- log ----------------------------------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        self.meter.clock.enter("forward")
        self.oversight.progress.enter("forward", self.state.global_step + 1)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.meter.clock.enter("optimizer" if self.accelerator.sync_gradients else "other")
        self.watch.add_loss(loss)
        # What is not finite is refused before the optimizer; in the library's sum it would stay for ever.
        return torch.nan_to_num(loss, nan=0.0, posinf=0.0, neginf=0.0)

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The library's, and what each data set has added to it."""
        groups = inputs.pop("groups")
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self.meter.add_losses(outputs.token_loss, inputs["targets"][2], groups, num_items_in_batch)
        if self.is_deepspeed_enabled:
            loss = poison(loss)  # the next backward pass makes the step
        self.meter.clock.enter("backward")
        self.oversight.progress.enter("backward", self.state.global_step + 1)
        return (loss, outputs) if return_outputs else loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        self.watch.grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return self.watch.grad_norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add this project's numbers to what is logged after a step; the loss is that of the steps taken."""
        if "loss" in logs:
            whole = self.meter.complete
            found = self.meter.drain()
            if whole:
                del found["loss"]
            else:
                # NaN is no JSON, and ends the curves of some loggers.
                logs = {key: value for key, value in logs.items() if key != "loss" and math.isfinite(value)}
            logs = {**logs, **found}
        elif "train_loss" in logs and self.meter.steps_skipped:
            self.meter.drain()
            logs = {**logs, "train_loss": self.meter.mean_loss()}
        # The library's summary takes micro-batches for samples, and counts no FLOPs.
        logs = {key: value for key, value in logs.items() if key not in ("train_samples_per_second", "total_flos")}
        super().log(logs, start_time)

    # -- save ---------------------------------------------------------------------------------------------------------

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A model folder, or of a LoRA run an adapter folder. Collective under ZeRO-3."""
        if isinstance(self.model, PeftModel) and not self.is_zero3:
            # The library would copy the whole frozen model to the host first.
            self._save(output_dir)
        else:
            super().save_model(output_dir, _internal_call)

    @property
    def is_zero3(self) -> bool:
        """Whether no rank holds the weights whole."""
        config = getattr(self.args, "hf_deepspeed_config", None)
        return config is not None and bool(config.is_zero3())

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write a folder that loads by itself. Called on the main process with the gathered weights."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        if isinstance(self.model, PeftModel):
            final = folder == Path(str(self.args.output_dir))
            save_adapter(self.model, folder / ADAPTER if final else folder, self.source.origin, state_dict)
            return
        model = unwrap(cast("nn.Module", self.model))
        if token_row_ids(model):
            state_dict = folded_state(model, model.state_dict() if state_dict is None else state_dict)
        write_folder(model, self.processing_class, folder, source=self.source.folder, state_dict=state_dict)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.oversight.progress.enter("save", self.state.global_step)
        started = time.monotonic()
        output_dir = Path(self._get_output_dir(trial))
        checkpoint = output_dir / f"checkpoint-{self.state.global_step}"
        if self.saved_step == self.state.global_step:
            return  # the library asks again at the end; what is complete would be deleted to be written again
        if self.is_world_process_zero():
            begin_saving(checkpoint)
        dist.barrier()
        super()._save_checkpoint(model, trial)
        self.oversight.progress.enter("saved", self.state.global_step)
        dist.barrier()
        # With --save_only_model there is nothing to resume from, so the folder is never declared a checkpoint.
        if self.is_world_process_zero() and not self.args.save_only_model:
            step, counts = self.state.global_step, self.meter.state_dict()
            finish_saving(checkpoint, data_state(self.batches, step, self.identity, counts))
            if self._keep_checkpoints:
                best = self.state.best_model_checkpoint
                keep_newest(output_dir, self._keep_checkpoints, Path(best) if best else None)
        self.saved_step = self.state.global_step
        dist.barrier()
        self.oversight.request.took("save", time.monotonic() - started)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Weights of a checkpoint, every one of them (the library would only warn about missing ones)."""
        folder = Path(resume_from_checkpoint)
        if isinstance(self.model, PeftModel):
            load_trained(self.model, folder)
        else:
            load_weights(unwrap(cast("nn.Module", self.model)), folder)
