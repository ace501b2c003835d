"""Figures that the series' documents give for released checkpoints, to compare a run with."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

Unit = Literal["share", "percent", "points"]

# A run within so much of the whole agrees with a document: template, rounding and library change single answers.
TOLERANCE = 0.01
_WHOLE = {"share": 1.0, "percent": 100.0}
# What may stand before the name of a release: who published it, and the folder that guides download into.
_BEFORE = ("opengvlab", "pretrained", "models", "model")
_SNAPSHOT = re.compile(r"(?:^|/)models--(.+?)/snapshots/[^/]+$", re.IGNORECASE)


@dataclass(frozen=True)
class Figure:
    """One published figure.

    ``value``: as printed, in ``unit``: a share of 1, percent, or points of ``whole``. ``scale``: what a scorer's figure
    is multiplied by to be in that unit. ``impossible``: no number of right answers gives this value with the public
    data; ``nearest``: values that can come out.
    """

    value: float
    unit: Unit
    whole: float
    scale: float = 1.0
    impossible: bool = False
    nearest: tuple[float, ...] = ()

    def difference(self, found: float) -> float:
        """How much more than published a scorer's figure is, in the unit as printed."""
        return found * self.scale - self.value

    def agrees(self, found: float) -> bool:
        """Whether a scorer's figure is within one point in a hundred of the whole."""
        return abs(self.difference(found)) <= TOLERANCE * self.whole * (1 + 1e-9)


@cache
def _tables() -> dict[str, dict[str, dict[str, Figure]]]:
    text = resources.files("internvl_chat.eval").joinpath("published.json").read_text(encoding="utf-8")
    tables: dict[str, dict[str, dict[str, dict[str, Any]]]] = json.loads(text)
    return {
        task: {model: {name: _figure(entry) for name, entry in figures.items()} for model, figures in models.items()}
        for task, models in tables.items()
    }


def _figure(entry: Mapping[str, Any]) -> Figure:
    unit: Unit = entry["unit"]
    whole = _WHOLE[unit] if unit in _WHOLE else entry["whole"]
    return Figure(
        entry["value"],
        unit,
        whole,
        entry.get("scale", 1.0),
        entry.get("impossible", False),
        tuple(entry.get("nearest", ())),
    )


def known_models() -> tuple[str, ...]:
    """Releases with a published figure."""
    return tuple(dict.fromkeys(model for models in _tables().values() for model in models))


def published_for(model_name: str, task: str) -> Mapping[str, Figure]:
    """Published figures of a checkpoint at a task: figure -> value; empty if none is known.

    ``model_name``: name or path of a folder. It has to be called as the release is (case, ``-`` or ``_`` aside), with
    or without ``OpenGVLab/`` in front: a folder with more in its name is taken for a model of its own.
    """
    models = _tables().get(task, {})
    name = release_of(model_name)
    return models.get(name, {}) if name is not None else {}


def release_of(model_name: str) -> str | None:
    """The release with published figures that a folder is called like, or None."""
    path = model_name.strip().rstrip("/")
    if found := _SNAPSHOT.search(path):
        path = found[1].replace("--", "/")
    words = [word for word in re.split(r"[-_.]+", path.rsplit("/", 1)[-1].lower()) if word]
    while words and words[0] in _BEFORE:
        words = words[1:]
    return next((model for model in known_models() if re.split(r"[-_.]+", model.lower()) == words), None)
