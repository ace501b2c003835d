"""Validation while training: the loss of a hand-made loop, on any number of ranks, and a training that does not notice.

The best checkpoint survives, and is what is left at the end.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from transformers.trainer_utils import SaveStrategy

from internvl_chat import cli
from internvl_chat.config.data import DataArguments
from internvl_chat.constants import IGNORE_INDEX
from internvl_chat.data.address import Address
from internvl_chat.data.batch import pad_batch
from internvl_chat.data.corpus import Corpus, open_corpus
from internvl_chat.data.manifest import DatasetSpec, load_manifest
from internvl_chat.errors import ConfigError, DataError
from internvl_chat.model.build import load_model
from internvl_chat.model.tokenizer import load_tokenizer
from internvl_chat.train import main as training
from internvl_chat.train.best import EvaluationTimes
from internvl_chat.train.held_out import count_trained_on, evaluation_specs
from internvl_chat.train.setup import build_maker
from internvl_chat.train.state import keep_newest
from internvl_chat.train.trainer import InternVLTrainer
from internvl_chat.train.validate import EvalBatches, EvalSettings, describe, plan_batches, quiet
from tests.train.runs import flags, log_of, losses, run_all, weights
from tests.train.test_resume import make_checkpoint, names
from tests.train.test_zero import zero_config

PACKED = {"use_packed_ds": True, "max_packed_tokens": 500}
# Evaluated before the first step only; what is random in training must not be in it.
START = {
    "eval_strategy": "steps",
    "eval_steps": 1000,
    "eval_delay": 1000,
    "eval_on_start": True,
    "max_steps": 1,
    "drop_path_rate": 0.5,
}
# One process, and two in every way that ranks can share a model.
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "padded": (1, {}),
    "padded, three at once": (1, {"per_device_eval_batch_size": 3}),
    "packed": (1, PACKED),
    "packed, two at once, in workers": (
        1,
        {**PACKED, "per_device_eval_batch_size": 2, "dataloader_num_workers": 1},
    ),
    "2 processes, padded": (2, {}),
    "2 processes, packed": (2, PACKED),
    "2 processes, zero1": (2, {**PACKED, "deepspeed": "zero1"}),
    "2 processes, zero2": (2, {**PACKED, "deepspeed": "zero2"}),
    "2 processes, zero3": (2, {**PACKED, "deepspeed": "zero3"}),
}
REDUCTIONS = {"token": list(WAYS), "sample": ["padded, three at once", "2 processes, packed"]}
# The best by this measure is the first, so that it is not the newest.
WORST = {"metric_for_best_model": "loss/words", "greater_is_better": True}
KEEPING = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "max_steps": 6,
    **WORST,
}
LORA = {"freeze_llm": True, "use_llm_lora": 4}
BEST: dict[str, tuple[int, dict[str, Any]]] = {
    # What is measured between two checkpoints is no candidate.
    "plain": (1, {"eval_steps": 1}),
    "lora": (1, LORA),
    "epochs": (
        1,
        {
            **dict.fromkeys(("eval_steps", "save_steps")),
            **dict.fromkeys(("eval_strategy", "save_strategy"), "epoch"),
            "gradient_accumulation_steps": 4,
        },
    ),
    "zero2": (2, {"deepspeed": "zero2"}),
    "zero3": (2, {"deepspeed": "zero3"}),
    "zero3 lora": (2, {"deepspeed": "zero3", **LORA}),
}


@pytest.fixture(scope="session")
def other_data(mixed_data: Path) -> Path:
    """Manifest of two data sets of 5 and 4 lines beside the 8 that are trained on."""
    folder = mixed_data.parent
    sets: dict[str, list[tuple[Any, ...]]] = {
        "words": [(None, f"What follows {n}?", f"{n + 1}, " * (n + 1)) for n in range(5)],
        "pictures": [(f"{n}.png", "<image>\nColour?", "It is grey. " * n + "Is it?") for n in range(4)],
    }
    return write_manifest(folder, "other", sets)


def write_manifest(folder: Path, name: str, sets: dict[str, list[tuple[Any, ...]]], **keys: Any) -> Path:
    manifest = {}
    for title, lines in sets.items():
        annotation = folder / f"{name}-{title}.jsonl"
        with annotation.open("w") as file:
            for image, question, answer in lines:
                turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
                file.write(json.dumps({"conversations": turns, **({"image": image} if image else {})}) + "\n")
        manifest[title] = {"root": str(folder), "annotation": str(annotation), **keys}
    (folder / f"{name}.json").write_text(json.dumps(manifest))
    return folder / f"{name}.json"


@pytest.fixture(scope="module")
def runs(tiny: Path, mixed_data: Path, other_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every way to evaluate the model before its first step; runs that keep the best checkpoint."""
    root = tmp_path_factory.mktemp("validation")
    configs = {name: zero_config(name, root) for name in ("zero1", "zero2", "zero3")}
    for processes in (1, 2):
        jobs: list[list[str]] = []
        for way, (count, changes) in [*WAYS.items(), *BEST.items()]:
            given = {**changes, **({"deepspeed": configs[changes["deepspeed"]]} if "deepspeed" in changes else {})}
            if count != processes:
                continue
            if way in BEST:
                jobs.append(flags(tiny, mixed_data, root / way, eval_meta_path=other_data, **{**KEEPING, **given}))
                continue
            for reduction in (name for name, ways in REDUCTIONS.items() if way in ways):
                out = root / reduction / way
                given = {**START, **given, "loss_reduction": reduction}
                jobs.append(flags(tiny, mixed_data, out, eval_meta_path=other_data, **given))
        if processes == 1:
            jobs += quiet_jobs(tiny, mixed_data, other_data, root)
        (root / f"output{processes}").write_text(run_all(jobs, processes, timeout=400))
    return root


def quiet_jobs(tiny: Path, mixed_data: Path, other_data: Path, root: Path) -> list[list[str]]:
    """The same training with and without evaluations; one that goes on in a folder that was moved."""
    shared = {"num_train_epochs": 2, "drop_path_rate": 0.3, **LORA, "lora_dropout": 0.3, "merge_lora": False}
    often = {"eval_strategy": "steps", "eval_steps": 3, "eval_on_start": True, "eval_meta_path": other_data}
    return [
        flags(tiny, mixed_data, root / "alone", **shared),
        flags(tiny, mixed_data, root / "watched", **shared, **often, dataloader_num_workers=1),
        ["copy", str(root / "plain"), str(root / "moved")],
        flags(tiny, mixed_data, root / "moved", eval_meta_path=other_data, **{**KEEPING, "max_steps": 8}),
    ]


def evaluations(out: Path) -> list[dict[str, Any]]:
    return [record for record in log_of(out) if "eval_loss" in record]


def by_hand(tiny: Path, manifest: Path, reduction: str) -> dict[str, float]:
    """Losses from plain logits, one sample at a time, each weighed as the flag's help says."""
    model, tokenizer = load_model(tiny, torch.float32), load_tokenizer(tiny)
    specs = load_manifest(manifest)
    maker = build_maker(specs, model.config, tokenizer, DataArguments(max_seq_length=400), 42)
    sums: dict[str, list[tuple[float, float]]] = {spec.name: [] for spec in specs}
    for spec in specs:
        for number, line in enumerate(spec.annotation.read_bytes().splitlines()):
            batch = pad_batch([maker.load(line, spec, Address(spec.name, number))], 0)
            model.eval()
            with torch.no_grad():
                found = model(
                    input_ids=batch.input_ids, pixel_values=batch.pixel_values, attention_mask=batch.attention_mask
                )
            target = batch.labels[0, 1:]
            each = F.cross_entropy(found.logits[0, :-1].double(), target, ignore_index=IGNORE_INDEX, reduction="sum")
            count = int((target != IGNORE_INDEX).sum())
            sums[spec.name].append((float(each), count) if reduction == "token" else (float(each) / count, 1.0))
    parts = {f"eval_loss/{name}": np.array(rows).sum(0) for name, rows in sums.items()}
    total = sum(parts.values(), np.zeros(2))
    return {name: loss / weight for name, (loss, weight) in {"eval_loss": total, **parts}.items()}


@pytest.mark.slow
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_way_gives_the_loss_of_a_loop_by_hand(runs: Path, tiny: Path, other_data: Path, reduction: str) -> None:
    expected = by_hand(tiny, other_data, reduction)
    assert len(set(expected.values())) == 3
    for way in REDUCTIONS[reduction]:
        (found,) = evaluations(runs / reduction / way)
        assert found["step"] == 0 and found["eval_samples"] == 9 and found["eval_samples_left_out"] == 0
        assert {name: found[name] for name in found if name.startswith("eval_loss")} == pytest.approx(
            expected, rel=1e-6
        ), way
        assert not (runs / reduction / way / "eval_faults.jsonl").read_text()


@pytest.mark.slow
def test_training_does_not_notice(runs: Path) -> None:
    """Dropout and drop path draw the same numbers whether or not there are evaluations in between."""
    assert [record["step"] for record in evaluations(runs / "watched")] == [0, 3, 6, 9, 12, 15, 16]
    assert len(losses(runs / "alone")) == 16 and losses(runs / "watched") == losses(runs / "alone")
    one, other = (load_file(runs / name / "adapter" / "adapter_model.safetensors") for name in ("alone", "watched"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def trained_weights(folder: Path) -> dict[str, torch.Tensor]:
    adapter = folder / "adapter_model.safetensors"
    return load_file(adapter) if adapter.is_file() else weights(folder)


@pytest.mark.slow
@pytest.mark.parametrize("way", [*BEST, "moved"])
def test_the_best_checkpoint_outlives_the_limit_and_is_the_model_at_the_end(runs: Path, way: str) -> None:
    out = runs / way
    last = 8 if way == "moved" else 6
    evaluated = {"plain": [1, 2, 3, 4, 5, 6], "moved": [1, 2, 3, 4, 5, 6, 8]}.get(way, [2, 4, 6])
    assert [record["step"] for record in evaluations(out)] == evaluated
    found = {record["step"]: record["eval_loss/words"] for record in evaluations(out) if not record["step"] % 2}
    best = max(found, key=found.__getitem__)
    assert best != last, "the newest would be kept anyway"
    assert names(out) == [f"checkpoint-{best}", f"checkpoint-{last}"]
    final = trained_weights(out / "adapter" if "lora" in way else out)
    kept, newest = (trained_weights(out / f"checkpoint-{step}") for step in (best, last))
    assert final.keys() == kept.keys()
    assert all(torch.equal(final[name], kept[name]) for name in kept)
    assert not all(torch.equal(kept[name], newest[name]) for name in kept)


def test_the_random_state_is_as_before_and_the_model_trains_again() -> None:
    layer = torch.nn.Dropout(0.5)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with quiet(layer, None):
        torch.rand(9)
        assert not layer.training and not torch.is_grad_enabled()
    assert torch.equal(torch.rand(4), expected)
    assert layer.training and torch.is_grad_enabled()


def test_the_log_names_the_worst_data_sets() -> None:
    losses = {f"eval_loss/{name}": float(number) for number, name in enumerate("abcdefghi")}
    said = describe({"eval_loss": 4.0, **losses, "eval_samples": 3, "eval_samples_left_out": 1, "eval_seconds": 2.0})
    assert said.startswith("loss 4.0000 (i 8.0000, h 7.0000,") and "3 more) on 3 samples, 1 left out" in said


# -- what is evaluated ------------------------------------------------------------------------------------------------


def settings(**changes: Any) -> EvalSettings:
    return replace(EvalSettings(True, 1, 100, 6, "token", 0.0, 0, None, False), **changes)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_every_line_once_and_every_rank_as_often(packed: bool, ranks: int) -> None:
    draw = np.random.default_rng(0)
    dataset = np.repeat([0, 2, 3], [50, 7, 1])
    tokens, tiles = draw.integers(1, 100, 58), draw.integers(0, 6, 58)

    class Sizes:
        starts = np.array([0, 50, 50, 57, 58])
        take = staticmethod(lambda entries, epoch: (tokens[entries], tiles[entries]))
        __len__ = staticmethod(lambda: 58)
        reader = None

    corpus: Any = Sizes()
    chosen = settings(packed=packed, batch_size=2)
    parts = [EvalBatches(corpus, chosen, 0, rank, ranks) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    batches = [part.entries(item) for part in parts for item in range(len(part))]
    assert sorted(np.concatenate(batches).tolist()) == list(range(58))
    for entries in batches:
        assert len(set(dataset[entries])) <= 1
        if packed:
            assert tokens[entries].sum() <= 2 * 100 and tiles[entries].sum() <= 2 * 6
        else:
            assert len(entries) <= 2
            if len(entries) == 2:
                assert 2 * tokens[entries].max() <= 100 and tiles[entries].sum() <= 6
    assert len(batches) - len(plan_batches(corpus, chosen)) < ranks, "more empty batches than needed"
    assert len(plan_batches(corpus, chosen)) < 58


def test_a_second_manifest_counts_whole_and_held_out_lines_only_with_their_name(mixed_data: Path) -> None:
    (spec,) = load_manifest(mixed_data)
    held = replace(spec, name="held", eval_share=0.5, data_augment=True)
    found = evaluation_specs([spec, held], str(mixed_data))
    assert [(one.name, one.split, one.eval_share, one.data_augment) for one in found] == [
        ("held", "train", 0.5, False),
        ("mixed", "eval", 0.0, False),
    ]
    with pytest.raises(ConfigError, match="give one of them another name"):
        evaluation_specs([replace(spec, eval_share=0.5)], str(mixed_data))
    with pytest.raises(ConfigError, match="nothing to evaluate on"):
        evaluation_specs([spec], None)


def test_lines_that_are_also_trained_on_are_counted(tiny: Path, mixed_data: Path, tmp_path: Path) -> None:
    (spec,) = load_manifest(mixed_data)
    half = replace(spec, eval_share=0.5)
    model = load_model(tiny, torch.float32)
    maker = build_maker([spec], model.config, load_tokenizer(tiny), DataArguments(max_seq_length=400), 42)

    def opened(one: DatasetSpec, split: Any) -> Corpus:
        return open_corpus([one], maker, tmp_path, split=split)

    trained = opened(half, "train")
    assert 0 < len(trained) < 8
    assert count_trained_on(opened(replace(spec, split="eval"), "eval"), trained) == len(trained)
    assert count_trained_on(opened(half, "eval"), trained) == 0
    assert count_trained_on(opened(replace(half, name="new lots", split="eval"), "eval"), trained) == len(trained)


@pytest.mark.slow
def test_held_out_lines_at_the_end_of_each_epoch_and_a_fault_among_them(
    tiny: Path, mixed_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A picture that is cut off is found on loading only; one that is gone by the index. Both are listed once."""
    for number in range(8):
        Image.new("RGB", (60, 60), (number, 99, 0)).save(tmp_path / f"{number}.png", compress_level=0)
    lines = [(f"{number}.png", "<image>\nWhat?", f"It is number {number}.") for number in range(8)]
    held = write_manifest(tmp_path, "held", {"held": lines}, split="eval")
    manifest = {**json.loads(mixed_data.read_text()), **json.loads(held.read_text())}
    held.write_text(json.dumps(manifest))
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:2000])
    (tmp_path / "5.png").unlink()
    out = tmp_path / "out"
    words = flags(
        tiny, held, out, eval_strategy="epoch", num_train_epochs=2, save_strategy="best", max_fault_share=0.2,
        gradient_accumulation_steps=3,
    )  # fmt: skip
    assert cli.main(["train", *words]) == 0
    found = evaluations(out)
    assert [(record["step"], record["epoch"]) for record in found] == [(3, 1.0), (6, 2.0)]
    assert [(r["eval_samples"], r["eval_samples_left_out"]) for r in found] == [(6, 1), (6, 1)]
    records = [json.loads(line) for line in (out / "eval_faults.jsonl").read_text().splitlines()]
    assert [(record["line"], record["stage"]) for record in records] == [(6, "index"), (4, "load")]
    best = min(found, key=lambda record: record["eval_loss"])["step"]
    assert f"checkpoint-{best}" in names(out), "--save_strategy best saves what is better than all before"
    assert cli.main(["train", *words[:-2], "--max_fault_share", "0.13", "--overwrite_output_dir", "True"]) == 2


@pytest.fixture
def refuse(
    tiny: Path, mixed_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Start a run that must end before its model is loaded; returns what it said."""

    def too_late(*_: Any) -> Any:
        raise DataError("the model would be loaded now")

    monkeypatch.setattr(training, "_prepare_model", too_late)

    def run(meta: Path = mixed_data, **changes: Any) -> str:
        assert cli.main(["train", *flags(tiny, meta, tmp_path / "out", **changes)]) == 2
        return capsys.readouterr().err

    return run


def test_what_cannot_be_evaluated_is_said_before_the_model_loads(
    refuse: Callable[..., str], mixed_data: Path, other_data: Path, tmp_path: Path
) -> None:
    steps = {"eval_strategy": "steps", "eval_steps": 5}
    assert "nothing to evaluate on; give a second manifest with --eval_meta_path" in refuse(**steps)
    bad = write_manifest(tmp_path, "bad", {"bad": [("gone.png", "<image>\n?", "!")]})
    said = refuse(**steps, eval_meta_path=bad, max_fault_share=1)
    assert f"nothing to evaluate on in {bad}" in said
    said = refuse(**steps, eval_meta_path=other_data, metric_for_best_model="loss/word")
    assert "is not measured; measured are eval_loss, eval_loss/words, eval_loss/pictures" in said
    assert "did you mean 'eval_loss/words'?" in said
    said = refuse(**steps, eval_meta_path=mixed_data)
    assert "8 of 8 lines to evaluate on are also trained on" in said
    kept = json.loads(mixed_data.read_text())
    kept["mixed"]["eval_share"] = 0.4
    (tmp_path / "kept.json").write_text(json.dumps(kept))
    assert "no --eval_strategy: the lines kept for evaluation are not used (mixed)" in refuse(tmp_path / "kept.json")


# -- the best checkpoint ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "protect", "left"),
    [
        (1, 2, [2, 8]),
        (2, 2, [2, 8]),
        (3, 2, [2, 6, 8]),
        (1, 8, [8]),
        (2, 8, [6, 8]),
        (9, 2, [2, 4, 6, 8]),
        (2, None, [6, 8]),
        (1, 3, [8]),
    ],
)
def test_the_limit_spares_the_newest_and_the_best(
    tmp_path: Path, count: int, protect: int | None, left: list[int]
) -> None:
    for step in (2, 4, 6, 8):
        make_checkpoint(tmp_path, step)
    keep_newest(tmp_path, count, tmp_path / f"checkpoint-{protect}" if protect else None)
    assert names(tmp_path) == [f"checkpoint-{step}" for step in left]


def test_a_best_checkpoint_that_is_gone_is_forgotten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    args: Any = Namespace(output_dir=str(tmp_path), load_best_model_at_end=False)
    times = EvaluationTimes(Namespace())  # type: ignore[arg-type]
    state: Any = Namespace(
        max_steps=10, best_global_step=4, best_model_checkpoint="/elsewhere/checkpoint-4", best_metric=0.1
    )
    make_checkpoint(tmp_path, 4)
    times.on_train_begin(args, state, Namespace())  # type: ignore[arg-type]
    assert (state.best_model_checkpoint, state.best_metric) == (str(tmp_path / "checkpoint-4"), 0.1)
    state.best_global_step = 6
    state.best_model_checkpoint = "/elsewhere/checkpoint-6"
    times.on_train_begin(args, state, Namespace())  # type: ignore[arg-type]
    assert (state.best_model_checkpoint, state.best_metric, state.best_global_step) == (None, None, None)


@pytest.mark.parametrize(("save_steps", "warned"), [(500, True), (10, False), (2, False)])
def test_a_best_of_one_checkpoint_is_said_before_the_run(
    save_steps: int, warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    args: Any = Namespace(eval_steps=2, load_best_model_at_end=True, save_strategy=SaveStrategy.STEPS)
    state: Any = Namespace(max_steps=10, save_steps=save_steps, best_global_step=None)
    said: list[str] = []
    monkeypatch.setattr("internvl_chat.train.best.log.warning", lambda text, *values: said.append(text % values))
    EvaluationTimes(Namespace()).on_train_begin(args, state, Namespace())  # type: ignore[arg-type]
    assert [("--save_steps 500 of 10 steps" in text) for text in said] == [True] * warned


def test_what_is_not_saved_is_no_candidate_for_the_best() -> None:
    trainer: Any = object.__new__(InternVLTrainer)
    trainer.args = Namespace(save_strategy="steps", metric_for_best_model="eval_loss", greater_is_better=False)
    trainer.state = Namespace(best_metric=None, best_global_step=None, global_step=3)
    trainer.control = Namespace(should_save=False)
    assert not trainer._determine_best_metric({"eval_loss": 1.0}, None)
    assert trainer.state.best_metric is None
    trainer.control.should_save = True
    assert trainer._determine_best_metric({"eval_loss": 2.0}, None)
    assert (trainer.state.best_metric, trainer.state.best_global_step) == (2.0, 3)
