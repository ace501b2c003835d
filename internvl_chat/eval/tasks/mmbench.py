"""MMBench and CCBench: tables with pictures inside, every question in several rotations of its options."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from internvl_chat.errors import DataError
from internvl_chat.eval.score.letters import mcq_letter
from internvl_chat.eval.score.mmbench import named_option, shares
from internvl_chat.eval.sources import picture
from internvl_chat.eval.task import Answered, Ask, Item, Layout, OutputFile, Record, Result, Task
from internvl_chat.eval.tasks.common import LETTER, LETTER_CN, one, xlsx_file
from internvl_chat.eval.tasks.tables import FOLDER, table_layout, table_records

_FOLDER = "mmbench"
_OPTIONS = "ABCDE"
_GUIDE = "https://github.com/open-compass/MMBench"
# Columns of the original's file before the prediction, and those that it leaves out.
_FIRST = ("index", "question", "A", "B", "C", "D")
_FIRST_CCBENCH = ("index", "question", "hint", "A", "B", "C", "D", "answer")
_LEFT_OUT = {"hint", "category", "source", "image", "images", "comment", "l2-category"}
_LEFT_OUT_CCBENCH = {"category", "image", "images"}


def _asker(prompt: str, labelled: bool) -> Callable[[Record, Ask], Item]:
    def item(record: Record, ask: Ask) -> Item:
        options = {letter: record[letter] for letter in _OPTIONS if record.get(letter) is not None}
        if labelled and record.get("answer") not in options:
            raise DataError(
                f"index {record['index']}: the answer is {record.get('answer')!r}, which is no option; take the table "
                "with labels"
            )
        parts = [record["hint"]] if record.get("hint") else []
        parts += [record["question"], *(f"{letter}. {text}" for letter, text in options.items()), prompt]
        row = {name: value for name, value in record.items() if name != "images"}
        return Item(
            str(record["index"]),
            "\n".join(parts),
            one(picture(ask.root, record["images"][0]), ask),
            record.get("answer"),
            {"options": options, "row": row | {"index": int(record["index"])}},
        )

    return item


def _letters(run: Answered) -> list[str]:
    return [mcq_letter(answer, item.extra["options"]) for item, answer in zip(run.items, run.answers, strict=True)]


def _score(run: Answered) -> Result:
    named = [named_option(letter, item.extra["options"]) for item, letter in zip(run.items, _letters(run), strict=True)]
    hits = [found == item.gold for item, found in zip(run.items, named, strict=True)]
    rows = [item.extra["row"] for item in run.items]
    groups = {name: [row.get(name) for row in rows] for name in ("l2-category", "category") if name in rows[0]}
    figures = shares([row["index"] for row in rows], hits, groups)
    return Result(figures, "circular", [float(hit) for hit in hits], {"answers that name no option": named.count(None)})


def _filer(name: str, first: tuple[str, ...], left_out: set[str], labelled: bool) -> Callable[[Answered], Any]:
    def files(run: Answered) -> list[OutputFile]:
        rows = [item.extra["row"] for item in run.items]
        columns = [column for column in first if column in rows[0]]
        others = [column for column in rows[0] if column not in first and column not in left_out]
        filled = [{**row, "prediction": letter} for row, letter in zip(rows, _letters(run), strict=True)]
        found = [xlsx_file(f"{name}.xlsx", [*columns, "prediction", *others], filled)]
        if not labelled:  # the server wants the column, empty or not
            found.append(xlsx_file(f"{name}_submission.xlsx", [*_FIRST, "prediction", "answer"], filled))
        return found

    return files


def _reader(path: str) -> Callable[[Path], Iterator[Record]]:
    def read(root: Path) -> Iterator[Record]:
        yield from table_records(root / path)

    return read


def _task(name: str, title: str, prompt: str, labelled: bool = True, file: str = "", count: int | None = None) -> Task:
    """``file``: the table, where it is not called as the task. ``labelled``: it has the right answers."""
    path = f"{_FOLDER}/{file or name}.tsv"
    layouts = [Layout("guide", (path,), _reader(path), _GUIDE)]
    if name.startswith("MMBench"):  # VLMEvalKit's tables, where it keeps them
        table = table_layout(name)
        layouts.append(Layout(FOLDER, table.files, table.read, table.source))
    chinese = name.startswith("ccbench")
    first, left_out = (_FIRST_CCBENCH, _LEFT_OUT_CCBENCH) if chinese else (_FIRST, _LEFT_OUT)
    return Task(
        name,
        title,
        tuple(layouts),
        _asker(prompt, labelled),
        _score if labelled else None,
        max_new_tokens=100,
        count=count,
        files=_filer(name, first, left_out, labelled),
        needs=("openpyxl",),
    )


TASKS = (
    _task("mmbench_dev_20230712", "MMBench, English, dev", LETTER),
    _task("mmbench_dev_en_20231003", "MMBench, English, dev of October 2023", LETTER),
    _task("mmbench_dev_cn_20231003", "MMBench, Chinese, dev", LETTER_CN),
    _task("mmbench_test_en_20231003", "MMBench, English, test; answers are not public", LETTER, False),
    _task("mmbench_test_cn_20231003", "MMBench, Chinese, test; answers are not public", LETTER_CN, False),
    _task("MMBench_DEV_EN_V11", "MMBench 1.1, English, dev", LETTER),
    _task("MMBench_DEV_CN_V11", "MMBench 1.1, Chinese, dev", LETTER_CN),
    _task("MMBench_TEST_EN_V11", "MMBench 1.1, English, test with answers", LETTER),
    _task("MMBench_TEST_CN_V11", "MMBench 1.1, Chinese, test with answers", LETTER_CN),
    _task("ccbench_dev_cn", "CCBench, Chinese culture", LETTER_CN, file="CCBench_legacy", count=510),
)
KEYS = {
    "mmbench-dev-en": ("mmbench_dev_20230712",),
    "mmbench-dev-cn": ("mmbench_dev_cn_20231003",),
    "mmbench-test-en": ("mmbench_test_en_20231003",),
    "mmbench-test-cn": ("mmbench_test_cn_20231003",),
    "mmbench-dev-en-v11": ("MMBench_DEV_EN_V11",),
    "mmbench-dev-cn-v11": ("MMBench_DEV_CN_V11",),
    "mmbench-test-en-v11": ("MMBench_TEST_EN_V11",),
    "mmbench-test-cn-v11": ("MMBench_TEST_CN_V11",),
    "ccbench-dev": ("ccbench_dev_cn",),
}
