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
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from internvl_chat.config.train import TrainArguments
from internvl_chat.data.batch import Batch
from internvl_chat.data.faults import FaultRecord, Ledger
from internvl_chat.data.loader import MicroBatches, make_loader
from internvl_chat.errors import ConfigError, DataError
from internvl_chat.log import get_logger
from internvl_chat.model.build import load_weights
from internvl_chat.model.lora import load_trained, save_adapter, unwrap
from internvl_chat.model.loss import token_weights
from internvl_chat.model.token_rows import folded_state, token_row_ids
from internvl_chat.train import dist
from internvl_chat.train.folder import write_folder
from internvl_chat.train.metrics import COLUMNS, Meter, step_counts
from internvl_chat.train.setup import data_state
from internvl_chat.train.source import ModelSource
from internvl_chat.train.state import ADAPTER, begin_saving, finish_saving, keep_newest

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
    ) -> None:
        own = [part for part, rate in learning_rates.items() if rate is not None]
        zero = getattr(args, "hf_deepspeed_config", None)
        if own and zero is not None and "optimizer" in zero.config:
            raise ConfigError(
                f"a learning rate of its own for {', '.join(own)}: the --deepspeed configuration has an optimizer, "
                "which knows one rate; remove its optimizer block"
            )
        # Old checkpoints are deleted here, after the new one is complete, not by the library before that.
        self._keep_checkpoints, args.save_total_limit = args.save_total_limit, None
        args.max_steps = batches.num_steps
        super().__init__(model=model, args=args, train_dataset=batches, processing_class=source.tokenizer)
        self.source = source
        self.identity = identity
        self.learning_rates = learning_rates
        self.batches = batches
        self.loss_reduction = loss_reduction
        self.ledger = ledger
        self.max_faults = max_faults
        self._faults_shown = 0
        self.meter = Meter(dist.world_size())
        self._step_loss = torch.zeros(())
        self._grad_norm: Any = None
        self._step_samples: list[str] = []
        self.add_callback(_CheckStep(self))

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
        started = time.perf_counter()
        batches = list(islice(epoch_iterator, num_batches))
        waited = time.perf_counter() - started
        if not batches:
            return [], None
        weights = [token_weights(batch.labels, batch.cu_seqlens, self.loss_reduction) for batch in batches]
        self._note_faults([fault for batch in batches for fault in batch.faults])
        settings = self.batches.schedule.settings
        padded = sum(batch.input_ids.numel() for batch in batches)
        capacity = settings.max_tokens * self.args.per_device_train_batch_size * len(batches)
        counts = step_counts(
            batches,
            sum(float(weight.double().sum()) for weight in weights),
            capacity if settings.packed else padded,
            waited,
        )
        counts = dist.sum_over_ranks(counts)
        self.meter.add(counts)
        if self.meter.faults_in_all > self.max_faults:
            here = [str(fault) for batch in batches for fault in batch.faults][:_SHOWN]
            raise DataError(
                "\n".join(
                    [
                        f"samples that could not be loaded so far: {self.meter.faults_in_all}, more than "
                        f"--max_fault_share allows ({self.max_faults}); all are listed in {self.ledger.path}; "
                        "`internvl check --decode` finds them before, `internvl repair --decode` takes them out",
                        *here,
                    ]
                )
            )
        self._step_samples = [f"{a.dataset}:{a.line + 1}" for batch in batches for a in batch.addresses]
        denominator = counts[COLUMNS.index("weight")].to(device, torch.float32)
        return list(zip(batches, weights, strict=True)), denominator

    def _note_faults(self, faults: list[FaultRecord]) -> None:
        """Samples of this rank that could not be loaded: into the ledger, the first also into the log."""
        self.ledger.write(faults)
        for fault in faults[: max(0, _SHOWN - self._faults_shown)]:
            log.warning("left out, could not be loaded: %s", fault)
        self._faults_shown += len(faults)

    def _prepare_inputs(self, inputs: Any) -> dict[str, Any]:
        """Batch and weights -> the model's arguments on the device. (The library would cast the weights to bf16.)"""
        batch, weights = inputs
        device = self.args.device
        return {**batch.to(device).tensors(), "loss_weight": weights.to(device, non_blocking=True)}

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted here: the library's estimate knows no tiles."""
        return 0

    # -- optimizer ----------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The library's optimizer; parts with a learning rate of their own get groups of their own."""
        optimizer = super().create_optimizer(model)
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

    # -- log ----------------------------------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._step_loss = self._step_loss + loss
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        self._grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return self._grad_norm

    def check_step(self) -> None:
        """Raise DataError on every rank unless loss and gradient of the step are finite. One device sync per step."""
        loss, self._step_loss = float(self._step_loss), torch.zeros(())
        # fp16 overflows now and then; its loss scaler skips such a step and goes on.
        norm = 0.0 if self._grad_norm is None or self.args.fp16 else float(self._grad_norm)
        finite = math.isfinite(loss) and math.isfinite(norm)
        if dist.any_rank(not finite):
            found = (
                f"loss is {loss}, gradient norm {norm}" if not finite else "loss or gradient is not finite elsewhere"
            )
            raise DataError(
                f"{found}, in step {self.state.global_step + 1} on rank {dist.rank()}; samples of this step: "
                f"{', '.join(self._step_samples)}; look at them, lower --learning_rate, or use bf16 instead of fp16"
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add this project's rates to what is logged after a step."""
        if "loss" in logs:
            logs = {**logs, **self.meter.drain()}
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
        output_dir = Path(self._get_output_dir(trial))
        checkpoint = output_dir / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            begin_saving(checkpoint)
        dist.barrier()
        super()._save_checkpoint(model, trial)
        dist.barrier()
        # With --save_only_model there is nothing to resume from, so the folder is never declared a checkpoint.
        if self.is_world_process_zero() and not self.args.save_only_model:
            finish_saving(checkpoint, data_state(self.batches, self.state.global_step, self.identity))
            if self._keep_checkpoints:
                keep_newest(output_dir, self._keep_checkpoints)
        dist.barrier()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Weights of a checkpoint, every one of them (the library would only warn about missing ones)."""
        folder = Path(resume_from_checkpoint)
        if isinstance(self.model, PeftModel):
            load_trained(self.model, folder)
        else:
            load_weights(unwrap(cast("nn.Module", self.model)), folder)


class _CheckStep(TrainerCallback):
    """Looks at loss and gradient before the optimizer uses them (DeepSpeed: before anything is logged or saved)."""

    def __init__(self, trainer: InternVLTrainer) -> None:
        self._trainer = trainer

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer.check_step()
