"""What the benchmarks of training share: lengths, steps of micro-batches, transformers' own model of the same weights.

A step is a list of micro-batches and one denominator for all of them, here as there: the loss of a step is the mean
over its supervised tokens however it is cut, so that losses and gradients can be compared.
"""

from __future__ import annotations

import gc
import os
import platform
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from plan import TILE_TOKENS, draw
from torch import Tensor, nn

from internvl_chat.data.batch import Batch
from internvl_chat.model.chat import InternVLChatModel, normalize_tiles
from internvl_chat.model.hf_native import to_hf_config, to_hf_tensors
from internvl_chat.model.lora import unwrap
from internvl_chat.train.inputs import MicroBatch, make_micro_batch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench/results"
# Names on disk -> names in transformers' class today.
_IN_MEMORY = (
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^vision_tower\.", "model.vision_tower."),
    (r"^multi_modal_projector\.", "model.multi_modal_projector."),
)


@dataclass(frozen=True)
class Lengths:
    """Of samples: all their tokens, those of them that are text, and tiles, int64 (N,) each."""

    tokens: np.ndarray
    text: np.ndarray
    tiles: np.ndarray


def wide_lengths(count: int, seed: int, max_tokens: int, max_tiles: int) -> Lengths:
    """Samples of the wide mix of plan.py at random, but for those that no pack of these budgets takes."""
    mix = draw("wide")
    fits = np.flatnonzero((mix.tokens <= max_tokens) & (mix.tiles <= max_tiles))
    chosen = np.random.default_rng(seed).choice(fits, count, replace=count > len(fits))
    tokens, tiles = mix.tokens[chosen], mix.tiles[chosen]
    return Lengths(tokens, tokens - TILE_TOKENS * tiles, tiles)


@dataclass(frozen=True)
class Step:
    """Micro-batches of one optimizer step."""

    batches: tuple[Batch, ...]

    @property
    def supervised(self) -> int:
        return sum(batch.num_supervised for batch in self.batches)

    @property
    def tokens(self) -> int:
        return sum(batch.num_tokens for batch in self.batches)

    @property
    def positions(self) -> int:
        """Padding counted."""
        return sum(batch.input_ids.numel() for batch in self.batches)

    @property
    def tiles(self) -> int:
        return sum(batch.num_tiles for batch in self.batches)


class Ours:
    """A step of this project's model as its trainer makes it: host work, then one call per micro-batch."""

    def __init__(self, model: nn.Module, full_logits: bool = False) -> None:
        self.model = model
        self.config = unwrap(model).config
        self.extra = {"return_logits": True} if full_logits else {}

    def backward(self, step: Step, device: torch.device) -> Tensor:
        """Gradients of the step are added up; returns its loss."""
        made = [self._micro_batch(batch) for batch in step.batches]
        denominator = torch.tensor(sum(micro.weight for micro in made), dtype=torch.float32, device=device)
        losses = []
        for micro in made:
            values, _ = micro.inputs(device)
            loss = self.model(**values, num_items_in_batch=denominator, **self.extra).loss
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def _micro_batch(self, batch: Batch) -> MicroBatch:
        names = sorted({address.dataset for address in batch.addresses})
        return make_micro_batch(batch, "token", names, self.config.img_context_token_id, self.config.num_image_token)


class Theirs:
    """The same step with transformers' InternVL: padded rows, logits of all positions, the library's loss.

    As its Trainer does: the mean over the supervised tokens of the step, no cache. What its processor does on the host
    (float tiles, normalised) is done by ``ready``, outside of what is timed.
    """

    def __init__(self, model: nn.Module, normalize_type: str) -> None:
        self.model = model
        self.normalize_type = normalize_type

    def ready(self, batch: Batch) -> dict[str, Tensor]:
        """The model's arguments, on the host."""
        assert batch.attention_mask is not None, "padded rows"
        values = {"input_ids": batch.input_ids, "labels": batch.labels, "attention_mask": batch.attention_mask.long()}
        if batch.pixel_values is not None:
            values["pixel_values"] = normalize_tiles(batch.pixel_values, self.normalize_type)
        return values

    def backward(self, made: Sequence[Mapping[str, Tensor]], device: torch.device) -> Tensor:
        """Gradients of the step are added up; returns its loss."""
        supervised = sum(int((values["labels"] != -100).sum()) for values in made)
        denominator = torch.tensor(float(supervised), device=device)
        losses = []
        for values in made:
            sent = {name: tensor.to(device, non_blocking=True) for name, tensor in values.items()}
            loss = self.model(**sent, use_cache=False, num_items_in_batch=denominator).loss
            loss.backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()


def hf_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of our model under the names that transformers' class has in memory."""
    found = {}
    for name, tensor in to_hf_tensors(tensors).items():
        for disk, memory in _IN_MEMORY:
            name = re.sub(disk, memory, name)
        found[name] = tensor
    return found


def hf_twin(model: InternVLChatModel) -> Any:
    """transformers' InternVL with the same weights, on the same device, in the same dtype, with its own attention."""
    from transformers import InternVLForConditionalGeneration

    config = to_hf_config(model.config)
    with torch.device(model.device):
        twin: Any = InternVLForConditionalGeneration._from_config(config, dtype=model.dtype, attn_implementation="sdpa")
    missing, unexpected = twin.load_state_dict(hf_names(model.state_dict()), strict=False)
    assert not unexpected and set(missing) <= set(twin.all_tied_weights_keys), (missing, unexpected)
    twin.tie_weights()
    return twin


def gradient_norm(model: nn.Module) -> float:
    """Of all gradients, in float32."""
    norms = [p.grad.float().norm() for p in model.parameters() if p.grad is not None]
    return float(torch.stack(norms).norm())


def forget(model: nn.Module) -> None:
    """No gradients."""
    model.zero_grad(set_to_none=True)
    gc.collect()


def status_mib(field: str) -> float:
    """VmRSS or VmHWM of this process, MiB. (The peak of getrusage is inherited from the process it was forked from.)"""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) / 1024


def machine() -> dict[str, Any]:
    """Date, device and versions: what every file of results begins with."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": gpu or f"cpu, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
