"""Published figures: whose they are, in which unit, and that the scorers' figures are called like them."""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable
from pathlib import Path

import pytest

import tests.eval.mini as mini
from internvl_chat.eval.items import load_items, options_of
from internvl_chat.eval.published import known_models, published_for, release_of
from internvl_chat.eval.registry import tasks
from internvl_chat.eval.report.table import combined
from internvl_chat.eval.task import Answered, Ask
from tests.conftest import ROOT

KNOWN_TASKS = tuple(json.loads((ROOT / "internvl_chat/eval/published.json").read_text(encoding="utf-8")))
PLUS, SMALL = "InternVL-Chat-V1-2-Plus", "InternVL2-1B"
# Figures of categories that miniature data do not have.
OF_THE_DATA = {
    "mme": [
        "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
        "commonsense_reasoning", "numerical_calculation", "text_translation",
    ],
    "SEEDv1": ["Instance Location", "Instance Attributes", "Text Understanding"],
    "MMStar": ["fine-grained perception", "instance reasoning", "logical reasoning", "science & technology"],
    "LLaVABench": ["complex", "conv", "detail"],
}  # fmt: skip


class Kind:
    """A judge that gives every answer the same."""

    model = "kind"

    def __init__(self, reply: str) -> None:
        self._reply = reply

    def ask(self, text: str, *, system: str | None = None, temperature: float = 0.0, max_tokens: int = 1024) -> str:
        return self._reply


def writers() -> dict[str, Callable[[Path], object]]:
    found: dict[str, Callable[[Path], object]] = {}
    for module in pkgutil.iter_modules(mini.__path__):
        found |= getattr(importlib.import_module(f"tests.eval.mini.{module.name}"), "WRITERS", {})
    return found


@pytest.mark.parametrize("name", KNOWN_TASKS)
def test_figures_are_called_as_the_scorer_calls_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("INTERNVL_CACHE", str(tmp_path / "cache"))
    figures = [published_for(model, name) for model in known_models()]
    names = {figure for one in figures for figure in one}
    assert names
    if name in combined():
        assert names == {"main"}
        return
    task = tasks()[name]
    if task.score is None:
        return
    writers()[name](tmp_path)
    options = options_of(task, {})
    items = load_items(task, Ask(tmp_path, task.max_tiles, True, options))
    judge = None if task.judged == "no" else Kind("8 7" if name == "LLaVABench" else "0.5")
    result = task.score(Answered(items, [str(item.gold) for item in items], options, "m", judge))
    assert names - set(result.figures) <= set(OF_THE_DATA.get(name, ()))
    known = [one for one in figures if one]
    if not (name == "SEEDv1" or (name == "HallusionBench")):
        assert all(result.main in one for one in known), f"the main figure {result.main!r} has nothing to stand beside"


def test_every_figure_is_within_its_whole() -> None:
    for task in KNOWN_TASKS:
        for model in known_models():
            for name, figure in published_for(model, task).items():
                assert 0 <= figure.value <= figure.whole, (task, model, name)
                assert figure.impossible == bool(figure.nearest)
                assert all(figure.agrees(near / figure.scale) for near in figure.nearest)


def test_impossible_figures_are_those_of_the_arithmetic() -> None:
    marked = {(task, name) for task in KNOWN_TASKS for name, one in published_for(PLUS, task).items() if one.impossible}
    assert marked == {
        ("ai2diagram_test", "accuracy"), ("sqa_test", "accuracy"), ("RealWorldQA", "Overall"),
        ("okvqa_val", "accuracy"), ("vizwiz_val", "accuracy"), ("chartqa_test_human", "relaxed_accuracy"),
        ("chartqa_test_augmented", "relaxed_accuracy"), ("SEEDv1", "Text Understanding"),
        ("updated_datasets", "Overall"),
    }  # fmt: skip
    # No number of right answers gives the figure, and one gives the nearest.
    for task, count in (("ai2diagram_test", 3088), ("sqa_test", 2017), ("RealWorldQA", 765)):
        (figure,) = (one for one in published_for(PLUS, task).values() if one.impossible)
        assert all(abs(right / count - figure.value) > 1e-9 for right in range(count + 1))
        assert min(abs(right / count - figure.nearest[0]) for right in range(count + 1)) < 1e-9


@pytest.mark.parametrize(
    ("name", "release"),
    [
        (SMALL, SMALL),
        ("internvl2-1b", SMALL),
        ("OpenGVLab/InternVL2-1B", SMALL),
        ("/models/InternVL2-1B/", SMALL),
        ("pretrained/InternVL2_1B", SMALL),
        ("pretrained_InternVL2-1B", SMALL),
        ("OpenGVLab_InternVL2-1B", SMALL),
        ("/hub/models--OpenGVLab--InternVL2-1B/snapshots/0123abc", SMALL),
        ("internvl_chat_v1_2_plus", PLUS),
        ("InternVL2-1B-finetuned", None),
        ("my-InternVL2-1B", None),
        ("InternVL2-1B/checkpoint-500", None),
        ("InternVL-Chat-V1-2", None),
        ("", None),
    ],
)
def test_a_model_is_known_by_its_name(name: str, release: str | None) -> None:
    assert release_of(name) == release
    assert bool(published_for(name, "mme")) == (release is not None)


def test_units_and_tolerance() -> None:
    share = published_for(PLUS, "textvqa_val")["accuracy"]
    assert share.difference(0.72188) == pytest.approx(0.01) and share.agrees(0.72188) and not share.agrees(0.7222)
    percent = published_for(SMALL, "textvqa_val")["accuracy"]  # the scorer gives a share, the table percent
    assert percent.difference(0.715) == pytest.approx(1.0) and percent.agrees(0.715) and not percent.agrees(0.716)
    points = published_for(SMALL, "mme")["total"]
    assert points.agrees(1822) and not points.agrees(1823)
    assert published_for(PLUS, "no task") == {} and published_for("other", "mme") == {}


def test_every_task_is_one_of_ours() -> None:
    assert set(KNOWN_TASKS) <= set(tasks()) | set(combined())


def test_the_file_is_part_of_the_package() -> None:
    assert '"eval/published.json"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
