"""What would stop a run before its first step, beside its data: flags, model, DeepSpeed, output folder, evaluation.

Every area is looked at whatever is wrong in the others, and nothing is started, written or loaded.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internvl_chat.errors import ConfigError, InternVLError
from internvl_chat.log import get_logger
from internvl_chat.tools.data_view import NO_OUTPUT, View, scan_flags, view_of

if TYPE_CHECKING:
    from internvl_chat.config.parse import Arguments
    from internvl_chat.data.corpus import Corpus
    from internvl_chat.data.manifest import DatasetSpec
    from internvl_chat.model.tune import TrainableRow, Tuning
    from internvl_chat.train.source import Draft
    from internvl_chat.train.state import DataState

log = get_logger(__name__)


@dataclass(frozen=True)
class Problem:
    """What would stop the run. ``area``: flags, manifest, model, trains, deepspeed, output, eval or resume."""

    area: str
    text: str


@dataclass(frozen=True)
class Outlook:
    """How long a run of ``world`` processes would be; ``done``: steps that a checkpoint to go on from has."""

    world: int
    steps: int
    step: str
    done: int | None


@dataclass(eq=False)
class RunLook:
    """What was found of a run. ``resume``: (checkpoint, its state); ``rows``: parameters by part, and what trains."""

    world: int
    problems: list[Problem] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    arguments: Arguments | None = None
    specs: tuple[DatasetSpec, ...] | None = None
    draft: Draft | None = None
    view: View | None = None
    resume: tuple[Path, DataState] | None = None
    rows: list[TrainableRow] = field(default_factory=list)
    outlook: Outlook | None = None

    @contextmanager
    def area(self, name: str) -> Iterator[None]:
        """What is raised inside is a problem of this area, a line each, and the look goes on."""
        try:
            yield
        except InternVLError as error:
            self.problems += [Problem(name, line) for line in str(error).splitlines()]


def look_at_run(flags: Sequence[str], meta: str | None = None, world: int = 1) -> RunLook:
    """All areas but those that need the opened data (``look_at_data``)."""
    look = RunLook(world)
    with look.area("flags"):
        look.arguments = _arguments(look, flags, meta)
    if look.arguments is None:
        return look
    model, data, train = look.arguments
    with look.area("manifest"):
        from internvl_chat.data.manifest import load_manifest

        if data.meta_path:
            look.specs = tuple(load_manifest(data.meta_path))
    if model.model_name_or_path or (model.vision_path and model.llm_path):
        _look_at_model(look, *look.arguments)
    if train.deepspeed:
        from internvl_chat.train.source import learning_rates
        from internvl_chat.train.zero_check import zero_problems

        told = zero_problems(train.deepspeed, train, world, learning_rates(model))
        look.problems += [Problem("deepspeed", text) for text in told]
    _look_at_output(look, *look.arguments)
    if look.specs is not None and look.draft is not None:
        with look.area("manifest"):
            look.view = view_of(look.specs, look.draft, *look.arguments)
    return look


def _arguments(look: RunLook, flags: Sequence[str], meta: str | None) -> Arguments | None:
    """The arguments; where flags are wrong, those without them, so that the rest can be looked at."""
    from internvl_chat.config.data import DataArguments
    from internvl_chat.config.model import ModelArguments
    from internvl_chat.config.parse import build_arguments

    found = scan_flags(flags, meta)
    look.problems += [Problem("flags", text) for text in found.problems]
    values = found.without_bad().values if found.problems else found.values
    values.setdefault("output_dir", NO_OUTPUT)
    try:
        return build_arguments(values, start=False)
    except ConfigError as error:
        look.problems += [Problem("flags", line) for line in str(error).splitlines()]
    ours = {*ModelArguments.__dataclass_fields__, *DataArguments.__dataclass_fields__, "output_dir", "seed"}
    return build_arguments({name: value for name, value in values.items() if name in ours}, start=False)


# -- the model --------------------------------------------------------------------------------------------------------


def _look_at_model(look: RunLook, model: Any, data: Any, train: Any) -> None:
    """Config, tokenizer, weights by their heads, and what trains, on a model without memory."""
    from internvl_chat.model.build import check_folder
    from internvl_chat.model.layout import INDEXES, SINGLES
    from internvl_chat.train.source import draft_source, quantization_problem, tuning_of

    weights = (*SINGLES, *INDEXES)
    names = [name for name in (model.model_name_or_path, model.vision_path, model.llm_path) if name]
    away = [name for name in names if not Path(name).expanduser().exists()]
    with look.area("model"):
        look.draft = _draft(look, model, data, train)
        if away:
            look.hints.append(f"weights of {', '.join(away)} are fetched from the hub when training starts")
        elif look.draft.folder is None:
            kept = look.arguments[1] if look.arguments else data  # less what cannot be had
            draft_source(model, kept, train, weights=True)
        elif train.output_dir == NO_OUTPUT and not any((look.draft.folder / name).exists() for name in weights):
            look.hints.append(f"{look.draft.folder} has no weights: enough to look at data, not to train")
        else:
            check_folder(look.draft.folder, look.draft.config)
    if problem := quantization_problem(model):
        look.problems.append(Problem("model", problem))
    if look.draft is not None:
        with look.area("trains"):
            look.rows = trainable_rows(look.draft, tuning_of(model, look.draft.new_token_ids))


def _draft(look: RunLook, model: Any, data: Any, train: Any) -> Draft:
    """The model to be; a flag that it cannot have is a problem, and the rest is looked at without it."""
    from internvl_chat.train.source import draft_source

    try:
        return draft_source(model, data, train)
    except ConfigError as error:
        text = str(error)
        bad = {
            name: None for name in re.findall(r"^--(\w+)", text, re.MULTILINE) if getattr(data, name, None) is not None
        }
        if not bad:
            raise
    look.problems += [Problem("model", line) for line in text.splitlines()]
    look.arguments = (model, replace(data, **bad), train)
    return draft_source(*look.arguments)


def trainable_rows(draft: Draft, tuning: Tuning) -> list[TrainableRow]:
    """Parameters by part, and what of them trains. Raises ConfigError for switches that cannot be meant so."""
    import copy

    import torch

    from internvl_chat.model.chat import InternVLChatModel
    from internvl_chat.model.tune import apply_tuning, assert_trainable, trainable_table

    with torch.device("meta"):
        whole = apply_tuning(InternVLChatModel(copy.deepcopy(draft.config)), tuning)
    assert_trainable(whole, tuning)
    return trainable_table(whole)


# -- the output folder ------------------------------------------------------------------------------------------------


def _look_at_output(look: RunLook, model: Any, data: Any, train: Any) -> None:
    from internvl_chat.train import state
    from internvl_chat.train.elastic import check_kind
    from internvl_chat.train.zero_check import read_zero

    if train.output_dir == NO_OUTPUT:
        return
    output_dir = Path(str(train.output_dir))
    found = False
    with look.area("output"):
        look.resume = state.find_resume(output_dir, train.overwrite_output_dir, train.resume_from_checkpoint)
        found = True
        if model.model_name_or_path is not None:
            state.check_model_survives(output_dir, Path(model.model_name_or_path), look.resume is None)
    there = _nearest(output_dir)
    if not os.access(there, os.W_OK | os.X_OK):
        look.problems.append(Problem("output", f"--output_dir {output_dir}: {there} cannot be written to"))
    if found and model.vision_path and look.draft is not None:
        with look.area("output"):
            _check_built(model, data, train, look.resume is not None)
    if look.resume is not None:
        with look.area("resume"):
            check_kind(look.resume[0], read_zero(train.deepspeed) if train.deepspeed else None)


def _check_built(model: Any, data: Any, train: Any, resumes: bool) -> None:
    """Raise CheckpointError where other parts were built there, and a run goes on from them."""
    from internvl_chat.model.hub import find_folder
    from internvl_chat.model.parts import is_built
    from internvl_chat.train.source import built_folder, keeps_build, parts_of

    parts = parts_of(model, data, train, lambda name: find_folder(name, weights=False))
    is_built(parts, built_folder(train), keeps_build(train, resumes))


def _nearest(path: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _space_hint(look: RunLook, steps: int) -> str | None:
    """Whether the checkpoints will fit on their disk; one more than is kept is there while it is written."""
    assert look.arguments is not None
    train = look.arguments[2]
    if train.output_dir == NO_OUTPUT or not look.rows:
        return None
    count = 1
    if str(getattr(train.save_strategy, "value", train.save_strategy)) == "steps":
        every = train.save_steps if train.save_steps >= 1 else max(1, train.save_steps * steps)
        count = max(1, int(steps / every))
    if train.save_total_limit:
        count = min(count, train.save_total_limit) + 1
    one = checkpoint_bytes(look.rows, bool(train.deepspeed), train.save_only_model)
    free = shutil.disk_usage(_nearest(Path(str(train.output_dir)))).free
    if one * count <= free:
        return None
    limit = "" if train.save_total_limit else "; --save_total_limit keeps fewer"
    return (
        f"--output_dir {train.output_dir}: {count} checkpoints of about {one / 1e9:.1f} GB each, and {free / 1e9:.1f} "
        f"GB are free{limit}"
    )


def checkpoint_bytes(rows: Sequence[TrainableRow], deepspeed: bool, only_model: bool) -> int:
    """About how much a checkpoint takes on disk: weights (of LoRA runs: what trains), twice with DeepSpeed, which has
    copies of its own; and master weights and moments, 4 bytes each, of what trains."""
    trains = sum(row.trainable for row in rows)
    lora = any(row.group.endswith("LoRA") for row in rows)
    weights = sum({"float32": 4}.get(row.dtype, 2) * (row.trainable if lora else row.parameters) for row in rows)
    weights = weights // 2 if deepspeed and any(row.dtype == "float32" for row in rows) else weights
    if only_model:
        return weights
    return 2 * weights + 12 * trains if deepspeed else weights + 8 * trains


# -- with the data ----------------------------------------------------------------------------------------------------


def look_at_data(look: RunLook, corpus: Corpus | None) -> None:
    """Evaluation, resuming and length. ``corpus`` None: the data cannot be opened, so that only some can be told."""
    from internvl_chat.train.evaluation import benchmarks_of, build_evaluation
    from internvl_chat.train.held_out import evaluation_specs

    if look.arguments is None or look.draft is None or look.specs is None:
        _look_at_eval_manifest(look)
        return
    _, data, train = look.arguments
    with look.area("eval"):
        if train.eval_strategy != "no":
            benchmarks = benchmarks_of(look.draft, data, train)
            if corpus is None:
                evaluation_specs(look.specs, data.eval_meta_path, alone=not data.eval_tasks)
            else:
                pad_id = look.draft.tokenizer.pad_token_id or 0
                build_evaluation(look.draft, data, train, corpus, pad_id, benchmarks, look_again=False)
    if corpus is not None:
        with look.area("resume"):
            _look_ahead(look, corpus)
    if look.outlook is not None and (hint := _space_hint(look, look.outlook.steps)):
        look.hints.append(hint)


def _look_at_eval_manifest(look: RunLook) -> None:
    from internvl_chat.data.manifest import load_manifest

    if look.arguments is not None and look.arguments[1].eval_meta_path:
        with look.area("eval"):
            load_manifest(look.arguments[1].eval_meta_path)


def _look_ahead(look: RunLook, corpus: Corpus) -> None:
    """Steps of the run, and whether it can go on from its checkpoint. Raises CheckpointError."""
    from internvl_chat.data.loader import MicroBatches, Place
    from internvl_chat.train import setup, state

    assert look.arguments is not None and look.draft is not None and look.view is not None
    model, data, train = look.arguments
    resumed = look.resume[1] if look.resume else None
    if look.resume is not None:
        state.check_same_data(*look.resume, corpus.identity)
    trains = look.view.trains
    schedule = setup.build_schedule(corpus, look.draft.config, data, train, resumed, trains, world=look.world)
    steps = train.max_steps if train.max_steps > 0 else schedule.steps_in(train.num_train_epochs)
    done = None if resumed is None else min(resumed.step, steps)
    look.outlook = Outlook(look.world, steps, schedule.describe(), done)
    if look.resume is None:
        return
    place = Place(0, look.world, train.gradient_accumulation_steps)
    batches = MicroBatches(corpus, schedule, place, done or 0, steps, look.draft.tokenizer.pad_token_id or 0)
    identity = _identity(look.draft, model, train) | {"data": setup.data_identity(batches, data)}
    now = setup.data_state(batches, look.resume[1].step, identity)
    state.check_same_run(*look.resume, now, schedule.settings.as_json())


def _identity(draft: Draft, model: Any, train: Any) -> dict[str, Any]:
    from internvl_chat.model.fingerprint import fingerprint
    from internvl_chat.train.source import ModelSource, built_folder, learning_rates, run_identity, tuning_of

    tuning = tuning_of(model, draft.new_token_ids)
    folder = draft.folder or built_folder(train)
    mark = fingerprint(folder) if tuning.lora else ""
    source = ModelSource(folder, draft.overrides, draft.config, draft.tokenizer, mark, draft.new_token_ids)
    return run_identity(source, tuning, learning_rates(model), train)
