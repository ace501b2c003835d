"""Scores for own data, by the name of a metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from internvl_chat.eval.score.anls import anls
from internvl_chat.eval.score.boxes import refcoco_box, refcoco_iou, refcoco_right
from internvl_chat.eval.score.exact import exact
from internvl_chat.eval.score.matching import match_option
from internvl_chat.eval.score.relaxed import relaxed
from internvl_chat.eval.score.vqa import PEOPLE, normalise, soft_accuracy
from internvl_chat.eval.task import Answered, Item, Result

METRICS = ("vqa", "anls", "relaxed", "exact_match", "contains", "letter", "iou", "none")
_MAIN = {"anls": "anls", "relaxed": "relaxed_accuracy"}
# Boxes are in thousandths of the picture.
_WHOLE = 1000


def scorer_of(metric: str) -> Callable[[Answered], Result] | None:
    """The scorer of a metric; None for "none". All figures are shares, 0 to 1; an empty answer is never right."""
    return None if metric == "none" else lambda run: _score(metric, run)


def _score(metric: str, run: Answered) -> Result:
    if metric == "iou":
        return _boxes(run)
    marks = [_mark(metric, item, answer) for item, answer in zip(run.items, run.answers, strict=True)]
    mean, main = sum(marks) / len(marks), _MAIN.get(metric, "accuracy")
    notes = {"empty answers": sum(not answer.strip() for answer in run.answers)}
    if metric == "letter":
        rows = zip(run.items, run.answers, strict=True)
        notes["answers without a letter"] = sum(
            match_option(answer, one.extra["options"]) is None for one, answer in rows
        )
    return Result({main: mean}, main, marks, notes)


def _mark(metric: str, item: Item, answer: str) -> float:
    """Share of the point, 0 to 1."""
    if not answer.strip():
        return 0.0
    if metric == "letter":
        return float(match_option(answer, item.extra["options"]) == item.gold)
    golds: Sequence[str] = item.gold
    if metric == "anls":
        return anls(answer, golds)
    if metric == "relaxed":
        return relaxed(answer, golds, "definition")
    if metric == "contains":
        return float(any(gold.strip().lower() in answer.lower() for gold in golds if gold.strip()))
    if metric == "vqa":
        return _agreement(answer, golds)
    return exact(answer, golds)


def _agreement(answer: str, golds: Sequence[str]) -> float:
    """Soft accuracy where there are the ten golds that it is made for; else equality with one, written alike."""
    if len(golds) == PEOPLE:
        return soft_accuracy(answer, golds)
    return float(normalise(answer) in {normalise(gold) for gold in golds})


def _boxes(run: Answered) -> Result:
    overlaps = [
        refcoco_iou(answer, item.gold, item.extra["width"], item.extra["height"])
        for item, answer in zip(run.items, run.answers, strict=True)
    ]
    marks = [float(refcoco_right(overlap)) for overlap in overlaps]
    accuracy, mean = sum(marks) / len(marks), float(sum(overlaps)) / len(overlaps)
    return Result({"accuracy": accuracy, "mean IoU": mean}, "accuracy", marks, _box_notes(run.answers))


def _box_notes(answers: Sequence[str]) -> dict[str, int]:
    """How many answers have no box; and what is amiss where that, or pixels, is all there is."""
    boxes = [box for box in map(refcoco_box, answers) if box is not None]
    notes = {"answers without a box": len(answers) - len(boxes)}
    if not boxes:
        notes["no answer has a box: <box>[[x1, y1, x2, y2]]</box>, in 0 to 1000 of the picture, is read"] = len(answers)
    elif all(max(box) > _WHOLE for box in boxes):
        notes["all boxes have numbers beyond 1000: they are read as 0 to 1000 of the picture, not as pixels"] = len(
            boxes
        )
    return notes
