"""Free answers that a judge marks, as VLMEvalKit asks for them: MM-Vet and LLaVA-Bench."""

from __future__ import annotations

from collections.abc import Sequence

from internvl_chat.eval.judge import JudgeError, each, judge_of
from internvl_chat.eval.score.llava_bench import Pair, judged_pair, vlm_summary
from internvl_chat.eval.score.mmvet import judged_mark, mmvet_figures
from internvl_chat.eval.task import Answered, Ask, Item, Record, Result, Task
from internvl_chat.eval.tasks.tables import shown_with, table_layout

_MAX_NEW_TOKENS = 1024
_DETAIL = "Answer this question in detail."
UNREADABLE = "reviews that cannot be read, left out"
_SHORT = {"llava_bench_conv": "conv", "llava_bench_detail": "detail", "llava_bench_complex": "complex"}


def _mmvet_item(record: Record, ask: Ask) -> Item:
    text, shown = shown_with(record["question"], record["images"], ask)
    extra = {"question": record["question"], "capability": record["category"]}
    return Item(str(record["index"]), text, shown, record["answer"], extra)


def mmvet_score(run: Answered, name: str, overall: str) -> Result:
    """Marks of the judge for items with a gold, and ``question`` and ``capability`` beside it.

    ``overall``: name of the figure of all questions. Raises NoScore, and JudgeError if no reply can be read.
    """
    judge = judge_of(run, name)
    pairs = list(zip(run.items, run.answers, strict=True))
    found = each(
        lambda pair: judged_mark(pair[0].extra["question"], pair[0].gold, pair[1], judge) if pair[1].strip() else 0.0,
        pairs,
    )
    asked = sum(bool(answer.strip()) for answer in run.answers)
    if asked and found.count(None) == asked:
        raise JudgeError(f"{name}: none of {asked} replies of {judge.name} is a mark from 0 to 1; take another judge")
    marks = [mark or 0.0 for mark in found]
    rows = [(item.extra["capability"], mark) for item, mark in zip(run.items, marks, strict=True)]
    figures = mmvet_figures(rows, run.options, overall)
    return Result(figures, overall, marks, {"marks of the judge that cannot be read, hence 0": found.count(None)})


def _llava_item(record: Record, ask: Ask) -> Item:
    text, shown = shown_with(f"{record['question']}\n{_DETAIL}", record["images"], ask)
    category = str(record["category"])
    extra = {
        "question": record["question"],
        "context": record["caption"],
        "category": _SHORT.get(category, category),
    }
    return Item(str(record["index"]), text, shown, record["gpt4_ans"], extra)


def _llava_score(run: Answered) -> Result:
    found = reviews(run, "LLaVABench")
    rows = [
        {"category": item.extra["category"], "score": pair[1], "gpt4_score": pair[0]}
        for item, pair in zip(run.items, found, strict=True)
        if pair is not None
    ]
    figures: dict[str, float] = {}
    for name, (relative, model, reference) in vlm_summary(rows).items():
        figures |= {name: relative, f"{name} VLM": model, f"{name} GPT4": reference}
    return Result(figures, "overall", marks_of(found), {UNREADABLE: found.count(None)})


def reviews(run: Answered, name: str) -> list[Pair | None]:
    """The judge's ratings of items with a reference as gold, and ``context`` and ``question`` beside it.

    Raises NoScore, and JudgeError if none of its reviews can be read.
    """
    judge = judge_of(run, name)
    found = each(
        lambda pair: judged_pair(pair[0].extra["context"], pair[0].extra["question"], pair[0].gold, pair[1], judge),
        list(zip(run.items, run.answers, strict=True)),
    )
    if all(pair is None for pair in found):
        raise JudgeError(
            f"{name}: no review of {judge.name} begins with two numbers as it was asked to; take another judge"
        )
    return found


def marks_of(found: Sequence[Pair | None]) -> list[float | None]:
    """The model's rating as a share of the best one, 10."""
    return [None if pair is None else pair[1] / 10 for pair in found]


TASKS = (
    Task(
        "MMVet",
        "MM-Vet, as VLMEvalKit asks it",
        (table_layout("MMVet", "748aa6d4aa9d4de798306a63718455e3"),),
        _mmvet_item,
        lambda run: mmvet_score(run, "MMVet", "Overall"),
        max_new_tokens=_MAX_NEW_TOKENS,
        count=218,
        # There, a question that names one capability counts twice for it; published tables have it so.
        options={"double_count": ("yes", "no")},
        judged="needed",
        style="vlmevalkit",
    ),
    Task(
        "LLaVABench",
        "LLaVA-Bench (in the wild), as VLMEvalKit asks it",
        (table_layout("LLaVABench", "d382a093f749a697820d3dadd61c8428"),),
        _llava_item,
        _llava_score,
        max_new_tokens=_MAX_NEW_TOKENS,
        count=60,
        judged="needed",
        style="vlmevalkit",
    ),
)
KEYS = {"mmvet-vlm": ("MMVet",), "llava-bench-vlm": ("LLaVABench",)}
