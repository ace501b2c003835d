"""``internvl estimate``: memory, time and cost of a run by its very flags, without a GPU and without weights.

``--json`` writes one object; bytes are per GPU, shares 0..1:

    model, notes [text: what was assumed], gpus, gpu (null or name), usable (null or bytes of its memory)
    parameters: {part: {parameters, trainable}}, with "all"; trainable_dtype
    load: {tokens, row, tiles, supervised, mask}: the largest micro-batch; measured (bool: from the data)
    memory: {peak, phase (in which it is highest), largest (row), fits (null or bool), rows {row: bytes},
        phases {phase: bytes}, host_per_node (bytes)}
    fits: [{gpus, stage (none, zero1, ...), peak, fits (null or bool), given (bool), host_per_node}]: batches as given
    batches: [{factor, tokens, tiles, peak, fits}]: micro-batches of so many times the tokens, on these GPUs
    advice: text
    run: {steps (null: not known), tokens, tiles, flops: per step; flops_done (with recomputation), mfu,
        hours, gpu_hours, cost: of the run, null where not known}
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvl_chat.errors import ConfigError, nearest
from internvl_chat.tools.data_view import add_meta, read_own

if TYPE_CHECKING:
    from internvl_chat.model.cards import Card
    from internvl_chat.model.memory import Memory
    from internvl_chat.tools.estimate_run import Subject

PER_NODE = 8
# Share of the peak that a run reaches, of FLOPs that the data need: assumed, to be replaced by what a first run logs.
MFU = {"packed": 0.38, "padded": 0.28}
ZERO3, OFFLOAD = 0.85, 0.4
# Tried on a GPU: shipped DeepSpeed configurations, and none.
STAGES = ("zero1", "zero2", "zero3", "zero3_offload")
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Fit:
    """A way to run it. ``fits`` None: no card was named. ``host_per_node``: bytes that lie in a machine's memory."""

    gpus: int
    stage: str
    peak: float
    fits: bool | None
    given: bool = False
    host_per_node: float = 0.0


@dataclass(frozen=True)
class Batch:
    """Micro-batches of another size."""

    factor: float
    tokens: int
    tiles: int
    peak: float
    fits: bool | None


@dataclass(frozen=True)
class Run:
    """Length and price of the run; None where it is not known."""

    steps: int | None
    tokens: float
    tiles: float
    flops: float
    flops_done: float
    mfu: float
    hours: float | None
    gpu_hours: float | None
    cost: float | None


@dataclass(frozen=True, eq=False)
class Estimate:
    """All of it. ``usable``: bytes of the card."""

    subject: Subject
    gpus: int
    gpu: str | None
    usable: float | None
    memory: Memory
    fits: tuple[Fit, ...]
    batches: tuple[Batch, ...]
    advice: str
    run: Run


def add_own(parser: argparse.ArgumentParser) -> None:
    """Flags of the tool itself."""
    parser.add_argument("--gpu", metavar="NAME", help="the card: H100, A100, A100-40GB, H200, RTX 4090, ...")
    parser.add_argument("--gpus", metavar="N", type=int, default=PER_NODE, help=f"GPUs of the run ({PER_NODE})")
    parser.add_argument("--gpu_memory", metavar="GIB", type=float, help="memory of a card that --gpu does not know")
    parser.add_argument("--mfu", type=float, help="share of the card's peak that is reached, 0..1; default: assumed")
    parser.add_argument("--price", metavar="P", type=float, help="of a GPU for an hour, in whatever money")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON to a file; - is stdout")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the sub-command ``internvl estimate``."""
    add_meta(parser)


def run(args: argparse.Namespace) -> int:
    """Estimate and print. Returns 1 if the run does not fit into the named card, else 0."""
    own, flags = read_own(args, "estimate", add_own)
    _check(own)
    from internvl_chat.tools.estimate_json import to_json
    from internvl_chat.tools.estimate_text import report_lines

    found = estimate(own, flags)
    if own.json != "-":
        print("\n".join(report_lines(found)))
    if own.json is not None:
        text = json.dumps(to_json(found), indent=2, ensure_ascii=False)
        if own.json == "-":
            print(text)
        else:
            Path(own.json).parent.mkdir(parents=True, exist_ok=True)
            Path(own.json).write_text(f"{text}\n", encoding="utf-8", errors="backslashreplace")
    return 1 if found.usable is not None and found.memory.peak > found.usable else 0


def _check(own: argparse.Namespace) -> None:
    problems = []
    if own.gpus < 1:
        problems.append(f"--gpus {own.gpus}: must be a whole number of at least 1")
    if own.mfu is not None and not 0 < own.mfu <= 1:
        problems.append(f"--mfu {own.mfu:g}: must be above 0 and at most 1")
    problems += [
        f"--{name} {value:g}: must be above 0"
        for name in ("gpu_memory", "price")
        if (value := getattr(own, name)) is not None and value <= 0
    ]
    if own.json is not None and own.json != "-" and Path(own.json).is_dir():
        problems.append(f"--json {own.json}: is a folder; give a file, or - for stdout")
    if problems:
        raise ConfigError("\n".join(problems))


def estimate(own: argparse.Namespace, flags: list[str]) -> Estimate:
    """Everything, of a run with these flags on ``own.gpus`` cards. Raises InternVLError."""
    from internvl_chat.model.memory import GIB
    from internvl_chat.tools.estimate_run import read_subject

    card = _card(own)
    subject = read_subject(own.meta, flags, own.gpus)
    usable = own.gpu_memory * GIB if own.gpu_memory else None if card is None else card.usable
    memory = memory_of(subject, own.gpus)
    fits = tuple(_fits(subject, own.gpus, usable))
    batches = tuple(_batches(subject, own.gpus, usable))
    advice = _advice(subject, own.gpus, usable, memory, fits, batches)
    name = own.gpu if card is None else card.name
    return Estimate(
        subject,
        own.gpus,
        name,
        usable,
        memory,
        fits,
        batches,
        advice,
        run_of(subject, own.gpus, card, own.mfu, own.price),
    )


def _card(own: argparse.Namespace) -> Card | None:
    """Raises ConfigError for a name that is not known, unless its memory was given."""
    from internvl_chat.model.cards import CARDS, card

    if own.gpu is None:
        return None
    found = card(own.gpu)
    if found is None and own.gpu_memory is None:
        names = [one.name for one in CARDS]
        raise ConfigError(
            f"--gpu {own.gpu}: not known{nearest(own.gpu, names)}; known: {', '.join(names)}; or say --gpu_memory GIB"
        )
    return found


# -- memory -----------------------------------------------------------------------------------------------------------


def memory_of(subject: Subject, gpus: int, stage: str | None = None, factor: float = 1.0) -> Memory:
    """Of a GPU. ``stage``: another DeepSpeed configuration, ``none`` for none; ``factor``: for the micro-batch."""
    from internvl_chat.config.zero import resolve_zero
    from internvl_chat.model.activations import Numbers, activations
    from internvl_chat.model.memory import memory, sharding_of
    from internvl_chat.train.zero_check import read_zero

    zero, setting, keeping = subject.zero, subject.setting, subject.keeping
    if stage is not None:
        zero = None if stage == "none" else read_zero(resolve_zero(stage))
    if zero is not None and keeping.half:
        setting = replace(setting, numbers=Numbers())
    load = subject.load
    if factor != 1.0:
        tokens, tiles, supervised = (int(factor * one) for one in (load.tokens, load.tiles, load.supervised))
        load = replace(load, tokens=tokens, tiles=tiles, supervised=supervised)
        if subject.data.use_packed_ds:
            load = replace(load, row=min(load.row, load.tokens))
    if subject.data.use_packed_ds and (setting.eager or load.mask):
        load = replace(load, row=load.tokens)
    shard = sharding_of(zero, subject.config.llm_config.hidden_size, gpus)
    acts = activations(subject.config, replace(setting, keeps_inputs=shard.stage == 3), load)
    return memory(subject.parameters, acts, shard, keeping)


def stage_name(zero: dict[str, Any] | None) -> str:
    """In the words of --deepspeed."""
    if zero is None:
        return "none"
    part = zero.get("zero_optimization") or {}
    offload = any(
        (part.get(f"offload_{what}") or {}).get("device", "none") != "none" for what in ("optimizer", "param")
    )
    return f"zero{part.get('stage', 0)}{'_offload' if offload else ''}"


def _fits(subject: Subject, gpus: int, usable: float | None) -> Iterator[Fit]:
    """GPU counts and stages. What is given stands for its own stage."""
    given = stage_name(subject.zero)
    quantised = subject.model.load_in_4bit or subject.model.load_in_8bit
    stages = ["none"] if quantised else list(dict.fromkeys((*(["none"] if given == "none" else []), *STAGES)))
    if given not in stages:
        stages.append(given)
    for count in sorted({*(n for n in COUNTS if n <= max(16, 4 * gpus)), gpus}):
        for stage in stages:
            own = stage == given
            memory = memory_of(subject, count, None if own else stage)
            fits = None if usable is None else memory.peak <= usable
            host = sum(memory.host.values()) * min(PER_NODE, count)
            yield Fit(count, stage, memory.peak, fits, own and count == gpus, host)


def _batches(subject: Subject, gpus: int, usable: float | None) -> Iterator[Batch]:
    """Micro-batches of other sizes, where these are whole."""
    batch = subject.train.per_device_train_batch_size
    for factor in FACTORS:
        if not subject.data.use_packed_ds and (batch * factor < 1 or (batch * factor) % 1):
            continue
        peak = memory_of(subject, gpus, factor=factor).peak
        tokens, tiles = int(subject.load.tokens * factor), int(subject.load.tiles * factor)
        yield Batch(factor, tokens, tiles, peak, None if usable is None else peak <= usable)


def _advice(
    subject: Subject, gpus: int, usable: float | None, memory: Memory, fits: tuple[Fit, ...], batches: tuple[Batch, ...]
) -> str:
    """One line: what to do."""
    given = stage_name(subject.zero)
    if usable is None:
        return "name a card to hear whether it fits: --gpu H100, or --gpu_memory GIB"
    if memory.peak <= usable:
        larger = [one for one in batches if one.factor > 1 and one.fits]
        more = f"; {_batch_words(subject, larger[-1])} would fit, too" if larger else ""
        return f"fits{more}"
    ways = []
    here = [one for one in fits if one.gpus == gpus and one.fits and one.stage != given]
    if here:
        way = here[0]
        host = sum(memory_of(subject, gpus, way.stage).host.values()) * min(PER_NODE, gpus) / 2**30
        needs = f" (and {host:,.0f} GiB of memory in each machine)" if host else ""
        ways.append(f"--deepspeed {way.stage} on {gpus}{needs}")
    wider = [one for one in fits if one.gpus > gpus and one.fits and "offload" not in one.stage]
    if wider:
        ways.append(f"{wider[0].gpus} GPUs with {wider[0].stage}")
    smaller = [one for one in batches if one.factor < 1 and one.fits]
    if smaller:
        ways.append(_batch_words(subject, smaller[-1]))
    if not subject.trains.llm_recompute:
        ways.append("--grad_checkpoint True")
    if not ways or (subject.trains.llm and not here and not smaller):
        ways.append("--use_llm_lora 16 --freeze_llm True --freeze_backbone True")
    return f"does not fit; what may: {'; or '.join(ways)}"


def _batch_words(subject: Subject, batch: Batch) -> str:
    if subject.data.use_packed_ds:
        budget, tiles = (
            int(batch.factor * (n or 0)) for n in (subject.data.max_packed_tokens, subject.data.num_images_expected)
        )
        return f"--max_packed_tokens {budget} --num_images_expected {max(1, tiles)}"
    return f"--per_device_train_batch_size {int(subject.train.per_device_train_batch_size * batch.factor)}"


# -- time -------------------------------------------------------------------------------------------------------------


def run_of(subject: Subject, gpus: int, card: Card | None, mfu: float | None, price: float | None) -> Run:
    """FLOPs of a step, hours of the run."""
    from internvl_chat.model.flops import tower_flops

    flops = tower_flops(subject.config, subject.trains)
    step = subject.step
    sizes = (step.tokens, step.squares, step.targets, step.tiles)
    useful = (flops.vit + flops.llm).of(*sizes)
    done = useful + (flops.vit_again + flops.llm_again).of(*sizes)
    if mfu is None:
        mfu = MFU["packed" if subject.data.use_packed_ds else "padded"]
        stage = stage_name(subject.zero)
        mfu *= (ZERO3 if stage.startswith("zero3") else 1.0) * (OFFLOAD if "offload" in stage else 1.0)
    peak = subject.train.peak_tflops or (None if card is None else card.tflops)
    hours = None
    if peak is not None and subject.steps is not None:
        hours = subject.steps * useful / (peak * 1e12 * mfu * gpus) / 3600
    whole = None if hours is None else hours * gpus
    cost = None if whole is None or price is None else whole * price
    return Run(subject.steps, step.tokens, step.tiles, useful, done, mfu, hours, whole, cost)
