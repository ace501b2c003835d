"""MathVista, testmini, as VLMEvalKit asks and scores it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from internvl_chat.eval.judge import each
from internvl_chat.eval.score.mathvista import judged_value, vlm_prefetch, vlm_right
from internvl_chat.eval.task import Answered, Ask, Item, Record, Result, Task
from internvl_chat.eval.tasks.common import LETTERS
from internvl_chat.eval.tasks.tables import shown_with, table_layout, texts_of

_COLUMNS = ("tot", "prefetch", "hit", "prefetch rate", "accuracy")
_MAX_NEW_TOKENS = 1024
_OVERALL = "Overall"


def _item(record: Record, ask: Ask) -> Item:
    text, shown = shown_with(record["question"], record["images"], ask)
    facts: dict[str, Any] = {name: record[name] for name in ("question_type", "answer_type", "answer", "task")}
    facts["answer_option"] = record.get("answer_option")
    facts["options"] = dict(zip(LETTERS, texts_of(record.get("choices")), strict=False))
    facts["skills"] = texts_of(record["skills"])
    facts["question"] = record["question"]
    choice = record["question_type"] == "multi_choice"
    return Item(str(record["index"]), text, shown, facts["answer_option" if choice else "answer"], facts)


def _score(run: Answered) -> Result:
    pairs = list(zip(run.items, run.answers, strict=True))
    prefetched = [vlm_prefetch(answer, item.extra) for item, answer in pairs]
    judge = run.judge

    def value(place: int) -> str:
        found, (item, answer) = prefetched[place], pairs[place]
        if found is not None or not answer.strip():
            return "" if found is None else str(found)
        return "" if judge is None else judged_value(item.extra["question"], answer, judge, max_tokens=1024)

    values = each(value, range(len(pairs)))
    lists = run.options["lists"] == "text"
    marks = [
        float(bool(found) and vlm_right(found, item.extra, lists))
        for item, found in zip(run.items, values, strict=True)
    ]
    undecided = [found is None for found in prefetched]
    if judge is None:
        notes = {"undecided, hence wrong (exact matching)": sum(undecided)}
    else:
        took = sum(one and bool(text) for one, text in zip(undecided, values, strict=True))
        notes = {"values that the judge took from answers": took}
    rows = _table(run.items, [found is not None for found in prefetched], marks)
    figures = {name: row[-1] for name, row in rows.items()}
    figures |= {"prefetch": rows[_OVERALL][1], "prefetch rate": rows[_OVERALL][3]}
    lines = [" ".join(("Task&Skill", *_COLUMNS)), *(" ".join((name, *map(str, row))) for name, row in rows.items())]
    return Result(figures, _OVERALL, marks, notes, lines)


def _table(
    items: Sequence[Item], prefetched: Sequence[bool], marks: Sequence[float]
) -> dict[str, tuple[int, int, int, float, float]]:
    """VLMEvalKit's table: overall, then skills and tasks in order of appearance; rates in percent."""
    total: Counter[str] = Counter()
    found: Counter[str] = Counter()
    hit: Counter[str] = Counter()
    for item, rule, mark in zip(items, prefetched, marks, strict=True):
        for name in dict.fromkeys((_OVERALL, *item.extra["skills"], item.extra["task"])):
            total[name] += 1
            found[name] += rule
            hit[name] += int(mark)
    return {
        name: (count, found[name], hit[name], 100 * found[name] / count, 100 * hit[name] / count)
        for name, count in total.items()
    }


TASKS = (
    Task(
        "MathVista_MINI",
        "MathVista, testmini, as VLMEvalKit asks it",
        (table_layout("MathVista_MINI", "f199b98e178e5a2a20e7048f5dcb0464"),),
        _item,
        _score,
        max_new_tokens=_MAX_NEW_TOKENS,
        count=1000,
        # There, answers that are lists are never right.
        options={"lists": ("never", "text")},
        judged="optional",
        style="vlmevalkit",
    ),
)
KEYS = {"mathvista-mini-vlm": ("MathVista_MINI",)}
