"""MME-RealWorld: large pictures of traffic, maps, charts and texts, in English and in Chinese."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from internvl_chat.eval.score.realworld import answer_letter, shares
from internvl_chat.eval.sources import field_of, picture, read_records
from internvl_chat.eval.task import Answered, Ask, Item, Layout, Record, Result, Task
from internvl_chat.eval.tasks.common import answers_file, one

_FOLDER = "MME-RealWorld"
# The original sends so many blanks within its English request.
_GAP = " " * 12
# Data set -> what stands between question and options, and the request behind them.
_PROMPTS = {
    "MME-RealWorld": (
        "The choices are listed below:\n",
        "Select the best answer to the multiple-choice question based on the image. "
        f"{_GAP}Respond with only the letter (A, B, C, D, or E) of the correct option. \nThe best answer is:",
    ),
    "MME-RealWorld-CN": (
        " 选项如下所示:\n",
        "根据图像选择上述多项选择题的最佳答案。只需回答正确选项的字母（A, B, C, D 或 E）。\n 最佳答案为：",
    ),
}


def _asker(name: str) -> Callable[[Record, Ask], Item]:
    between, request = _PROMPTS[name]

    def item(record: Record, ask: Ask) -> Item:
        options = list(record["Answer choices"])
        groups = [str(record[field]) for field in ("Task", "Subtask", "Category")]
        return Item(
            record["id"],
            f"{record['Text']}{between}" + "".join(f"{option}\n" for option in options) + request,
            one(picture(ask.root, record["Image"], _FOLDER), ask),
            record["Ground truth"],
            {"options": options, "groups": groups},
        )

    return item


def _score(run: Answered) -> Result:
    letters = [
        answer_letter(answer, item.extra["options"]) if answer.strip() else ""
        for item, answer in zip(run.items, run.answers, strict=True)
    ]
    hits = [letter == item.gold for item, letter in zip(run.items, letters, strict=True)]
    figures = shares((*item.extra["groups"], hit) for item, hit in zip(run.items, hits, strict=True))
    return Result(figures, "Overall", [float(hit) for hit in hits], {"answers without a letter": letters.count("")})


def _reader(path: str) -> Callable[[Path], Iterator[Record]]:
    def read(root: Path) -> Iterator[Record]:
        """``id``: the question's own, with a number where it comes again."""
        seen: dict[str, int] = {}
        for record in read_records(root / path):
            name = str(field_of(record, "Question_id", path))
            seen[name] = seen.get(name, 0) + 1
            yield {**record, "id": name if seen[name] == 1 else f"{name}#{seen[name]}"}

    return read


def _task(name: str, title: str, file: str) -> Task:
    path = f"{_FOLDER}/{file}"
    source = "https://huggingface.co/datasets/yifanzhang114/MME-RealWorld, its pictures in the same folder"
    return Task(
        name,
        title,
        (Layout("guide", (path,), _reader(path), source),),
        _asker(name),
        _score,
        max_new_tokens=100,
        files=answers_file(name),
    )


TASKS = (
    _task("MME-RealWorld", "MME-RealWorld, English", "MME_RealWorld.json"),
    _task("MME-RealWorld-CN", "MME-RealWorld, Chinese", "MME_RealWorld_CN.json"),
)
# The second spelling is the original's, with a long dash.
KEYS = dict.fromkeys(("mme-realworld", "mme—realworld"), ("MME-RealWorld", "MME-RealWorld-CN"))
