"""How much memory of a GPU a training step takes: weights, gradients, optimizer, ZeRO, activations; pure arithmetic.

A step has moments at which memory can be highest (``PHASES``); each is a sum of rows, and the highest counts:

    vision forward    a layer of the tower at work, nothing of the language model yet
    language forward  the tower's activations, and the last layer of the language model at work
    loss              all activations are there, and the logits of a chunk
    language backward a layer of the language model at work: the last, with all activations and no gradients yet, or the
                      first, the other way round
    vision backward   the same for the tower, beside all gradients of the language model
    step              all gradients, and what the optimizer needs beside its states

Bytes per parameter that trains: weight 2, gradient 2 and fp32 master, two moments 12 under DeepSpeed with bf16 or fp16;
4, 4 and 8 without DeepSpeed (autocast, float32), with the weights once more in bf16 during the step and, on several
GPUs, DDP's buckets (4). What is frozen takes 2, or 4 where the run keeps float32. Stage 1 divides master and moments by
the GPUs, stage 2 the gradients too, stage 3 the weights too; while it steps, the optimizer has a float32 copy of its
gradients. Stage 3 holds gathered weights: those below the persistence threshold, one module and what is fetched ahead
of it, and by ``stage3_max_reuse_distance`` the layers around the turn from forward to backward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from internvl_chat.model.activations import Activations

GIB = 2**30
# What torch never sees: the driver's context and its kernels, and the buffers of NCCL where there are several GPUs.
CONTEXT, NCCL = 0.6 * GIB, 0.8 * GIB
# The allocator's blocks are never filled to the last: of what comes and goes within a step.
FRAGMENTATION = 0.06
PHASES = ("vision forward", "language forward", "loss", "language backward", "vision backward", "step")
ROWS = (
    "weights",
    "gradients",
    "optimizer",
    "gathered weights",
    "buckets",
    "activations, vision",
    "activations, language",
    "loss",
    "batch",
    "context",
    "fragmentation",
)
# Bytes of optimizer state per parameter, by the name of --optim: fp32 moments, unless told otherwise.
_STATES = {"sgd": 0.0, "adafactor": 0.1, "lion_32bit": 4.0, "adamw_bnb_8bit": 2.0, "adamw_8bit": 2.0}
_ADAM = 8.0
PARTS = ("vision", "projector", "embedding", "language", "head")


@dataclass(frozen=True)
class Parameter:
    """One tensor: its part (of ``PARTS``), its size, whether it trains, and bytes per number if not as the rest."""

    part: str
    size: int
    trains: bool
    width: float | None = None


@dataclass(frozen=True)
class Sharding:
    """How states are kept. ``stage`` None: without DeepSpeed. Sizes in numbers, not bytes; ``buckets``: how many."""

    stage: int | None = None
    world: int = 1
    bucket: int = 0
    buckets: int = 1
    threshold: int = 0
    prefetch: int = 0
    reuse: int = 0
    sub_group: int = 10**9
    offload_optimizer: bool = False
    offload_weights: bool = False


@dataclass(frozen=True)
class Keeping:
    """``half``: bf16 or fp16. ``small_frozen``: frozen weights are stored in half precision, too.

    ``accumulates``: more than one micro-batch a step. ``casts_stay``: autocast's copies of weights are kept for the
    backward pass, as without checkpointing. ``optimizer``: the name in --optim. ``cuda``: count its context.
    """

    half: bool = True
    small_frozen: bool = True
    accumulates: bool = True
    casts_stay: bool = False
    optimizer: str = "adamw_torch_fused"
    cuda: bool = True


@dataclass(frozen=True)
class Memory:
    """Bytes per GPU, by phase and row; ``host``: per process in the memory of its machine, by row."""

    phases: Mapping[str, Mapping[str, float]]
    host: Mapping[str, float]

    @property
    def highest(self) -> str:
        """The phase in which most is needed."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def rows(self) -> Mapping[str, float]:
        """Of that phase."""
        return self.phases[self.highest]

    @property
    def peak(self) -> float:
        return sum(self.rows.values())

    @property
    def largest(self) -> str:
        """The row that takes most of it."""
        return max(self.rows, key=lambda name: self.rows[name])


def sharding_of(config: Mapping[str, Any] | None, hidden: int, world: int) -> Sharding:
    """What a DeepSpeed configuration says; ``hidden``: width of the language model, of which "auto" is made."""
    if config is None:
        return Sharding(None, world)
    zero = config.get("zero_optimization") or {}

    def number(key: str, auto: int, default: int) -> int:
        value = zero.get(key, default)
        return auto if value == "auto" else int(float(value))

    stage = int(zero.get("stage", 0))

    def offloads(name: str) -> bool:
        return stage > 0 and (zero.get(name) or {}).get("device", "none") not in ("none", None)

    return Sharding(
        stage,
        world,
        number("reduce_bucket_size", hidden**2, 5 * 10**8),
        2 if zero.get("overlap_comm", stage == 3) and stage < 3 else 1,
        number("stage3_param_persistence_threshold", 10 * hidden, 10**5),
        number("stage3_prefetch_bucket_size", int(0.9 * hidden**2), 5 * 10**7),
        min(number("stage3_max_reuse_distance", 10**9, 10**9), number("stage3_max_live_parameters", 10**9, 10**9)),
        number("sub_group_size", 10**9, 10**9),
        offloads("offload_optimizer"),
        offloads("offload_param"),
    )


def memory(parameters: Sequence[Parameter], acts: Activations, shard: Sharding, keep: Keeping) -> Memory:
    """All rows in all phases."""
    states = _States(parameters, shard, keep)
    context = (CONTEXT + (NCCL if shard.world > 1 else 0.0)) if keep.cuda else 0.0
    always = {
        "weights": states.weights,
        "optimizer": 0.0 if shard.offload_optimizer else states.optimizer,
        "gathered weights": states.gathered,
        "buckets": states.buckets,
        "batch": acts.inputs,
        "context": context,
    }
    moments = dict(_moments(acts, states))
    phases = {}
    for name, rows in moments.items():
        whole = {**dict.fromkeys(ROWS, 0.0), **always, **rows}
        if name in ("vision forward", "step"):
            whole["gathered weights"] = min(states.gathered, states.persistent + states.module)
        elif states.autocast and "backward" in name and not keep.casts_stay:
            whole["gathered weights"] = 0.0
        moving = ("activations, vision", "activations, language", "loss", "gathered weights")
        whole["fragmentation"] = FRAGMENTATION * sum(whole[row] for row in moving) if keep.cuda else 0.0
        phases[name] = whole
    return Memory(phases, states.host)


def _moments(acts: Activations, states: _States) -> Iterator[tuple[str, dict[str, float]]]:
    """(Phase, its rows beside those that are always there)."""
    vision, projector, llm, waiting = acts.vision, acts.projector, acts.llm, states.waiting
    seen, said = "activations, vision", "activations, language"

    def moment(gradients: Sequence[str], eyes: float, words: float = 0.0, loss: float = 0.0) -> dict[str, float]:
        made = max(waiting, states.gradients(gradients))
        return {"gradients": made, seen: eyes, said: words, "loss": loss}

    def higher(*choices: dict[str, float]) -> dict[str, float]:
        return max(choices, key=lambda rows: sum(rows.values()))

    yield "vision forward", moment((), vision.kept + vision.forward)
    eyes = vision.kept + projector
    yield "language forward", moment((), eyes, llm.kept + llm.forward)
    yield "loss", moment((), eyes, llm.kept, acts.loss)
    told = ("head", "language")
    yield (
        "language backward",
        higher(
            # What the forward pass has made of the loss, and the gradients made of it, are both there for a moment.
            moment((), eyes, llm.kept, 2 * acts.loss_kept),
            moment(("head",), eyes, llm.kept + llm.layer),
            moment(told, eyes, llm.layer),
        ),
    )
    everything = (*told, "embedding", "projector")
    yield (
        "vision backward",
        higher(moment(everything, vision.kept + vision.layer), moment(PARTS, vision.layer if vision.kept else 0.0)),
    )
    step = {"gradients": states.gradients(PARTS)}
    if not states.shard.offload_optimizer:
        step["optimizer"] = states.optimizer + states.stepping
    yield "step", step


class _States:
    """Bytes of weights, gradients and optimizer on one GPU."""

    def __init__(self, parameters: Sequence[Parameter], shard: Sharding, keep: Keeping) -> None:
        self.shard, self.keep = shard, keep
        self.parts = {part: sum(p.size for p in parameters if p.trains and p.part == part) for part in PARTS}
        self.trained = sum(self.parts.values())
        small = keep.half and shard.stage is not None
        self.width = 2.0 if small else 4.0  # of what trains, and of its gradients
        frozen = 2.0 if small or (keep.half and keep.small_frozen) else 4.0
        stored = sum(p.size * (self.width if p.trains else (p.width or frozen)) for p in parameters)
        share = shard.world if shard.stage == 3 else 1
        self.whole = stored
        self.autocast = keep.half and shard.stage is None
        kept = stored / share
        self.weights = 0.0 if shard.offload_weights else kept
        self.persistent = self.gathered = self.module = 0.0
        if shard.stage == 3:
            lasting = sum(p.size for p in parameters if p.size <= shard.threshold)
            largest = max((p.size for p in parameters), default=0)
            total = sum(p.size for p in parameters)
            self.persistent, self.module = 2.0 * lasting, 2.0 * (largest + shard.prefetch)
            self.gathered = 2.0 * min(total, lasting + largest + shard.prefetch + shard.reuse // 2)
        elif self.autocast:
            # Autocast's copies; of the output layer the loss has one.
            self.gathered = 2.0 * sum(self.parts[part] for part in ("vision", "projector", "language"))
        state = next((size for name, size in _STATES.items() if keep.optimizer.startswith(name)), _ADAM)
        master = 4.0 if shard.stage is not None else 0.0
        over = shard.world if shard.stage else 1
        self.optimizer = (master + state) * self.trained / over
        self.buckets = self._buckets()
        self.host = self._host(kept)

    def _buckets(self) -> float:
        if self.shard.stage is None:
            return 4.0 * self.trained if self.shard.world > 1 else 0.0  # DDP's copy of all gradients
        return self.width * self.shard.bucket * self.shard.buckets if self.shard.stage else 0.0

    def _host(self, kept: float) -> dict[str, float]:
        rows = {}
        if self.shard.offload_optimizer:
            # Master, moments, and the gradients in fp32 and as they come.
            rows["optimizer"] = self.optimizer + (4 + self.width) * self.trained / self.shard.world
        if self.shard.offload_weights:
            rows["weights"] = kept
        return rows

    def gradients(self, parts: Sequence[str]) -> float:
        """Of these parts, when their backward pass is done."""
        size = self.width * sum(self.parts[part] for part in parts)
        if self.shard.stage == 3:
            return 0.0 if self.shard.offload_optimizer else self.width * self.trained / self.shard.world
        return size / self.shard.world if self.shard.stage == 2 else size

    @property
    def waiting(self) -> float:
        """Gradients that are there while a micro-batch is worked on: those of the ones before it."""
        if self.shard.stage == 3 or self.keep.accumulates:
            return self.gradients(PARTS)
        return 0.0

    @property
    def stepping(self) -> float:
        """What the optimizer needs for a moment: ZeRO's gradients in float32."""
        if not self.shard.stage or self.shard.offload_optimizer:
            return 0.0
        share = self.trained / self.shard.world
        if self.shard.stage == 3:
            return 4.0 * min(share, self.shard.sub_group)
        # Stage 1 has freed the gradients of the others by then.
        extra = (4.0 + self.width) * share
        return extra if self.shard.stage == 2 else max(0.0, extra + self.width * share - self.width * self.trained)
