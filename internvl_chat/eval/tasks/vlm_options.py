"""Questions with options that the guides run through VLMEvalKit: MMStar, RealWorldQA, MMMU, AI2D."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from internvl_chat.eval.judge import each
from internvl_chat.eval.score.matching import judged_option, match_option, option_report
from internvl_chat.eval.task import Answered, Ask, Item, Record, Result, Task
from internvl_chat.eval.tasks.tables import option_prompt, row_options, shown_with, table_layout

_MAX_NEW_TOKENS = 1024
_MMMU = "MMMU_DEV_VAL"
# What stands for a question of MMMU that has no options: the right answer is A.
_OTHER = "Other Answers"


def _item(record: Record, ask: Ask, enlarge: int = 1) -> Item:
    text, shown = shown_with(option_prompt(record), record["images"], ask, enlarge)
    options, gold = row_options(record), record["answer"]
    extra = {name: record.get(name) for name in ("split", "category", "l2-category")}
    if not options:
        options, gold, extra["open"] = {"A": str(gold), "B": _OTHER}, "A", record["answer"]
    elif gold not in options:
        raise ValueError(f"the right answer {gold!r} is none of the options")
    return Item(str(record["index"]), text, shown, gold, {**extra, "question": record["question"], "options": options})


def _enlarged(record: Record, ask: Ask) -> Item:
    # As in the code base's own MMMU: small print.
    return _item(record, ask, 2)


def _score(run: Answered) -> Result:
    pairs = list(zip(run.items, run.answers, strict=True))
    letters = each(
        lambda pair: judged_option(pair[1], pair[0].extra["options"], pair[0].extra["question"], run.judge), pairs
    )
    marks = [float(letter == item.gold) for item, letter in zip(run.items, letters, strict=True)]
    rows = [{**_groups(item), "hit": mark} for item, mark in zip(run.items, marks, strict=True)]
    figures, main = _figures(option_report(rows))
    return Result(figures, main, marks, _notes(pairs, letters, run.judge is not None))


def _groups(item: Item) -> Mapping[str, object]:
    return {name: item.extra[name] for name in ("split", "category", "l2-category")}


def _figures(report: Mapping[str, Mapping[str, float]]) -> tuple[dict[str, float], str]:
    """Of a table without splits the names of the report; else with the split before them, validation first."""
    if list(report) == ["none"]:
        return dict(report["none"]), "Overall"
    splits = sorted(report, key=lambda split: (split != "validation", split))
    figures = {f"{split} {name}": value for split in splits for name, value in report[split].items()}
    return figures, f"{splits[0]} Overall"


def _notes(pairs: list[tuple[Item, str]], letters: list[str | None], judged: bool) -> dict[str, int]:
    notes = {
        "answers that mean no option" if judged else "undecided, hence wrong (exact matching)": letters.count(None)
    }
    if judged:
        asked = [match_option(answer, item.extra["options"]) is None for item, answer in pairs]
        notes["answers that the judge read"] = sum(asked) - letters.count(None)
    if any("open" in item.extra for item, _ in pairs):
        bare = sum("open" in item.extra and item.extra["open"] != "A" and answer == "A" for item, answer in pairs)
        notes["open questions answered by the bare letter A, which counts as right here"] = bare
    return notes


def _task(name: str, title: str, md5: str, count: int, max_tiles: int, item: Callable[[Record, Ask], Item]) -> Task:
    return Task(
        name,
        title,
        (table_layout(name, md5),),
        item,
        _score,
        max_new_tokens=_MAX_NEW_TOKENS,
        max_tiles=max_tiles,
        count=count,
        judged="optional",
        style="vlmevalkit",
    )


TASKS = (
    _task("MMStar", "MMStar, as VLMEvalKit asks it", "e1ecd2140806c1b1bbf54b43372efb9e", 1500, 6, _item),
    _task("RealWorldQA", "RealWorldQA, as VLMEvalKit asks it", "4de008f55dc4fd008ca9e15321dc44b7", 765, 6, _item),
    _task(_MMMU, "MMMU, dev and validation, as VLMEvalKit asks it", "585e8ad75e73f75dcad265dfd0417d64", 1050, 12,
          _enlarged),
    _task("AI2D_TEST", "AI2D, test, as VLMEvalKit asks it", "", 3088, 6, _item),
)  # fmt: skip
KEYS = {
    "mmstar": ("MMStar",),
    "realworldqa": ("RealWorldQA",),
    "mmmu-dev-val-vlm": (_MMMU,),
    "ai2d-vlm": ("AI2D_TEST",),
}
