"""Short answers that the guides have VLMEvalKit ask for: OCRBench and HallusionBench."""

from __future__ import annotations

from internvl_chat.eval.judge import each
from internvl_chat.eval.score.hallusion import NAMES, final_figure, ratings
from internvl_chat.eval.score.matching import UNKNOWN, judged_yes_or_no, yes_or_no
from internvl_chat.eval.score.ocrbench import contains_gold, group_of, totals
from internvl_chat.eval.task import Answered, Ask, Item, Record, Result, Task
from internvl_chat.eval.tasks.common import SHORT
from internvl_chat.eval.tasks.tables import shown_with, table_layout, texts_of

_MAX_NEW_TOKENS = 1024
_MAIN = "average"
_PLACES = ("l2-category", "set_id", "figure_id", "question_id")


def _ocr_item(record: Record, ask: Ask) -> Item:
    text, shown = shown_with(f"{record['question']}\n{SHORT}", record["images"], ask)
    category = record["category"]
    if group_of(category) is None:
        raise ValueError(f"category {category!r}")
    return Item(str(record["index"]), text, shown, texts_of(record["answer"]), {"category": category})


def _ocr_score(run: Answered) -> Result:
    rows = list(zip(run.items, run.answers, strict=True))
    points = [
        (item.extra["category"], int(contains_gold(text, item.gold, item.extra["category"]))) for item, text in rows
    ]
    figures = totals(points)
    lines = [f"{name}: {value}" for name, value in figures.items()]
    return Result(figures, "Final Score", [float(point) for _, point in points], lines=lines)


def _hallusion_item(record: Record, ask: Ask) -> Item:
    question = record["question"]
    text, shown = shown_with(f"{question} Please answer yes or no. {SHORT}", record["images"], ask)
    gold = str(record["answer"]).strip().capitalize()
    if gold not in ("Yes", "No"):
        raise ValueError(f"the right answer {gold!r} is neither Yes nor No")
    places = dict(zip(_PLACES, _places(record), strict=True))
    extra = {"question": question, "category": record.get("category"), **places}
    return Item(str(record["index"]), text, shown, gold, extra)


def _places(record: Record) -> tuple[str, ...]:
    """Subcategory, set, figure, question; the table has the last three in its index, too."""
    category = record["l2-category"] if "l2-category" in record else record["l2_category"]
    if all(name in record for name in _PLACES[1:]):
        return (str(category), *(str(record[name]) for name in _PLACES[1:]))
    index = str(record["index"]).split("_")
    if len(index) < len(_PLACES):
        raise ValueError(f"index {record['index']!r} names no set, figure and question")
    return (str(category), *index[-3:])


def _hallusion_score(run: Answered) -> Result:
    pairs = list(zip(run.items, run.answers, strict=True))
    found = each(lambda pair: judged_yes_or_no(pair[1], pair[0].extra["question"], run.judge), pairs)
    marks = [float(item.gold == answer) for item, answer in zip(run.items, found, strict=True)]
    rows = [
        {**item.extra, "l2_category": item.extra["l2-category"], "score": mark}
        for item, mark in zip(run.items, marks, strict=True)
    ]
    rated = ratings(rows)
    overall = rated.pop("Overall")
    figures = {**dict(zip(NAMES, overall, strict=True)), _MAIN: final_figure(overall)}
    for group, rating in rated.items():
        figures |= {f"{group} {name}": value for name, value in zip(NAMES, rating, strict=True)}
    undecided = "answers that are neither yes nor no" if run.judge else "undecided, hence wrong (exact matching)"
    notes = {undecided: found.count(UNKNOWN)}
    if run.judge:
        notes["answers that the judge read"] = sum(yes_or_no(text) == UNKNOWN for _, text in pairs) - found.count(
            UNKNOWN
        )
    return Result(figures, _MAIN, marks, notes)


TASKS = (
    Task(
        "OCRBench",
        "OCRBench, as VLMEvalKit asks it",
        (table_layout("OCRBench", "e953d98a987cc6e26ef717b61260b778"),),
        _ocr_item,
        _ocr_score,
        max_new_tokens=_MAX_NEW_TOKENS,
        max_tiles=24,
        count=1000,
        style="vlmevalkit",
    ),
    Task(
        "HallusionBench",
        "HallusionBench, questions with a picture, as VLMEvalKit asks it",
        (table_layout("HallusionBench", "0c23ac0dc9ef46832d7a24504f2a0c7c"),),
        _hallusion_item,
        _hallusion_score,
        max_new_tokens=_MAX_NEW_TOKENS,
        count=951,
        judged="optional",
        style="vlmevalkit",
    ),
)
KEYS = {"ocrbench": ("OCRBench",), "hallusionbench": ("HallusionBench",)}
