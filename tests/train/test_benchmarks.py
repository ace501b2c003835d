"""Benchmarks while training: the figures of its checkpoints, on any number of ranks; training does not notice."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerControl
from transformers.trainer_utils import SaveStrategy

from internvl_chat import cli
from internvl_chat.config.data import DataArguments
from internvl_chat.config.parse import parse_arguments
from internvl_chat.errors import ConfigError, DataError
from internvl_chat.eval.items import question_of_item
from internvl_chat.eval.plan import Job
from internvl_chat.eval.registry import tasks
from internvl_chat.eval.task import Answered, Ask, Item, NoScore, Result
from internvl_chat.infer.batch import answers
from internvl_chat.infer.load import load
from internvl_chat.model.build import load_config
from internvl_chat.model.tokenizer import load_tokenizer
from internvl_chat.train import benchmarks
from internvl_chat.train import main as training
from internvl_chat.train.benchmarks import Benchmarks, build_benchmarks, choose
from internvl_chat.train.best import may_be_best
from tests.eval.mini import writers
from tests.eval.mini.common import jsonl, picture
from tests.train.asked import ACCURACY, TOLD, items_of, telling
from tests.train.runs import flags, log_of, losses, run_all, weights
from tests.train.test_resume import names
from tests.train.test_zero import zero_config

ITEMS = 9
ASKED = ["call", "tests.train.asked:train_asked"]
SHARED = {
    "eval_tasks": "scienceqa",
    "eval_steps": 4,
    "save_strategy": "steps",
    "save_steps": 4,
    "max_steps": 8,
    "gradient_accumulation_steps": 2,
    "learning_rate": 0.02,
}
LORA = {"freeze_llm": True, "use_llm_lora": 4, "lora_dropout": 0.3, "merge_lora": False}
# One process, and two in every way that ranks can share a model.
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    "plain": (1, {"eval_on_start": True, "drop_path_rate": 0.3, "grad_checkpoint": True}),
    "packed": (
        1,
        {"use_packed_ds": True, "max_packed_tokens": 500, "per_device_eval_batch_size": 3, "learning_rate": 3e-3},
    ),
    "lora": (1, LORA),
    "2 processes": (2, {"gradient_accumulation_steps": 1}),
    "2 processes, lora": (2, {**LORA, "gradient_accumulation_steps": 1}),
    "2 processes, zero3": (2, {"deepspeed": "zero3", "gradient_accumulation_steps": 1, "eval_on_start": True}),
    "2 processes, zero3, lora": (2, {"deepspeed": "zero3", **LORA, "gradient_accumulation_steps": 1}),
}
# Those that are compared with a run that does not evaluate.
ALONE = ["plain", "lora", "2 processes, zero3"]
BEST = {
    "eval_steps": 2,
    "save_steps": 2,
    "eval_task_items": 5,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval/sqa_test/told",  # as TensorBoard has it
    "save_total_limit": 1,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data folder of the benchmark: golds are A, B and C in turn."""
    folder = tmp_path_factory.mktemp("benchmarks")
    records = []
    for number in range(ITEMS):
        picture(folder / f"scienceqa/images/{number}.png", number, (40 + 30 * (number % 3), 60))
        records.append({
            "image": f"data/scienceqa/images/{number}.png",
            "hint": "",
            "question": f"Which is it, {'very ' * (number % 4)}well?",
            "choices": ["e", "a", "o"],
            "answer": number % 3,
        })  # fmt: skip
    jsonl(folder / "scienceqa/scienceqa_test_img.jsonl", records)
    return folder


@pytest.fixture(scope="module")
def lessons(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of the benchmark's own questions, with the answers that belong to them."""
    folder = tmp_path_factory.mktemp("lessons")
    with (folder / "lessons.jsonl").open("w") as file:
        for item in items_of(root):
            turns = [{"from": "human", "value": f"<image>\n{item.text}"}, {"from": "gpt", "value": item.gold}]
            file.write(json.dumps({"image": f"{item.id}.png", "conversations": turns}) + "\n")
    manifest = {"lessons": {"root": str(root / "scienceqa/images"), "annotation": str(folder / "lessons.jsonl")}}
    (folder / "lessons.json").write_text(json.dumps(manifest))
    return folder / "lessons.json"


@pytest.fixture(scope="module")
def runs(tiny: Path, root: Path, lessons: Path, mixed_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each way; some of them without evaluations, too; one that keeps the best, and one that goes on."""
    out = tmp_path_factory.mktemp("runs")
    zero3 = zero_config("zero3", out)
    for processes in (1, 2):
        jobs: list[list[str]] = []
        for way, (count, changes) in WAYS.items():
            given = {**SHARED, "eval_data_root": root, **changes}
            given |= {"deepspeed": zero3} if "deepspeed" in changes else {}
            if count != processes:
                continue
            jobs.append([*ASKED, *flags(tiny, lessons, out / way, **given)])
            if way in ALONE:
                alone = {name: value for name, value in given.items() if not name.startswith("eval_")}
                jobs.append(flags(tiny, lessons, out / f"{way} alone", **{**alone, "save_strategy": "no"}))
        if processes == 1:
            best = {**SHARED, **BEST, "eval_data_root": root, "eval_meta_path": mixed_data}
            jobs.append([*ASKED, *flags(tiny, lessons, out / "best", **best)])
            for steps in (4, 8):
                going = {**SHARED, "eval_data_root": root, "max_steps": steps, "lr_scheduler_type": "constant"}
                jobs.append([*ASKED, *flags(tiny, lessons, out / "resumed", **going)])
        (out / f"output{processes}").write_text(run_all(jobs, processes, timeout=400))
    return out


def by_loading(folder: Path, items: Sequence[Item], batch_size: int = 1) -> Result:
    """The figures of a model folder."""
    task, texts = telling(), [""] * len(items)
    loaded = load(folder, dtype="float32", device="cpu")
    generation = {"max_new_tokens": task.max_new_tokens, "min_new_tokens": 1}
    for place, answer in answers(loaded, map(question_of_item, items), batch_size, **generation):
        assert not isinstance(answer, DataError)
        texts[place] = answer.text
    assert task.score is not None
    return task.score(Answered(items, texts, {"cot": "off"}))


def measured(out: Path, name: str = TOLD) -> dict[int, float]:
    return {record["step"]: record[name] for record in log_of(out) if name in record}


@pytest.mark.slow
@pytest.mark.parametrize("way", [*WAYS, "resumed"])
def test_every_way_gives_the_figures_of_its_checkpoints(runs: Path, tiny: Path, root: Path, way: str) -> None:
    found = measured(runs / way)
    assert list(found) == ([0, 4, 8] if WAYS.get(way, (1, {}))[1].get("eval_on_start") else [4, 8])
    assert len(set(found.values())) == len(found), "the model says something else each time"
    for step, number in found.items():
        expected = by_loading(runs / way / f"checkpoint-{step}" if step else tiny, items_of(root))
        assert (number, measured(runs / way, ACCURACY)[step]) == (
            expected.figures["told"],
            expected.figures["accuracy"],
        )
    for record in log_of(runs / way):
        if TOLD in record:
            assert record["eval_tasks_failed"] == 0 and record["eval_tasks_seconds"] > 0
            assert "eval_loss" not in record


@pytest.mark.slow
@pytest.mark.parametrize("way", ALONE)
def test_training_does_not_notice(runs: Path, way: str) -> None:
    """Dropout and drop path draw the same numbers, and recompute the same activations, with evaluations in between."""
    assert len(losses(runs / way)) == 8
    assert losses(runs / way) == losses(runs / f"{way} alone")
    one, other = (trained_weights(runs / name, "lora" in way) for name in (way, f"{way} alone"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def trained_weights(out: Path, adapter: bool) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = (
        load_file(out / "adapter" / "adapter_model.safetensors") if adapter else weights(out)
    )
    return found


@pytest.mark.slow
def test_the_best_checkpoint_by_a_benchmark(runs: Path, root: Path) -> None:
    """Beside a loss, on some of the items; which is best is known where a limit would have deleted it."""
    out = runs / "best"
    found = measured(out)
    assert list(found) == [2, 4, 6, 8]
    best = max(found, key=found.__getitem__)
    assert names(out) == [f"checkpoint-{step}" for step in sorted({best, 8})]
    assert all(torch.equal(one, weights(out / f"checkpoint-{best}")[name]) for name, one in weights(out).items())
    items = choose(items_of(root), 5, 42)
    assert len(items) == 5
    assert found[best] == by_loading(out, items).figures["told"]
    assert all("eval_loss" in record for record in log_of(out) if TOLD in record)
    said = (runs / "output1").read_text()
    assert "asked at each evaluation: sqa_test (5 of 9 items)" in said
    assert "; sqa_test/accuracy 0." in said


# -- which items ------------------------------------------------------------------------------------------------------


def named(count: int) -> list[Item]:
    return [Item(f"item {number}", "?") for number in range(count)]


def test_the_choice_is_the_same_each_time_and_goes_by_ids() -> None:
    items = named(200)
    chosen = choose(items, 20, 42)
    assert [item.id for item in chosen] == [item.id for item in choose(named(200), 20, 42)]
    places = [items.index(item) for item in chosen]
    assert places == sorted(set(places)) and len(places) == 20, "in data order, each once"
    assert places != list(range(20)) and max(places) > 100, "not the first ones"
    assert {item.id for item in choose(items, 20, 43)} != {item.id for item in chosen}
    assert {item.id for item in choose(items[::-1], 20, 42)} == {item.id for item in chosen}
    fewer = {item.id for item in choose(items[:150], 20, 42)}
    assert {item.id for item in chosen if item in items[:150]} <= fewer, "what is gone changes nothing else"
    assert choose(items, 0, 42) == choose(items, 200, 1) == choose(items, 500, 1) == items


def test_neighbours_stay_together() -> None:
    items = named(200)
    chosen = choose(items, 21, 42, block=2)
    places = [items.index(item) for item in chosen]
    assert len(places) == 20 and [place + 1 for place in places[::2]] == places[1::2]
    assert all(place % 2 == 0 for place in places[::2])
    assert [item.id for item in choose(items, 1, 42, block=2)] == [item.id for item in choose(items, 2, 42, block=2)]


def test_what_cannot_be_asked_is_counted_and_scores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def score(run: Answered) -> Result:
        seen[:] = run.answers
        return Result({"given": float(sum(map(bool, run.answers))), "odd": float("nan")}, "given")

    def answer(loaded: Any, asked: Sequence[Any], batch_size: int, **options: Any) -> Any:
        assert batch_size == 2 and options == {"max_new_tokens": 12, "min_new_tokens": 1, "do_sample": False}
        for place in reversed(range(len(asked))):
            yield place, DataError("broken") if place == 4 else Namespace(text=f"{asked[place]}")

    monkeypatch.setattr(benchmarks, "answers", answer)
    monkeypatch.setattr(benchmarks, "assemble", lambda *_: None)
    questions: Any = tuple(range(7))
    task = replace(telling(), score=score)
    generation = {"max_new_tokens": 12, "min_new_tokens": 1}
    job = Job(task, Ask(Path(), 6), named(30), generation, "guide", 30, {})
    tested = Benchmarks([benchmarks.Chosen(job, tuple(named(7)), questions)], None, "torch", 2)
    assert tested.names == ["eval_sqa_test/given", "eval_sqa_test/odd"]
    model: Any = None
    metrics = tested.run(model, together=False)
    assert seen == ["0", "1", "2", "3", "", "5", "6"]
    assert metrics.pop("eval_tasks_seconds") < 5
    assert metrics == {"eval_sqa_test/given": 6.0, "eval_tasks_failed": 1.0}, "NaN is no JSON"
    said = tested.describe({**metrics, "eval_tasks_seconds": 2.0})
    assert said == "sqa_test/given 6 (7 of 30 items), 1 not asked, 2.0 s"


# -- what is refused --------------------------------------------------------------------------------------------------


def arguments(**changes: Any) -> DataArguments:
    return DataArguments(max_seq_length=400, **{"eval_tasks": "scienceqa", **changes})


@pytest.fixture
def built(tiny: Path) -> Callable[..., Benchmarks | None]:
    config, tokenizer = load_config(tiny), load_tokenizer(tiny)
    return lambda **changes: build_benchmarks(config, tokenizer, arguments(**changes), 2, 42)


def test_nothing_is_asked_without_names(built: Callable[..., Any]) -> None:
    assert built(eval_tasks=None) is None


def test_an_unknown_name(built: Callable[..., Any], root: Path) -> None:
    with pytest.raises(ConfigError, match="no task 'sciencqa'; did you mean 'scienceqa'"):
        built(eval_tasks="sciencqa", eval_data_root=str(root))


def test_all_that_is_missing_is_said_at_once(built: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "scienceqa").mkdir()
    with pytest.raises(DataError) as refused:
        built(eval_tasks="scienceqa, m3cot", eval_data_root=str(tmp_path))
    first, second = str(refused.value).splitlines()
    assert "sqa_test: not there" in first and "scienceqa_test_img.jsonl" in first
    assert "m3cot_test: not there" in second


def test_a_picture_that_is_none(built: Callable[..., Any], tmp_path: Path) -> None:
    record = {"image": "data/bad.png", "hint": "", "question": "?", "choices": ["a", "b"], "answer": 0}
    jsonl(tmp_path / "scienceqa/scienceqa_test_img.jsonl", [record])
    (tmp_path / "bad.png").write_text("no picture")
    with pytest.raises(DataError, match=r"--eval_tasks: sqa_test, item '0': .*bad\.png"):
        built(eval_data_root=str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"score": None}, "has no public answers"), ({"judged": "needed"}, "asks another model for its score")],
)
def test_tasks_without_a_score_of_their_own(
    built: Callable[..., Any], root: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(benchmarks, "resolve", lambda names: [replace(telling(), **changes)])
    with pytest.raises(ConfigError, match=f"--eval_tasks: sqa_test {message}; take it out"):
        built(eval_data_root=str(root))


def test_a_judge_that_may_be_missing(built: Callable[..., Any], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked while training where it gives a score without one."""

    def score(run: Answered) -> Result:
        if any(run.answers):
            raise NoScore("nobody to compare them")
        return Result({"a": 0.0}, "a")

    monkeypatch.setattr(benchmarks, "resolve", lambda names: [replace(telling(), judged="optional")])
    assert built(eval_data_root=str(root)).names == [ACCURACY, TOLD]
    monkeypatch.setattr(benchmarks, "resolve", lambda names: [replace(telling(), judged="optional", score=score)])
    with pytest.raises(ConfigError, match="sqa_test asks another model for its score; take it out"):
        built(eval_data_root=str(root))


def test_golds_that_are_missing(built: Callable[..., Any], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def score(run: Answered) -> Result:
        raise NoScore("the answers are not in the data")

    monkeypatch.setattr(benchmarks, "resolve", lambda names: [replace(telling(), score=score)])
    with pytest.raises(ConfigError, match=r"sqa_test has no score here \(the answers are not in the data\); take it"):
        built(eval_data_root=str(root))


def test_a_scorer_that_stumbles_does_not_end_the_run(
    built: Callable[..., Any], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(run: Answered) -> Result:
        if "odd" in run.answers:
            raise ValueError("what is this")
        return Result({"a": 1.0}, "a")

    monkeypatch.setattr(benchmarks, "resolve", lambda names: [replace(telling(), score=score)])
    said: list[str] = []
    monkeypatch.setattr("internvl_chat.train.benchmarks.log.error", lambda text, *values: said.append(text % values))
    (chosen,) = built(eval_data_root=str(root)).chosen
    texts = [""] * len(chosen.items)
    assert chosen.metrics(texts) == {"eval_sqa_test/a": 1.0}
    assert chosen.metrics(["odd", *texts[1:]]) == {}
    assert "sqa_test cannot be scored" in said[0] and "what is this" in said[0]


def test_an_evaluation_without_the_figure_is_not_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("internvl_chat.train.best.log.warning", lambda text, *values: said.append(text % values))
    args: Any = Namespace(metric_for_best_model="sqa_test/a", save_strategy=SaveStrategy.BEST)
    control = TrainerControl()
    assert may_be_best(args, control, {"eval_sqa_test/a": 1.0})
    assert not said
    assert not may_be_best(args, control, {"eval_other": 1.0})
    assert said == ["--metric_for_best_model sqa_test/a: no figure at this evaluation, so it cannot be the best"]


@pytest.mark.parametrize("name", ["mme", "MMVP"])
def test_pairs_are_chosen_whole(built: Callable[..., Any], tmp_path: Path, name: str) -> None:
    writers()[name](tmp_path)
    (chosen,) = built(eval_tasks=name, eval_data_root=str(tmp_path), eval_task_items=2).chosen
    places = [chosen.job.items.index(item) for item in chosen.items]
    assert len(places) == 2 and places[0] % 2 == 0 and places[1] == places[0] + 1
    assert len(chosen.job.items) > 2


def scored() -> list[str]:
    """Tasks with miniature data and a score that no judge is needed for."""
    return sorted(
        name for name, task in tasks().items() if name in writers() and task.score and task.judged != "needed"
    )


@pytest.mark.parametrize("name", scored())
@pytest.mark.parametrize("items", [1, 3])
def test_every_task_can_be_scored_on_a_few_items(
    built: Callable[..., Any], tmp_path: Path, name: str, items: int
) -> None:
    """Whatever is answered: training must not end for it; and the figure that stands for it is always there."""
    writers()[name](tmp_path)
    try:
        (chosen,) = built(eval_tasks=name, eval_data_root=str(tmp_path), eval_task_items=items).chosen
    except ConfigError as error:
        assert tasks()[name].judged == "optional" and "asks another model" in str(error)
        return
    figures = [
        chosen.score([text] * len(chosen.items)) for text in ("", "A", "yes", "7", "[[0,0,9,9]]", "\n ]{ \ud83d")
    ]
    assert len({tuple(found.figures) for found in figures}) == 1
    assert all(found.main in chosen.score([""] * len(chosen.items)).figures for found in figures)


def test_a_task_that_cannot_be_scored_on_so_few(
    built: Callable[..., Any], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(run: Answered) -> Result:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(benchmarks, "resolve", lambda names: [replace(telling(), score=score)])
    with pytest.raises(DataError, match=r"sqa_test cannot be scored on 4 of 9 items .*raise --eval_task_items"):
        built(eval_data_root=str(root), eval_task_items=4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--eval_tasks", "scienceqa"], "--eval_tasks scienceqa does nothing without --eval_strategy steps"),
        (["--eval_task_items", "5"], "--eval_task_items 5 does nothing without --eval_tasks NAME,NAME"),
        (["--eval_data_root", "."], "--eval_data_root . does nothing without --eval_tasks NAME,NAME"),
        (
            ["--eval_tasks", "pope", "--eval_steps", "5", "--eval_task_items", "-1"],
            "must be a whole number of at least 0",
        ),
        (["--eval_tasks", "pope", "--eval_strategy", "steps"], "say how often, e.g. --eval_steps 500"),
        (["--eval_tasks", "pope", "--eval_strategy", "no", "--eval_steps", "5"], "--eval_steps 5 does nothing without"),
    ],
)
def test_flags_that_do_not_fit(tiny: Path, mixed_data: Path, tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_arguments([*flags(tiny, mixed_data, tmp_path / "out"), *words], start=False)


def test_tasks_and_steps_say_when(tiny: Path, mixed_data: Path, tmp_path: Path) -> None:
    words = flags(tiny, mixed_data, tmp_path / "out", eval_tasks="a,b", eval_steps=3, metric_for_best_model="eval/a/x")
    _, data, train, _ = parse_arguments(words, start=False)
    assert (train.eval_strategy, train.eval_steps, train.metric_for_best_model) == ("steps", 3, "eval_a/x")
    assert (data.eval_tasks, data.eval_task_items, data.eval_data_root) == ("a,b", 64, "data")


def test_a_run_is_refused_before_its_model_loads(
    tiny: Path, mixed_data: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def too_late(*_: Any) -> Any:
        raise DataError("the model would be loaded now")

    def said(command: str, status: int, **changes: Any) -> str:
        given = {"eval_tasks": "scienceqa", "eval_steps": 5, "eval_data_root": root, **changes}
        assert cli.main([command, *flags(tiny, mixed_data, tmp_path / "out", **given)]) == status
        shown = capsys.readouterr()
        return shown.out + shown.err

    monkeypatch.setattr(training, "_prepare_model", too_late)
    assert "error: the model would be loaded now" in said("train", 2)
    assert "not there" in said("train", 2, eval_data_root=tmp_path)
    measure = {"metric_for_best_model": "sqa_test/accurcy", "load_best_model_at_end": True, "save_steps": 5}
    measure["save_strategy"] = "steps"
    wrong = said("train", 2, **measure)
    assert "is not measured; measured are eval_sqa_test/accuracy; did you mean" in wrong
    assert "metric_for_best_model eval_loss: is not measured" in said("train", 2, **{**measure,
        "metric_for_best_model": None
    })  # fmt: skip
    assert "would train" in said("check", 0)
    checked = said("check", 1, eval_data_root=tmp_path)
    assert "sqa_test: not there" in checked
    assert "is not measured" in said("check", 1, **measure)
